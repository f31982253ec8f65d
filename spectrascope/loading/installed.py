"""Sources of models and data that installed distributions bring along, by entry points."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from typing import TypeVar

from spectrascope.errors import SpectrascopeError
from spectrascope.loading.quiet import brief

__all__ = ["find_installed", "installed_names"]

Source = TypeVar("Source")


def find_installed(group: str, spec: str, kind: type[Source], refusal: type[SpectrascopeError]) -> Source | None:
    """Load the installed source that answers to a string no built-in source knows.

    The entry point's name is what stands before the first ``:`` or ``@``. No other entry point is imported, and none
    is even listed for a string of a built-in source.

    Args:
        group: of the entry points.
        spec: the user's string.
        kind: class of the sources.
        refusal: what to raise.

    Raises:
        SpectrascopeError: the one that answers to the string cannot be imported, or is no such source.
    """
    name = re.split("[:@]", spec, maxsplit=1)[0]
    if not re.fullmatch(r"[\w-]+", name):
        return None
    for point in entry_points(group=group, name=name):
        where = f"{name}: the installed {point.dist.name if point.dist else 'distribution'} offers {point.value}, which"
        try:
            found = point.load()
        except Exception as error:  # another distribution's code may raise anything
            raise refusal(f"{where} cannot be imported ({brief(error)}); reinstall it") from None
        if not isinstance(found, kind):
            raise refusal(f"{where} is a {type(found).__name__}; expected a {kind.__name__}")
        return found
    return None


def installed_names(group: str) -> str:
    """What installed sources answer to, as the end of a list in a message; empty where there are none."""
    names = sorted({point.name for point in entry_points(group=group)})
    return f" (installed besides: {', '.join(names)})" if names else ""
