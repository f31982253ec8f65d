"""Pictures drawn with matplotlib: PNG, SVG or PDF bytes. It is imported only when something is drawn."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from spectrascope.errors import OptionError
from spectrascope.reports.charts.chart import Band, Bars, Chart, Line, Part, Picture, Points, PointShape
from spectrascope.reports.charts.inks import DARK, LIGHT, Paper
from spectrascope.reports.charts.names import short_name
from spectrascope.reports.charts.plot_axes import draw_axes, room_below, room_beside
from spectrascope.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PICTURE_FORMATS", "draw_pages", "draw_picture", "make_figure", "require_matplotlib"]

PICTURE_FORMATS = ("png", "svg", "pdf")
"""Kinds of picture files, as file suffixes."""

_MARKS = {
    PointShape.CIRCLE: "o",
    PointShape.SQUARE: "s",
    PointShape.TRIANGLE: "^",
    PointShape.DIAMOND: "D",
    PointShape.CROSS: "P",
}
_ALONE, _PANEL, _QUARTER = (6.6, 4.2), (2.4, 2.0), (5.4, 3.4)  # inches of one pair of axes
_RIGHT, _ABOVE, _HEAD = 0.15, 0.3, 0.25  # inches around them
_LEGEND_ROW = 0.19


def require_matplotlib() -> None:
    """Raise if matplotlib is not installed.

    Raises:
        OptionError: it is not; the message says how to get it.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise OptionError("pictures need matplotlib: pip install 'spectrascope[plot]'") from error


def draw_picture(picture: Picture, suffix: str, *, dpi: int = 150, dark: bool = False) -> bytes:
    """Draw one picture.

    Args:
        picture: what to draw.
        suffix: ``png``, ``svg`` or ``pdf``.
        dpi: dots per inch of a PNG.
        dark: light on dark instead of dark on light.

    Returns:
        The file's bytes; the same picture gives the same bytes with the same version of matplotlib.
    """
    with _style(dark) as paper:
        figure = _draw(picture, paper)
        stream = io.BytesIO()
        if suffix == "png":
            _save_png(figure, stream, dpi)
        else:
            figure.savefig(stream, format=suffix, metadata=_without_date(suffix))
        return stream.getvalue()


def make_figure(picture: Picture, *, title: str | None = None, theme: str = "light") -> Figure:
    """Draw one picture as a figure of matplotlib's, which a notebook shows and ``savefig`` writes.

    Args:
        picture: what to draw.
        title: above it instead of its own; empty for none.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: no such theme, or matplotlib is not installed.
    """
    if theme not in ("light", "dark"):
        raise OptionError(f"theme {theme!r}: expected light or dark")
    with _style(theme == "dark") as paper:
        return _draw(picture if title is None else replace(picture, title=title), paper)


def draw_pages(pictures: Iterable[Picture], *, dark: bool = False) -> bytes:
    """Draw pictures as one PDF, a page each."""
    from matplotlib.backends.backend_pdf import PdfPages

    stream = io.BytesIO()
    with _style(dark) as paper, PdfPages(stream, metadata=_without_date("pdf")) as pages:
        for picture in pictures:
            pages.savefig(_draw(picture, paper))
    return stream.getvalue()


class _style:
    """Settings of matplotlib while something is drawn, and its complaints about missing glyphs kept quiet."""

    def __init__(self, dark: bool) -> None:
        self._paper = DARK if dark else LIGHT

    def __enter__(self) -> Paper:
        require_matplotlib()
        import matplotlib as mpl

        paper = self._paper
        self._settings = mpl.rc_context(
            {
                "text.parse_math": False,  # a layer may be called a$b$c
                "svg.hashsalt": "spectrascope",
                "svg.fonttype": "none",
                "pdf.fonttype": 42,
                "font.size": 9,
                "axes.titlesize": 9,
                "axes.labelsize": 9,
                "legend.fontsize": 8,
                "text.color": paper.text,
                "axes.labelcolor": paper.quiet,
                "axes.edgecolor": paper.quiet,
                "axes.facecolor": paper.background,
                "figure.facecolor": paper.background,
                "savefig.facecolor": paper.background,
                "xtick.color": paper.quiet,
                "ytick.color": paper.quiet,
            }
        )
        self._quiet = warnings.catch_warnings()
        self._settings.__enter__()
        self._quiet.__enter__()
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return paper

    def __exit__(self, *_: object) -> None:
        self._quiet.__exit__(None, None, None)
        self._settings.__exit__(None, None, None)


