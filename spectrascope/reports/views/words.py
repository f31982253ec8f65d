"""The closing lines of a report: what the numbers mean, and what in them calls for caution."""

from __future__ import annotations

from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.values import LayerStatus, LossName, Missing, PowerFit, RankComparison
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.views.document import Tone

__all__ = ["describe_triangle", "explain", "warn"]

LOW_ACCURACY = 0.5
"""Below this accuracy a trained network's preprocessing or label order deserves a look."""

_OF_TOKENS = {LossName.CAUSAL_LM.value, LossName.MASKED_LM.value}  # a good language model misses most tokens

Line = tuple[str, Tone]


def explain(report: Report) -> tuple[Line, ...]:
    """Say in plain words what beta and the triangle are, and what the marks of the table mean."""
    lines = [
        "β says how the loss curves along the gradient's own directions: curvature h grows as σ^β, "
        "with σ the gradient's singular value.",
        "β ≈ 0: curvature is the same everywhere (gradient descent fits); β ≈ 1: it grows with the gradient "
        "(Muon-like steps fit); β ≈ 2: with its square (Newton-like steps fit).",
        *_describe_medians(report),
        *_explain_marks(report),
    ]
    return tuple((line, Tone.QUIET) for line in lines)


def describe_triangle(report: Report) -> tuple[str, ...]:
    """Say how well α_H ≈ β·α_G holds."""
    group = report.summary.overall
    if isinstance(group.triangle_error_median, Missing):
        return (f"Triangle α_H ≈ β·α_G: {group.triangle_error_median.reason}.",)
    n = sum(isinstance(row, LayerReport) and not isinstance(row.analysis.triangle, Missing) for row in report.layers)
    error = format_percent(group.triangle_error_median)
    return (
        f"Triangle α_H ≈ β·α_G (the three exponents agree): median error {error}, "
        f"within 10 % on {group.n_well_conditioned} of {format_count(n, 'layer')}.",
        *_describe_medians(report),
    )


def _describe_medians(report: Report) -> list[str]:
    medians = report.summary.well_conditioned_median
    if isinstance(medians, Missing):
        return []
    names = {"beta": "β {:.2f}", "alpha_g": "α_G {:.2f}", "alpha_h": "α_H {:.2f}"}
    parts = [form.format(medians[key]) for key, form in names.items() if key in medians]
    if "triangle_error" in medians:
        parts.append(f"error {format_percent(medians['triangle_error'])}")
    return [f"Median over layers whose triangle holds within 10 %: {', '.join(parts)}."]


def _explain_marks(report: Report) -> list[str]:
    measured = [row.analysis for row in report.layers if isinstance(row, LayerReport)]
    fits = [item.beta for item in measured if isinstance(item.beta, PowerFit)]
    lines = []
    if any(not isinstance(fit.jackknife_ci95, Missing) for fit in fits):
        lines.append(
            "± is half the wider of two 95 % intervals of β: of the straight-line fit, and from leaving out one group "
            "of samples at a time."
        )
    if any(isinstance(fit.jackknife_ci95, Missing) for fit in fits):
        lines.append("* this ± is half the 95 % interval of the straight-line fit: no jackknife.")
    if any(isinstance(item.rank_models, RankComparison) and item.rank_models.tie for item in measured):
        lines.append("~ marks a tie: the runner-up's BIC is less than 2 away.")
    return lines


def warn(report: Report) -> tuple[Line, ...]:
    """List what a careful reader should know before trusting the numbers."""
    run, measured = report.provenance, [row for row in report.layers if isinstance(row, LayerReport)]
    lines: list[Line] = []
    failed = [row for row in report.layers if row.status is LayerStatus.FAILED]
    if failed:
        named = ", ".join(_name_with_reason(row) for row in failed[:3]) + (", …" if len(failed) > 3 else "")
        verb = "layer FAILED and has" if len(failed) == 1 else "layers FAILED and have"
        lines.append((f"{len(failed)} {verb} no numbers: {named}.", Tone.ALARM))
    if not measured:
        lines.append(("No layer was measured.", Tone.ALARM))
    if run.data.synthetic:
        lines.append(("The data are synthetic: these numbers say nothing about real data.", Tone.WARNING))
    lines += [(line, Tone.WARNING) for line in _warn_accuracy(report)]
    if isinstance(run.self_check, Missing) and measured:
        lines.append((f"The curvature was not self-checked: {run.self_check.reason}.", Tone.WARNING))
    approximate = sum(not row.measurement.exact for row in measured)
    if approximate:
        lines.append((f"Measured with an approximate engine: {format_count(approximate, 'layer')}.", Tone.WARNING))
    noisy = sum(_reaches_noise(row) for row in measured)
    if noisy:
        lines.append(
            (
                f"On {noisy} of {format_count(len(measured), 'layer')} the last directions of the window are "
                "below the sampling noise of the gradient: more samples or a smaller --top-k.",
                Tone.WARNING,
            )
        )
    return tuple(lines)


def _name_with_reason(row: LayerRow) -> str:
    return row.info.name if isinstance(row, LayerReport) else f"{row.info.name} ({row.reason})"


def _warn_accuracy(report: Report) -> list[str]:
    run = report.provenance
    if isinstance(run.accuracy, Missing) or run.data.synthetic or run.model.weights.startswith("random"):
        return []
    advice = "check the preprocessing, the label order and that the data fit the network"
    classes = run.data.n_classes
    if isinstance(classes, int) and classes > 1 and run.accuracy <= 1.5 / classes:
        chance = format_percent(1 / classes)
        return [f"Accuracy {format_percent(run.accuracy)} is at chance level ({chance}): {advice}."]
    if run.accuracy < LOW_ACCURACY and run.loss_name not in _OF_TOKENS:
        return [f"Accuracy {format_percent(run.accuracy)} is low: {advice}."]
    return []


def _reaches_noise(row: LayerReport) -> bool:
    first, last = row.analysis.window
    n = row.analysis.n_above_noise
    return not isinstance(n, Missing) and n < last - first + 1
