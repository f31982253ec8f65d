"""Which colour and shape stand for what, and the shades of each colour on light and on dark paper.

The shades keep apart under the three kinds of colour blindness and stand out from their paper by at least 3 : 1
(WCAG 2.2, 1.4.11); a test simulates the one and computes the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from spectrascope.records.values import LayerKind, RankModel
from spectrascope.reports.charts.chart import Ink, PointShape

__all__ = ["DARK", "KIND_INKS", "KIND_MARKS", "LIGHT", "MODEL_INKS", "Paper"]

KIND_INKS: dict[LayerKind, Ink] = {
    LayerKind.CONV: Ink.BLUE,
    LayerKind.LINEAR: Ink.ORANGE,
    LayerKind.CONV_TRANSPOSE: Ink.GREEN,
    LayerKind.EMBEDDING: Ink.PURPLE,
    LayerKind.NORM: Ink.GOLD,
    LayerKind.BIAS: Ink.GREY,
    LayerKind.OTHER: Ink.GREY,
}
KIND_MARKS: dict[LayerKind, PointShape] = {
    LayerKind.CONV: PointShape.CIRCLE,
    LayerKind.LINEAR: PointShape.SQUARE,
    LayerKind.CONV_TRANSPOSE: PointShape.DIAMOND,
    LayerKind.EMBEDDING: PointShape.TRIANGLE,
    LayerKind.NORM: PointShape.CROSS,
    LayerKind.BIAS: PointShape.CROSS,
    LayerKind.OTHER: PointShape.CROSS,
}
MODEL_INKS: dict[RankModel, Ink] = {
    RankModel.POWER_LAW: Ink.GREEN,
    RankModel.EXPONENTIAL: Ink.ORANGE,
    RankModel.LOGNORMAL: Ink.PURPLE,
}


@dataclass(frozen=True, slots=True)
class Paper:
    """What a drawing is made on: background, raised background, text, grid, and a shade per ink."""

    background: str
    raised: str
    text: str
    quiet: str
    grid: str
    inks: dict[Ink, str]


LIGHT = Paper(
    background="#ffffff",
    raised="#f4f6f8",
    text="#1b1f24",
    quiet="#57606a",
    grid="#e3e6ea",
    inks={
        Ink.BLUE: "#065bb4",
        Ink.ORANGE: "#f7613e",
        Ink.GREEN: "#00936b",
        Ink.PURPLE: "#92337e",
        Ink.GOLD: "#897100",
        Ink.GREY: "#7d8289",
    },
)
DARK = Paper(
    background="#14171b",
    raised="#1e2329",
    text="#e8eaed",
    quiet="#a3abb5",
    grid="#2c3238",
    inks={
        Ink.BLUE: "#0799ee",
        Ink.ORANGE: "#ff8b45",
        Ink.GREEN: "#34dba6",
        Ink.PURPLE: "#ec9bda",
        Ink.GOLD: "#ffde64",
        Ink.GREY: "#8e8e94",
    },
)
