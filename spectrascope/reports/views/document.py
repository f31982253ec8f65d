"""What a reader sees, before it is decided how it is drawn: facts, sheets and sentences as plain strings.

The table and the Markdown text are two drawings of the same :class:`Document`, so they cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from spectrascope.records.values import Missing

__all__ = ["DASH", "Column", "Document", "Footnotes", "Row", "Sheet", "Tone", "footnote_mark"]

DASH = "–"
"""What a value that was not measured looks like."""

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_MARK = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+$")
_CAUSED_BY = re.compile(r"^(?:no (?:beta|alpha_g|alpha_h|PR_h): )+")


class Tone(Enum):
    """How much attention a line asks for."""

    PLAIN = "plain"
    QUIET = "quiet"
    WARNING = "warning"
    ALARM = "alarm"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a sheet. In a narrow terminal those of highest ``drop_order`` go first; 0 stays.

    ``about`` says what it is, beneath the sheet, and goes where the column goes. Columns that are read beside one
    another say so by the same ``together``: they go as one.
    """

    title: str
    right: bool = True
    drop_order: int = 0
    strong: bool = False
    about: str = ""
    together: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a sheet, as many cells as it has columns."""

    cells: tuple[str, ...]
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table with its footnotes."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[str, ...] = ()

    def describe_columns(self, shown: Collection[int] | None = None) -> tuple[str, ...]:
        """Say what the columns are that say so, of all or of those shown."""
        return tuple(
            f"{column.title}: {column.about}"
            for index, column in enumerate(self.columns)
            if column.about and (shown is None or index in shown)
        )


@dataclass(frozen=True, slots=True)
class Document:
    """A title, opening sentences, facts as label and value, sheets, and closing sentences.

    What came out in a sentence opens it, ends it, or both.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    sheets: tuple[Sheet, ...]
    closing: tuple[tuple[str, Tone], ...] = ()
    opening: tuple[tuple[str, Tone], ...] = ()

    @property
    def bottom_line(self) -> tuple[tuple[str, Tone], ...]:
        """What came out: the opening sentences, and the last one where it says something of it."""
        return (*self.opening, *(line for line in self.closing[-1:] if line[1] is not Tone.QUIET))


@dataclass(slots=True)
class Footnotes:
    """Numbers reasons in the order they come up; the same reason keeps its number."""

    reasons: list[str] = field(default_factory=list)

    def mark(self, text: str, reason: str) -> str:
        """Return ``text`` with the superscript of ``reason``.

        A value missing only because another one is (``no beta: …``) shares the other one's footnote.
        """
        cause = _CAUSED_BY.sub("", reason)
        if cause not in self.reasons:
            self.reasons.append(cause)
        return text + str(self.reasons.index(cause) + 1).translate(_SUPERSCRIPT)

    def missing(self, value: Missing) -> str:
        """Return the cell of a value that was not measured."""
        return self.mark(DASH, value.reason)

    def show(self, text: str | Missing) -> str:
        """Return a cell's text, or that of a value that was not measured."""
        return self.missing(text) if isinstance(text, Missing) else text

    def lines(self) -> tuple[str, ...]:
        """Return the footnotes, numbered, in order."""
        return tuple(
            f"{str(number).translate(_SUPERSCRIPT)} {reason}" for number, reason in enumerate(self.reasons, start=1)
        )


def footnote_mark(cell: str) -> str:
    """Return the superscript that a cell ends in, or nothing.

    >>> footnote_mark("skipped¹²"), footnote_mark("ok")
    ('¹²', '')
    """
    found = _MARK.search(cell)
    return found[0] if found else ""
