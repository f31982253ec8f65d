"""Flatten a report into numbers for a logger."""

from __future__ import annotations

from spectrascope.advice.trajectory import MeasuredCheckpoint, build_trajectory
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing
from spectrascope.reports.fields import followed

__all__ = ["PREFIX", "report_metrics"]

PREFIX = "curvature"
"""First part of every metric's name."""


def report_metrics(report: Report, *, per_layer: bool = True) -> dict[str, float]:
    """Flatten a report: ``curvature/beta_median`` …, ``curvature/bic_wins/lognormal`` …, ``curvature/beta/LAYER`` ….

    What was not measured has no entry.

    Args:
        report: of one moment in training.
        per_layer: with the numbers of each layer, not only medians and counts.
    """
    (point,) = build_trajectory([MeasuredCheckpoint("now", report)]).points
    found: dict[str, float | Missing] = {f"{PREFIX}/loss": point.loss, f"{PREFIX}/accuracy": point.accuracy}
    found |= {f"{PREFIX}/{name}_median": value for name, value in point.medians.items()}
    found |= {f"{PREFIX}/bic_wins/{model}": float(wins) for model, wins in point.bic_wins.items()}
    found |= {f"{PREFIX}/n_ok": float(point.n_ok), f"{PREFIX}/n_failed": float(point.n_failed)}
    if per_layer:
        for row in report.layers:
            if isinstance(row, LayerReport):
                for field in followed():
                    found[f"{PREFIX}/{field.flat}/{row.info.name}"] = field.value(row)
    return {name: float(value) for name, value in found.items() if not isinstance(value, Missing)}
