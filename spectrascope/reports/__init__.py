"""Records to text: JSON, CSV, table and Markdown, and back from JSON.

Nothing here prints, measures or imports torch: functions take a :class:`spectrascope.records.report.Report` and
return strings (or, for a terminal, something ``rich`` can draw).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectrascope.reports.json import report_from_json, report_to_json
    from spectrascope.reports.order import Sort
    from spectrascope.reports.read import read_report
    from spectrascope.reports.render import Format, View
    from spectrascope.reports.write import check_writable, write_text_atomically

__all__ = [
    "Format",
    "Sort",
    "View",
    "check_writable",
    "read_report",
    "report_from_json",
    "report_to_json",
    "write_text_atomically",
]

_PLACES = {
    "json": ("report_from_json", "report_to_json"),
    "order": ("Sort",),
    "read": ("read_report",),
    "render": ("Format", "View"),
    "write": ("check_writable", "write_text_atomically"),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:  # who reads a report need not import what draws one
    if name in _MODULE_OF:
        return getattr(import_module(f"spectrascope.reports.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'spectrascope.reports' has no attribute {name!r}")
