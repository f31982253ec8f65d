"""Weights as lines of a sheet: the per-layer table, the α triangle alone, and the frame that tails share with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from spectrascope.records.report import NOT_SELECTED, LayerReport, LayerRow
from spectrascope.records.values import LayerStatus, Missing
from spectrascope.reports import fields
from spectrascope.reports.views.document import DASH, Column, Footnotes, Row, Sheet, Tone

__all__ = ["Cells", "build_layer_sheet", "build_triangle_sheet", "sheet_of_weights", "status_cell", "status_tone"]

Cells = Sequence[tuple[Column, Callable[[Any], "str | Missing"]]]
"""Columns, and what they show of a measured row."""


def build_layer_sheet(rows: Sequence[LayerRow]) -> Sheet:
    """One line per layer with everything that was fitted."""
    measured = [row for row in rows if isinstance(row, LayerReport)]
    cells = [_cell(field) for field in fields.FIELDS if field.table is not None]
    return sheet_of_weights("Layers", rows, [(_explain_mark(column, read, measured), read) for column, read in cells])


_MARKS = {
    "*": "* half the 95 % interval of the straight-line fit alone: there is no jackknife",
    "~": "~ a tie: the runner-up's BIC is less than 2 away",
}


def _explain_mark(column: Column, read: Callable[[Any], str | Missing], rows: Sequence[LayerReport]) -> Column:
    """Say beneath the sheet what a mark in the column's cells means, if one of them has it."""
    cells = [text for row in rows if not isinstance(text := read(row), Missing)]
    found = [about for mark, about in _MARKS.items() if any(mark in (text[:1], text[-1:]) for text in cells)]
    return replace(column, about="; ".join(found))


def build_triangle_sheet(rows: Sequence[LayerRow]) -> Sheet:
    """One line per layer with the three exponents and how well they agree."""
    exponents = [_cell(fields.named(name)) for name in ("window", "beta", "alpha_g", "alpha_h")]
    predicted, error = (fields.named(name) for name in ("triangle.predicted", "triangle"))
    compared: Cells = (
        (replace(_cell(predicted)[0], drop_order=2), predicted.text),
        (Column("error"), error.text),
        (
            Column(
                "verdict",
                right=False,
                about="holds where the error is at most 10 %; it does for noise alone too: no evidence of signal",
            ),
            _verdict,
        ),
    )
    return sheet_of_weights("α triangle", rows, [*exponents, *compared])


def _cell(field: fields.Field) -> tuple[Column, Callable[[LayerReport], str | Missing]]:
    return Column(field.header, field.right, field.table or 0, field.strong), field.text


def _verdict(row: LayerReport) -> str | Missing:
    triangle = row.analysis.triangle
    if isinstance(triangle, Missing):
        return triangle
    return "holds" if triangle.well_conditioned else "off"


def sheet_of_weights(
    title: str, rows: Sequence[Any], cells: Cells, *, first: str = "layer", kind: bool = True
) -> Sheet:
    """One line per weight: name, kind, shape, cells and status; those without numbers have their reason in a footnote.

    Args:
        title: of the sheet.
        rows: measured ones and :class:`~spectrascope.records.report.SkippedLayer`; those that the user's own choice
            leaves out are counted, not listed.
        cells: what is shown of a measured row.
        first: heading of the names.
        kind: whether to say what uses the weight.
    """
    notes = Footnotes()
    shown = [row for row in rows if getattr(row, "reason", "") != NOT_SELECTED]
    lines = []
    for row in shown:
        m, n = row.info.shape
        head = (row.info.name, *([row.info.kind.value] if kind else []), f"{m}×{n}")
        if row.status is LayerStatus.OK:
            lines.append(Row((*head, *(notes.show(cell(row)) for _, cell in cells), "ok")))
        else:
            lines.append(Row((*head, *[DASH] * len(cells), status_cell(row, notes)), status_tone(row)))
    all_ok = all(row.status is LayerStatus.OK for row in shown)
    columns = (
        Column(first, right=False),
        *([Column("kind", right=False, drop_order=5)] if kind else []),
        Column("m × n", drop_order=4),
        *(column for column, _ in cells),
        Column("status", right=False, drop_order=10 if all_ok else 0),
    )
    hidden = len(rows) - len(shown)
    left_out = (f"{hidden} of {len(rows)} weights {NOT_SELECTED} are not listed.",) if hidden else ()
    return Sheet(title, columns, tuple(lines), (*notes.lines(), *left_out))


def status_cell(row: Any, notes: Footnotes) -> str:
    """Say how a row without numbers ended, with its reason as a footnote."""
    return notes.mark("FAILED" if row.status is LayerStatus.FAILED else row.status.value, row.reason)


def status_tone(row: Any) -> Tone:
    """How much attention a row without numbers asks for."""
    return Tone.ALARM if row.status is LayerStatus.FAILED else Tone.QUIET
