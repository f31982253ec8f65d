"""Charts as inline SVG. Colours come from classes (``ink-blue`` …), so that a page decides on its shades.

Text is escaped, numbers have one digit after the point: the same chart gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from spectrascope.reports.charts.axes import Axis
from spectrascope.reports.charts.chart import Band, Bars, Chart, Line, Part, Points, PointShape
from spectrascope.reports.charts.notation import svg_spans
from spectrascope.text import printable

__all__ = ["chart_svg"]

_RADIUS, _SMALL_RADIUS, _MANY_POINTS = 3.4, 2.2, 80
_LEGEND_LINE = 18.0
_GUIDE = 42  # room for the name of a guide
_SLANTED_WIDTH = 19  # between slanted names
_CHAR, _SLANTED_CHAR, _SLANTED_DEPTH = 6.2, 5.3, 4.3  # room for a letter of the legend, of a slanted name, below it
_LEAST_HEIGHT = 150  # of the axes, where a legend and slanted names take the room


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the axes lie in the drawing, in its own units."""

    left: float
    top: float
    right: float
    bottom: float
    x: Axis
    y: Axis

    def at_x(self, value: float) -> float:
        return self.left + (self.right - self.left) * min(max(self.x.place(value), -2.0), 3.0)

    def at_y(self, value: float) -> float:
        if self.y.log and value <= 0:
            return self.bottom + 2 * (self.bottom - self.top)
        return self.bottom - (self.bottom - self.top) * min(max(self.y.place(value), -2.0), 3.0)


def chart_svg(chart: Chart, identity: str, *, width: int = 340, height: int = 280) -> str:
    """Draw a chart.

    Args:
        chart: what to show.
        identity: unique in the page; names the clip path and the title.
        width: of the drawing, in its own units, in which letters are 12 high: as wide as a phone shows it.
        height: of the drawing, legend included; more where that leaves too little for the axes.

    Returns:
        An ``<svg>`` element with a title and a description for readers who cannot see it.
    """
    rows = _legend_rows(chart, width - 20)
    longest = max((len(text) for _, text in chart.x.ticks), default=0) if chart.x.slanted else 0
    bottom = 40 + round(_SLANTED_DEPTH * longest) if longest else 44
    right = width - 14 - (_GUIDE if chart.guides else 0)
    left, top = _left(chart.x, right), 14 + round(_LEGEND_LINE * len(rows))
    height = max(height, top + _LEAST_HEIGHT + bottom)
    frame = _Frame(left, top, right, height - bottom, chart.x, chart.y)
    identity = escape(identity, quote=True)
    inside = "".join(_draw(part, frame) for part in chart.parts)
    title, summary = escape(printable(chart.title)), escape(printable(chart.summary or chart.title))
    w, h = frame.right - frame.left, frame.bottom - frame.top
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{title}</title><desc id="{identity}-d">{summary}</desc>'
        f'<clipPath id="{identity}-c"><rect x="{frame.left:.1f}" y="{frame.top:.1f}" width="{w:.1f}" '
        f'height="{h:.1f}"/></clipPath>'
        f"{_axes(chart, frame, height)}"
        f'<g clip-path="url(#{identity}-c)">{inside}</g>'
        f"{_legend(rows)}</svg>"
    )


def _left(x: Axis, right: float) -> float:
    """Where the axes begin: beside the ticks and the label of y, and no slanted name is cut off."""
    places = [(x.place(value), _SLANTED_CHAR * len(text)) for value, text in x.ticks if x.slanted]
    return max([58.0, *((needed - right * place) / (1 - place) for place, needed in places if place < 0.5)])


