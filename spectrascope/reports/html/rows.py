"""The layers of a report as the page shows them: rows to sort and filter, and all the facts of one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from spectrascope.records.report import NOT_SELECTED, LayerReport, LayerRow, Measurement, Report
from spectrascope.records.values import Interval, LayerStatus, Missing, PowerFit, RankComparison, Triangle, ZetaBound
from spectrascope.reports.figures import format_percent
from spectrascope.reports.views.document import DASH
from spectrascope.reports.views.layer_sheet import RANK_MODEL_NAMES

__all__ = ["Choice", "LayerFacts", "PageCell", "PageColumn", "PageRow", "PageTable", "build_layer_table", "layer_facts"]

_FIRST = 8
"""Directions whose errors are shown."""


@dataclass(frozen=True, slots=True)
class PageColumn:
    """A column of a table to sort by; ``about`` explains it."""

    title: str
    about: str = ""
    right: bool = True


@dataclass(frozen=True, slots=True)
class PageCell:
    """What a cell shows, what it is sorted by (empty: not measured), and why it is empty."""

    text: str
    value: str
    reason: str = ""
    spark: str = ""


@dataclass(frozen=True, slots=True)
class PageRow:
    """A line of a table; ``keys`` are what the choices filter by, ``detail`` the number of its page."""

    name: str
    cells: tuple[PageCell, ...]
    keys: tuple[tuple[str, str], ...] = ()
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A filter by a key's values."""

    label: str
    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table to sort and filter."""

    id: str
    label: str
    columns: tuple[PageColumn, ...]
    rows: tuple[PageRow, ...]
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A label, a value and what goes with it."""

    label: str
    text: str
    more: str = ""


Content: TypeAlias = "tuple[str, float | str] | Missing"
"""Text and what it is sorted by."""


def build_layer_table(report: Report) -> PageTable:
    """Every layer that was asked for, with its numbers."""
    rows = [
        (i, row) for i, row in enumerate(report.layers) if isinstance(row, LayerReport) or row.reason != NOT_SELECTED
    ]
    choices = (
        Choice("Kind", "kind", _distinct([row.info.kind.value for _, row in rows])),
        Choice("Status", "status", _distinct([row.status.value for _, row in rows])),
    )
    return PageTable(
        id="layer-table",
        label="Layers and what was fitted",
        columns=(
            PageColumn("layer", "name of the parameter", right=False),
            PageColumn("kind", "the operation that uses it", right=False),
            PageColumn("m × n", "outputs × inputs; sorted by their product"),
            *(column for column, _ in _COLUMNS),
            PageColumn("status", "measured, skipped or failed", right=False),
        ),
        rows=tuple(_build_row(i, row) for i, row in rows),
        choices=tuple(choice for choice in choices if len(choice.values) > 1),
    )


def layer_facts(row: LayerRow) -> tuple[LayerFacts, ...]:
    """All that is known of a layer; a value that is missing comes with its reason."""
    info = row.info
    m, n = info.shape
    facts = [
        LayerFacts("weight", f"{info.kind.value}, {m}×{n}", _shape_note(row)),
        LayerFacts("status", row.status.value, "" if isinstance(row, LayerReport) else row.reason),
    ]
    if info.tied_names:
        facts.append(LayerFacts("tied to", ", ".join(info.tied_names)))
    if not isinstance(row, LayerReport):
        return tuple(facts)
    a, measured = row.analysis, row.measurement
    facts += [
        _fit_facts("β", a.beta),
        _fit_facts("α_G", a.alpha_g),
        _fit_facts("α_H", a.alpha_h),
        _triangle_facts(a.triangle),
        _rank_facts(a.rank_models),
        _number_facts("PR_h", a.pr_h, "directions that carry the curvature"),
        _number_facts("PR_g", measured.pr_g, "directions that carry the gradient"),
        _number_facts("effective rank of h", a.effective_rank_h),
        _number_facts("effective rank of the gradient", measured.effective_rank_g),
        _zeta_facts(a.zeta_bound),
        LayerFacts(
            "window", f"k = {a.window[0]} … {a.window[1]}", f"numerical rank {measured.rank} of {measured.full_rank}"
        ),
        LayerFacts("negative h", str(a.n_negative), "left out of logarithms"),
        _number_facts("above sampling noise", a.n_above_noise, f"of {a.window[1] - a.window[0] + 1} directions"),
        _number_facts("off-diagonal mass", a.off_diagonal_mass, "of the curvature between the directions"),
        LayerFacts(
            "engine", measured.engine.value + ("" if measured.exact else " (approximate)"), measured.engine_reason
        ),
        *_error_facts(measured),
        _number_facts("self-check", measured.residual, "largest relative difference from the reference"),
        *_decomposition_facts(row),
    ]
    return tuple(facts)


