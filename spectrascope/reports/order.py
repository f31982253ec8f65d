"""The order of a report's rows."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.values import LayerStatus, Missing, PowerFit, Triangle

__all__ = ["Sort", "sort_layers"]


class Sort(str, Enum):
    """Orders of a table: as in the network, by name, or by a number with the most striking layer first."""

    ORDER = "order"
    NAME = "name"
    BETA = "beta"
    R2 = "r2"
    TRIANGLE = "triangle"
    PR_H = "pr_h"
    RESIDUAL = "residual"
    STATUS = "status"


def sort_layers(report: Report, sort: Sort) -> tuple[LayerRow, ...]:
    """Return the report's rows in the order asked for.

    Largest first for beta, triangle error, PR_h and residual; smallest first for R²; failed, then ok, then
    skipped for status. Rows without the number come last; rows that compare equal keep the network's order.
    """
    if sort is Sort.ORDER:
        return report.layers
    if sort is Sort.NAME:
        return tuple(sorted(report.layers, key=lambda row: row.info.name))
    if sort is Sort.STATUS:
        places = (LayerStatus.FAILED, LayerStatus.OK, LayerStatus.SKIPPED)
        return tuple(sorted(report.layers, key=lambda row: places.index(row.status)))

    def place(row: LayerRow) -> tuple[bool, float]:
        value = _NUMBERS[sort](row) if isinstance(row, LayerReport) else None
        return (value is None, 0.0 if value is None else value)

    return tuple(sorted(report.layers, key=place))


def _beta(row: LayerReport) -> float | None:
    fit = row.analysis.beta
    return -fit.value if isinstance(fit, PowerFit) else None


def _r2(row: LayerReport) -> float | None:
    fit = row.analysis.beta
    return fit.r2 if isinstance(fit, PowerFit) else None


def _triangle(row: LayerReport) -> float | None:
    triangle = row.analysis.triangle
    return -triangle.relative_error if isinstance(triangle, Triangle) else None


def _pr_h(row: LayerReport) -> float | None:
    value = row.analysis.pr_h
    return None if isinstance(value, Missing) else -value


def _residual(row: LayerReport) -> float | None:
    value = row.measurement.residual
    return None if isinstance(value, Missing) else -value


_NUMBERS: dict[Sort, Callable[[LayerReport], float | None]] = {
    Sort.BETA: _beta,
    Sort.R2: _r2,
    Sort.TRIANGLE: _triangle,
    Sort.PR_H: _pr_h,
    Sort.RESIDUAL: _residual,
}
