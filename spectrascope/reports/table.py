"""Documents drawn for a terminal with rich.

Nothing in a document is read as rich's markup, so a layer called ``a[red]`` is shown as it is called.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from spectrascope.reports.views.document import Document, Sheet, Tone, footnote_mark
from spectrascope.text import printable

__all__ = ["document_table", "plain_text"]

_STYLES = {Tone.PLAIN: "", Tone.QUIET: "dim", Tone.WARNING: "yellow", Tone.ALARM: "bold red"}
_UNBOUNDED = 1_000_000  # columns of a table that no terminal limits
_GAP = 2  # blanks between columns
_LEAST_NAME_WIDTH = 16


def document_table(document: Document, *, width: int | None = None) -> RenderableType:
    """Draw a document: title, facts, sheets with their footnotes, closing lines.

    Args:
        document: what to show.
        width: columns of the terminal. Less important columns are left out, and said to be, and layer names
            shortened in the middle until a sheet fits. ``None`` never leaves anything out.
    """
    parts: list[RenderableType] = [Text(printable(document.title), style="bold"), _facts(document)]
    for sheet in document.sheets:
        parts += [Text(), Text(printable(sheet.title), style="bold"), *_draw_sheet(sheet, width)]
    if document.closing:
        parts.append(Text())
        parts += [Text(printable(line), style=_STYLES[tone]) for line, tone in document.closing]
    return Group(*parts)


def plain_text(drawn: RenderableType, width: int | None = None) -> str:
    """Draw without colour, at most ``width`` columns wide, without blanks at the ends of lines."""
    stream = io.StringIO()
    Console(file=stream, width=width or _UNBOUNDED, color_system=None, force_terminal=False).print(drawn)
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip("\n").split("\n"))


def _facts(document: Document) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in document.facts:
        grid.add_row(Text(label), Text(printable(value)))
    return grid


def _draw_sheet(sheet: Sheet, width: int | None) -> list[RenderableType]:
    texts = [[printable(cell) for cell in row.cells] for row in sheet.rows]
    titles = [column.title for column in sheet.columns]
    widths = [max(map(cell_len, column)) for column in zip(titles, *texts, strict=True)]
    shown = list(range(len(sheet.columns)))
    notes: list[str] = []
    if width is not None:
        shown, name_width = _fit(sheet, widths, width)
        for line in texts:
            line[0] = _shorten(line[0], name_width)
        widths[0] = max(cell_len(titles[0]), *(cell_len(line[0]) for line in texts)) if texts else widths[0]
        widths = _squeeze(widths, shown, width)
        if hidden := [title for index, title in enumerate(titles) if index not in shown]:
            notes.append(f"not shown at {width} columns: {', '.join(hidden)} (a wider terminal or --format markdown)")
    notes += _footnotes_of(sheet, [line[index] for line in texts for index in shown])
    return [_Grid(sheet, texts, shown, widths), *(Text(printable(note), style="dim") for note in notes)]


class _Grid:
    """The lines of a sheet, laid out here: of hundreds of rows, rich's own table takes a second to do it."""

    def __init__(self, sheet: Sheet, texts: list[list[str]], shown: list[int], widths: list[int]) -> None:
        self._sheet, self._texts, self._shown, self._widths = sheet, texts, shown, widths

    def __rich_console__(self, console: Console, _: ConsoleOptions) -> RenderResult:
        styles = {tone: console.get_style(name) for tone, name in _STYLES.items()}
        bold = console.get_style("bold")
        total = sum(self._widths[index] + _GAP for index in self._shown) - _GAP
        yield from self._line([column.title for column in self._sheet.columns], bold, bold)
        yield from (Segment("─" * total), Segment.line())
        for row, texts in zip(self._sheet.rows, self._texts, strict=True):
            yield from self._line(texts, styles[row.tone], styles[row.tone] + bold)

    def _line(self, texts: Sequence[str], style: Style, strong: Style) -> Iterator[Segment]:
        for place, index in enumerate(self._shown):
            column, width = self._sheet.columns[index], self._widths[index]
            text = _pad(texts[index], width, right=column.right)
            yield Segment(" " * _GAP * (place > 0) + text, strong if column.strong else style)
        yield Segment.line()


def _pad(text: str, width: int, *, right: bool) -> str:
    text = text.rstrip()
    room = width - cell_len(text)
    if room < 0:
        return set_cell_size(text, width - 1) + "…"
    return " " * room + text if right else text + " " * room


def _squeeze(widths: list[int], shown: Sequence[int], width: int) -> list[int]:
    """Where not even the columns that stay fit, take from the widest until they do; their cells are cut."""
    widths = list(widths)
    while sum(widths[index] + _GAP for index in shown) - _GAP > width:
        widest = max(shown, key=lambda index: widths[index])
        if widths[widest] <= 1:
            break
        widths[widest] -= 1
    return widths


def _footnotes_of(sheet: Sheet, cells: Sequence[str]) -> list[str]:
    """The footnotes that a shown cell refers to, and those that no mark begins."""
    marks = {mark for cell in cells if (mark := footnote_mark(cell))}
    return [line for line in sheet.footnotes if (own := line.partition(" ")[0]) in marks or not footnote_mark(own)]


def _fit(sheet: Sheet, widths: Sequence[int], width: int) -> tuple[list[int], int]:
    """Return the columns that fit and the width left for the first one."""
    shown = list(range(len(sheet.columns)))
    while True:
        others = sum(widths[index] + _GAP for index in shown[1:])
        least = min(widths[0], max(_LEAST_NAME_WIDTH, width // 4))
        droppable = [index for index in shown[1:] if sheet.columns[index].drop_order]
        if others + least <= width or not droppable:
            return shown, max(width - others, _LEAST_NAME_WIDTH)
        shown.remove(max(droppable, key=lambda index: (sheet.columns[index].drop_order, index)))


def _shorten(text: str, width: int) -> str:
    """Take out the middle: both ends of a parameter name tell layers apart."""
    if cell_len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return text[: width - 1 - tail] + "…" + text[-tail:]
