"""Documents drawn for a terminal with rich.

Nothing in a document is read as rich's markup, so a layer called ``a[red]`` is shown as it is called.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
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
_WHOLE_NAMES, _NAMES, _WORDS = 0.4, 0.25, 0.3  # of a terminal's width, for which other columns leave
_LEAST_WORDS = 12  # columns of words are not folded to less where numbers are whole
_BREAKS = (". /,:", "_-")  # a folded cell breaks behind one of these, the first kind rather than the second


def document_table(document: Document, *, width: int | None = None) -> RenderableType:
    """Draw a document: title, facts, sheets with their footnotes, closing lines.

    Args:
        document: what to show.
        width: columns of the terminal. Less important columns are left out, and said to be, until a sheet fits. Names
            that are too long even so are shortened where that leaves them distinct, and folded where it does not.
            ``None`` never leaves anything out.
    """
    parts: list[RenderableType] = [Text(printable(document.title), style="bold")]
    if document.opening:
        parts += [*(Text(printable(line), style=_STYLES[tone]) for line, tone in document.opening), Text()]
    parts.append(_facts(document))
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
        shown = _choose_columns(sheet, widths, width)
        widths = _squeeze(sheet, widths, shown, width)
        if texts:
            names = _shorten_names([line[0] for line in texts], widths[0])
            texts = [[name, *line[1:]] for name, line in zip(names, texts, strict=True)]
            widths[0] = min(widths[0], max(cell_len(text) for text in (titles[0], *names)))
        if hidden := [title for index, title in enumerate(titles) if index not in shown]:
            notes.append(f"not shown at {width} columns: {', '.join(hidden)} (a wider terminal or --format markdown)")
    notes += _footnotes_of(sheet, [line[index] for line in texts for index in shown])
    notes += sheet.describe_columns(shown)
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
        folded = {index: _fold(texts[index].rstrip(), self._widths[index]) for index in self._shown}
        for number in range(max(map(len, folded.values()))):
            for place, index in enumerate(self._shown):
                column, lines = self._sheet.columns[index], folded[index]
                text = _pad(lines[number] if number < len(lines) else "", self._widths[index], right=column.right)
                yield Segment(" " * _GAP * (place > 0) + text, strong if column.strong else style)
            yield Segment.line()


def _pad(text: str, width: int, *, right: bool) -> str:
    blanks = " " * (width - cell_len(text))
    return blanks + text if right else text + blanks


def _fold(text: str, width: int) -> list[str]:
    """Break a text into lines that fit, behind a dot or the like where there is one.

    >>> _fold("summary.signal.step_exponent", 16)
    ['summary.signal.', 'step_exponent']
    """
    lines = []
    while cell_len(text) > width:
        end = 1
        while cell_len(text[: end + 1]) <= width:
            end += 1
        behind = (max(text.rfind(mark, 0, end) for mark in marks) + 1 for marks in _BREAKS)
        end = next((place for place in behind if place > width // 3), end)
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, text]


def _squeeze(sheet: Sheet, widths: list[int], shown: Sequence[int], width: int) -> list[int]:
    """Where not even the columns that stay fit, take from the widest of words, then of all; their cells are folded."""
    widths = list(widths)
    words = [index for index in shown if index == 0 or not sheet.columns[index].right]
    while sum(widths[index] + _GAP for index in shown) - _GAP > width:
        wide = [index for index in words if widths[index] > _LEAST_WORDS] or shown
        widest = max(wide, key=lambda index: widths[index])
        if widths[widest] <= 1:
            break
        widths[widest] -= 1
    return widths


def _footnotes_of(sheet: Sheet, cells: Sequence[str]) -> list[str]:
    """The footnotes that a shown cell refers to, and those that no mark begins."""
    marks = {mark for cell in cells if (mark := footnote_mark(cell))}
    return [line for line in sheet.footnotes if (own := line.partition(" ")[0]) in marks or not footnote_mark(own)]


def _choose_columns(sheet: Sheet, widths: Sequence[int], width: int) -> list[int]:
    """Return the columns that fit; long words are no reason to leave one out, as they can be folded."""
    shown = list(range(len(sheet.columns)))

    def needed(index: int) -> int:
        if index and (sheet.columns[index].right or sheet.columns[index].drop_order):
            return widths[index]
        if index:
            return min(widths[index], int(width * _WORDS))
        return widths[0] if widths[0] <= width * _WHOLE_NAMES else int(width * _NAMES)

    while sum(needed(index) + _GAP for index in shown) - _GAP > width:
        droppable = [index for index in shown[1:] if sheet.columns[index].drop_order]
        if not droppable:
            break
        first = max(droppable, key=lambda index: (sheet.columns[index].drop_order, index))
        mates = sheet.columns[first].together
        shown = [i for i in shown if i != first and not (mates and sheet.columns[i].together == mates)]
    return shown


def _shorten_names(names: Sequence[str], width: int) -> list[str]:
    """Take out of long names what leaves them distinct, the middle first; names are as they were if nothing does.

    >>> _shorten_names(["stage.0.block.conv1.weight", "stage.1.block.conv1.weight"], 16)
    ['stage.0…1.weight', 'stage.1…1.weight']
    """
    distinct = set(names)
    usual = (width - 1) * 2 // 3
    for tail in (*range(usual, width), *range(usual - 1, -1, -1)):
        short = {name: _shorten(name, width, tail) for name in distinct}
        if len(set(short.values())) == len(distinct):
            return [short[name] for name in names]
    return list(names)


def _shorten(text: str, width: int, tail: int) -> str:
    if cell_len(text) <= width or cell_len(text) != len(text):
        return text
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
