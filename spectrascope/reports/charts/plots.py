"""Pictures drawn with matplotlib: PNG, SVG or PDF bytes. It is imported only when something is drawn."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import IO, TYPE_CHECKING, Any

from spectrascope.errors import OptionError
from spectrascope.reports.charts.chart import Band, Bars, Chart, Line, Part, Picture, Points, PointShape
from spectrascope.reports.charts.inks import DARK, LIGHT, Paper
from spectrascope.reports.charts.layout import FigureLayout, lay_out, picture_width, wrap
from spectrascope.reports.charts.legends import add_legend, add_numbers, add_shared_legend, legend_rows
from spectrascope.reports.charts.names import short_name
from spectrascope.reports.charts.notation import mathtext
from spectrascope.reports.charts.plot_axes import NOTE, draw_axes, room_below, write_note

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


_FONTS: Any = {"svg.fonttype": "none", "pdf.fonttype": 42, "ps.fonttype": 42}  # text stays text, its font goes along


def require_matplotlib() -> None:
    """Raise if matplotlib is not installed.

    Raises:
        OptionError: it is not; the message says how to get it.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise OptionError("pictures need matplotlib: pip install 'spectrascope[plot]'") from error


def draw_picture(
    picture: Picture, suffix: str, *, dpi: int = 150, dark: bool = False, width: str | float | None = None
) -> bytes:
    """Draw one picture.

    Args:
        picture: what to draw.
        suffix: ``png``, ``svg`` or ``pdf``.
        dpi: dots per inch of a PNG.
        dark: light on dark instead of dark on light.
        width: ``one-column``, ``two-column`` or inches; as large as it likes when ``None``.

    Returns:
        The file's bytes; the same picture gives the same bytes with the same version of matplotlib.
    """
    with _style(dark) as paper:
        figure = _draw(picture, paper, width)
        stream = io.BytesIO()
        if suffix == "png":
            _save_png(figure, stream, dpi)
        else:
            figure.savefig(stream, format=suffix, metadata=_without_date(suffix))
        return stream.getvalue()


def make_figure(
    picture: Picture, *, title: str | None = None, width: str | float | None = None, theme: str = "light"
) -> Figure:
    """Draw one picture as a figure of matplotlib's, which a notebook shows and ``savefig`` writes.

    Args:
        picture: what to draw.
        title: above it instead of its own; empty for none.
        width: ``one-column``, ``two-column`` or inches; as large as it likes when ``None``.
        theme: ``light`` or ``dark``.

    Raises:
        OptionError: no such theme or width, or matplotlib is not installed.
    """
    if theme not in ("light", "dark"):
        raise OptionError(f"theme {theme!r}: expected light or dark")
    with _style(theme == "dark") as paper:
        return _draw(picture if title is None else replace(picture, title=title), paper, width)


def draw_pages(pictures: Iterable[Picture], *, dark: bool = False, width: str | float | None = None) -> bytes:
    """Draw pictures as one PDF, a page each; ``width`` as for :func:`draw_picture`."""
    from matplotlib.backends.backend_pdf import PdfPages

    stream = io.BytesIO()
    with _style(dark) as paper, PdfPages(stream, metadata=_without_date("pdf")) as pages:
        for picture in pictures:
            pages.savefig(_draw(picture, paper, width))
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
                **_FONTS,
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


def _draw(picture: Picture, paper: Paper, width: str | float | None = None) -> Figure:
    layout = lay_out(picture, picture_width(width))
    n = max(len(picture.charts), 1)
    figure: Figure = _figure_class()(figsize=layout.size)
    top = 1 - 0.07 / layout.size[1]
    title = mathtext(layout.title)
    figure.suptitle(title, fontsize=11 * layout.scale, color=paper.text, y=top, va="top", parse_math=True)
    if not picture.charts:
        figure.text(0.5, 0.5, "no layer was measured", ha="center", color=paper.quiet)
    for index, chart in enumerate(picture.charts):
        # Placed by hand: letting matplotlib fit a page of panels by trial takes seconds.
        axes = figure.add_axes(layout.place(index, n))
        titled = n > 1 or (bool(picture.title) and chart.title not in picture.title)
        outer = (index + layout.columns >= n, index % layout.columns == 0)
        _draw_chart(axes, chart, paper, layout, titled=titled, outer=outer)
    if layout.small:
        add_shared_legend(figure, layout.below_title, layout.legend_columns, paper)
    return figure


@cache
def _figure_class() -> Any:
    """A figure that notebooks show without pyplot, and whose PDF has its fonts embedded whoever saves it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    class Drawing(Figure):
        def savefig(self, *args: Any, **kwargs: Any) -> None:
            with rc_context(_FONTS):
                super().savefig(*args, **{"facecolor": self.get_facecolor(), **kwargs})

        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            self.savefig(stream, format="png", dpi=110)
            return stream.getvalue()

    return Drawing


def _draw_chart(
    axes: Axes, chart: Chart, paper: Paper, layout: FigureLayout, *, titled: bool, outer: tuple[bool, bool]
) -> None:
    small, scale = layout.small, layout.scale
    if titled:
        pad = 6.0 if small else 8.0 + 0.19 * scale * 72 * legend_rows(chart, layout.legend_columns)
        letters = int(layout.axes[0] * 72 / (9 * scale * 0.55))
        name = short_name(chart.title, min(letters, 60))
        ours = not name.isascii()  # a layer's name is not typeset
        axes.set_title(
            mathtext(name) if ours else name, color=paper.text, pad=pad, y=1.0, fontsize=9 * scale, parse_math=ours
        )
    labelled = outer if small else (True, True)
    draw_axes(axes, chart.x, chart.y, paper, labelled=labelled, wide=layout.axes[0], scale=scale)
    for place, name in chart.guides:
        if chart.y.holds(place):
            axes.axhline(place, color=paper.quiet, linewidth=0.6, linestyle=(0, (2, 4)), zorder=0.8)
            axes.text(
                1.01, place, name, transform=axes.get_yaxis_transform(), va="center_baseline", style="italic",
                fontsize=7.5 * scale, color=paper.quiet,
            )  # fmt: skip
    for part in chart.parts:
        _draw_part(axes, part, paper, small=small)
    if chart.note:
        below = room_below(chart.x, scale) if not small or labelled[0] else 0.28 * scale
        write_note(axes, wrap(chart.note, layout.axes[0], NOTE * scale), below, scale, paper.quiet)
    if small:
        add_numbers(axes, chart, paper, scale)
    elif any(part.label for part in chart.parts):
        add_legend(axes, layout.legend_columns)


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
