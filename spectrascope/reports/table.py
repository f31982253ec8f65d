"""Documents drawn for a terminal with rich.

Every cell and sentence is a :class:`rich.text.Text`, so a layer called ``a[red]`` is shown as it is called.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spectrascope.records import Report
from spectrascope.reports.document import Document, Sheet, Tone
from spectrascope.reports.order import Sort
from spectrascope.reports.views import build_probe, build_triangle

__all__ = ["document_table", "report_table", "triangle_table"]

_STYLES = {Tone.PLAIN: "", Tone.QUIET: "dim", Tone.WARNING: "yellow", Tone.ALARM: "bold red"}
_GAP = 2  # blanks between columns
_LEAST_NAME_WIDTH = 16


def report_table(report: Report, sort: Sort = Sort.ORDER, *, width: int | None = None) -> RenderableType:
    """The whole report. ``width`` is the terminal's; ``None`` shows every column in full."""
    return document_table(build_probe(report, sort), width=width)


def triangle_table(report: Report, sort: Sort = Sort.ORDER, *, width: int | None = None) -> RenderableType:
    """The α triangle alone. ``width`` is the terminal's; ``None`` shows every column in full."""
    return document_table(build_triangle(report, sort), width=width)


def document_table(document: Document, *, width: int | None = None) -> RenderableType:
    """Draw a document: title, facts, sheets with their footnotes, closing lines.

    Args:
        document: what to show.
        width: columns of the terminal. Less important columns are left out, and said to be, and layer names
            shortened in the middle until a sheet fits. ``None`` never leaves anything out.
    """
    parts: list[RenderableType] = [Text(_printable(document.title), style="bold"), _facts(document)]
    for sheet in document.sheets:
        parts += [Text(), Text(_printable(sheet.title), style="bold"), *_draw_sheet(sheet, width)]
        parts += [Text(_printable(line), style="dim") for line in sheet.footnotes]
    if document.closing:
        parts.append(Text())
        parts += [Text(_printable(line), style=_STYLES[tone]) for line, tone in document.closing]
    return Group(*parts)


def _facts(document: Document) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in document.facts:
        grid.add_row(Text(label), Text(_printable(value)))
    return grid


def _draw_sheet(sheet: Sheet, width: int | None) -> list[RenderableType]:
    texts = [[_printable(cell) for cell in row.cells] for row in sheet.rows]
    widths = [
        max([cell_len(column.title), *(cell_len(line[index]) for line in texts)])
        for index, column in enumerate(sheet.columns)
    ]
    shown = list(range(len(sheet.columns)))
    notes: list[RenderableType] = []
    if width is not None:
        shown, name_width = _fit(sheet, widths, width)
        hidden = [column.title for index, column in enumerate(sheet.columns) if index not in shown]
        for line in texts:
            line[0] = _shorten(line[0], name_width)
        if hidden:
            notes.append(
                Text(
                    f"not shown at {width} columns: {', '.join(hidden)} (a wider terminal or --format markdown)",
                    style="dim",
                )
            )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index in shown:
        column = sheet.columns[index]
        table.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=True,
            style="bold" if column.strong else "",
        )
    for row, line in zip(sheet.rows, texts, strict=True):
        table.add_row(*(Text(line[index]) for index in shown), style=_STYLES[row.tone])
    return [table, *notes]


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


def _printable(text: str) -> str:
    """Escape control characters, which could move the cursor or forge a line of output."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
