"""The layers of a report as the page shows them: rows to sort and filter, and all the facts of one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spectrascope.records.report import NOT_SELECTED, LayerReport, LayerRow, Measurement, Report
from spectrascope.records.signal import NullBeta, StepExponent
from spectrascope.records.values import Interval, LayerStatus, Missing, PowerFit, RankComparison, Triangle, ZetaBound
from spectrascope.reports import fields
from spectrascope.reports.charts.decomposition_chart import PARTS_OF_BETA
from spectrascope.reports.fields import RANK_MODEL_NAMES, Field
from spectrascope.reports.figures import format_count
from spectrascope.reports.views.document import DASH
from spectrascope.reports.views.signal import say_layer_signal

__all__ = ["Choice", "LayerFacts", "PageCell", "PageColumn", "PageRow", "PageTable", "build_layer_table", "layer_facts"]

_LONG = 13  # letters in a third of a phone's width
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
    """A table to sort and filter; a small one is sorted by its headings alone."""

    id: str
    label: str
    columns: tuple[PageColumn, ...]
    rows: tuple[PageRow, ...]
    choices: tuple[Choice, ...] = ()
    small: bool = False

    @property
    def long(self) -> set[int]:
        """Columns whose words need twice the room on a phone."""
        return {i for i in range(len(self.columns)) if any(len(row.cells[i].text) > _LONG for row in self.rows)}


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A label, a value and what goes with it."""

    label: str
    text: str
    more: str = ""


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
            *(PageColumn(field.header, field.about, field.right) for field in _shown()),
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
    facts.append(LayerFacts("what can be known", say_layer_signal(row)))
    facts += [_facts(field, row) for field in sorted(fields.csv_fields(), key=lambda field: not field.page)]
    return (*facts, *_error_facts(row.measurement), *_decomposition_facts(row))


def _facts(field: Field, row: LayerReport) -> LayerFacts:
    value, text = field.read(row), field.text(row)
    if isinstance(value, Missing) or isinstance(text, Missing):
        return LayerFacts(field.header, DASH, value.reason)
    if isinstance(value, PowerFit):
        return _fit_facts(field.header, value)
    if isinstance(value, StepExponent):
        return _step_facts(field, value, text)
    if isinstance(value, NullBeta):
        drawn = f"{value.low:.2f} to {value.high:.2f} over {format_count(value.n_draws, 'draw')}"
        return LayerFacts(field.header, text, f"{drawn}; {field.about}")
    if isinstance(value, Triangle):
        verdict = "holds within 10 %" if value.well_conditioned else "off by more than 10 %"
        return LayerFacts(field.header, text, f"β·α_G = {value.predicted:.3f}; {verdict}")
    if isinstance(value, RankComparison):
        bics = ", ".join(f"{RANK_MODEL_NAMES[fit.model]} {fit.bic:.1f}" for fit in value.fits)
        tie = "; a tie" if value.tie else ""
        return LayerFacts(field.header, RANK_MODEL_NAMES[value.best], f"BIC: {bics}; ΔBIC {value.delta_bic:.1f}{tie}")
    if isinstance(value, ZetaBound):
        return LayerFacts(field.header, text, _say_bound(value))
    if isinstance(value, float) and field.cell is None and field.form != "%":
        text = f"{value:.4g}"
    return LayerFacts(field.header, text, row.measurement.engine_reason if field.name == "engine" else field.about)


def _shown() -> list[Field]:
    return [field for field in fields.FIELDS if field.page]


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
        *(_cell(field, row) if isinstance(row, LayerReport) else PageCell(DASH, "") for field in _shown()),
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


def _cell(field: Field, row: LayerReport) -> PageCell:
    text, value = field.text(row), field.value(row)
    if isinstance(text, Missing):
        return PageCell(DASH, "", text.reason)
    if isinstance(value, Missing):  # undetermined: shown, and sorted with those that are not measured
        return PageCell(text.strip(), "", value.reason)
    return PageCell(text.strip(), repr(float(value)) if isinstance(value, (int, float)) else str(value))


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _fit_facts(label: str, fit: PowerFit | Missing) -> LayerFacts:
    if isinstance(fit, Missing):
        return LayerFacts(label, DASH, fit.reason)
    groups = fit.jackknife_ci95
    over = f"no jackknife: {groups.reason}" if isinstance(groups, Missing) else f"over sample groups {_range(groups)}"
    dropped = f", {fit.n_dropped} left out" if fit.n_dropped else ""
    return LayerFacts(
        label,
        f"{fit.value:.3f}",
        f"95 %: {_range(fit.interval)}, the wider of straight line {_range(fit.ci95)}; {over}; "
        f"R² {fit.r2:.4f}, {fit.n} points{dropped}",
    )


def _step_facts(field: Field, step: StepExponent, text: str) -> LayerFacts:
    """The exponent, and by how much the loss is predicted to fall at it and at others."""
    falls = [("b = 0", step.decrease_0), ("b = 1", step.decrease_1), ("b = 2", step.decrease_2)]
    said = ", ".join(f"{name} {fall:.3g}" for name, fall in falls)
    if step.determined:
        error = "" if isinstance(step.decrease_stderr, Missing) else f" ±{step.decrease_stderr:.2g}"
        said += f", b = {step.value:.2f} {step.decrease:.3g}{error} (standard error)"
    best = step.decrease_best
    said += (
        f", best combination {best:.3g}" if not isinstance(best, Missing) else f"; no best combination: {best.reason}"
    )
    why = f"{step.reason}; " if step.reason else ""
    return LayerFacts(field.header, text, f"{why}predicted decrease of the loss on held-out samples: {said}")


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
    return [_fit_facts(label, getattr(found.alignment, name)) for name, label, _ in PARTS_OF_BETA]


def _say_bound(bound: ZetaBound) -> str:
    infinite = (
        f"infinite: none ({bound.infinite.reason})"
        if isinstance(bound.infinite, Missing)
        else f"infinite {bound.infinite:.3f}, {'holds' if bound.infinite_holds is True else 'violated'}"
    )
    return f"{'holds' if bound.finite_holds else 'violated'}, with s = {bound.s:.3f}; {infinite}"
