"""Documents drawn for a terminal with rich.

Nothing in a document is read as rich's markup, so a layer called ``a[red]`` is shown as it is called.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from spectrascope.reports.views.document import Document, Sheet, Tone
from spectrascope.reports.views.fit import GAP, column_widths, drop_columns, rename, shared_names
from spectrascope.text import printable

__all__ = ["document_table", "plain_text"]

_STYLES = {Tone.PLAIN: "", Tone.QUIET: "dim", Tone.WARNING: "yellow", Tone.ALARM: "bold red"}
_UNBOUNDED = 1_000_000  # columns of a table that no terminal limits
_WHOLE_NAMES, _NAMES = 0.4, 0.25  # of a terminal's width, for which other columns leave
_LEAST_WORDS = 12  # columns of words are not folded to less where numbers are whole
_BREAKS = (". /,:", "_-")  # a folded cell breaks behind one of these, the first kind rather than the second


def document_table(document: Document, *, width: int | None = None) -> RenderableType:
    """Draw a document: title, facts, sheets with their footnotes, closing lines.

    Args:
        document: what to show.
        width: columns of the terminal. Less important columns are left out, and said to be, until a sheet fits. Names
            that are too long even so lose what they share, then their middles, where that leaves them distinct, and
            are folded where it does not.
            ``None`` never leaves anything out.
    """
    parts: list[RenderableType] = [Text(printable(document.title), style="bold")]
    if document.opening:
        parts += [*(Text(printable(line), style=_STYLES[tone]) for line, tone in document.opening), Text()]
    parts.append(_facts(document))
    short = shared_names(document) if width is not None else {}
    for sheet in document.sheets:
        parts += [Text(), Text(printable(sheet.title), style="bold"), *_draw_sheet(sheet, width, short)]
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
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in document.facts:
        grid.add_row(Text(label), Text(printable(value)))
    return grid


def _draw_sheet(sheet: Sheet, width: int | None, short: Mapping[str, str]) -> list[RenderableType]:
    notes: list[str] = []
    widths = column_widths(sheet)
    if width is not None:
        sheet, widths, notes = _fit(sheet, width, short)
    notes += [*sheet.footnotes, *sheet.describe_columns()]
    return [_Grid(sheet, widths), *(Text(printable(note), style="dim") for note in notes)]


def _fit(sheet: Sheet, width: int, short: Mapping[str, str]) -> tuple[Sheet, list[int], list[str]]:
    """A sheet as it fits, its columns' widths, and what is to be said of that."""
    notes: list[str] = []
    widths, room = column_widths(sheet), int(width * _WHOLE_NAMES)
    shorter = rename(sheet, short)
    if sum(widths) + GAP * (len(widths) - 1) > width and column_widths(shorter)[0] <= room < widths[0]:
        pairs = ((new.cells[0], old.cells[0]) for new, old in zip(shorter.rows, sheet.rows, strict=True))
        notes.append("names are shortened: {} is {}".format(*next(pair for pair in pairs if pair[0] != pair[1])))
        sheet, widths = shorter, column_widths(shorter)
    sheet, hidden = drop_columns(sheet, width, names=widths[0] if widths[0] <= room else int(width * _NAMES))
    if hidden:
        left_out = ", ".join(hidden)
        notes.insert(0, f"not shown at {width} columns: {left_out} (a wider terminal or --format markdown)")
    widths = _squeeze(sheet, column_widths(sheet), width)
    if sheet.rows:
        by_width = _shorten_names([printable(row.cells[0]) for row in sheet.rows], widths[0])
        lines = zip(by_width, sheet.rows, strict=True)
        sheet = replace(sheet, rows=tuple(replace(row, cells=(name, *row.cells[1:])) for name, row in lines))
        widths[0] = min(widths[0], column_widths(sheet)[0])
    return sheet, widths, notes


class _Grid:
    """The lines of a sheet, laid out here: of hundreds of rows, rich's own table takes a second to do it."""

    def __init__(self, sheet: Sheet, widths: list[int]) -> None:
        self._sheet, self._widths = sheet, widths

    def __rich_console__(self, console: Console, _: ConsoleOptions) -> RenderResult:
        styles = {tone: console.get_style(name) for tone, name in _STYLES.items()}
        bold = console.get_style("bold")
        yield from self._line([column.title for column in self._sheet.columns], bold, bold)
        yield from (Segment("─" * (sum(self._widths) + GAP * (len(self._widths) - 1))), Segment.line())
        for row in self._sheet.rows:
            yield from self._line(list(map(printable, row.cells)), styles[row.tone], styles[row.tone] + bold)

    def _line(self, texts: Sequence[str], style: Style, strong: Style) -> Iterator[Segment]:
        folded = [_fold(text.rstrip(), width) for text, width in zip(texts, self._widths, strict=True)]
        for number in range(max(map(len, folded))):
            for place, (column, lines) in enumerate(zip(self._sheet.columns, folded, strict=True)):
                text = _pad(lines[number] if number < len(lines) else "", self._widths[place], right=column.right)
                yield Segment(" " * GAP * (place > 0) + text, strong if column.strong else style)
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


def _squeeze(sheet: Sheet, widths: list[int], width: int) -> list[int]:
    """Where not even the columns that stay fit, take from the widest of words, then of all; their cells are folded."""
    widths = list(widths)
    words = [index for index, column in enumerate(sheet.columns) if index == 0 or not column.right]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        wide = [index for index in words if widths[index] > _LEAST_WORDS] or range(len(widths))
        widest = max(wide, key=lambda index: widths[index])
        if widths[widest] <= 1:
            break
        widths[widest] -= 1
    return widths


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
