"""When a claim holds, holds by noise alone, does not hold or is undetermined: stated before anything is measured.

A claim is that a quantity lies in a range (``allowed``). Four figures of it are looked at, each with a 95 % interval:
the one recomputed from the paper's released arrays, the one measured here by the paper's definition, the same
quantity where the true gradient is zero (labels drawn from the model: the null), and its counterpart on samples that
did not choose the directions.

1. Nothing measured, or an interval that neither lies in the range nor beside it: *undetermined*. An interval counts as
   lying in the range where its middle does and it is no wider than the range.
2. An interval beside the range: *does not hold*.
3. In the range, and so is the null's middle: *holds by noise alone*, unless the held-out counterpart is known and its
   interval lies in the range too.
4. Otherwise *holds*.

A claim about a difference (with and without LayerNorm, one optimizer over another) is one about the sign of the
difference; it has no null of its own where both sides share the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import stats

from spectrascope.numerics.vectors import interval_about
from spectrascope.records.values import Missing


class Verdict(str, Enum):
    """How a claim came out."""

    HOLDS = "holds"
    NOISE = "holds by noise alone"
    FAILS = "does not hold"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval, and of how many values (weights, seeds) it is made."""

    value: float
    low: float
    high: float
    n: int = 1

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


Maybe = Figure | Missing


@dataclass(frozen=True)
class Row:
    """A claim with its figures and its verdict."""

    place: str
    claim: str
    paper: str
    allowed: tuple[float, float]
    on: str
    recomputed: Maybe
    measured: Maybe
    null: Maybe
    held_out: Maybe

    @property
    def verdict(self) -> Verdict:
        """By the rules of this module."""
        return judge(self.allowed, self.measured, self.null, self.held_out)


def judge(allowed: tuple[float, float], measured: Maybe, null: Maybe, held_out: Maybe) -> Verdict:
    """Apply the rules; see the module.

    >>> point = lambda x, w=0.1: Figure(x, x - w, x + w)
    >>> nothing = Missing("not measured")
    >>> judge((1.8, 2.2), point(2.0), point(2.1), nothing).value
    'holds by noise alone'
    >>> judge((1.8, 2.2), point(2.0), point(1.2), nothing).value, judge((1.8, 2.2), point(1.2), nothing, nothing).value
    ('holds', 'does not hold')
    >>> judge((1.8, 2.2), point(2.0, 1.0), nothing, nothing).value
    'undetermined'
    """
    if isinstance(measured, Missing):
        return Verdict.UNDETERMINED
    if measured.high < allowed[0] or measured.low > allowed[1]:
        return Verdict.FAILS
    if not lies_in(measured, allowed):
        return Verdict.UNDETERMINED
    if not isinstance(null, Missing) and allowed[0] <= null.value <= allowed[1]:
        known = not isinstance(held_out, Missing) and lies_in(held_out, allowed)
        return Verdict.HOLDS if known else Verdict.NOISE
    return Verdict.HOLDS


def lies_in(figure: Figure, allowed: tuple[float, float]) -> bool:
    """Whether an interval lies in a range: all of it, or its middle where it is no wider than the range."""
    low, high = allowed
    if low <= figure.low and figure.high <= high:
        return True
    narrow = math.isfinite(high - low) and figure.high - figure.low <= high - low
    return narrow and low <= figure.value <= high


def mean_of(values: Sequence[float], what: str = "weight") -> Maybe:
    """Mean with Student's 95 % interval over weights or seeds.

    >>> print(mean_of([1.0, 2.0, 3.0]))
    2 (-0.484 to 4.48)
    >>> mean_of([])
    Missing(reason='no weight has it')
    """
    n = len(values)
    if not n:
        return Missing(f"no {what} has it")
    mean = float(np.mean(values))
    if n == 1:
        return Figure(mean, mean, mean)
    found = interval_about(mean, float(np.std(values, ddof=1)) / math.sqrt(n), dof=n - 1)
    return Figure(mean, found.low, found.high, n)


def median_of(values: Sequence[float]) -> Maybe:
    """Median with the 95 % interval of the percentile bootstrap over weights (2 000 draws, seed 0)."""
    if not len(values):
        return Missing("no weight has it")
    table = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).choice(table, (2000, table.size))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return Figure(float(np.median(table)), float(low), float(high), table.size)


def share_of(hits: int, n: int) -> Maybe:
    """A share with the interval of Clopper and Pearson."""
    if n == 0:
        return Missing("nothing to count")
    found = stats.binomtest(hits, n).proportion_ci(0.95)
    return Figure(hits / n, float(found.low), float(found.high), n)


def difference(after: Maybe, before: Maybe) -> Maybe:
    """Of two independent figures; the half-widths add in squares."""
    if isinstance(after, Missing):
        return after
    if isinstance(before, Missing):
        return before
    mean = after.value - before.value
    half = math.hypot((after.high - after.low) / 2, (before.high - before.low) / 2)
    return Figure(mean, mean - half, mean + half, min(after.n, before.n))