def _axes(chart: Chart, frame: _Frame, floor: float) -> str:
    pieces = []
    every = -(-len(chart.x.ticks) * _SLANTED_WIDTH // (frame.right - frame.left)) if chart.x.slanted else 1
    for value, text in chart.x.ticks[:: max(int(every), 1)]:
        x = frame.at_x(value)
        pieces.append(f'<path class="grid" d="M{x:.1f} {frame.top:.1f}V{frame.bottom:.1f}"/>')
        if chart.x.slanted:
            place = f'transform="translate({x + 4:.1f} {frame.bottom + 13:.1f}) rotate(-45)" text-anchor="end"'
        else:
            place = f'x="{x:.1f}" y="{frame.bottom + 17:.1f}" text-anchor="middle"'
        pieces.append(f'<text class="tick" {place}>{escape(text)}</text>')
    for value, text in chart.y.ticks:
        y = frame.at_y(value)
        pieces.append(f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        pieces.append(
            f'<text class="tick" x="{frame.left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for value, name in chart.guides:
        if not frame.y.holds(value):
            continue
        y = frame.at_y(value)
        pieces.append(f'<path class="guide" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        pieces.append(f'<text class="guide" x="{frame.right + 4:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
    middle_x, middle_y = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    pieces.append(
        f'<path class="axis" d="M{frame.left:.1f} {frame.top:.1f}V{frame.bottom:.1f}H{frame.right:.1f}"/>'
        f'<text class="label" x="{middle_x:.1f}" y="{floor - 6:.1f}" text-anchor="middle">'
        f"{svg_spans(chart.x.label)}</text>"
        f'<text class="label" transform="translate(13 {middle_y:.1f}) rotate(-90)" text-anchor="middle">'
        f"{svg_spans(chart.y.label)}</text>"
    )
    return "".join(pieces)


def _draw(part: Part, frame: _Frame) -> str:
    if isinstance(part, Points):
        return _draw_points(part, frame)
    if isinstance(part, Line):
        style = ("dashed " if part.dashed else "") + ("faint " if part.faint else "")
        title = f"<title>{escape(printable(part.name))}</title>" if part.name else ""
        path = _path(zip(part.xs, part.ys, strict=True), frame)
        return f'<path class="line {style}ink-{part.ink.value}" d="{path}">{title}</path>' if path else ""
    if isinstance(part, Band):
        forth = [*zip(part.xs, part.highs, strict=True)]
        back = [*zip(part.xs, part.lows, strict=True)][::-1]
        return f'<path class="band ink-{part.ink.value}" d="{_path([*forth, *back], frame)}Z"/>' if forth else ""
    return _draw_bars(part, frame)


def _path(points: Iterable[tuple[float, float]], frame: _Frame) -> str:
    places = [f"{frame.at_x(x):.1f} {frame.at_y(y):.1f}" for x, y in points]
    return f"M{'L'.join(places)}" if places else ""


def _draw_points(part: Points, frame: _Frame) -> str:
    style = f"{_style_of(part)} ink-{part.ink.value}"
    radius = _RADIUS if len(part.xs) <= _MANY_POINTS and not part.pale else _SMALL_RADIUS
    pieces = []
    for x, (low, high) in zip(part.xs, part.whiskers, strict=False):
        pieces.append(f'<path class="whisker" d="M{frame.at_x(x):.1f} {frame.at_y(low):.1f}V{frame.at_y(high):.1f}"/>')
    for index, (x, y) in enumerate(zip(part.xs, part.ys, strict=True)):
        title = f"<title>{escape(printable(part.names[index]))}</title>" if part.names else ""
        shape = _SHAPES[part.mark](frame.at_x(x), frame.at_y(y), radius)
        pieces.append(f"<{shape}>{title}</{shape.split(' ', 1)[0]}>" if title else f"<{shape}/>")
    return f'<g class="{style}">{"".join(pieces)}</g>'


def _style_of(part: Points) -> str:
    return ("hollow" if part.hollow else "solid") + (" pale" if part.pale else "")


def _draw_bars(part: Bars, frame: _Frame) -> str:
    pieces = []
    for index, (x, low, high) in enumerate(zip(part.xs, part.lows, part.highs, strict=True)):
        if low == high:
            continue
        left, right = frame.at_x(x - part.width / 2), frame.at_x(x + part.width / 2)
        top, bottom = frame.at_y(max(low, high)), frame.at_y(min(low, high))
        title = f"<title>{escape(printable(part.names[index]))}</title>" if part.names else ""
        pieces.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}">{title}</rect>'
        )
    return f'<g class="bars ink-{part.ink.value}">{"".join(pieces)}</g>'


def _circle(x: float, y: float, r: float) -> str:
    return f'circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"'


def _square(x: float, y: float, r: float) -> str:
    return f'rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}"'


def _triangle(x: float, y: float, r: float) -> str:
    return f'path d="M{x:.1f} {y - 1.2 * r:.1f}l{1.1 * r:.1f} {2 * r:.1f}h{-2.2 * r:.1f}z"'


def _diamond(x: float, y: float, r: float) -> str:
    d = f"{1.3 * r:.1f}"
    return f'path d="M{x:.1f} {y - 1.3 * r:.1f}l{d} {d}l-{d} {d}l-{d} -{d}z"'


def _cross(x: float, y: float, r: float) -> str:
    d, t = r * 1.1, r * 0.4
    return (
        f'path d="M{x - t:.1f} {y - d:.1f}h{2 * t:.1f}v{d - t:.1f}h{d - t:.1f}v{2 * t:.1f}h{t - d:.1f}v{d - t:.1f}'
        f'h{-2 * t:.1f}v{t - d:.1f}h{t - d:.1f}v{-2 * t:.1f}h{d - t:.1f}z"'
    )


_SHAPES: dict[PointShape, Callable[[float, float, float], str]] = {
    PointShape.CIRCLE: _circle,
    PointShape.SQUARE: _square,
    PointShape.TRIANGLE: _triangle,
    PointShape.DIAMOND: _diamond,
    PointShape.CROSS: _cross,
}


def _legend_rows(chart: Chart, width: float) -> list[list[Part]]:
    rows: list[list[Part]] = []
    used = width
    for part in chart.parts:
        if not part.label:
            continue
        needed = 34 + _CHAR * len(part.label)
        if used + needed > width or not rows:
            rows.append([])
            used = 0.0
        rows[-1].append(part)
        used += needed
    return rows


def _legend(rows: Sequence[Sequence[Part]]) -> str:
    pieces = []
    for index, row in enumerate(rows):
        x, y = 14.0, 12.0 + _LEGEND_LINE * index
        for part in row:
            pieces.append(_key(part, x, y))
            pieces.append(f'<text class="legend" x="{x + 22:.1f}" y="{y + 4:.1f}">{svg_spans(part.label)}</text>')
            x += 34 + _CHAR * len(part.label)
    return "".join(pieces)


def _key(part: Part, x: float, y: float) -> str:
    ink = f"ink-{part.ink.value}"
    if isinstance(part, Points):
        shape = _SHAPES[part.mark](x + 8, y, _RADIUS)
        return f'<g class="{_style_of(part)} {ink}"><{shape}/></g>'
    if isinstance(part, Line):
        return f'<path class="line {"dashed " if part.dashed else ""}{ink}" d="M{x:.1f} {y:.1f}h16"/>'
    kind = "band" if isinstance(part, Band) else "bars"
    return f'<rect class="{kind} {ink}" x="{x:.1f}" y="{y - 5:.1f}" width="16" height="10"/>'
