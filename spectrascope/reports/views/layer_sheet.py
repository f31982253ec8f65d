"""Rows of layers as cells of text: the per-layer table and the α triangle alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spectrascope.records.report import NOT_SELECTED, LayerReport, LayerRow, SkippedLayer
from spectrascope.records.values import LayerStatus, Missing, PowerFit, RankComparison, RankModel
from spectrascope.reports.charts.sparklines import log_sparkline
from spectrascope.reports.figures import format_percent
from spectrascope.reports.views.document import DASH, Column, Footnotes, Row, Sheet, Tone

__all__ = ["RANK_MODEL_NAMES", "build_layer_sheet", "build_triangle_sheet"]

RANK_MODEL_NAMES = {
    RankModel.POWER_LAW: "power law",
    RankModel.EXPONENTIAL: "exponential",
    RankModel.LOGNORMAL: "log-normal",
}
"""How the rank models are called in tables."""

Cell = Callable[[LayerReport], "str | Missing"]


@dataclass(frozen=True, slots=True)
class _LayerColumn:
    column: Column
    cell: Cell


def build_layer_sheet(rows: Sequence[LayerRow]) -> Sheet:
    """One line per layer with everything that was fitted."""
    return _build("Layers", rows, _LAYER_COLUMNS)


def build_triangle_sheet(rows: Sequence[LayerRow]) -> Sheet:
    """One line per layer with the three exponents and how well they agree."""
    return _build("α triangle", rows, _TRIANGLE_COLUMNS)


def _build(title: str, rows: Sequence[LayerRow], columns: Sequence[_LayerColumn]) -> Sheet:
    notes = Footnotes()
    n_all = len(rows)
    rows = [row for row in rows if not (isinstance(row, SkippedLayer) and row.reason == NOT_SELECTED)]
    lines = [
        _measured_line(row, columns, notes) if isinstance(row, LayerReport) else _empty_line(row, columns, notes)
        for row in rows
    ]
    all_ok = all(row.status is LayerStatus.OK for row in rows)
    heads = (
        Column("layer", right=False),
        Column("kind", right=False, drop_order=5),
        Column("m × n", drop_order=4),
        *(item.column for item in columns),
        Column("status", right=False, drop_order=10 if all_ok else 0),
    )
    hidden = n_all - len(rows)
    left_out = (f"{hidden} of {n_all} weights {NOT_SELECTED} are not listed.",) if hidden else ()
    return Sheet(title, heads, tuple(lines), (*notes.lines(), *left_out))


def _head(row: LayerRow) -> tuple[str, str, str]:
    m, n = row.info.shape
    return row.info.name, row.info.kind.value, f"{m}×{n}"


def _measured_line(row: LayerReport, columns: Sequence[_LayerColumn], notes: Footnotes) -> Row:
    cells = []
    for item in columns:
        value = item.cell(row)
        cells.append(notes.missing(value) if isinstance(value, Missing) else value)
    return Row((*_head(row), *cells, "ok"))


def _empty_line(row: SkippedLayer, columns: Sequence[_LayerColumn], notes: Footnotes) -> Row:
    failed = row.status is LayerStatus.FAILED
    status = notes.mark("FAILED" if failed else row.status.value, row.reason)
    return Row((*_head(row), *[DASH] * len(columns), status), Tone.ALARM if failed else Tone.QUIET)


def _exponent(name: str) -> Cell:
    def cell(row: LayerReport) -> str | Missing:
        fit: PowerFit | Missing = getattr(row.analysis, name)
        return fit if isinstance(fit, Missing) else f"{fit.value:.2f}"

    return cell


def _beta(row: LayerReport) -> str | Missing:
    fit = row.analysis.beta
    if isinstance(fit, Missing):
        return fit
    mark = "*" if isinstance(fit.jackknife_ci95, Missing) else " "
    return f"{fit.value:.2f} ±{fit.interval.half_width:.2f}{mark}"


def _r2(row: LayerReport) -> str | Missing:
    fit = row.analysis.beta
    return fit if isinstance(fit, Missing) else f"{fit.r2:.3f}"


def _predicted(row: LayerReport) -> str | Missing:
    triangle = row.analysis.triangle
    return triangle if isinstance(triangle, Missing) else f"{triangle.predicted:.2f}"


def _triangle_error(row: LayerReport) -> str | Missing:
    triangle = row.analysis.triangle
    return triangle if isinstance(triangle, Missing) else format_percent(triangle.relative_error)


def _verdict(row: LayerReport) -> str | Missing:
    triangle = row.analysis.triangle
    if isinstance(triangle, Missing):
        return triangle
    return "holds" if triangle.well_conditioned else "off"


def _rank(row: LayerReport) -> str:
    return f"{row.measurement.rank}/{row.measurement.full_rank}"


def _window(row: LayerReport) -> str:
    first, last = row.analysis.window
    return f"{first}-{last}" if last >= first else "none"


def _rank_model(row: LayerReport) -> str | Missing:
    comparison = row.analysis.rank_models
    if not isinstance(comparison, RankComparison):
        return comparison
    return ("~" if comparison.tie else "") + RANK_MODEL_NAMES[comparison.best]


def _pr_h(row: LayerReport) -> str | Missing:
    value = row.analysis.pr_h
    return value if isinstance(value, Missing) else f"{value:.2f}"


def _pr_g(row: LayerReport) -> str | Missing:
    value = row.measurement.pr_g
    return value if isinstance(value, Missing) else f"{value:.1f}"


def _engine(row: LayerReport) -> str:
    name = row.measurement.engine.value
    return name if row.measurement.exact else f"{name} (approximate)"


_BETA = _LayerColumn(Column("β", strong=True), _beta)
_R2 = _LayerColumn(Column("R²", drop_order=1), _r2)
_RANK = _LayerColumn(Column("rank", drop_order=6), _rank)
_WINDOW = _LayerColumn(Column("window", drop_order=9), _window)
_ALPHA_G = _LayerColumn(Column("α_G", drop_order=3), _exponent("alpha_g"))
_ALPHA_H = _LayerColumn(Column("α_H", drop_order=3), _exponent("alpha_h"))
_PREDICTED = _LayerColumn(Column("β·α_G", drop_order=7), _predicted)
_ERROR = _LayerColumn(Column("triangle", drop_order=1), _triangle_error)

_LAYER_COLUMNS = (
    _RANK,
    _WINDOW,
    _BETA,
    _R2,
    _ALPHA_G,
    _ALPHA_H,
    _PREDICTED,
    _ERROR,
    _LayerColumn(Column("σ_k", right=False, drop_order=8), lambda row: log_sparkline(row.measurement.sigma)),
    _LayerColumn(Column("h_k", right=False, drop_order=5), lambda row: log_sparkline(row.measurement.h)),
    _LayerColumn(Column("rank model", right=False, drop_order=2), _rank_model),
    _LayerColumn(Column("PR_h", drop_order=5), _pr_h),
    _LayerColumn(Column("PR_g", drop_order=8), _pr_g),
    _LayerColumn(Column("h<0", drop_order=6), lambda row: str(row.analysis.n_negative)),
    _LayerColumn(Column("engine", right=False, drop_order=10), _engine),
)

_TRIANGLE_COLUMNS = (
    _WINDOW,
    _BETA,
    _ALPHA_G,
    _ALPHA_H,
    _LayerColumn(Column("β·α_G", drop_order=2), _predicted),
    _LayerColumn(Column("error"), _triangle_error),
    _LayerColumn(Column("verdict", right=False), _verdict),
)
