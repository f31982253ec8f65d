"""Any document as one page for a browser; see :mod:`spectrascope.reports.html.page`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spectrascope.reports.charts.chart import Chart
from spectrascope.reports.html.page import Files, draw_figure, fill_page
from spectrascope.reports.html.rows import PageCell, PageColumn, PageRow, PageTable
from spectrascope.reports.views.document import DASH, Document, Row, Sheet, Tone, footnote_mark

__all__ = ["document_html"]

_FEW = 8  # rows that need no controls to find one
_NUMBER = re.compile(r"[+−-]?\d+(?:[\d,]*\d)?(?:\.\d+)?(?:e[+-]?\d+)?")


def document_html(document: Document, charts: Sequence[Chart] = (), files: Files = ()) -> str:
    """Write a document as a page: what came out, pictures, its sheets to sort and filter, and what they mean."""
    first = document.bottom_line
    said = [line for line in document.closing if line not in first]
    facts = dict(document.facts)
    return fill_page(
        "document.html.j2",
        files,
        title=_heading(document.title),
        subtitle=facts.get("model", next(iter(facts.values()), "")),
        words=[text for text, tone in first if tone is Tone.PLAIN or len(first) == 1],
        warnings=[
            (text, tone.value)
            for text, tone in (*(first if len(first) > 1 else ()), *said)
            if tone in (Tone.WARNING, Tone.ALARM)
        ],
        pictures_title="At a glance",
        charts=[draw_figure(chart, f"chart-{i}") for i, chart in enumerate(charts)],
        sheets=[(sheet, _table(i, sheet)) for i, sheet in enumerate(document.sheets)],
        meaning=[text for text, tone in said if tone in (Tone.PLAIN, Tone.QUIET)],
        facts=document.facts,
    )


def _heading(title: str) -> str:
    text = title.removeprefix("spectrascope: ").removeprefix("spectrascope ")
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def _table(index: int, sheet: Sheet) -> PageTable:
    return PageTable(
        id=f"sheet-{index}",
        label=sheet.title,
        columns=tuple(PageColumn(column.title, column.about, column.right) for column in sheet.columns),
        rows=tuple(_row(sheet, row) for row in sheet.rows),
        small=len(sheet.rows) <= _FEW,
    )


def _row(sheet: Sheet, row: Row) -> PageRow:
    words = [cell for cell, column in zip(row.cells, sheet.columns, strict=True) if not column.right]
    return PageRow(" ".join(words), tuple(map(_cell, row.cells)), tone=row.tone.value)


def _cell(text: str) -> PageCell:
    """Sorted by the first number in it, else by its words."""
    bare = text[: len(text) - len(footnote_mark(text))].strip()
    found = _NUMBER.match(bare)
    value = "" if bare == DASH else found[0].replace(",", "").replace("−", "-") if found else bare
    return PageCell(text.strip(), value)
