"""What can be known from a report, in one line: what is signal, which exponent held-out samples bear out, and noise's.

Every summary begins with it (terminal, page, suggest-beta), so that no number is read as evidence that noise gives too.
"""

from __future__ import annotations

from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import HeldOut, NullBeta, NullDraws, SignalSummary, SignalVerdict, StepExponent
from spectrascope.records.values import Missing
from spectrascope.reports.figures import format_count

__all__ = ["describe_step", "say_layer_signal", "say_signal"]


def say_signal(report: Report) -> str:
    """Say what can be known: directions that are signal, the held-out exponent if any, beta beside that of noise."""
    signal = report.summary.signal
    if isinstance(signal, Missing):
        line = f"Not known whether this is signal: {signal.reason}."
    elif signal.verdict is SignalVerdict.SIGNAL:
        line = f"Signal: {_resolved(signal)}; {describe_step(signal.step_exponent)}."
    else:
        n = format_count(report.provenance.data.n, "sample")
        what = "No signal" if signal.verdict is SignalVerdict.NO_SIGNAL else "Undetermined"
        line = f"{what} at {n}: {_resolved(signal)}; no step exponent{_needed(signal)}."
    return " ".join(part for part in (line, _beside_noise(report), _not_real(report)) if part)


def _resolved(signal: SignalSummary) -> str:
    return (
        f"{signal.n_resolved} of {format_count(signal.n_directions, 'direction')} on "
        f"{format_count(signal.n_layers, 'weight')} have a held-out slope of 3 standard errors or more, "
        f"{signal.n_signal} a σ above that of noise"
    )


def _needed(signal: SignalSummary) -> str:
    if isinstance(signal.samples_for_4, Missing):
        return ""
    return f", about {_round(signal.samples_for_4):,} samples needed for four directions of most weights"


def _round(value: float) -> int:
    """Two significant digits: an estimate must not look like a count."""
    digits = max(0, len(str(int(value))) - 2)
    return int(round(value, -digits))


def describe_step(step: StepExponent | Missing) -> str:
    """Name the exponent of the best step on held-out samples with its interval, or say why there is none."""
    if isinstance(step, Missing):
        return f"step exponent: {step.reason}"
    if not step.determined:
        return f"step exponent undetermined: {step.reason}"
    low, high = step.interval.low, step.interval.high
    return f"step exponent on held-out samples {step.value:.2f} ({low:.2f} to {high:.2f})"


def _beside_noise(report: Report) -> str:
    """The published beta beside that of noise alone."""
    beta, signal = report.summary.overall.beta_median, report.summary.signal
    if isinstance(beta, Missing):
        return ""
    if isinstance(signal, Missing) or isinstance(signal.null_beta_median, Missing):
        return f"Published β {beta:.2f} comes from the samples that chose the directions: noise alone gives near 2."
    inside = f"{signal.n_inside_null} of {format_count(signal.n_null, 'weight')} within its range"
    return f"Published β {beta:.2f} (median); noise alone gives {signal.null_beta_median:.2f}, {inside}."


def _not_real(report: Report) -> str:
    run = report.provenance
    what = [
        *(["the weights are random"] if run.model.weights.startswith("random") else []),
        *(["the data are synthetic"] if run.data.synthetic else []),
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
    parts = [f"{needed.n_resolved} of {format_count(_window_size(row, held), 'direction')} resolved"]
    if not isinstance(row.analysis.n_signal, Missing):
        parts.append(f"{row.analysis.n_signal} above noise")
    parts.append(describe_step(held.step_exponent))
    if not isinstance(needed.for_4, Missing) and needed.n_resolved < 4:
        parts.append(f"about {_round(needed.for_4):,} samples needed for four directions")
    null = row.null
    if isinstance(null, NullDraws) and isinstance(null.beta, NullBeta):
        parts.append(f"noise alone gives β {null.beta.value:.2f} ({null.beta.low:.2f} to {null.beta.high:.2f})")
    return "; ".join(parts)


def _window_size(row: LayerReport, held: HeldOut) -> int:
    first, last = row.analysis.window
    return max(0, min(last, len(held.slopes)) - first + 1)
