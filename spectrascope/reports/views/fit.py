"""Which columns of a sheet fit a width, which notes go with those that stay, and shorter names of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.cells import cell_len

from spectrascope.reports.charts.names import short_names
from spectrascope.reports.views.document import DASH, Document, Footnotes, Sheet, footnote_mark
from spectrascope.text import printable

__all__ = ["GAP", "column_widths", "drop_columns", "rename", "shared_names"]

GAP = 2
"""Blanks between two columns."""

_WORDS = 0.3  # of the width, for which other columns leave
_NAMING = ("layer", "weight")  # titles of columns of weights' names
_TIED = " = "  # between the names of one weight


def column_widths(sheet: Sheet) -> list[int]:
    """Characters that the longest cell of each column takes, its title among them."""
    lines = [[column.title for column in sheet.columns]]
    lines += [[printable(cell) for cell in row.cells] for row in sheet.rows]
    return [max(map(cell_len, column)) for column in zip(*lines, strict=True)]


def drop_columns(sheet: Sheet, width: int, *, names: int, drawn: Sequence[int] = ()) -> tuple[Sheet, list[str]]:
    """Leave columns out until a sheet fits: those without a single value first, then by ``drop_order``.

    Args:
        sheet: the table.
        width: characters of a line.
        names: what to count the first column as. Long words in others are no reason to leave a column out, as they
            can be folded.
        drawn: columns to leave out in any case.

    Returns:
        The table with the footnotes of what is left, numbered again; titles of what was left out for want of room.
    """
    widths = column_widths(sheet)
    shown = [index for index in range(len(sheet.columns)) if index not in drawn]

    def needed(index: int) -> int:
        if index == 0:
            return names
        if sheet.columns[index].right or sheet.columns[index].drop_order:
            return widths[index]
        return min(widths[index], int(width * _WORDS))

    def mates(index: int) -> list[int]:
        name = sheet.columns[index].together
        return [i for i in shown if i == index or (name and sheet.columns[i].together == name)]

    def leaves(index: int) -> tuple[bool, int, int]:
        return all(_is_empty(sheet, i) for i in mates(index)), sheet.columns[index].drop_order, index

    left_out: list[str] = []
    while sum(needed(index) + GAP for index in shown) - GAP > width:
        droppable = [index for index in shown[1:] if sheet.columns[index].drop_order]
        if not droppable:
            break
        leaving = mates(max(droppable, key=leaves))
        left_out += [sheet.columns[index].title for index in leaving]
        shown = [index for index in shown if index not in leaving]
    in_order = [column.title for column in sheet.columns if column.title in left_out]
    return _only(sheet, shown), in_order


def _is_empty(sheet: Sheet, index: int) -> bool:
    return bool(sheet.rows) and all(row.cells[index].startswith(DASH) for row in sheet.rows)


def _only(sheet: Sheet, shown: Sequence[int]) -> Sheet:
    """Some of the columns, with their footnotes numbered from 1."""
    if len(shown) == len(sheet.columns):
        return sheet
    by_mark = {line.partition(" ")[0]: line.partition(" ")[2] for line in sheet.footnotes}
    notes, rows = Footnotes(), []
    for row in sheet.rows:
        cells = []
        for cell in (row.cells[index] for index in shown):
            mark = footnote_mark(cell)
            cells.append(notes.mark(cell.removesuffix(mark), by_mark[mark]) if mark in by_mark else cell)
        rows.append(replace(row, cells=tuple(cells)))
    unmarked = [line for line in sheet.footnotes if not footnote_mark(line.partition(" ")[0])]
    columns = tuple(sheet.columns[index] for index in shown)
    return replace(sheet, columns=columns, rows=tuple(rows), footnotes=(*notes.lines(), *unmarked))


def shared_names(document: Document) -> dict[str, str]:
    """Names of weights without what all of them begin and end with; none where that would not leave them distinct."""
    named = (sheet for sheet in document.sheets if sheet.columns[0].title in _NAMING)
    cells = (row.cells[0].partition(_TIED)[0] for sheet in named for row in sheet.rows)
    names = list(dict.fromkeys(name for name in cells if " " not in name))  # what has blanks is no weight's name
    short = short_names(names, max(map(len, names), default=0))
    return dict(zip(names, short, strict=True)) if len(set(short)) == len(names) else {}


def rename(sheet: Sheet, names: Mapping[str, str]) -> Sheet:
    """Write weights by other names, where the sheet is of weights."""
    if sheet.columns[0].title not in _NAMING:
        return sheet
    rows = []
    for row in sheet.rows:
        name, *tied = row.cells[0].split(_TIED)
        rows.append(replace(row, cells=(_TIED.join([names.get(name, name), *tied]), *row.cells[1:])))
    return replace(sheet, rows=tuple(rows))
