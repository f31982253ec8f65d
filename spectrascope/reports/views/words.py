"""A report in sentences: what came out, what the numbers mean, and what in them calls for caution."""

from __future__ import annotations

from statistics import median

from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.signal import GradientSource, HeldOut, NullDraws
from spectrascope.records.values import LayerStatus, LossName, Missing, PowerFit, RankComparison, RankModel
from spectrascope.reports.charts.names import short_name
from spectrascope.reports.fields import RANK_MODEL_NAMES
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.views.document import Tone
from spectrascope.reports.views.facts import describe_precision
from spectrascope.reports.views.signal import is_signal, say_signal

__all__ = ["describe_triangle", "explain", "point_to_explain", "say_first", "say_in_words", "warn"]

LOW_ACCURACY = 0.5
"""Below this accuracy a trained network's preprocessing or label order deserves a look."""

_OF_TOKENS = {LossName.CAUSAL_LM.value, LossName.MASKED_LM.value}  # a good language model misses most tokens

Line = tuple[str, Tone]


def say_first(report: Report) -> Line:
    """Say what can be known, before anything else is said; a warning unless it is signal of a trained network."""
    return say_signal(report), Tone.PLAIN if is_signal(report) else Tone.WARNING


def say_in_words(report: Report) -> tuple[str, str, str, str]:
    """Say what came out, in four lines that need no table.

    Returns:
        A sentence on what can be known; one on the published β and its extremes; one on the rank models and the
        α triangle; one on what was measured, how exactly, and how wide the interval of β is.
    """
    layers = [row for row in report.layers if isinstance(row, LayerReport)]
    return say_signal(report), _say_curvature(report, layers), _say_spectra(report, layers), _say_trust(report, layers)


def _say_curvature(report: Report, layers: list[LayerReport]) -> str:
    group = report.summary.overall
    if isinstance(group.beta_median, Missing):
        return f"Curvature: no published β, as {group.beta_median.reason}."
    fits = [(fit.value, row.info.name) for row in layers if isinstance(fit := row.analysis.beta, PowerFit)]
    if len(fits) < 2:
        return f"Curvature: published β {group.beta_median:.2f}."
    (low, flattest), (high, steepest) = min(fits), max(fits)
    spread = group.beta_iqr
    half = "" if isinstance(spread, Missing) else f" (middle half {spread.low:.2f} to {spread.high:.2f})"
    said = f"Curvature: median published β {group.beta_median:.2f}{half}"
    if high - low < 0.01:
        return f"{said}; alike in all layers."
    return f"{said}; steepest {short_name(steepest, 40)} ({high:.2f}), flattest {short_name(flattest, 40)} ({low:.2f})."


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
        f"Spectra: {first}; α_H ≈ β·α_G within 10 % on {group.n_well_conditioned} of {triangles}, median error "
        f"{error}, as noise gives too."
    )


def _say_trust(report: Report, layers: list[LayerReport]) -> str:
    summary, run = report.summary, report.provenance
    n = summary.n_ok + summary.n_skipped + summary.n_failed
    parts = [f"{summary.n_ok} of {format_count(n, 'weight')} measured"]
    if layers:
        exact = sum(row.measurement.exact for row in layers)
        in_full = run.dtype in ("float32", "float64")
        exactly = "exactly" if in_full else f"in {run.dtype}"  # of which the report gives the error
        how = {len(layers): f"all {exactly}", 0: "all by estimates"}
        parts.append(how.get(exact, f"{exact} of them {exactly}"))
        check = run.self_check
        parts.append("not self-checked" if isinstance(check, Missing) else f"self-check {check.residual:.0e}")
    if summary.n_failed:
        parts.append(f"{summary.n_failed} FAILED")
    widths = [fit.interval.half_width for row in layers if isinstance(fit := row.analysis.beta, PowerFit)]
    if widths:
        parts.append(f"published β to ±{median(widths):.2f} (median) on {run.data.n:,} samples")
    if run.data.synthetic:
        parts.append("on SYNTHETIC data")
    return f"Trust: {', '.join(parts)}."


def point_to_explain(*terms: str) -> Line:
    """Say where every column and word is explained, by the example of some terms."""
    quoted = (f'"{term}"' if " " in term else term for term in terms)
    commands = ", ".join(f"spectrascope explain {term}" for term in quoted)
    return f"What a column or a word means: {commands}, …", Tone.QUIET


def explain(report: Report) -> tuple[Line, ...]:
    """Say in plain words what the numbers of the table are, and what its marks mean."""
    measured = [row for row in report.layers if isinstance(row, LayerReport)]
    lines = []
    if any(isinstance(row.held_out, HeldOut) for row in measured):
        lines += [
            "resolved: directions of the window whose slope, on samples that did not choose them, is at least 3 "
            "standard errors.",
            "step exponent: the b in 0 to 3 whose step U diag(σ^(1−b)) Vᵀ lowers the loss most on held-out samples (0: "
            "gradient descent, 1: Muon, 2: Newton), with its 95 % interval over sample groups.",
        ]
    lines.append(_explain_beta(report))
    if any(isinstance(row.null, NullDraws) for row in measured):
        lines.append("null β: β of the same fit where there is nothing but sampling noise.")
    return tuple((line, Tone.QUIET) for line in (*lines, *_explain_marks(report)))


def _explain_beta(report: Report) -> str:
    said = (
        "β, by the published definition: curvature h grows as σ^β along the gradient's own directions, with σ the "
        "gradient's singular value"
    )
    if report.options.gradient is GradientSource.MOMENTUM:
        return f"{said}; here along the directions of the optimizer's momentum."
    return (
        f"{said}, all from the samples that chose the directions. Noise alone gives about 2 with R² near 0.95 and a "
        "closed triangle, so neither tells signal from noise."
    )


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
    lines += [(line, Tone.WARNING) for line in _warn_accuracy(report)]
    if isinstance(run.self_check, Missing) and measured:
        lines.append((f"The curvature was not self-checked: {run.self_check.reason}.", Tone.WARNING))
    if measured and describe_precision(run):
        lines.append((f"Measured in {run.dtype}, an approximation: how far off, says 'precision' below.", Tone.WARNING))
    approximate = sum(not row.measurement.exact for row in measured)
    if approximate:
        lines.append((f"Measured with an approximate engine: {format_count(approximate, 'layer')}.", Tone.WARNING))
    noisy = sum(_reaches_noise(row) for row in measured)
    if noisy and isinstance(report.summary.signal, Missing):  # else the first line has said it, and better
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
        place = "at" if run.accuracy >= 0.5 / classes else "below"
        chance = format_percent(1 / classes)
        return [f"Accuracy {format_percent(run.accuracy)} is {place} chance level ({chance}): {advice}."]
    if run.accuracy < LOW_ACCURACY and run.loss_name not in _OF_TOKENS:
        return [f"Accuracy {format_percent(run.accuracy)} is low: {advice}."]
    return []


def _reaches_noise(row: LayerReport) -> bool:
    first, last = row.analysis.window
    n = row.analysis.n_above_noise
    return not isinstance(n, Missing) and n < last - first + 1
