"""Take a saved report in the place of a network, where a command can do with what was measured before."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import typer

from spectrascope.errors import OptionError
from spectrascope.records.report import Report
from spectrascope.reports.read import read_report
from spectrascope.reports.refit import refit


def given_options(context: typer.Context) -> set[str]:
    """Name the parameters that stand on the command line, not those left at a default."""
    return {name for name in context.params if not _is_default(context, name)}


def require_meaningful(given: Collection[str], meaningful: Collection[str], report: str) -> None:
    """Refuse options that do nothing where nothing is measured.

    Raises:
        OptionError: an option was given that is not among ``meaningful``.
    """
    useless = sorted(set(given) - set(meaningful))
    if useless:
        flags = ", ".join("--" + name.replace("_", "-") for name in useless)
        raise OptionError(f"{flags} has no effect on the saved report {report}: nothing is measured")


def refit_saved(context: typer.Context, path: Path, top_k: int, min_rank: int, meaningful: Collection[str]) -> Report:
    """Read a report and fit it over the window asked for.

    Raises:
        OptionError: an option was given that is not among ``meaningful``: nothing is measured.
        ReportFormatError: the file is no report.
    """
    given = given_options(context)
    require_meaningful(given, meaningful, str(path))
    return refit(
        read_report(path),
        top_k=top_k if "top_k" in given else None,
        min_rank=min_rank if "min_rank" in given else None,
    )


def _is_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name in ("DEFAULT", "DEFAULT_MAP")