def _save_png(figure: Figure, stream: IO[bytes], dpi: int) -> None:
    """Save what is all opaque without saying so pixel by pixel, and compress little: a third of the time of savefig."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    image = Image.frombuffer("RGBA", canvas.get_width_height(), pixels, "raw", "RGBA", 0, 1)
    image.convert("RGB").save(stream, "png", compress_level=3, dpi=(dpi, dpi))


def _without_date(suffix: str) -> dict[str, Any]:
    return {"svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]


def _draw(picture: Picture, paper: Paper) -> Figure:
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    n = max(len(picture.charts), 1)
    rows, small = -(-n // picture.columns), picture.columns > 2
    wide, high = _ALONE if n == 1 else _PANEL if small else _QUARTER
    legend = 0.0 if small else _LEGEND_ROW * max((_legend_rows(chart) for chart in picture.charts), default=0)
    beside = max((room_beside(chart.x, chart.y, wide) for chart in picture.charts), default=0.75)
    below = max((room_below(chart.x) for chart in picture.charts), default=0.0)
    cell = (beside + wide + _RIGHT, high + _ABOVE + legend + below)
    size = (cell[0] * picture.columns, cell[1] * rows + _HEAD)
    figure = Figure(figsize=size)
    figure.suptitle(printable(picture.title), fontsize=11, color=paper.text, y=1 - 0.12 / size[1])
    if not picture.charts:
        figure.text(0.5, 0.5, "no layer was measured", ha="center", color=paper.quiet)
    for index, chart in enumerate(picture.charts):
        row, column = divmod(index, picture.columns)
        # In inches from the lower left; letting matplotlib fit a page of panels by trial takes seconds.
        left = cell[0] * column + beside
        bottom = cell[1] * (rows - 1 - row) + below
        axes = figure.add_axes((left / size[0], bottom / size[1], wide / size[0], high / size[1]))
        titled = n > 1 or chart.title not in picture.title
        outer = (index + picture.columns >= n, column == 0)
        _draw_chart(axes, chart, paper, small=small, titled=titled, outer=outer)
    return figure


def _draw_chart(axes: Axes, chart: Chart, paper: Paper, *, small: bool, titled: bool, outer: tuple[bool, bool]) -> None:
    if titled:
        pad = 6.0 if small else 6.0 + _LEGEND_ROW * 72 * _legend_rows(chart)
        axes.set_title(short_name(chart.title, 34 if small else 60), color=paper.text, pad=pad, y=1.0)
    draw_axes(axes, chart.x, chart.y, paper, labelled=outer if small else (True, True))
    for part in chart.parts:
        _draw_part(axes, part, paper, small=small)
    if chart.note:
        axes.text(0.99, 0.02, chart.note, transform=axes.transAxes, ha="right", fontsize=7, color=paper.quiet)
    if any(part.label for part in chart.parts):
        _add_legend(axes, chart, paper, small=small)


def _add_legend(axes: Axes, chart: Chart, paper: Paper, *, small: bool) -> None:
    if small:
        _add_small_legend(axes, chart, paper)
        return
    axes.legend(  # above the axes, where it hides nothing
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        borderaxespad=0.2,
        ncols=_legend_columns(chart),
        frameon=False,
        columnspacing=1.2,
    )


def _add_small_legend(axes: Axes, chart: Chart, paper: Paper) -> None:
    """Say the fit's numbers in a corner of a panel; what every panel shows goes without saying."""
    from matplotlib.lines import Line2D

    kept = [part for part in chart.parts if part.label.startswith("β =") or "lowest BIC" in part.label]
    for i, part in enumerate(kept):
        y = 0.93 - 0.08 * i if chart.rises else 0.07 + 0.08 * i
        line = Line2D((0.04, 0.14), (y, y), color=paper.inks[part.ink], linewidth=1.4, transform=axes.transAxes)
        axes.add_artist(line)
        axes.text(
            0.17,
            y,
            part.label.replace(", lowest BIC", ""),
            va="center",
            fontsize=7,
            transform=axes.transAxes,
            bbox={"facecolor": paper.background, "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        )


def _legend_columns(chart: Chart) -> int:
    longest = max((len(part.label) for part in chart.parts), default=0)
    return 2 if longest > 24 else 4


def _legend_rows(chart: Chart) -> int:
    return -(-sum(bool(part.label) for part in chart.parts) // _legend_columns(chart))


def _draw_part(axes: Axes, part: Part, paper: Paper, *, small: bool) -> None:
    colour = paper.inks[part.ink]
    label = part.label or "_nolegend_"
    if isinstance(part, Points):
        _draw_points(axes, part, colour, label, size=3.0 if small else 4.5)
    elif isinstance(part, Line):
        axes.plot(
            part.xs,
            part.ys,
            "--" if part.dashed else "-",
            color=colour,
            label=label,
            linewidth=0.8 if part.faint else 1.4,
            alpha=0.45 if part.faint else 1.0,
        )
    elif isinstance(part, Band):
        axes.fill_between(part.xs, part.lows, part.highs, color=colour, alpha=0.18, linewidth=0, label=label)
    else:
        _draw_bars(axes, part, colour, label)


def _draw_points(axes: Axes, part: Points, colour: str, label: str, *, size: float) -> None:
    if part.whiskers:
        axes.vlines(
            part.xs, [w[0] for w in part.whiskers], [w[1] for w in part.whiskers], color=colour, alpha=0.5, lw=1
        )
    axes.plot(
        part.xs,
        part.ys,
        linestyle="none",
        marker=_MARKS[part.mark],
        markersize=0.6 * size if part.pale else size,
        markeredgewidth=0 if part.pale else None,
        alpha=0.55 if part.pale else 1.0,
        color=colour,
        markerfacecolor="none" if part.hollow else colour,
        label=label,
    )


def _draw_bars(axes: Axes, part: Bars, colour: str, label: str) -> None:
    heights = [high - low for low, high in zip(part.lows, part.highs, strict=True)]
    axes.bar(part.xs, heights, width=part.width, bottom=part.lows, color=colour, label=label, edgecolor="none")
