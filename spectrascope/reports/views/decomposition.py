"""The spectral alignment decomposition as a document and as CSV."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from spectrascope.records.decomposition import (
    Alignment,
    Decomposition,
    Determination,
    Factors,
    FisherType,
    Sharing,
)
from spectrascope.records.report import NOT_SELECTED, LayerReport, LayerRow, Report
from spectrascope.records.values import LayerStatus, Missing, PowerFit
from spectrascope.reports.csv import missing_apart, write_csv
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.order import Sort, sort_layers
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_run
from spectrascope.reports.views.layer_sheet import RANK_MODEL_NAMES
from spectrascope.reports.views.words import warn

__all__ = ["DECOMPOSITION_COLUMNS", "build_decomposition", "decomposition_to_csv"]

_FISHERS = {
    FisherType.GGN: "columns of the loss's curvature",
    FisherType.MC: "labels drawn from the model",
    FisherType.EMPIRICAL: "true labels",
}
_SHARINGS = {Sharing.EXPAND: "each position by itself", Sharing.REDUCE: "positions summed first"}

Cell = Callable[[Decomposition], "str | Missing"]


def build_decomposition(report: Report, sort: Sort = Sort.ORDER) -> Document:
    """Three sheets per layer (slopes, factors, words) and how to read them; the first alone where none has factors."""
    rows = [row for row in sort_layers(report, sort) if isinstance(row, LayerReport) or row.reason != NOT_SELECTED]
    found = [d for _, d in _pairs(rows)]
    return Document(
        title="spectrascope: spectral alignment decomposition, β = β_Λ + β_Φ + β_χ",
        facts=(*describe_run(report.provenance), *_describe_factors(found)),
        sheets=(
            _sheet("Where β comes from", rows, _SLOPES),
            *([_sheet("Curvature and its factors", rows, _FACTORS), _words_sheet(rows)] if found else []),
        ),
        closing=(*((line, Tone.PLAIN) for line in _closing(report, found)), *warn(report)),
    )


def _pairs(rows: Sequence[LayerRow]) -> list[tuple[LayerReport, Decomposition]]:
    pairs = [(row, row.decomposition) for row in rows if isinstance(row, LayerReport)]
    return [(row, d) for row, d in pairs if isinstance(d, Decomposition)]


def _describe_factors(found: list[Decomposition]) -> tuple[tuple[str, str], ...]:
    if not found:
        return (("factors", "none"),)
    parts = []
    for factors in {(d.factors.columns, d.factors.exact): d.factors for d in found}.values():
        kind = "exact" if factors.exact else "random: an estimate"
        parts.append(
            f"{factors.fisher.value} ({_FISHERS[factors.fisher]}), {format_count(factors.columns, 'column')} per "
            f"sample, {kind}; {factors.sharing.value} ({_SHARINGS[factors.sharing]})"
        )
    return (("factors", "; ".join(parts)),)


def _number(pick: Callable[[Decomposition], float | Missing], form: str = ".2f") -> Cell:
    def cell(d: Decomposition) -> str | Missing:
        value = pick(d)
        return value if isinstance(value, Missing) else format(value, form)

    return cell


def _slope(name: str, *, interval: bool = False) -> Cell:
    def cell(d: Decomposition) -> str | Missing:
        fit: PowerFit | Missing = getattr(d.alignment, name)
        if isinstance(fit, Missing):
            return fit
        if not interval:
            return f"{fit.value:.2f}"
        wide = fit.ci95
        other = fit.jackknife_ci95
        if not isinstance(other, Missing) and other.high - other.low > wide.high - wide.low:
            wide = other
        return f"{fit.value:.2f} ±{(wide.high - wide.low) / 2:.2f}"

    return cell


_SLOPES: tuple[tuple[Column, Cell], ...] = (
    (Column("β", strong=True), _slope("beta", interval=True)),
    (Column("β_Λ"), _slope("beta_lambda", interval=True)),
    (Column("β_Φ"), _slope("beta_phi", interval=True)),
    (Column("β_χ"), _slope("beta_chi", interval=True)),
    (Column("Λ^δ", drop_order=3), _slope("beta_lambda_delta")),
    (Column("Λ^A", drop_order=3), _slope("beta_lambda_a")),
    (Column("ρ^δ", drop_order=2), _slope("beta_rho_delta")),
    (Column("ρ^A", drop_order=2), _slope("beta_rho_a")),
    (Column("|β − sum|", drop_order=1), _number(lambda d: d.alignment.identity_residual, ".0e")),
)

_FACTORS: tuple[tuple[Column, Cell], ...] = (
    (Column("χ", strong=True), lambda d: _chi(d.alignment)),
    (Column("conc."), _number(lambda d: d.alignment.concentration_ratio)),
    (Column("top 1 %", drop_order=3), lambda d: _percent(d.factors.concentration.top_1_percent)),
    (Column("top 10 %", drop_order=5), lambda d: _percent(d.factors.concentration.top_10_percent)),
    (Column("Gini samples", drop_order=6), _number(lambda d: d.factors.concentration.gini_samples)),
    (Column("Gini positions", drop_order=7), _number(lambda d: d.factors.concentration.gini_positions)),
    (Column("R²(h, σ²)", drop_order=4), _number(lambda d: d.alignment.r2_h_sigma2, ".3f")),
    (Column("R²(h_GN, σ²)", drop_order=8), _number(lambda d: d.alignment.r2_h_gn_sigma2, ".3f")),
    (Column("R²(h, h_GN)", drop_order=8), _number(lambda d: d.alignment.r2_h_h_gn, ".3f")),
    (Column("r(h_Kron, σ²)", drop_order=2), _number(lambda d: d.alignment.r_h_kron_sigma2, ".3f")),
    (Column("r_eff δ", drop_order=1), _number(lambda d: d.factors.delta.effective_rank, ".1f")),
    (Column("r_eff A", drop_order=1), _number(lambda d: d.factors.a.effective_rank, ".1f")),
    (Column("s_weight", drop_order=9), lambda d: _fit(d.factors.s_weight)),
    (Column("σ-profile off by", drop_order=4), lambda d: _percent_of_log(d.alignment.profile_distance)),
)


def _fit(fit: PowerFit | Missing) -> str | Missing:
    return fit if isinstance(fit, Missing) else f"{fit.value:.2f}"


def _percent(value: float | Missing) -> str | Missing:
    return value if isinstance(value, Missing) else format_percent(value)


def _percent_of_log(value: float | Missing) -> str | Missing:
    return value if isinstance(value, Missing) else f"{100 * (2.718281828459045**value - 1):.0f} %"


def _chi(alignment: Alignment) -> str | Missing:
    if isinstance(alignment.chi_median, Missing):
        return alignment.chi_median
    return f"{alignment.chi_median:.2g} ({min(alignment.chi):.2g} to {max(alignment.chi):.2g})"


def _sheet(title: str, rows: Sequence[LayerRow], cells: tuple[tuple[Column, Cell], ...]) -> Sheet:
    notes = Footnotes()
    columns = (Column("layer", right=False), *(column for column, _ in cells))
    return Sheet(title, columns, tuple(_line(row, cells, notes) for row in rows), notes.lines())


def _line(row: LayerRow, cells: tuple[tuple[Column, Cell], ...], notes: Footnotes) -> Row:
    if not isinstance(row, LayerReport):
        failed = row.status is LayerStatus.FAILED
        first = notes.mark("FAILED" if failed else row.status.value, row.reason)
        return Row((row.info.name, first, *[DASH] * (len(cells) - 1)), Tone.ALARM if failed else Tone.QUIET)
    decomposition = row.decomposition
    if isinstance(decomposition, Missing):
        return Row((row.info.name, notes.missing(decomposition), *[DASH] * (len(cells) - 1)), Tone.QUIET)
    values = [cell(decomposition) for _, cell in cells]
    return Row((row.info.name, *(notes.missing(v) if isinstance(v, Missing) else v for v in values)))


def _words_sheet(rows: Sequence[LayerRow]) -> Sheet:
    columns = (
        Column("layer", right=False),
        Column("mechanism", right=False),
        Column("K-FAC, Shampoo", right=False),
        Column("rank models δ, A → gradient", right=False, drop_order=1),
        Column("evidence", right=False, drop_order=2),
    )
    lines = [Row((row.info.name, _mechanism(d), _suits(d), _models(d), _evidence(d))) for row, d in _pairs(rows)]
    return Sheet("Read-out", columns, tuple(lines))


def _mechanism(d: Decomposition) -> str:
    borne_out = [m.name for m in d.alignment.mechanisms if m.verdict is Determination.YES]
    open_ones = [m.name for m in d.alignment.mechanisms if m.verdict is Determination.UNDETERMINED]
    if borne_out:
        return ", ".join("none: factors aligned" if name == "none" else name for name in borne_out)
    return "undetermined" if open_ones else "another than those known"


def _suits(d: Decomposition) -> str:
    return {Determination.YES: "suited", Determination.NO: "not suited", Determination.UNDETERMINED: "undetermined"}[
        d.alignment.kronecker.verdict
    ]


def _models(d: Decomposition) -> str:
    reading = d.alignment.reading
    names = [
        DASH if isinstance(model, Missing) else RANK_MODEL_NAMES[model.best]
        for model in (reading.delta_model, reading.a_model)
    ]
    gradient = DASH if isinstance(reading.gradient_model, Missing) else RANK_MODEL_NAMES[reading.gradient_model]
    driver = "" if isinstance(reading.driver, Missing) else f" (by {'A' if reading.driver == 'a' else 'δ'})"
    return f"{names[0]}, {names[1]} → {gradient}{driver}"


def _evidence(d: Decomposition) -> str:
    borne_out = [m.evidence for m in d.alignment.mechanisms if m.verdict is Determination.YES]
    return "; ".join(dict.fromkeys([*borne_out, d.alignment.kronecker.evidence]))


def _closing(report: Report, found: list[Decomposition]) -> list[str]:
    lines = [
        "Slopes of logarithms on log σ over the same directions: h = Λ·Φ·χ, so β = β_Λ + β_Φ + β_χ (checked to 1e-8). "
        "Λ: eigenvalues of the Kronecker factors C_δ and C_A; Φ = ρ^δ·ρ^A: how the gradient's singular directions lie "
        "in their eigenbases (1: aligned); χ = h / h_Kron: what the product of factors leaves out.",
        "Factors are per sample and not divided by the batch size, so χ is of order 1 where the product is a good "
        "model. ± is the wider of the straight-line and the jackknife interval (β and β_χ have both).",
        "conc. is the mean of (u·δ)²(v·a)² over the product of the means; top 1 % the share of curvature that the "
        "hundredth of the samples with most of it holds. σ-profile: how far the gradient's singular values are from "
        "those of noise with the factors' spectra, once scaled to fit.",
    ]
    if not found:
        return lines
    suits = Counter(d.alignment.kronecker.verdict for d in found)
    lines.append(
        f"A Kronecker preconditioner suits {suits[Determination.YES]} of {format_count(len(found), 'layer')}, "
        f"does not suit {suits[Determination.NO]}, and is undetermined on {suits[Determination.UNDETERMINED]}: "
        "suited where χ is flat (its slope within ±0.25) and varies by less than 3 times."
    )
    matching = [d.alignment.reading for d in found if not isinstance(d.alignment.reading.matches, Missing)]
    if matching:
        lines.append(
            f"A factor has the gradient's rank model on {sum(bool(r.matches) for r in matching)} of "
            f"{format_count(len(matching), 'layer')}, driven by δ on {sum(r.driver == 'delta' for r in matching)} and "
            f"by A on {sum(r.driver == 'a' for r in matching)}."
        )
    pairs = [
        (d.factors.s_weight.value, row.analysis.alpha_h.value)
        for row, d in _pairs(report.layers)
        if isinstance(d.factors.s_weight, PowerFit) and isinstance(row.analysis.alpha_h, PowerFit)
    ]
    if pairs:
        below = sum(s < alpha for s, alpha in pairs)
        of = format_count(len(pairs), "layer")
        lines.append(f"s_weight (rank decay of the weight itself) is below α_H on {below} of {of}.")
    return lines


# -- CSV ------------------------------------------------------------------------------------------------------------

_FITS = (
    "beta", "beta_lambda", "beta_lambda_delta", "beta_lambda_a", "beta_phi", "beta_rho_delta", "beta_rho_a", "beta_chi",
)  # fmt: skip
_NUMBERS = (
    "identity_residual", "chi_median", "concentration_ratio", "r2_h_sigma2", "r2_h_gn_sigma2", "r2_h_h_gn",
    "r_h_kron_sigma2", "profile_distance", "profile_scale",
)  # fmt: skip
_CONCENTRATION = ("top_1_percent", "top_10_percent", "gini_samples", "gini_positions")

DECOMPOSITION_COLUMNS: tuple[str, ...] = (
    "name", "kind", "role", "M", "N", "status", "reason", "missing", "k1", "k2", "fisher", "sharing", "columns",
    "exact", "positions",
    *(f"{name}{suffix}" for name in _FITS for suffix in ("", "_stderr", "_ci_low", "_ci_high", "_r2")),
    "beta_jackknife_low", "beta_jackknife_high", "beta_chi_jackknife_low", "beta_chi_jackknife_high",
    *_NUMBERS, "chi_min", "chi_max", *_CONCENTRATION,
    *(f"{factor}_{name}" for factor in ("delta", "a") for name in
      ("dimension", "trace", "effective_rank", "participation_ratio", "model")),
    "gradient_model", "driver", "s_weight", "alpha_h", "kronecker", "mechanisms",
)  # fmt: skip
"""Columns of the decomposition, in order."""


def decomposition_to_csv(report: Report, sort: Sort = Sort.ORDER) -> str:
    """Write one row per layer with every number of its decomposition, headed by :data:`DECOMPOSITION_COLUMNS`."""
    return write_csv(DECOMPOSITION_COLUMNS, (_values(row) for row in sort_layers(report, sort)))


def _values(row: LayerRow) -> dict[str, Any]:
    info = row.info
    values: dict[str, Any] = {
        "name": info.name,
        "kind": info.kind.value,
        "role": info.role.value,
        "M": info.shape[0],
        "N": info.shape[1],
        "status": row.status.value,
    }
    if not isinstance(row, LayerReport):
        return {**values, "reason": row.reason}
    decomposition = row.decomposition
    if isinstance(decomposition, Missing):
        return {**values, "missing": f"decomposition: {decomposition.reason}"}
    alignment, factors = decomposition.alignment, decomposition.factors
    values |= {"k1": alignment.window[0], "k2": alignment.window[1], "fisher": factors.fisher.value}
    values |= {"sharing": factors.sharing.value, "columns": factors.columns, "exact": factors.exact}
    values["positions"] = factors.positions
    for name in _FITS:
        values |= _fit_values(name, getattr(alignment, name))
    values |= {name: getattr(alignment, name) for name in _NUMBERS}
    if alignment.chi:
        values |= {"chi_min": min(alignment.chi), "chi_max": max(alignment.chi)}
    values |= {name: getattr(factors.concentration, name) for name in _CONCENTRATION}
    values |= _factor_values(factors, alignment)
    values["s_weight"] = _value_of(factors.s_weight)
    values["alpha_h"] = _value_of(row.analysis.alpha_h)
    values["kronecker"] = alignment.kronecker.verdict.value
    values["mechanisms"] = "; ".join(f"{m.name}: {m.verdict.value}" for m in alignment.mechanisms)
    return missing_apart(values)


def _value_of(fit: PowerFit | Missing) -> float | Missing:
    return fit if isinstance(fit, Missing) else fit.value


def _fit_values(name: str, fit: PowerFit | Missing) -> dict[str, Any]:
    if isinstance(fit, Missing):
        return {name: fit}
    values: dict[str, Any] = {name: fit.value, f"{name}_stderr": fit.stderr, f"{name}_r2": fit.r2}
    values |= {f"{name}_ci_low": fit.ci95.low, f"{name}_ci_high": fit.ci95.high}
    if name in ("beta", "beta_chi"):
        wide = fit.jackknife_ci95
        if isinstance(wide, Missing):
            values[f"{name}_jackknife_low"] = wide
        else:
            values |= {f"{name}_jackknife_low": wide.low, f"{name}_jackknife_high": wide.high}
    return values


def _factor_values(factors: Factors, alignment: Alignment) -> dict[str, Any]:
    values: dict[str, Any] = {}
    models = (alignment.reading.delta_model, alignment.reading.a_model)
    for name, factor, model in zip(("delta", "a"), (factors.delta, factors.a), models, strict=True):
        values |= {f"{name}_dimension": factor.dimension, f"{name}_trace": factor.trace}
        values |= {f"{name}_effective_rank": factor.effective_rank}
        values |= {f"{name}_participation_ratio": factor.participation_ratio}
        values[f"{name}_model"] = model if isinstance(model, Missing) else model.best.value
    gradient = alignment.reading.gradient_model
    values["gradient_model"] = gradient if isinstance(gradient, Missing) else gradient.value
    values["driver"] = alignment.reading.driver
    return values
