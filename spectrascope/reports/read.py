"""Read a saved report from a file."""

from __future__ import annotations

from pathlib import Path

from spectrascope.errors import ReportFormatError
from spectrascope.records.report import Report
from spectrascope.reports.json import report_from_json

__all__ = ["is_saved_report", "read_report"]


def is_saved_report(model: str) -> bool:
    """Say whether what names a network names a report (``x.index.json`` names the shards of a checkpoint)."""
    return model.endswith(".json") and not model.endswith(".index.json")


def read_report(path: Path) -> Report:
    """Read the report saved at ``path``.

    Raises:
        ReportFormatError: no such file, unreadable, or not a report; the message starts with the path.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReportFormatError(f"{path}: no such file") from None
    except OSError as error:
        raise ReportFormatError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ReportFormatError(f"{path}: not a spectrascope report (not UTF-8 text)") from error
    try:
        return report_from_json(text)
    except ReportFormatError as error:
        raise ReportFormatError(f"{path}: {error}") from error
