"""Documents as GitHub Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spectrascope.reports.views.document import Document, Sheet, Tone
from spectrascope.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["document_markdown", "escape", "markdown_view"]

_SPECIAL = str.maketrans({char: "\\" + char for char in "\\`*_[]<>#|~&$"})


def document_markdown(document: Document) -> str:
    """Write a document as headings, lists and tables; user strings cannot become markup."""
    lines = [f"## {escape(document.title)}", ""]
    if document.opening:
        lines += [*map(_sentence, document.opening), ""]
    lines += [f"- **{escape(label)}**: {escape(value)}" for label, value in document.facts]
    for sheet in document.sheets:
        lines += ["", f"### {escape(sheet.title)}", "", *_sheet_lines(sheet)]
    if document.closing:
        lines.append("")
    lines += map(_sentence, document.closing)
    return "\n".join(lines)


def _sentence(line: tuple[str, Tone]) -> str:
    text, tone = line
    return f"- **{escape(text)}**" if tone in (Tone.WARNING, Tone.ALARM) else f"- {escape(text)}"


def _sheet_lines(sheet: Sheet) -> list[str]:
    lines = [
        _table_line([escape(column.title) for column in sheet.columns]),
        _table_line(["---:" if column.right else ":---" for column in sheet.columns]),
        *(_table_line([escape(cell.strip()) for cell in row.cells]) for row in sheet.rows),
    ]
    if notes := [*sheet.footnotes, *sheet.describe_columns()]:
        lines += ["", *(f"{escape(note)}  " for note in notes)]
    return lines


def _table_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """A string as text, whatever markup it may hold."""
    return printable(text).translate(_SPECIAL)


def markdown_view(text: str) -> RenderableType:
    """Markdown as a terminal shows it."""
    from rich.markdown import Markdown

    return Markdown(text)
