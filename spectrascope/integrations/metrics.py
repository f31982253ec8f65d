"""Flatten a report into numbers for a logger."""

from __future__ import annotations

from spectrascope.advice.trajectory import MeasuredCheckpoint, build_trajectory
from spectrascope.gating.numbers import layer_value, report_value
from spectrascope.records.comparison import Value
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing
from spectrascope.reports.fields import followed

__all__ = ["PREFIX", "report_metrics"]

PREFIX = "curvature"
"""First part of every metric's name."""

_OF_NETWORK = {
    "step_exponent": "summary.signal.step_exponent",
    "decrease": "summary.signal.step_exponent.decrease",
    "n_resolved": "summary.signal.n_resolved",
    "n_signal": "summary.signal.n_signal",
    "null_beta_median": "summary.signal.null_beta_median",
}
_OF_LAYER = {
    "step_exponent": "held_out.step_exponent",
    "decrease": "held_out.step_exponent.decrease",
    "n_resolved": "samples_needed.n_resolved",
    "null_beta": "null.beta",
}


def report_metrics(report: Report, *, per_layer: bool = True) -> dict[str, float]:
    """Flatten a report: ``curvature/beta_median`` …, ``curvature/bic_wins/lognormal`` …, ``curvature/beta/LAYER`` ….

    What is signal has names of its own: ``curvature/step_exponent``, the one for all weights together,
    ``curvature/n_resolved``, ``curvature/decrease`` and ``curvature/null_beta_median``, and by layer likewise. What was
    not measured has no entry, and neither has a step exponent that the samples do not determine.

    Args:
        report: of one moment in training.
        per_layer: with the numbers of each layer, not only medians and counts.
    """
    (point,) = build_trajectory([MeasuredCheckpoint("now", report)]).points
    found: dict[str, Value] = {f"{PREFIX}/loss": point.loss, f"{PREFIX}/accuracy": point.accuracy}
    found |= {f"{PREFIX}/{name}_median": value for name, value in point.medians.items()}
    found |= {f"{PREFIX}/bic_wins/{model}": float(wins) for model, wins in point.bic_wins.items()}
    found |= {f"{PREFIX}/n_ok": float(point.n_ok), f"{PREFIX}/n_failed": float(point.n_failed)}
    found |= {f"{PREFIX}/{name}": report_value(report, number) for name, number in _OF_NETWORK.items()}
    if per_layer:
        for row in report.layers:
            if isinstance(row, LayerReport):
                for field in followed():
                    found[f"{PREFIX}/{field.flat}/{row.info.name}"] = field.value(row)
                for name, number in _OF_LAYER.items():
                    found[f"{PREFIX}/{name}/{row.info.name}"] = layer_value(row, number)
    return {name: float(value) for name, value in found.items() if not isinstance(value, Missing)}
