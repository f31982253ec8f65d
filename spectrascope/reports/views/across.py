"""What weights share of their curvature, in a sentence."""

from __future__ import annotations

from spectrascope.records.across import NOT_ASKED_ACROSS, Across
from spectrascope.records.report import Report
from spectrascope.records.values import Missing
from spectrascope.reports.charts.names import short_name

__all__ = ["say_across"]


def say_across(report: Report) -> tuple[str, ...]:
    """Say what a step of all weights at once meets; nothing where it was not asked for."""
    found = report.summary.across
    if found == NOT_ASKED_ACROSS:
        return ()
    if isinstance(found, Missing):
        return (f"Across weights: not measured, as {found.reason}.",)
    part = "" if found.exact else " (between weights the Gauss-Newton part alone, an approximation)"
    first, second = (short_name(name, 40) for name in found.pair)
    return (
        f"Across weights{part}: {_curves(found)}. {_factors(found)} {first} and {second} share most (coupling "
        f"{found.coupling:.2f}).",
    )


def _curves(found: Across) -> str:
    steps = {"a gradient": found.gradient.ratio, "an orthogonalised": found.orthogonal.ratio}
    known = {name: ratio for name, ratio in steps.items() if not isinstance(ratio, Missing)}
    if not known:
        return f"the {len(found.weights)} weights have no curvature of their own along their steps"
    often = " or ".join(f"{ratio:.2g} × ({name} step)" for name, ratio in known.items())
    return f"moving all {len(found.weights)} at once meets {often} the curvature of moving one after the other"


def _factors(found: Across) -> str:
    steps = {"gradient": found.gradient.factor, "orthogonalised": found.orthogonal.factor}
    known = [f"{factor:.2g} ({name})" for name, factor in steps.items() if not isinstance(factor, Missing)]
    if not known:
        return "No common length suits a step of all weights."
    return f"Step lengths that suit each weight alone want a common factor of {' or '.join(known)}."
