"""Reported numbers by name, as JSON spells them: ``beta``, ``beta.r2``, ``sigma[1]``, ``summary.beta_median``.

Names are worked out from the records themselves, so whatever a later release reports can be named here at once; the
headlines are those of :mod:`spectrascope.reports.fields`, which also reads what no record holds as one number, and
those that say what is signal.

A step exponent that the samples do not determine is no number: it is :class:`Undetermined`, so that no rule can pass on
it. Its predicted decrease stays one, as a fall to nothing is what a gate must see.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_origin

from spectrascope.errors import PolicyError
from spectrascope.records.comparison import Value
from spectrascope.records.report import Analysis, LayerReport, Measurement, Provenance, Report, Summary, SummaryGroup
from spectrascope.records.signal import HeldOut, NullBeta, NullDraws, SignalSummary, StepExponent
from spectrascope.records.values import LayerKind, Missing, PowerFit, RankComparison, RankModel, RankModelFit, Triangle
from spectrascope.reports import fields as shown
from spectrascope.reports.codec import RANK_TABLES, hints_of, is_union
from spectrascope.reports.fields import named

__all__ = [
    "BOTTOM_LINE", "SUMMARY_HEADLINES", "Undetermined", "canonical", "headlines", "is_of_report", "layer_value",
    "list_numbers", "report_value", "require_known", "same_value",
]  # fmt: skip

SUMMARY_HEADLINES = ("loss", "accuracy", "summary.signal.verdict", "summary.signal.step_exponent",
                     "summary.signal.step_exponent.decrease", "summary.signal.n_resolved", "summary.signal.n_signal",
                     "summary.beta_median", "summary.triangle_error_median", "summary.n_ok",
                     "summary.n_failed")  # fmt: skip
"""Numbers of a whole report that a comparison shows unless others are asked for."""

BOTTOM_LINE = ("summary.signal.n_resolved", "summary.signal.step_exponent", "summary.signal.step_exponent.decrease",
               "summary.beta_median")  # fmt: skip
"""Numbers of a whole report that the bottom line of a gate or a comparison speaks of."""

_SIGNAL_HEADLINES = ("held_out.step_exponent", "samples_needed.n_resolved", "held_out.step_exponent.decrease")
_SHORT = {"rank_model": "rank_models.best", "r2": "beta.r2", "loss": "provenance.loss",
          "accuracy": "provenance.accuracy", "step_exponent": "held_out.step_exponent",
          "decrease": "held_out.step_exponent.decrease", "held_out_beta": "held_out.beta", "null_beta": "null.beta",
          "n_resolved": "samples_needed.n_resolved", "samples_needed": "samples_needed.n_resolved"}  # fmt: skip
_OF_REPORT = ("summary", "provenance")
_FLATTENED = ("measurement", "analysis")  # JSON writes the fields of these parts of a layer side by side
_STANDS_FOR = {PowerFit: "value", StepExponent: "value", NullBeta: "value", Triangle: "relative_error",
               RankComparison: "best"}  # fmt: skip  # a record named as a number
_NEEDS_DETERMINED = ("value", "interval")  # of a step exponent
_KEYED_BY = ("kind", "name", "model")  # fields that name the members of a list of records
_TOKEN = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")


@dataclass(frozen=True, slots=True)
class Undetermined(Missing):
    """A step exponent that was measured and that these samples do not determine."""


def headlines() -> tuple[str, ...]:
    """Names of the numbers of a layer that a comparison shows unless others are asked for: beta, and what is signal."""
    found = shown.headlines()
    known = {canonical(name) for name in found}
    return (*found[:1], *(name for name in _SIGNAL_HEADLINES if name not in known), *found[1:])


def is_of_report(number: str) -> bool:
    """Whether a name is one of the whole report's (``summary.beta_median``) rather than of each layer."""
    return _SHORT.get(number, number).split(".")[0] in _OF_REPORT


def canonical(number: str) -> str:
    """Return the one name of a number that has several.

    >>> canonical("r2"), canonical("beta.value"), canonical("rank_models.best"), canonical("provenance.loss")
    ('beta.r2', 'beta', 'rank_model', 'loss')
    >>> canonical("decrease"), canonical("null.beta.value")
    ('held_out.step_exponent.decrease', 'null.beta')
    """
    full = _SHORT.get(number, number)
    for end in _STANDS_FOR.values():
        full = full.removesuffix(f".{end}")
    return {"rank_models": "rank_model", "provenance.loss": "loss", "provenance.accuracy": "accuracy"}.get(full, full)


