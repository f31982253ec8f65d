"""How far a number moves when only the samples change.

Two reports over different samples differ by the noise of both batches: SE² = SE_before² + SE_after². Two reports
over the same samples (the usual gate) share it, and what is left is the jackknife error of the *difference*: leave
the same sample group out of both and see how the difference moves. That is often several times smaller.

A jackknife holds the gradient's directions fixed, so it leaves out how they turn from batch to batch. Held against
batches that really were disjoint (``examples/ci/measure_false_alarms.py``), it is right or too wide for numbers made
with sigma, which changes to first order as it does along fixed directions; of numbers made of h alone it sees about
half of the variance. So the wider of the jackknife and the straight-line error is taken for an exponent of one
batch, and errors of numbers of h alone are doubled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from spectrascope.records import LayerReport, Missing, PowerFit, Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spectrascope.numerics.replicates import Replicates

__all__ = ["FIXED_DIRECTIONS", "ROUNDING", "NoiseMeter", "StandardError"]

FIXED_DIRECTIONS = 2.0
"""Widening of errors of numbers made of h alone: their jackknife variance is 0.4 to 0.7 of the true one."""

ROUNDING = {"float32": 1e-4, "float64": 1e-8}
"""Relative changes that another device or release makes by rounding alone."""

_EXPONENTS = ("beta", "alpha_g", "alpha_h")
_OF_H_ALONE = ("alpha_h", "pr_h", "effective_rank_h", "h")
_ENTRY = re.compile(r"(sigma|h)\[(\d+)\]")
_MEDIAN = re.compile(r"summary\.(?:(\w+)\.)?beta_median")


@dataclass(frozen=True, slots=True)
class StandardError:
    """Standard error of a change, and the degrees of freedom of its estimate."""

    value: float
    dof: float

    def widest(self, probability: float, *, two_sided: bool) -> float:
        """Return the change that sampling alone exceeds with a given probability (Student's t).

        >>> round(StandardError(1.0, 15.0).widest(0.05, two_sided=True), 3)
        2.131
        """
        from scipy import special

        tail = probability / 2 if two_sided else probability
        return -float(special.stdtrit(self.dof, tail)) * self.value


class NoiseMeter:
    """Standard errors of changes between two reports; what it works out it keeps.

    Args:
        before: the baseline.
        after: the report compared with it.
        paired: whether both saw the same samples in the same order.
    """

    def __init__(self, before: Report, after: Report, *, paired: bool) -> None:
        self._reports = before, after
        self.paired = paired
        self._replicates: Callable[[LayerReport], Replicates | Missing] = lru_cache(maxsize=None)(_replicate)
        dtype = after.provenance.dtype
        self._rounding = ROUNDING.get(dtype, max(ROUNDING.values()))

    def rounding(self, before: float, after: float) -> float:
        """Return the change that rounding alone may make."""
        return self._rounding * max(abs(before), abs(after))

    def of_layer(self, before: LayerReport, after: LayerReport, number: str) -> StandardError | Missing:
        """Return the standard error of a layer's number, or why it is not known.

        Reference: MEASUREMENT section 2.
        """
        if self.paired and before.measurement.group_sizes == after.measurement.group_sizes:
            return _of_difference(number, self._of(before, number), self._of(after, number))
        return _of_both(*(self._of_one(row, number) for row in (before, after)))

    def of_report(self, number: str) -> StandardError | Missing:
        """Return the standard error of a number of the whole report, or why it is not known."""
        median = _MEDIAN.fullmatch(number)
        if median is None:
            return _unknown(number)
        kind = None if median[1] in (None, "overall") else median[1]
        medians = [self._median(report, kind) for report in self._reports]
        if self.paired:
            return _of_difference("beta", *medians)
        return _of_both(*(_stderr("beta", values) for values in medians))

    def _of_one(self, row: LayerReport, number: str) -> StandardError | Missing:
        if number not in _EXPONENTS:
            return _stderr(number, self._of(row, number))
        fit: PowerFit | Missing = getattr(row.analysis, number)
        if isinstance(fit, Missing):
            return fit
        found = _stderr("", self._of(row, number))
        return found if isinstance(found, Missing) else StandardError(max(found.value, fit.stderr), found.dof)

    def _of(self, row: LayerReport, number: str) -> NDArray[np.float64] | Missing:
        """A number without each sample group, shape (G,)."""
        entry = _ENTRY.fullmatch(number)
        if entry is None and number not in (*_EXPONENTS, "pr_h", "effective_rank_h"):
            return _unknown(number)
        replicates = self._replicates(row)
        if isinstance(replicates, Missing):
            return replicates
        if entry is None:
            values: NDArray[np.float64] = getattr(replicates, number)
            return values
        table: NDArray[np.float64] = getattr(replicates, entry[1])
        column = int(entry[2]) - row.analysis.window[0]
        if not 0 <= column < table.shape[1]:
            return Missing(f"{number} lies outside the window")
        return table[:, column]

    def _median(self, report: Report, kind: str | None) -> NDArray[np.float64] | Missing:
        """Median beta without each sample group, the same group left out of every layer."""
        import numpy as np

        rows = [row for row in report.layers if isinstance(row, LayerReport) and kind in (None, row.info.kind.value)]
        columns = [self._of(row, "beta") for row in rows if isinstance(row.analysis.beta, PowerFit)]
        found = [column for column in columns if not isinstance(column, Missing)]
        if not found or len(found) < len(columns) or len({column.size for column in found}) > 1:
            return Missing("the layers do not share their sample groups")
        medians: NDArray[np.float64] = np.median(np.stack(found), axis=0)
        return medians


def _replicate(row: LayerReport) -> Replicates | Missing:
    from spectrascope.numerics.replicates import replicate_numbers  # numpy: only where noise is asked for

    return replicate_numbers(row)


def _unknown(number: str) -> Missing:
    return Missing(f"no sampling error is known for {number}; use a limit such as +-0.1 or +-10%")


def _stderr(number: str, replicates: NDArray[np.float64] | Missing) -> StandardError | Missing:
    from spectrascope.numerics.replicates import jackknife_stderr

    if isinstance(replicates, Missing):
        return replicates
    value = jackknife_stderr(replicates)
    if isinstance(value, Missing):
        return value
    widened = value * FIXED_DIRECTIONS if number.partition("[")[0] in _OF_H_ALONE else value
    return StandardError(widened, replicates.size - 1)


def _of_difference(
    number: str, before: NDArray[np.float64] | Missing, after: NDArray[np.float64] | Missing
) -> StandardError | Missing:
    if isinstance(before, Missing):
        return before
    if isinstance(after, Missing):
        return after
    if before.size != after.size:
        return Missing("different numbers of sample groups")
    return _stderr(number, after - before)


def _of_both(before: StandardError | Missing, after: StandardError | Missing) -> StandardError | Missing:
    """Independent batches: variances add, degrees of freedom by Welch and Satterthwaite."""
    if isinstance(before, Missing) or isinstance(after, Missing):
        return before if isinstance(before, Missing) else after
    one, other = before.value**2, after.value**2
    if one + other == 0:
        return StandardError(0.0, before.dof + after.dof)
    dof = (one + other) ** 2 / (one**2 / before.dof + other**2 / after.dof)
    return StandardError((one + other) ** 0.5, dof)
