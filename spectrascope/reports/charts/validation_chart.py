"""Predicted against realised decrease of steps taken for real, for both predictions."""

from __future__ import annotations

from spectrascope.errors import OptionError
from spectrascope.records.advice import Advice, Validation
from spectrascope.records.values import Missing
from spectrascope.reports.charts.axes import log_axis
from spectrascope.reports.charts.chart import Chart, Ink, Line, Part, Picture, Points, PointShape
from spectrascope.reports.figures import format_count

__all__ = ["validation_chart", "validation_picture"]


def validation_picture(advice: Advice) -> Picture:
    """Predicted against realised decrease as a picture of its own.

    Raises:
        OptionError: no step was taken, with the reason.
    """
    found = advice.validation
    if isinstance(found, Missing):
        raise OptionError(f"nothing to draw for --validate-plot: {found.reason}")
    return Picture("validation", f"Steps taken for real: {advice.model.id}", (validation_chart(found),))


def validation_chart(found: Validation) -> Chart:
    """Draw the decrease that was realised against the predicted one, log-log, with the diagonal.

    Filled points are predictions from samples held out, hollow ones from the samples that chose the directions. Steps
    that raised the loss, or were predicted to, have no logarithm: they are counted in the note.
    """
    steps = [step for step in found.steps if step.name != "best"]
    held = [
        (p, step) for step in steps if not isinstance(p := step.predicted_held_out, Missing) and step.measured > 0 < p
    ]
    same = [(step.predicted, step) for step in steps if step.measured > 0 < step.predicted]
    xs = [x for x, _ in (*held, *same)]
    ys = [step.measured for _, step in (*held, *same)]
    x, y = log_axis("predicted decrease", xs), log_axis("realised decrease", ys)
    ends = (max(x.low, y.low), min(x.high, y.high))
    parts: list[Part] = []
    if ends[0] < ends[1]:
        parts.append(Line(ends, ends, Ink.GREY, "realised as predicted"))
    for points, ink, label, mark, hollow in (
        (same, Ink.ORANGE, "predicted on the same samples", PointShape.SQUARE, True),
        (held, Ink.BLUE, "predicted on samples held out", PointShape.CIRCLE, False),
    ):
        if points:
            parts.append(
                Points(
                    tuple(value for value, _ in points),
                    tuple(step.measured for _, step in points),
                    ink,
                    label,
                    mark,
                    hollow,
                    tuple(f"{s.layer}, b = {s.exponent:.2f}: {p:.2e}, realised {s.measured:.2e}" for p, s in points),
                )
            )
    lost = len(steps) - len(held)
    return Chart(
        title="predicted against realised decrease",
        x=x,
        y=y,
        parts=tuple(parts),
        summary=f"Decrease of the loss of {format_count(len(steps), 'step')} taken for real against two predictions.",
        note=f"{format_count(lost, 'step')} without a held-out point: the loss rose, or was predicted to"
        if lost
        else "",
    )