def layer_value(row: LayerReport, number: str) -> Value:
    """Return a number of a measured layer, or why this layer has none."""
    if number in shown.headlines() and not _exists(number):  # worked out from several records
        value: Value = named(number).value(row)
        return value
    keys = _keys(number)
    parts = [getattr(row, part) for part in _FLATTENED]
    owner = next((part for part in parts if hasattr(part, str(keys[0]))), row)
    return _walk(owner, keys, number)


def report_value(report: Report, number: str) -> Value:
    """Return a number of the whole report, or why there is none."""
    keys = _keys(number)
    if keys[0] == "provenance":
        return _walk(report, keys, number)
    summary: Any = report.summary
    if len(keys) > 1 and not hasattr(summary, str(keys[1])):
        group = next((item for item in summary.by_kind if item.kind == keys[1]), None)
        if group is not None:
            return _walk(group, keys[2:], number)
        summary = summary.overall
        if not hasattr(summary, str(keys[1])):
            return Missing(f"no measured layer of kind {keys[1]}")
    return _walk(summary, keys[1:], number)


def list_numbers(row: LayerReport) -> tuple[str, ...]:
    """Name every number and word of a measured layer that stands alone, in the order of JSON; no arrays."""
    names: list[str] = []
    for part in fields(row):
        value = getattr(row, part.name)
        if part.name == "info":
            continue
        names += _leaves(value, "" if part.name in _FLATTENED else part.name)
    found = [name for name in names if _exists(name)]
    known = {canonical(name) for name in found}
    return (*found, *(name for name in headlines() if canonical(name) not in known))


def same_value(before: Value, after: Value) -> bool:
    """Whether two values are equal, ignoring why a missing one is missing."""
    if isinstance(before, Missing) or isinstance(after, Missing):
        return isinstance(before, Missing) and isinstance(after, Missing)
    return before == after


