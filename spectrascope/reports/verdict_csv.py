"""A gate's findings and a comparison's changes as CSV, every number in full."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from spectrascope.records.comparison import Comparison, Value
from spectrascope.records.values import Missing
from spectrascope.records.verdict import Verdict

__all__ = ["CHANGE_COLUMNS", "FINDING_COLUMNS", "comparison_to_csv", "verdict_to_csv"]

FINDING_COLUMNS = (
    "outcome", "layer", "number", "baseline", "now", "change", "allowed", "severity", "rule", "message",
)  # fmt: skip
"""Columns of a verdict: one row per check, the worst first; of the whole report where ``layer`` is empty."""

CHANGE_COLUMNS = ("layer", "number", "before", "after", "change", "stderrs")
"""Columns of a comparison."""


def verdict_to_csv(verdict: Verdict) -> str:
    """Write one row per check; a value that was not measured is an empty cell."""
    rows = (
        (item.mark.value, item.layer, item.number, item.before, item.after, item.change, item.allowed, item.severity,
         item.rule, item.message)
        for item in verdict.findings
    )  # fmt: skip
    return _write(FINDING_COLUMNS, rows)


def comparison_to_csv(comparison: Comparison) -> str:
    """Write one row per number; a value that was not measured is an empty cell."""
    rows = (
        (item.layer, item.number, item.before, item.after, item.change, item.stderrs) for item in comparison.changes
    )
    return _write(CHANGE_COLUMNS, rows)


def _write(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return stream.getvalue().removesuffix("\n")


def _cell(value: Value) -> str:
    if isinstance(value, Missing):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else str(value)
