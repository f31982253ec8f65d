"""One condition on one number of two reports: does it hold, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from spectrascope.gating.noise import LARGEST, StandardError
from spectrascope.records.comparison import Value
from spectrascope.records.values import Missing
from spectrascope.records.verdict import Condition, Direction, Limit, Rule

__all__ = ["Evidence", "Judged", "is_number", "judge_rule", "needs_baseline"]

_SLACK = 1e-9
"""Of a limit, relative: 0.25 - 0.1 is not more than 0.15."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Whether conditions hold (Missing: cannot be told), the limit and how many times it the value lies at."""

    holds: bool | Missing
    allowed: float | Missing
    severity: float | Missing


@dataclass(frozen=True)
class Evidence:
    """One number in both reports. ``stderr`` is called only if a condition needs it.

    ``probability`` is that of a false alarm left to this one number; ``rounding`` the change rounding alone makes.
    ``tied`` says of two rank models that they are as good as each other.
    """

    before: Value
    after: Value
    stderr: Callable[[], StandardError | Missing]
    probability: float
    rounding: float
    tied: bool = False

    @property
    def change(self) -> float | Missing:
        """After minus before."""
        if is_number(self.before) and is_number(self.after):
            return float(self.after) - float(self.before)  # type: ignore[arg-type]
        return Missing("not a number in both reports")


def is_number(value: Value) -> bool:
    """Whether a value can be subtracted from another."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def needs_baseline(rule: Rule) -> bool:
    """Whether any condition compares with the baseline instead of bounding the value itself."""
    return any(condition.limit not in (Limit.MIN, Limit.MAX) for condition in rule.conditions)


def judge_rule(rule: Rule, evidence: Evidence) -> Judged:
    """Judge all conditions of a rule, together as its ``or`` or ``and`` says.

    The cheap ones come first: where a plain limit decides, no sampling error is worked out.
    """
    decisive = not rule.all_of  # ``or`` is settled by one that holds, ``and`` by one that does not
    found: list[Judged] = []
    for condition in sorted(rule.conditions, key=lambda item: item.limit in (Limit.STDERR, Limit.NOISE)):
        judged = _judge(condition, evidence)
        if judged.holds is decisive:
            return judged
        found.append(judged)
    unknown = next((item for item in found if isinstance(item.holds, Missing)), None)
    if unknown is not None:
        return unknown
    # All fail an ``or``: the one nearest to holding. All hold in an ``and``: the one nearest to failing.
    return (min if decisive else max)(found, key=_size)


def _size(judged: Judged) -> float:
    return math.inf if isinstance(judged.severity, Missing) else judged.severity


def _judge(condition: Condition, evidence: Evidence) -> Judged:
    if condition.limit is Limit.SAME:
        change = evidence.change
        rounded = not isinstance(change, Missing) and abs(change) <= evidence.rounding
        same = evidence.before == evidence.after or evidence.tied or rounded
        return Judged(same, Missing("any change counts"), 0.0 if same else 1.0)
    if condition.limit in (Limit.MIN, Limit.MAX):
        return _judge_bound(condition, evidence.after)
    change = evidence.change
    if isinstance(change, Missing):
        return Judged(Missing(f"{change.reason}: use same"), change, change)
    allowed = _allowed(condition, evidence)
    if isinstance(allowed, Missing):
        return Judged(allowed, allowed, allowed)
    over = {Direction.BOTH: abs(change), Direction.RISE: change, Direction.FALL: -change}[condition.direction]
    scale = max(abs(float(evidence.before)), abs(float(evidence.after)))  # type: ignore[arg-type]
    holds = over <= allowed + _SLACK * scale
    if allowed > 0:
        return Judged(holds, allowed, min(max(0.0, over / allowed), LARGEST))
    return Judged(holds, allowed, 0.0 if holds else Missing("no change at all is allowed"))


def _judge_bound(condition: Condition, value: Value) -> Judged:
    bound = condition.amount
    if not is_number(value):
        why = value if isinstance(value, Missing) else Missing(f"{value!r} is not a number")
        return Judged(why, bound, why)
    excess = bound - float(value) if condition.limit is Limit.MIN else float(value) - bound  # type: ignore[arg-type]
    holds = excess <= _SLACK * abs(bound)
    return Judged(holds, bound, 1 + excess / abs(bound) if bound else (0.0 if holds else 1 + excess))


def _allowed(condition: Condition, evidence: Evidence) -> float | Missing:
    if condition.limit is Limit.AMOUNT:
        return condition.amount
    if condition.limit is Limit.PERCENT:  # of a baseline of 0 this allows no change
        return condition.amount / 100 * abs(float(evidence.before))  # type: ignore[arg-type]
    error = evidence.stderr()
    if isinstance(error, Missing):
        return error
    if condition.limit is Limit.STDERR:
        multiple = condition.amount
    else:
        multiple = error.quantile(evidence.probability, two_sided=condition.direction is Direction.BOTH)
    allowed = error.amount(multiple, float(evidence.before), float(evidence.after))  # type: ignore[arg-type]
    return max(allowed, evidence.rounding)
