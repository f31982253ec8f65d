"""What two reports say differently: records, standard library only.

A :class:`Difference` is about how the two were made and whether their numbers may be compared at all; a
:class:`Change` is about one number of one layer (or of the whole report) in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from spectrascope.records.values import SCHEMA_VERSION, Missing

__all__ = ["WHOLE_REPORT", "Change", "Comparison", "Difference", "Value"]

Value: TypeAlias = "float | int | bool | str | Missing"
"""A reported number, or a word (a rank model, a status), or why there is none."""

WHOLE_REPORT = ""
"""The layer of a number that belongs to no layer."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which two reports were made differently.

    ``forbids`` says that their numbers do not mean the same: a change could come from this difference instead of
    from the network. ``advice`` says how to make the two alike; empty where nothing needs to be done.
    """

    what: str
    before: str
    after: str
    forbids: bool
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One number in two reports, ``change`` being after minus before.

    ``stderrs`` is the change over the standard error of a change that sampling alone makes.
    """

    layer: str
    number: str
    before: Value
    after: Value
    change: float | Missing
    stderrs: float | Missing


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two reports side by side.

    ``changes`` come in the network's order, those of the whole report first. ``n_unchanged`` of the ``n_compared``
    numbers are equal; they are in ``changes`` only if asked for. ``headlines`` are the numbers of the whole reports
    that the bottom line speaks of, changed or not.
    """

    before: str
    after: str
    differences: tuple[Difference, ...]
    changes: tuple[Change, ...]
    n_compared: int
    n_unchanged: int
    paired: bool
    headlines: tuple[Change, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def comparable(self) -> bool:
        """Whether nothing forbids comparing the numbers."""
        return not any(difference.forbids for difference in self.differences)
