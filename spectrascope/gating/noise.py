"""How far a number moves when only the samples change.

Two reports over different samples differ by the noise of both batches: SE² = SE_before² + SE_after². Two reports
over the same samples (the usual gate) share it, and what is left is the jackknife error of the *difference*: leave
the same sample group out of both and see how the difference moves. That is often several times smaller.

A jackknife holds the gradient's directions fixed, so it leaves out how they turn from batch to batch. Held against
batches that really were disjoint (``examples/ci/measure_false_alarms.py``), it is right or too wide for numbers made
with sigma, which changes to first order as it does along fixed directions; of numbers made of h alone it sees less,
half of the variance on most layers and an eighth on some. So the wider of the jackknife and the straight-line error
is taken for an exponent of one batch, and errors of numbers of h alone are widened (``FIXED_DIRECTIONS``).

Single ``sigma[k]`` and ``h[k]`` vary in proportion to their size, so their errors are those of the logarithm: a
curvature that grew tenfold is not excused by the tenfold noise it brought along. A predicted decrease is the square of
a slope, so its error is that of the root.

What tells signal from noise has errors of its own (:mod:`spectrascope.gating.signal_noise`).

Where an engine only estimates h, its own error comes on top (:mod:`spectrascope.gating.estimates`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spectrascope.gating.estimates import engine_error, engine_error_of_median
from spectrascope.gating.signal_noise import (
    COUNTS,
    DECREASE,
    STEP,
    WIDER_DECREASE,
    count_stderr,
    entry_replicates,
    held_out_beta_stderr,
    step_numbers,
    total_stderr,
)
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing, PowerFit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spectrascope.numerics.replicates import Replicates

__all__ = ["FIXED_DIRECTIONS", "LARGEST", "ROUNDING", "NoiseMeter", "StandardError"]

FIXED_DIRECTIONS = {"h": 2.0, "held_out.h": 2.0, "alpha_h": 3.0, "pr_h": 3.0, "effective_rank_h": 3.0}
"""Widening of jackknife errors of numbers made of h alone, set by the worst layer.

Of the true variance over 40 batches of 420 images the jackknife saw, on the worst of the 20 layers of a CIFAR-10
ResNet-20 (and on the median one), 0.21 (0.78) for log h[1], 0.13 (0.45) for alpha_h, 0.13 (0.44) for pr_h and 0.12
(0.44) for effective_rank_h. For beta it is 0.78 (1.63), for alpha_g 0.95 (1.48).
"""

OTHER_SAMPLES = {"h": 2.0}
"""Further widening where the reports saw different samples, so that an outlier is in one of them only.