def require_known(number: str, *, of_layers: bool, rule: str) -> None:
    """Refuse a name that no report can hold.

    Args:
        number: the name.
        of_layers: whether the rule speaks of layers by a glob.
        rule: the rule, for the message.

    Raises:
        PolicyError: no such number, an array without an index, or a glob on a number of the whole report.
    """
    if of_layers and is_of_report(number):
        raise PolicyError(f"gate rule {rule!r}: {number} belongs to the whole report, leave out '@ …'")
    try:
        known = number in headlines() or _exists(number)
    except ValueError:
        known = False
    if not known:
        close = difflib.get_close_matches(number, (*_all_names(), *headlines()), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"such as {', '.join(headlines())}"
        raise PolicyError(f"gate rule {rule!r}: no report holds a number {number!r}; {hint}")


def _keys(number: str) -> list[str | int]:
    """Split ``curvature_matrix[1][2]`` into ``["curvature_matrix", 1, 2]``."""
    keys: list[str | int] = []
    for token in _SHORT.get(number, number).split("."):
        match = _TOKEN.fullmatch(token)
        if match is None:
            raise ValueError(f"{number!r} is no name of a number")
        keys.append(match[1])
        keys += [int(index) for index in re.findall(r"\d+", match[2])]
    return keys


def _walk(value: Any, keys: list[str | int], number: str) -> Value:
    for place, key in enumerate(keys):
        if isinstance(value, Missing):
            return value
        if isinstance(value, StepExponent) and key in _NEEDS_DETERMINED and not value.determined:
            return _undetermined(value)
        if isinstance(value, RankComparison) and key in RANK_TABLES:  # JSON turns the three fits by ninety degrees
            model, *index = keys[place + 1 :]
            fit = next(item for item in value.fits if item.model.value == model)
            return _walk(getattr(fit, str(key)), list(index), number)
        value = _step(value, key, number)
    return _plain(value, number)


def _step(value: Any, key: str | int, number: str) -> Any:
    if isinstance(key, int):
        if not 1 <= key <= len(value):
            return Missing(f"{number}: there are {len(value)}")
        return value[key - 1]
    if isinstance(value, dict):
        return value.get(key, Missing(f"no {key} in this report"))
    if isinstance(value, tuple):
        members = {_name_of(item): item for item in value if is_dataclass(item)}
        return members.get(key, Missing(f"no {key} in this report"))
    return getattr(value, key)


def _name_of(item: Any) -> str:
    name = next(getattr(item, key) for key in _KEYED_BY if hasattr(item, key))
    return str(name.value if isinstance(name, Enum) else name)


def _undetermined(step: StepExponent) -> Undetermined:
    return Undetermined(f"undetermined: {step.reason}")


def _plain(value: Any, number: str) -> Value:
    if isinstance(value, StepExponent) and not value.determined:
        return _undetermined(value)
    if is_dataclass(value) and type(value) in _STANDS_FOR:
        value = getattr(value, _STANDS_FOR[type(value)])
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (float, int, str, Missing)):
        return value
    return Missing(f"{number} is no single number")


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, RankComparison):
        scalars = [name for name in hints_of(RankComparison) if name != "fits"]
        yield from (f"{path}.{name}" for name in scalars)
        yield from (f"{path}.{table}.{fit.model.value}" for table in RANK_TABLES[:-1] for fit in value.fits)
    elif is_dataclass(value) and not isinstance(value, (type, Missing)):
        for name in hints_of(type(value)):
            inner = getattr(value, name)
            place = f"{path}.{name}" if path else name
            yield from [path] if _STANDS_FOR.get(type(value)) == name else _leaves(inner, place)
    elif isinstance(value, tuple) and value and is_dataclass(value[0]):
        for item in value:
            yield from _leaves(item, f"{path}.{_name_of(item)}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif isinstance(value, (float, int, str, Enum, Missing)):
        yield path


@cache
def _exists(number: str) -> bool:
    """Whether the records' type hints have a place of that name that holds one value."""
    first, *rest = _keys(number)
    if first == "provenance":
        return _holds_value(Provenance, rest)
    if first == "summary":
        of_kind = rest[1:] if rest and rest[0] in {kind.value for kind in LayerKind} else rest
        return bool(rest) and (_holds_value(Summary, rest) or _holds_value(SummaryGroup, of_kind))
    owners = (Measurement, Analysis, LayerReport)
    return any(_holds_value(owner, [first, *rest]) for owner in owners)


def _holds_value(hint: Any, keys: list[str | int]) -> bool:
    if is_union(hint):
        return any(_holds_value(member, keys) for member in get_args(hint) if member is not Missing)
    if not keys:
        scalar = hint in (float, int, str, bool) or (isinstance(hint, type) and issubclass(hint, Enum))
        return scalar or hint in _STANDS_FOR
    key, *rest = keys
    if isinstance(key, int):
        return get_origin(hint) is tuple and _holds_value(get_args(hint)[0], rest)
    if get_origin(hint) is dict:
        return _holds_value(get_args(hint)[1], rest)
    if get_origin(hint) is tuple:
        return is_dataclass(get_args(hint)[0]) and _holds_value(get_args(hint)[0], rest)
    if hint is RankComparison and key in RANK_TABLES:
        known = bool(rest) and rest[0] in {model.value for model in RankModel}
        return known and _holds_value(hints_of(RankModelFit)[str(key)], rest[1:])
    return is_dataclass(hint) and isinstance(hint, type) and key in (h := hints_of(hint)) and _holds_value(h[key], rest)


@cache
def _all_names() -> tuple[str, ...]:
    """Names to suggest: those one or two steps deep."""
    names = [*_SHORT]
    owners = (
        (Measurement, ""), (Analysis, ""), (HeldOut, "held_out."), (NullDraws, "null."), (SummaryGroup, "summary."),
        (Summary, "summary."), (SignalSummary, "summary.signal."),
    )  # fmt: skip
    for owner, prefix in owners:
        for name, hint in hints_of(owner).items():
            if _holds_value(hint, []):
                names.append(prefix + name)
            members = get_args(hint) if is_union(hint) else (hint,)
            for member in members:
                if is_dataclass(member) and isinstance(member, type) and member is not Missing:
                    names += [f"{prefix}{name}.{inner}" for inner in hints_of(member)]
    return tuple(names)
