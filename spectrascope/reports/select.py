"""Some of a saved report's layers, fitted again where another window is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spectrascope.errors import OptionError
from spectrascope.records.report import NOT_SELECTED, LayerRow, Report
from spectrascope.reports.read import read_report
from spectrascope.reports.refit import refit
from spectrascope.text import matches

__all__ = ["keep_layers", "read_selected", "select_layers"]


def read_selected(
    path: Path,
    *,
    layers: Sequence[str] = (),
    exclude: Sequence[str] = (),
    top_k: int | None = None,
    min_rank: int | None = None,
) -> Report:
    """Read a report, fit it again over another window if one is given, and keep the layers asked for.

    Raises:
        ReportFormatError: not a report.
        OptionError: an impossible window, or no layer left.
    """
    return select_layers(refit(read_report(path), top_k=top_k, min_rank=min_rank), layers, exclude)


def select_layers(report: Report, layers: Sequence[str] = (), exclude: Sequence[str] = ()) -> Report:
    """Keep rows whose name matches a glob of ``layers`` (any, if there are none) and none of ``exclude``.

    Rows that the measurement itself left out by name go with the others. The summary is made anew.

    Raises:
        OptionError: no row is left.
    """
    found = keep_layers(report, layers, exclude)
    if found is report:
        return report
    kept = tuple(row for row in found.layers if getattr(row, "reason", "") != NOT_SELECTED)
    if not kept:
        globs = " ".join([*(f"--layers {glob!r}" for glob in layers), *(f"--exclude {glob!r}" for glob in exclude)])
        raise OptionError(f"{globs} leaves none of the report's {len(report.layers)} layers")
    return found if len(kept) == len(found.layers) else _of(report, kept)


def keep_layers(report: Report, layers: Sequence[str], exclude: Sequence[str]) -> Report:
    """Keep rows whose name matches a glob of ``layers`` (any, if there are none) and none of ``exclude``, if any row.

    The summary is made anew, unless no glob is given.
    """
    if not layers and not exclude:
        return report

    def wanted(name: str) -> bool:
        chosen = not layers or any(matches(glob, name) for glob in layers)
        return chosen and not any(matches(glob, name) for glob in exclude)

    return _of(report, tuple(row for row in report.layers if wanted(row.info.name)))


def _of(report: Report, rows: tuple[LayerRow, ...]) -> Report:
    from spectrascope.numerics.summary import summarise  # numpy: only when something is counted again

    return replace(report, layers=rows, summary=summarise(rows))
