"""What can be known from a report, in one line: what is signal, which exponent held-out samples bear out, and noise's.

Every summary begins with it (terminal, page, suggest-beta), so that no number is read as evidence that noise gives too.
"""

from __future__ import annotations

from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import (
    GradientSource,
    LabelSource,
    NullBeta,
    NullDraws,
    SignalSummary,
    SignalVerdict,
    StepExponent,
)
from spectrascope.records.values import Missing
from spectrascope.reports.figures import format_count, format_roughly

__all__ = ["describe_step", "is_signal", "say_layer_signal", "say_signal"]


_VERDICTS = {
    SignalVerdict.SIGNAL: "Signal",
    SignalVerdict.UNDETERMINED: "Undetermined",
    SignalVerdict.NO_SIGNAL: "No signal",
}


def say_signal(report: Report) -> str:
    """Say what can be known: directions that are signal, the held-out exponent if any, beta beside that of noise."""
    signal = report.summary.signal
    if not report.summary.n_ok:
        lines = ["Nothing is known: no weight was measured."]
    elif isinstance(signal, Missing):
        lines = [f"Not known whether this is signal: {signal.reason}."]
    else:
        at = "" if signal.verdict is SignalVerdict.SIGNAL else f" at {format_count(report.provenance.data.n, 'sample')}"
        lines = [f"{_VERDICTS[signal.verdict]}{at}: {_count(report, signal)}.", _say_step(signal), _needed(signal)]
    return " ".join(line for line in (*lines, _beside_noise(report), _not_real(report)) if line)


def is_signal(report: Report) -> bool:
    """Whether the first line tells of signal, of a trained network on real data and its labels."""
    signal = report.summary.signal
    found = not isinstance(signal, Missing) and signal.verdict is SignalVerdict.SIGNAL
    return found and not _not_real(report)


def _count(report: Report, signal: SignalSummary) -> str:
    rows = [row for row in report.layers if isinstance(row, LayerReport)]
    resolved = sum(
        row.analysis.samples_needed.n_resolved > 0
        for row in rows
        if not isinstance(row.analysis.samples_needed, Missing)
    )
    above = any(not isinstance(row.analysis.n_signal, Missing) for row in rows)
    n, weights = format_count(signal.n_directions, "direction"), format_count(signal.n_layers, "weight")
    counted = (
        f"{signal.n_resolved} of {n} resolved, on {resolved} of {weights}" if resolved else f"none of {n} resolved"
    )
    noise = f"; {signal.n_signal} σ above noise" if above else ""
    return f"{counted} (held-out slope at least 3 standard errors{noise})"


def _say_step(signal: SignalSummary) -> str:
    """The one exponent of all weights, and how many determine one of their own."""
    said = describe_step(signal.step_exponent)
    if not isinstance(signal.exponent_median, Missing) and signal.n_layers > 1:
        own = f"{signal.n_determined} of {signal.n_layers} weights determine their own"
        said += f"; {own}, median {signal.exponent_median:.2f}"
    return f"{said[0].upper()}{said[1:]}."


def _needed(signal: SignalSummary) -> str:
    if signal.verdict is SignalVerdict.SIGNAL or isinstance(signal.samples_for_4, Missing):
        return ""
    return f"About {format_roughly(signal.samples_for_4)} samples would resolve four directions of most weights."


def describe_step(step: StepExponent | Missing) -> str:
    """Name the exponent of the best step on held-out samples with its interval, or say why there is none."""
    if isinstance(step, Missing):
        return f"step exponent: {step.reason}"
    if not step.determined:
        return f"step exponent undetermined: {step.reason}"
    low, high = step.interval.low, step.interval.high
    return f"step exponent {step.value:.2f} ({low:.2f} to {high:.2f}) on held-out samples"


def _beside_noise(report: Report) -> str:
    """The published beta beside that of noise alone."""
    beta, signal = report.summary.overall.beta_median, report.summary.signal
    if isinstance(beta, Missing):
        return ""
    if report.options.gradient is GradientSource.MOMENTUM:
        return f"β {beta:.2f} (median) is along the directions of the optimizer's momentum."
    if isinstance(signal, Missing) or isinstance(signal.null_beta_median, Missing):
        return f"Published β {beta:.2f} is from the samples that chose the directions: noise alone gives about 2."
    n, inside = format_count(signal.n_null, "weight"), signal.n_inside_null
    told = f"β is no more than noise gives on {inside} of {n}" if inside else f"β lies outside noise's range on {n}"
    return f"Published β {beta:.2f} (median); noise alone gives {signal.null_beta_median:.2f}, and {told}."


_LABELS = {
    LabelSource.MODEL: "the labels are drawn from the model, so that the true gradient is zero",
    LabelSource.SHUFFLED: "the labels are shuffled",
}


def _not_real(report: Report) -> str:
    run = report.provenance
    what = [
        *(["the weights are random"] if run.model.weights.startswith("random") else []),
        *(["the data are synthetic"] if run.data.synthetic else []),
        *([_LABELS[report.options.labels]] if report.options.labels in _LABELS else []),
    ]
    text = " and ".join(what)
    return f"{text[0].upper()}{text[1:]}: nothing here is about a trained network on real data." if what else ""


def say_layer_signal(row: LayerReport) -> str:
    """Say of one weight what is signal, which exponent held-out samples bear out, and what it takes to know more."""
    held, needed = row.held_out, row.analysis.samples_needed
    if isinstance(held, Missing) or isinstance(needed, Missing):
        why = held if isinstance(held, Missing) else needed
        assert isinstance(why, Missing)
        return f"not known whether this is signal: {why.reason}"
    chosen = held.within(row.analysis.window)
    n = chosen.stop - chosen.start
    parts = [f"{needed.n_resolved} of {format_count(n, 'direction')} resolved"]
    if not isinstance(row.analysis.n_signal, Missing):
        parts.append(f"{row.analysis.n_signal} with a σ above noise's")
    parts.append(describe_step(held.step_exponent))
    if not isinstance(needed.for_4, Missing) and needed.n_resolved < 4:
        parts.append(f"about {format_roughly(needed.for_4)} samples needed for four directions")
    null = row.null
    if isinstance(null, NullDraws) and isinstance(null.beta, NullBeta):
        parts.append(f"noise alone gives β {null.beta.value:.2f} ({null.beta.low:.2f} to {null.beta.high:.2f})")
    return "; ".join(parts)
