"""Bars of what β is made of, layer by layer, for reports whose layers carry a decomposition.

The fits ``beta_lambda``, ``beta_phi`` and ``beta_chi`` of an alignment add up to β (MEASUREMENT section 6); layers
without a decomposition have no bar.
"""

from __future__ import annotations

from collections.abc import Sequence

from spectrascope.records.report import LayerReport
from spectrascope.records.values import Missing, PowerFit
from spectrascope.reports.charts.axes import linear_axis, names_axis
from spectrascope.reports.charts.chart import Bars, Chart, Ink, Line, Part, Points, PointShape
from spectrascope.reports.figures import format_count

__all__ = ["PARTS_OF_BETA", "decomposition_chart", "slopes_of"]

PARTS_OF_BETA: tuple[tuple[str, str, Ink], ...] = (
    ("beta_lambda", "β_Λ, eigenvalues of the factors", Ink.BLUE),
    ("beta_phi", "β_Φ, alignment with the gradient", Ink.ORANGE),
    ("beta_chi", "β_χ, beyond a Kronecker product", Ink.GREEN),
)
"""Field of the alignment, what it is called, and its ink."""


def slopes_of(row: LayerReport) -> tuple[float, ...] | None:
    """The parts of a layer's β in the order of :data:`PARTS_OF_BETA`, or ``None`` where it has no decomposition."""
    found = row.decomposition
    if isinstance(found, Missing):
        return None
    fits = [getattr(found.alignment, name) for name, _, _ in PARTS_OF_BETA]
    values = [fit.value for fit in fits if isinstance(fit, PowerFit)]
    return tuple(values) if len(values) == len(PARTS_OF_BETA) else None


def decomposition_chart(layers: Sequence[LayerReport]) -> Chart | None:
    """Stacked bars β = β_Λ + β_Φ + β_χ, negative parts below zero, with a point at the sum.

    Returns:
        The chart, or ``None`` where no layer has a decomposition.
    """
    found = [(float(i), row, slopes) for i, row in enumerate(layers, start=1) if (slopes := slopes_of(row)) is not None]
    if not found:
        return None
    xs = tuple(x for x, _, _ in found)
    above, below = [0.0] * len(found), [0.0] * len(found)
    x = names_axis([row.info.name for row in layers])
    parts: list[Part] = []
    for place, (_, label, ink) in enumerate(PARTS_OF_BETA):
        lows, highs, names = [], [], []
        for i, (_, row, slopes) in enumerate(found):
            value = slopes[place]
            ends = (above[i], above[i] + value) if value >= 0 else (below[i] + value, below[i])
            above[i], below[i] = max(above[i], ends[1]), min(below[i], ends[0])
            lows.append(ends[0])
            highs.append(ends[1])
            names.append(f"{row.info.name}: {label.split(',')[0]} = {value:.2f}")
        parts.append(Bars(xs, tuple(lows), tuple(highs), ink, label, tuple(names), width=0.7))
    sums = tuple(sum(slopes) for _, _, slopes in found)
    said = tuple(f"{row.info.name}: β = {total:.2f}" for (_, row, _), total in zip(found, sums, strict=True))
    parts += [
        Line((x.low, x.high), (0.0, 0.0), Ink.GREY),
        Points(xs, sums, Ink.PURPLE, "β, their sum", PointShape.DIAMOND, names=said),
    ]
    missing = len(layers) - len(found)
    return Chart(
        title="what β is made of",
        x=x,
        y=linear_axis("part of β", [*above, *below], include=[0.0]),
        parts=tuple(parts),
        summary=f"β of {format_count(len(found), 'layer')} as the sum of three slopes.",
        note=f"{format_count(missing, 'layer')} not shown: no decomposition" if missing else "",
    )