On the digits network, of whose loss a few samples carry most, the changes of log h[1] of the first layer between
batches of 420 images have a root mean square of 2.1 of the error that is widened for fixed directions, and of 0.7 to
1.4 on the other layers. On the same samples outliers are in both reports.
"""

LARGEST = 1e300
"""Stands for limits and severities that no float can hold; a verdict holds finite numbers only."""

ROUNDING = {"float32": 1e-4, "float64": 1e-8}
"""Relative changes that another device or release makes by rounding alone."""

_EXPONENTS = ("beta", "alpha_g", "alpha_h")
_ENTRY = re.compile(r"(sigma|h)\[(\d+)\]")
_LARGEST_EXPONENT = 700.0  # of a float
_OF_SUMMARY = {
    "summary.signal.step_exponent": STEP,
    "summary.signal.step_exponent.decrease": DECREASE,
    "summary.signal.n_resolved": "samples_needed.n_resolved",
    "summary.signal.n_signal": "n_signal",
}
_MEDIAN = re.compile(r"summary\.(?:(\w+)\.)?beta_median")


@dataclass(frozen=True, slots=True)
class StandardError:
    """Standard error of a change, and the degrees of freedom of its estimate.

    With ``of_logarithm`` it is that of log(after / before), with ``of_root`` that of √after − √before.
    """

    value: float
    dof: float
    of_logarithm: bool = False
    of_root: bool = False

    def quantile(self, probability: float, *, two_sided: bool) -> float:
        """Return how many standard errors sampling alone exceeds with a given probability (Student's t).

        >>> round(StandardError(1.0, 15.0).quantile(0.05, two_sided=True), 3)
        2.131
        """
        from scipy import special

        return -float(special.stdtrit(self.dof, probability / 2 if two_sided else probability))

    def amount(self, multiple: float, before: float, after: float) -> float:
        """Return the size of a change of so many standard errors, in the direction that the number went.

        >>> StandardError(0.5, 15.0).amount(3.0, 10.0, 11.0)
        1.5
        >>> round(StandardError(0.5, 15.0, of_logarithm=True).amount(2.0, 10.0, 11.0), 3)
        17.183
        >>> StandardError(0.5, 15.0, of_root=True).amount(2.0, 9.0, 4.0)
        5.0
        """
        step = math.copysign(multiple * self.value, after - before)
        if self.of_root:
            return abs(max(math.sqrt(max(before, 0.0)) + step, 0.0) ** 2 - before)
        if not self.of_logarithm:
            return multiple * self.value
        return min(abs(before) * abs(math.expm1(min(step, _LARGEST_EXPONENT))), LARGEST)

    def multiple(self, before: float, after: float) -> float | Missing:
        """Return how many standard errors a change is, with its sign."""
        if self.value == 0:
            return Missing("the sample groups show no spread")
        if self.of_logarithm and min(before, after) <= 0:
            return Missing("the number contradicts its sample groups, which are all positive")
        if self.of_root:
            return (math.sqrt(max(after, 0.0)) - math.sqrt(max(before, 0.0))) / self.value
        change = math.log(after / before) if self.of_logarithm else after - before
        return change / self.value


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
        self._replicates: dict[int, Replicates | Missing] = {}  # by identity: to hash a layer is to read it all
        self._steps: dict[tuple[int, ...], tuple[NDArray[np.float64], NDArray[np.float64]] | Missing] = {}
        dtype = after.provenance.dtype
        self._rounding = ROUNDING.get(dtype, max(ROUNDING.values()))

    def rounding(self, before: float, after: float) -> float:
        """Return the change that rounding alone may make."""
        return self._rounding * max(abs(before), abs(after))

    def of_layer(self, before: LayerReport, after: LayerReport, number: str) -> StandardError | Missing:
        """Return the standard error of a layer's number, or why it is not known.

        Reference: MEASUREMENT section 2, SIGNAL sections 2 and 3.
        """
        if number in (STEP, DECREASE):
            return self._of_steps([before], [after], number)
        if number in COUNTS or number == "held_out.beta":
            rows = before, after
            errors = [held_out_beta_stderr(r) if number == "held_out.beta" else count_stderr(r, number) for r in rows]
            return _independent(errors, rows)
        one, other = self._of(before, number), self._of(after, number)
        if isinstance(one, Missing):
            return one
        if isinstance(other, Missing):
            return other
        entry = _ENTRY.fullmatch(number)
        logarithm = entry is not None and bool((one > 0).all() and (other > 0).all())
        name, rank = (number, None) if entry is None else (entry[1], int(entry[2]))
        engines = [engine_error(row, name, rank, of_logarithm=logarithm) for row in (before, after)]
        if logarithm:
            import numpy as np

            one, other = np.log(one), np.log(other)
        if self.paired and before.measurement.group_sizes == after.measurement.group_sizes:
            return _widened(_stderr(number, other - one, logarithm), engines)
        wider = 1.0 if self.paired else OTHER_SAMPLES.get(name, 1.0)
        both = _of_both(
            *(
                _at_least(_stderr("" if number in _EXPONENTS else number, wider * values, logarithm), row, number)
                for row, values in ((before, one), (after, other))
            )
        )
        return _widened(both, engines)

    def of_report(self, number: str) -> StandardError | Missing:
        """Return the standard error of a number of the whole report, or why it is not known."""
        if number in _OF_SUMMARY:
            return self._of_signal(_OF_SUMMARY[number])
        median = _MEDIAN.fullmatch(number)
        if median is None:
            return _unknown(number)
        kind = None if median[1] in (None, "overall") else median[1]
        rows = [_rows_of(report, kind) for report in self._reports]
        medians = [self._median(found) for found in rows]
        if self.paired:
            error = _of_difference("beta", *medians)
        else:
            error = _of_both(*(_stderr("beta", values) for values in medians))
        return _widened(error, [engine_error_of_median(found) for found in rows])

    def _of_signal(self, number: str) -> StandardError | Missing:
        """The same of all layers together."""
        before, after = (_rows_of(report, None) for report in self._reports)
        if number in (STEP, DECREASE):
            return self._of_steps(before, after, number)
        errors = [total_stderr(rows, number) for rows in (before, after)]
        return _independent(errors, [rows[0] for rows in (before, after) if rows])

    def _of_steps(
        self, before: Sequence[LayerReport], after: Sequence[LayerReport], number: str
    ) -> StandardError | Missing:
        """Of the step exponent of some layers together, or of the decrease it predicts."""
        import numpy as np

        from spectrascope.numerics.steps import meets_an_edge

        found = []
        for rows in (before, after):
            key = tuple(id(row) for row in rows)
            if key not in self._steps:
                self._steps[key] = step_numbers(rows)
            steps = self._steps[key]
            if isinstance(steps, Missing):
                return steps
            if number == STEP and meets_an_edge(steps[0]):
                return Missing("without one of the sample groups the best exponent leaves the range that is searched")
            found.append(steps[0] if number == STEP else WIDER_DECREASE * np.sqrt(steps[1]))
        if self.paired and found[0].size == found[1].size:
            error = _stderr(number, found[1] - found[0])
        else:
            error = _of_both(*(_stderr(number, values) for values in found))
        return error if isinstance(error, Missing) else replace(error, of_root=number == DECREASE)

    def _of(self, row: LayerReport, number: str) -> NDArray[np.float64] | Missing:
        """A number without each sample group, shape (G,)."""
        held_out = entry_replicates(row, number)
        if held_out is not None:
            return held_out
        entry = _ENTRY.fullmatch(number)
        if entry is None and number not in (*_EXPONENTS, "pr_h", "effective_rank_h"):
            return _unknown(number)
        if id(row) not in self._replicates:
            self._replicates[id(row)] = _replicate(row)
        replicates = self._replicates[id(row)]
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

    def _median(self, rows: Sequence[LayerReport]) -> NDArray[np.float64] | Missing:
        """Median beta without each sample group, the same group left out of every layer."""
        import numpy as np

        columns = [self._of(row, "beta") for row in rows if isinstance(row.analysis.beta, PowerFit)]
        found = [column for column in columns if not isinstance(column, Missing)]
        if not found or len(found) < len(columns) or len({column.size for column in found}) > 1:
            return Missing("the layers do not share their sample groups")
        medians: NDArray[np.float64] = np.median(np.stack(found), axis=0)
        return medians


def _rows_of(report: Report, kind: str | None) -> list[LayerReport]:
    return [row for row in report.layers if isinstance(row, LayerReport) and kind in (None, row.info.kind.value)]


def _independent(errors: Sequence[float | Missing], rows: Sequence[LayerReport]) -> StandardError | Missing:
    """Errors of two reports that are worked out without their sample groups."""
    found = []
    for error, row in zip(errors, rows, strict=False):
        if isinstance(error, Missing):
            return error
        found.append(StandardError(error, max(len(row.measurement.group_sizes) - 1, 1)))
    return _of_both(*found) if len(found) == 2 else Missing("a report has no measured layer")


def _replicate(row: LayerReport) -> Replicates | Missing:
    from spectrascope.numerics.replicates import replicate_numbers  # numpy: only where noise is asked for

    return replicate_numbers(row)


def _unknown(number: str) -> Missing:
    return Missing(f"no sampling error is known for {number}; use a limit such as +-0.1 or +-10%")


def _stderr(number: str, replicates: NDArray[np.float64] | Missing, logarithm: bool = False) -> StandardError | Missing:
    from spectrascope.numerics.sample_groups import jackknife_stderr

    if isinstance(replicates, Missing):
        return replicates
    value = jackknife_stderr(replicates)
    if isinstance(value, Missing):
        return value
    return StandardError(value * FIXED_DIRECTIONS.get(number.partition("[")[0], 1.0), replicates.size - 1, logarithm)


def _widened(error: StandardError | Missing, engines: Sequence[float]) -> StandardError | Missing:
    """With the errors of the engines of both reports, where they only estimate h."""
    if isinstance(error, Missing) or not any(engines):
        return error
    value = math.hypot(error.value, *engines)
    if not math.isfinite(value):
        return Missing("it cannot be worked out within the engine's error of h")
    return replace(error, value=value)


def _at_least(error: StandardError | Missing, row: LayerReport, number: str) -> StandardError | Missing:
    """The wider of the jackknife's error and, for an exponent, that of its straight line."""
    fit = getattr(row.analysis, number, None)
    if isinstance(error, Missing) or not isinstance(fit, PowerFit):
        return error
    return StandardError(max(error.value, fit.stderr), error.dof)


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
    """Independent batches: variances add; the fewer degrees of freedom count.

    Welch's would be up to twice as many, for groups that vary alike and normally. The loss of a trained network sits
    in a few samples, so its groups do not, and far tails are what a family of checks asks for.
    """
    if isinstance(before, Missing) or isinstance(after, Missing):
        return before if isinstance(before, Missing) else after
    one, other = before.value**2, after.value**2
    return StandardError((one + other) ** 0.5, min(before.dof, after.dof), before.of_logarithm)
