"""A chart's axes in a matplotlib figure: frame, grid, tick marks and texts.

The chart already says where its ticks are and what they are called, so each axis is two lines and a text per tick.
matplotlib's own axis makes five artists and as many transforms of every tick and measures their texts three times,
which took half of the time of a page of panels.
"""

from __future__ import annotations

from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING, Any, TypeVar, cast

from spectrascope.reports.charts.axes import Axis
from spectrascope.reports.charts.inks import Paper
from spectrascope.reports.charts.notation import mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["NOTE", "draw_axes", "room_below", "room_beside", "write_note"]

NOTE = 7.0
"""Points of a note below the axes."""

_T = TypeVar("_T")

_MARK, _GAP = 3.5, 7.0  # points: length of a tick mark, and from the axis to a tick's text
_LABEL = 0.17  # inches from the label's middle to the end of its room
_BETWEEN = 0.15  # inches from one slanted name to the next
_WIDE = 0.068  # inches, width of a character of a tick's text
_SLANTED, _DEPTH = 0.047, 0.042  # inches that a character of a slanted name needs to the left, and downwards


def room_below(axis: Axis, scale: float = 1.0) -> float:
    """Inches below a horizontal axis: slanted names need as much as the longest of them; ``scale`` is of the text."""
    return scale * (0.44 + _DEPTH * _longest(axis) if axis.slanted else 0.5)


def room_beside(x: Axis, y: Axis, wide: float, scale: float = 1.0) -> float:
    """Inches to the left of axes so many inches wide: for the label and ticks of y, and for slanted names below."""
    shown = _thinned(x, wide, scale) if x.slanted else ()
    names = [scale * _SLANTED * len(text) - wide * x.place(value) for value, text in shown]
    return max(0.75 * scale, scale * (_to_label(y) + _LABEL), *names)


def _thinned(axis: Axis, wide: float, scale: float) -> tuple[tuple[float, str], ...]:
    """Ticks of a horizontal axis with room between their texts: every so many."""
    each = _BETWEEN if axis.slanted else _WIDE * (_longest(axis) + 1)
    every = max(-(-len(axis.ticks) * scale * each // wide), 1)
    return axis.ticks[:: int(every)]


def draw_axes(
    axes: Axes, x: Axis, y: Axis, paper: Paper, *, labelled: tuple[bool, bool], wide: float, scale: float = 1.0
) -> None:
    """Scale, limits, frame, grid, ticks and, where wanted, labels.

    Args:
        axes: where to draw, empty.
        x: the horizontal axis.
        y: the vertical axis.
        paper: colours.
        labelled: whether the horizontal and the vertical axis carry their label.
        wide: inches of the horizontal axis.
        scale: of the text.
    """
    axes.set(xscale="log" if x.log else "linear", xlim=(x.low, x.high))
    axes.set(yscale="log" if y.log else "linear", ylim=(y.low, y.high))
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_ticks(axes, replace(x, ticks=_thinned(x, wide, scale)), paper, upright=False, scale=scale)
    _draw_ticks(axes, y, paper, upright=True, scale=scale)
    if labelled[0]:
        below, shrunk = _LABEL * scale - room_below(x, scale), scale * _fitting(x.label, wide, scale)
        _write(axes, (0.5, 0.0), (0.0, below), x.label, shrunk, color=paper.quiet)
    if labelled[1]:
        _write(axes, (0.0, 0.5), (-scale * _to_label(y), 0.0), y.label, scale, color=paper.quiet, rotation=90)


def _draw_ticks(axes: Axes, axis: Axis, paper: Paper, *, upright: bool, scale: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.markers import TICKDOWN, TICKLEFT
    from matplotlib.transforms import offset_copy

    def turned(along: _T, across: _T) -> tuple[_T, _T]:
        return (across, along) if upright else (along, across)

    places = [value for value, _ in axis.ticks]
    frame = axes.get_yaxis_transform() if upright else axes.get_xaxis_transform()
    grid = turned([value for value in places for _ in range(3)], [0.0, 1.0, nan] * len(places))
    axes.add_artist(Line2D(*grid, color=paper.grid, linewidth=0.6, zorder=0.5, transform=frame))
    marks = turned(places, [0.0] * len(places))
    marker = TICKLEFT if upright else TICKDOWN
    style: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": _MARK, "markeredgewidth": 0.8}
    axes.add_artist(Line2D(*marks, color=paper.quiet, transform=frame, clip_on=False, **style))
    across, down = turned(0.0, -_GAP)
    beside = offset_copy(frame, _figure_of(axes), across, down, units="points")
    aligned: dict[str, Any] = {"ha": "right", "va": "center_baseline"} if upright else {"ha": "center", "va": "top"}
    aligned["fontsize"] = 8 * scale
    if axis.slanted:
        aligned |= {"ha": "right", "rotation": 50, "rotation_mode": "anchor", "fontsize": 7 * scale}
    for value, text in axis.ticks:
        # On the figure: on the axes each would be given a clip path that it does not want.
        axes.figure.text(*turned(value, 0.0), text, transform=beside, color=paper.quiet, **aligned)


def write_note(axes: Axes, text: str, below: float, scale: float, colour: str) -> None:
    """Write what a chart says beside its data, at the right, so many inches below its axes."""
    from matplotlib.transforms import offset_copy

    place = offset_copy(axes.transAxes, _figure_of(axes), 0.0, -below, units="inches")
    style: dict[str, Any] = {"ha": "right", "va": "top", "linespacing": 1.1, "fontsize": NOTE * scale}
    axes.figure.text(1.0, 0.0, text, transform=place, color=colour, **style)


def _write(
    axes: Axes, at: tuple[float, float], off: tuple[float, float], text: str, scale: float, **style: Any
) -> None:
    """Centre a label at a place of the axes, some inches off."""
    from matplotlib.transforms import offset_copy

    place = offset_copy(axes.transAxes, _figure_of(axes), off[0], off[1], units="inches")
    axes.figure.text(
        *at, mathtext(text), parse_math=True, transform=place, ha="center", va="center", fontsize=9 * scale, **style
    )


def _fitting(label: str, wide: float, scale: float) -> float:
    """By how much a label shrinks so as to end with its axes, and the gap to the next."""
    return min(1.0, (wide + 0.3) / max(len(label) * 9 * scale * 0.55 / 72, 0.1))


def _figure_of(axes: Axes) -> Figure:
    return cast("Figure", axes.figure)  # get_figure(root=True) came with matplotlib 3.10


def _to_label(axis: Axis) -> float:
    """Inches from a vertical axis to the middle of its label."""
    return max(0.45, _GAP / 72 + _WIDE * _longest(axis) + 0.12)


def _longest(axis: Axis) -> int:
    return max((len(text) for _, text in axis.ticks), default=0)
