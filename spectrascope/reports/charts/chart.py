"""Charts as data: axes, points, lines, bands and bars, in the units of the report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from spectrascope.reports.charts.axes import Axis

__all__ = ["Band", "Bars", "Chart", "Ink", "Line", "Part", "Picture", "PointShape", "Points"]


class Ink(str, Enum):
    """What a colour stands for; each drawing has its own shade for light and for dark paper."""

    BLUE = "blue"
    ORANGE = "orange"
    GREEN = "green"
    PURPLE = "purple"
    GOLD = "gold"
    GREY = "grey"


class PointShape(str, Enum):
    """Shapes of points, so that a series can be told without its colour."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    DIAMOND = "diamond"
    CROSS = "cross"


@dataclass(frozen=True, slots=True)
class Points:
    """A series of points. ``names`` say what each one is; ``whiskers`` are the ends of its vertical interval.

    ``pale`` points are small and in the background.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    ink: Ink
    label: str = ""
    mark: PointShape = PointShape.CIRCLE
    hollow: bool = False
    names: tuple[str, ...] = ()
    whiskers: tuple[tuple[float, float], ...] = ()
    pale: bool = False

    def __post_init__(self) -> None:
        n = len(self.xs)
        if len(self.ys) != n or len(self.names) not in (0, n) or len(self.whiskers) not in (0, n):
            raise ValueError(f"points of different number: {n} xs, {len(self.ys)} ys")


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points in order; ``faint`` lines are one of many."""

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    ink: Ink
    label: str = ""
    dashed: bool = False
    faint: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.xs) != len(self.ys):
            raise ValueError(f"a line of {len(self.xs)} xs and {len(self.ys)} ys")


@dataclass(frozen=True, slots=True)
class Band:
    """The area between two lines."""

    xs: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    ink: Ink
    label: str = ""

    def __post_init__(self) -> None:
        if not len(self.xs) == len(self.lows) == len(self.highs):
            raise ValueError(f"a band of {len(self.xs)} xs, {len(self.lows)} lows and {len(self.highs)} highs")


@dataclass(frozen=True, slots=True)
class Bars:
    """One segment per bar, from ``lows`` to ``highs`` around ``xs``; several series make a stack."""

    xs: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    ink: Ink
    label: str = ""
    names: tuple[str, ...] = ()
    width: float = 0.8

    def __post_init__(self) -> None:
        if not len(self.xs) == len(self.lows) == len(self.highs):
            raise ValueError(f"bars of {len(self.xs)} xs, {len(self.lows)} lows and {len(self.highs)} highs")


Part: TypeAlias = "Points | Line | Band | Bars"


@dataclass(frozen=True, slots=True)
class Chart:
    """One pair of axes. ``summary`` says in a sentence what is to be seen, for readers who cannot see it.

    ``rises`` says that the data run from the lower left to the upper right, and not downwards. ``guides`` are places on
    the vertical axis that have a name.
    """

    title: str
    x: Axis
    y: Axis
    parts: tuple[Part, ...]
    summary: str = ""
    note: str = ""
    rises: bool = True
    guides: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """What goes into one file: a chart, or a grid of them."""

    name: str
    title: str
    charts: tuple[Chart, ...]
    columns: int = 1
