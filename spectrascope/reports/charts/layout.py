"""How large a picture is and where its axes lie, in inches: as large as it likes, or as wide as a column of a paper."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from spectrascope.errors import OptionError
from spectrascope.reports.charts.chart import Picture
from spectrascope.reports.charts.legends import legend_rows, shared_labels
from spectrascope.reports.charts.plot_axes import NOTE, room_below, room_beside
from spectrascope.text import printable

__all__ = ["WIDTHS", "FigureLayout", "lay_out", "picture_width", "wrap"]

WIDTHS = {"one-column": 3.4, "two-column": 7.0}
"""Widths of figures in papers of two columns, in inches."""

_ALONE, _PANEL, _QUARTER = (6.6, 4.2), (2.4, 2.0), (5.4, 3.4)  # inches of one pair of axes
_RIGHT, _ABOVE, _ROW = 0.15, 0.3, 0.19  # inches around them, and of a row of a legend
_GUIDE = 0.38  # inches of the name of a guide, to the right of the axes
_TITLE = 11.0  # points
_LETTER = 0.6  # of a font's size, its mean width
_LEAST, _MOST = 2.0, 40.0


@dataclass(frozen=True, slots=True)
class FigureLayout:
    """Inches of the figure and of one pair of axes, and what stands around them.

    ``scale`` shrinks text; ``small`` panels share labels and a legend; ``head`` is the room of the title and of that
    legend; ``legend_columns`` are those of each legend.
    """

    columns: int
    size: tuple[float, float]
    axes: tuple[float, float]
    cell: tuple[float, float]
    beside: float
    below: float
    head: float
    legend_columns: int
    scale: float
    small: bool
    title: str

    @property
    def below_title(self) -> float:
        """Where the title ends, as a share of the figure's height."""
        return 1 - _title_room(self.title, self.scale) / self.size[1]

    def place(self, index: int, n: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the axes of chart ``index`` of ``n``, as shares of the figure."""
        row, column = divmod(index, self.columns)
        rows = -(-n // self.columns)
        left = self.cell[0] * column + self.beside
        bottom = self.cell[1] * (rows - 1 - row) + self.below
        w, h = self.size
        return left / w, bottom / h, self.axes[0] / w, self.axes[1] / h


def picture_width(asked: str | float | None) -> float | None:
    """Inches of a picture's width: by name, as a number, or ``None`` for as large as it likes.

    Raises:
        OptionError: no such name, or not from 2 to 40 inches.

    >>> picture_width("one-column"), picture_width("5"), picture_width(None)
    (3.4, 5.0, None)
    """
    if asked is None:
        return None
    try:
        inches = WIDTHS[asked] if isinstance(asked, str) and asked in WIDTHS else float(asked)
    except ValueError:
        inches = 0.0
    if not _LEAST <= inches <= _MOST:
        raise OptionError(f"width {asked!r}: expected {', '.join(WIDTHS)}, or {_LEAST:g} to {_MOST:g} inches")
    return inches


def lay_out(picture: Picture, width: float | None) -> FigureLayout:
    """Find room for a picture.

    Args:
        picture: what is drawn.
        width: of the whole, in inches; ``None`` for as large as it likes.
    """
    n = max(len(picture.charts), 1)
    small = picture.columns > 2
    scale = 1.0 if width is None else 0.85
    columns = picture.columns
    if width is not None:
        columns = max(1, min(columns, round(width / (2.1 if small else 3.5))))
    right = _RIGHT + (_GUIDE * scale if any(chart.guides for chart in picture.charts) else 0.0)
    wide, high = _ALONE if n == 1 else _PANEL if small else _QUARTER
    beside = max((room_beside(chart.x, chart.y, wide, scale) for chart in picture.charts), default=0.75)
    if width is not None:
        shape = high / wide
        wide = width / columns - right
        beside = max((room_beside(chart.x, chart.y, wide, scale) for chart in picture.charts), default=0.75)
        wide = max(wide - beside, 0.5)
        high = max(shape * wide, 1.0)
    below = max(
        (room_below(chart.x, scale) + _note_room(chart.note, wide, scale) for chart in picture.charts), default=0
    )
    labels = shared_labels(picture.charts) if small else [p.label for c in picture.charts for p in c.parts if p.label]
    whole = columns * (beside + wide + right)
    room = whole if small else beside + wide
    legend_columns = _legend_columns(labels, room, scale)
    own = 0 if small else max((legend_rows(chart, legend_columns) for chart in picture.charts), default=0)
    above = _ABOVE if n > 1 else 0.5 * _ABOVE
    cell = (beside + wide + right, high + above + _ROW * scale * own + below)
    title = wrap(printable(picture.title), whole, _TITLE * scale)
    head = _title_room(title, scale) + (_ROW * scale * -(-len(labels) // legend_columns) + 0.05 if small else 0.0)
    size = (cell[0] * columns, cell[1] * -(-n // columns) + head)
    return FigureLayout(columns, size, (wide, high), cell, beside, below, head, legend_columns, scale, small, title)


def _title_room(title: str, scale: float) -> float:
    return 0.07 + 0.18 * scale * (title.count("\n") + 1 if title else 0)


def _note_room(note: str, wide: float, scale: float) -> float:
    """Inches that a note takes below axes so many inches wide."""
    return scale * (0.04 + NOTE * 1.2 / 72 * (1 + wrap(note, wide, NOTE * scale).count("\n"))) if note else 0.0


def _legend_columns(labels: list[str], room: float, scale: float) -> int:
    longest = max(map(len, labels), default=0)
    needed = 0.45 * scale + longest * 8 * scale * _LETTER / 72
    return max(1, min(4, int(room / needed)))


def wrap(title: str, inches: float, points: float) -> str:
    """Break text of a size in points into lines of so many inches."""
    most = max(int(inches * 72 / (points * _LETTER)), 12)
    return "\n".join(textwrap.wrap(title, most, break_long_words=True, break_on_hyphens=False))