def _window(row: LayerReport) -> str:
    first, last = row.analysis.window
    return f"k = {first} … {last}" if last >= first else "none"


def _shape_note(row: LayerRow) -> str:
    info = row.info
    stored = "×".join(str(size) for size in info.stored_shape)
    return f"stored as {stored}" + (", frozen in training" if info.frozen else "")


def _distinct(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


def _build_row(index: int, row: LayerRow) -> PageRow:
    m, n = row.info.shape
    cells = [
        PageCell(row.info.name, row.info.name),
        PageCell(row.info.kind.value, row.info.kind.value),
        PageCell(f"{m}×{n}", str(m * n)),
        *(_cell(content(row)) if isinstance(row, LayerReport) else PageCell(DASH, "") for _, content in _COLUMNS),
    ]
    failed = row.status is LayerStatus.FAILED
    status = "FAILED" if failed else row.status.value
    cells.append(PageCell(status, status, "" if isinstance(row, LayerReport) else row.reason))
    return PageRow(
        row.info.name,
        tuple(cells),
        (("kind", row.info.kind.value), ("status", row.status.value)),
        detail=str(index),
        tone="" if isinstance(row, LayerReport) else "alarm" if failed else "quiet",
    )


def _cell(content: Content) -> PageCell:
    if isinstance(content, Missing):
        return PageCell(DASH, "", content.reason)
    text, value = content
    return PageCell(text, repr(float(value)) if isinstance(value, (int, float)) else value)


def _exponent(name: str) -> Callable[[LayerReport], Content]:
    def content(row: LayerReport) -> Content:
        fit: PowerFit | Missing = getattr(row.analysis, name)
        return fit if isinstance(fit, Missing) else (f"{fit.value:.2f}", fit.value)

    return content


def _beta(row: LayerReport) -> Content:
    fit = row.analysis.beta
    return fit if isinstance(fit, Missing) else (f"{fit.value:.2f} ±{_half(_interval(fit)[0]):.2f}", fit.value)


def _r2(row: LayerReport) -> Content:
    fit = row.analysis.beta
    return fit if isinstance(fit, Missing) else (f"{fit.r2:.3f}", fit.r2)


def _triangle(row: LayerReport) -> Content:
    triangle = row.analysis.triangle
    if isinstance(triangle, Missing):
        return triangle
    return format_percent(triangle.relative_error), triangle.relative_error


def _rank_model(row: LayerReport) -> Content:
    comparison = row.analysis.rank_models
    if isinstance(comparison, Missing):
        return comparison
    name = RANK_MODEL_NAMES[comparison.best]
    return ("~" if comparison.tie else "") + name, name


def _number(value: float | Missing, form: str) -> Content:
    return value if isinstance(value, Missing) else (format(value, form), value)


_COLUMNS: tuple[tuple[PageColumn, Callable[[LayerReport], Content]], ...] = (
    (PageColumn("β", "curvature exponent, ± half its 95 % interval"), _beta),
    (PageColumn("R²", "how straight log h against log σ is"), _r2),
    (PageColumn("α_G", "decay of σ with rank"), _exponent("alpha_g")),
    (PageColumn("α_H", "decay of h with rank"), _exponent("alpha_h")),
    (PageColumn("triangle", "relative error of α_H ≈ β·α_G"), _triangle),
    (PageColumn("rank model", "lowest BIC; ~ a tie", right=False), _rank_model),
    (PageColumn("PR_h", "participation ratio of the curvature"), lambda row: _number(row.analysis.pr_h, ".2f")),
    (PageColumn("PR_g", "participation ratio of the gradient"), lambda row: _number(row.measurement.pr_g, ".1f")),
    (PageColumn("h<0", "directions of negative curvature"), lambda row: _number(row.analysis.n_negative, "d")),
)


def _interval(fit: PowerFit) -> tuple[Interval, str]:
    if isinstance(fit.jackknife_ci95, Missing):
        return fit.ci95, f"straight line; no jackknife: {fit.jackknife_ci95.reason}"
    return fit.jackknife_ci95, "over sample groups"


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


def _fit_facts(label: str, fit: PowerFit | Missing) -> LayerFacts:
    if isinstance(fit, Missing):
        return LayerFacts(label, DASH, fit.reason)
    interval, kind = _interval(fit)
    dropped = f", {fit.n_dropped} left out" if fit.n_dropped else ""
    return LayerFacts(
        label,
        f"{fit.value:.3f}",
        f"95 %: {interval.low:.3f} to {interval.high:.3f} ({kind}); line {fit.ci95.low:.3f} to {fit.ci95.high:.3f}; "
        f"R² {fit.r2:.4f}, {fit.n} points{dropped}",
    )


def _triangle_facts(triangle: Triangle | Missing) -> LayerFacts:
    if isinstance(triangle, Missing):
        return LayerFacts("triangle", DASH, triangle.reason)
    verdict = "holds within 10 %" if triangle.well_conditioned else "off by more than 10 %"
    return LayerFacts(
        "triangle", format_percent(triangle.relative_error), f"β·α_G = {triangle.predicted:.3f}; {verdict}"
    )


def _rank_facts(comparison: RankComparison | Missing) -> LayerFacts:
    if isinstance(comparison, Missing):
        return LayerFacts("rank model", DASH, comparison.reason)
    bics = ", ".join(f"{RANK_MODEL_NAMES[fit.model]} {fit.bic:.1f}" for fit in comparison.fits)
    tie = "; a tie" if comparison.tie else ""
    return LayerFacts(
        "rank model", RANK_MODEL_NAMES[comparison.best], f"BIC: {bics}; ΔBIC {comparison.delta_bic:.1f}{tie}"
    )


def _number_facts(label: str, value: float | Missing, more: str = "") -> LayerFacts:
    if isinstance(value, Missing):
        return LayerFacts(label, DASH, value.reason)
    return LayerFacts(label, str(value) if isinstance(value, int) else f"{value:.4g}", more)


def _error_facts(measured: Measurement) -> list[LayerFacts]:
    """How far off an estimate may be; nothing for exact engines."""
    if measured.exact:
        return []
    if isinstance(measured.h_stderr, Missing):
        return [LayerFacts("error of the estimate", DASH, "the report does not state it")]
    errors = " ".join(f"{error:.2g}" for error in measured.h_stderr[:_FIRST])
    which = f"the first {_FIRST} directions" if len(measured.h_stderr) > _FIRST else "every direction"
    return [LayerFacts("error of the estimate", f"±{errors}", f"standard errors of h in {which}")]


def _decomposition_facts(row: LayerReport) -> list[LayerFacts]:
    """The parts of β, where the report holds them."""
    found = row.decomposition
    if isinstance(found, Missing):
        return []
    parts = found.alignment
    return [
        _fit_facts("β_Λ, eigenvalues of the factors", parts.beta_lambda),
        _fit_facts("β_Φ, alignment with the gradient", parts.beta_phi),
        _fit_facts("β_χ, beyond a Kronecker product", parts.beta_chi),
    ]


def _zeta_facts(bound: ZetaBound | Missing) -> LayerFacts:
    if isinstance(bound, Missing):
        return LayerFacts("zeta bound on PR_h", DASH, bound.reason)
    infinite = (
        f"infinite: none ({bound.infinite.reason})"
        if isinstance(bound.infinite, Missing)
        else f"infinite {bound.infinite:.3f}, {'holds' if bound.infinite_holds is True else 'violated'}"
    )
    verdict = "holds" if bound.finite_holds else "violated"
    return LayerFacts("zeta bound on PR_h", f"{bound.finite:.3f}", f"{verdict}, with s = {bound.s:.3f}; {infinite}")
