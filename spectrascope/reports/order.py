"""The order of a report's rows, and of the changes between two reports."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from spectrascope.records.comparison import Change
from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.values import LayerStatus, Missing
from spectrascope.reports import fields

__all__ = ["ORDER", "ChangeOrder", "Sort", "sort_changes", "sort_layers"]

_NAMES = ("order", "name", *(field.sort for field in fields.FIELDS if field.sort), "status")
Sort = Enum("Sort", {name.upper(): name for name in _NAMES}, type=str)  # type: ignore[misc]
Sort.__doc__ = "Orders of a table: as in the network, by name, or by a number with the most striking layer first."
ORDER = Sort("order")
"""As in the network."""


def sort_layers(report: Report, sort: Sort | str = ORDER) -> tuple[LayerRow, ...]:
    """Return the report's rows in the order asked for.

    Largest first, or smallest first of a number that had better be high; failed, then ok, then skipped for status.
    Rows without the number come last; rows that compare equal keep the network's order.

    Raises:
        KeyError: no such order.
    """
    if sort == "order":
        return report.layers
    if sort == "name":
        return tuple(sorted(report.layers, key=lambda row: row.info.name))
    if sort == "status":
        places = (LayerStatus.FAILED, LayerStatus.OK, LayerStatus.SKIPPED)
        return tuple(sorted(report.layers, key=lambda row: places.index(row.status)))
    found = next((field for field in fields.FIELDS if field.sort and field.sort == sort), None)
    if found is None:
        raise KeyError(sort)
    sign = 1.0 if found.better == "higher" else -1.0

    def place(row: LayerRow) -> tuple[bool, float]:
        value = found.value(row) if isinstance(row, LayerReport) else Missing("not measured")
        return (True, 0.0) if isinstance(value, Missing) else (False, sign * value)

    return tuple(sorted(report.layers, key=place))


class ChangeOrder(str, Enum):
    """Orders of the changes between two reports: as in the network, by number, or the largest first."""

    ORDER = "order"
    NUMBER = "number"
    CHANGE = "change"
    Z = "z"


def sort_changes(changes: Sequence[Change], sort: ChangeOrder = ChangeOrder.ORDER) -> tuple[Change, ...]:
    """Return changes in the order asked for; those without what is asked for come last, equal ones keep their order.

    ``change`` is relative to what was before, ``z`` the change over its standard error, both whichever way it went.
    """

    def size(change: Change) -> float:
        if sort is ChangeOrder.Z:
            return -1.0 if isinstance(change.stderrs, Missing) else abs(change.stderrs)
        if isinstance(change.change, Missing) or not isinstance(change.before, (int, float)) or not change.before:
            return -1.0
        return abs(change.change / change.before)

    if sort is ChangeOrder.ORDER:
        return tuple(changes)
    if sort is ChangeOrder.NUMBER:
        return tuple(sorted(changes, key=lambda change: change.number))
    return tuple(sorted(changes, key=size, reverse=True))
