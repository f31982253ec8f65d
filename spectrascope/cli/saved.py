"""Commands that take a saved report in place of a network."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from spectrascope.errors import OptionError

__all__ = ["given_options", "is_saved_report", "require_no_effectless"]


def is_saved_report(name: str) -> bool:
    """Whether a MODEL argument names a report rather than a network."""
    return name.endswith(".json") and not name.endswith(".index.json")  # the latter names shards of a checkpoint


def given_options(context: typer.Context) -> set[str]:
    """Names of the parameters that stand on the command line, not those left at a default."""
    return {name for name in context.params if not _is_default(context, name)}


def require_no_effectless(names: Iterable[str], report: str) -> None:
    """Refuse options that a saved report makes useless.

    Raises:
        OptionError: there are some.
    """
    useless = sorted(names)
    if useless:
        flags = ", ".join("--" + name.replace("_", "-") for name in useless)
        raise OptionError(f"{flags} has no effect on the saved report {report}: nothing is measured")


def _is_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name in ("DEFAULT", "DEFAULT_MAP")
