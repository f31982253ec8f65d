"""Records to text: JSON, CSV, table and Markdown, and back from JSON.

Nothing here prints, measures or imports torch: functions take a :class:`spectrascope.records.report.Report` and
return strings (or, for a terminal, something ``rich`` can draw).
"""

from __future__ import annotations

from spectrascope.reports.json import report_from_json, report_to_json
from spectrascope.reports.order import Sort
from spectrascope.reports.read import read_report
from spectrascope.reports.render import Format, View, render
from spectrascope.reports.write import check_writable, write_text_atomically

__all__ = [
    "Format",
    "Sort",
    "View",
    "check_writable",
    "read_report",
    "render",
    "report_from_json",
    "report_to_json",
    "write_text_atomically",
]
