"""A report in three sentences: how the loss curves, what the spectra look like, how far to trust it."""

from __future__ import annotations

from statistics import median

from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing, PowerFit, RankModel
from spectrascope.reports.charts.names import short_name
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.views.layer_sheet import RANK_MODEL_NAMES

__all__ = ["say_in_words"]

_STEPS = {0: "gradient-descent", 1: "Muon-like", 2: "Newton-like"}
"""Which step fits which β."""


def say_in_words(report: Report) -> tuple[str, str, str]:
    """Say what came out, in three lines that need no table.

    Returns:
        A sentence on β with its extremes; one on the rank models and the α triangle; one on what was measured,
        how exactly, and how well β is known.
    """
    layers = [row for row in report.layers if isinstance(row, LayerReport)]
    return _say_curvature(report, layers), _say_spectra(report, layers), _say_trust(report, layers)


def _say_curvature(report: Report, layers: list[LayerReport]) -> str:
    group = report.summary.overall
    if isinstance(group.beta_median, Missing):
        return f"Curvature: no β, as {group.beta_median.reason}."
    fits = [(fit.value, row.info.name) for row in layers if isinstance(fit := row.analysis.beta, PowerFit)]
    meaning = _interpret(group.beta_median)
    if len(fits) < 2:
        return f"Curvature: β {group.beta_median:.2f}, {meaning}."
    (low, flattest), (high, steepest) = min(fits), max(fits)
    spread = group.beta_iqr
    half = "" if isinstance(spread, Missing) else f" (middle half {spread.low:.2f} to {spread.high:.2f})"
    said = f"Curvature: median β {group.beta_median:.2f}{half}, {meaning}"
    if high - low < 0.01:
        return f"{said}; alike in all layers."
    return f"{said}; steepest {short_name(steepest, 40)} ({high:.2f}), flattest {short_name(flattest, 40)} ({low:.2f})."


def _interpret(beta: float) -> str:
    """Say which of the cases β = 0, 1, 2 a value is near, or between."""
    nearest = min(_STEPS, key=lambda case: abs(case - beta))
    if not -0.5 <= beta <= 2.5:
        return f"outside 0 to 2: nearest are {_STEPS[nearest]} steps"
    if abs(beta - nearest) <= 0.3:
        return f"near {nearest}: {_STEPS[nearest]} steps fit"
    if beta < 0 or beta > 2:
        return f"somewhat {'below' if beta < 0 else 'beyond'} {nearest}: {_STEPS[nearest]} steps fit best"
    return f"between {_STEPS[int(beta)]} ({int(beta)}) and {_STEPS[int(beta) + 1]} ({int(beta) + 1}) steps"


def _say_spectra(report: Report, layers: list[LayerReport]) -> str:
    group = report.summary.overall
    n = sum(group.bic_wins.values())
    if n:
        counts = {model: group.bic_wins.get(model.value, 0) for model in RankModel}
        most = max(counts.values())
        best = " or ".join(RANK_MODEL_NAMES[model] for model in counts if counts[model] == most)
        each = " each" if " or " in best else ""
        first = f"σ falls with rank as {best} on {most}{each} of {format_count(n, 'layer')}"
    else:
        first = "no rank model could be told"
    triangles = sum(not isinstance(row.analysis.triangle, Missing) for row in layers)
    if isinstance(group.triangle_error_median, Missing):
        return f"Spectra: {first}; α triangle: {group.triangle_error_median.reason}."
    error = format_percent(group.triangle_error_median)
    return (
        f"Spectra: {first}; α_H ≈ β·α_G within 10 % on {group.n_well_conditioned} of {triangles}, median error {error}."
    )


def _say_trust(report: Report, layers: list[LayerReport]) -> str:
    summary, run = report.summary, report.provenance
    n = summary.n_ok + summary.n_skipped + summary.n_failed
    parts = [f"{summary.n_ok} of {format_count(n, 'weight')} measured"]
    if layers:
        exact = sum(row.measurement.exact for row in layers)
        how = {len(layers): "all exactly", 0: "all by estimates"}
        parts.append(how.get(exact, f"{exact} of them exactly"))
        check = run.self_check
        parts.append("not self-checked" if isinstance(check, Missing) else f"self-check {check.residual:.0e}")
    if summary.n_failed:
        parts.append(f"{summary.n_failed} FAILED")
    widths = [fit.interval.half_width for row in layers if isinstance(fit := row.analysis.beta, PowerFit)]
    if widths:
        parts.append(f"β to ±{median(widths):.2f} (median) on {run.data.n:,} samples")
    if run.data.synthetic:
        parts.append("on SYNTHETIC data")
    return f"Trust: {', '.join(parts)}."
