"""How far the numbers that tell signal from noise move when only the samples change.

Step exponent and predicted decrease have jackknife replicates, of one weight or of all together: without a sample
group, slopes and curvature are those of the others. A decrease is a squared slope over a curvature, so its error is
that of its square root, which is about the same whether the decrease is large or small.

A count (``n_resolved``, ``n_signal``) is a sum of yes and no, and its jackknife sees nothing until one of them flips.
So each direction is given the probability of being counted on another batch: Phi((t - 3) / se of t) for a slope that
counts from t = 3 on, Phi((sigma - threshold) / se) for a singular value; the variance of a layer's count is the sum of
p (1 - p), as of a binomial. Directions of one batch are resolved together, as their errors come from the same samples:
measured on batches that were disjoint (``examples/ci/measure_false_alarms.py``) a layer's count varies by more
(``COUNTS``), and counts of layers rise and fall together, so that errors of layers are added, not their squares. On the
same samples the noise is shared and this is too wide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spectrascope.records.report import LayerReport
from spectrascope.records.signal import HeldOut, NullDraws
from spectrascope.records.values import Missing, PowerFit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "COUNTS", "DECREASE", "STEP", "WIDER_DECREASE", "count_stderr", "entry_replicates", "held_out_beta_stderr",
    "step_numbers", "total_stderr",
]  # fmt: skip

STEP = "held_out.step_exponent"
DECREASE = "held_out.step_exponent.decrease"
COUNTS = {"samples_needed.n_resolved": 2.0, "n_signal": 1.5}
"""Counts, and how much wider than a binomial's the error of a single layer's is, set by the worst layer.

Over batches of 420 images of a CIFAR-10 ResNet-20 the change of a layer's count between two batches, in units of that
error, has a root mean square of 0.86 and 0.83 on the worst layer (0.6 and 0.2 on the median one); of the totals, 1.0
and 0.4.
"""

WIDER_DECREASE = 1.25
"""Widening of the root of a decrease: without it 1.2 on the worst layer of the digits network, 1.1 on all together."""

_ENTRY = re.compile(r"(?:held_out\.(slopes|h)|(signal_share))\[(\d+)\]")


def step_numbers(rows: Sequence[LayerReport]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | Missing:
    """Step exponent and decrease without each sample group, (G,) each, of the weights that share one exponent.

    Of a single row: of that weight.
    """
    from spectrascope.numerics.steps import pooled_weights, replicate_steps

    weights = pooled_weights(rows)
    if isinstance(weights, Missing):
        return next((row.held_out for row in rows if isinstance(row.held_out, Missing)), weights)
    found = replicate_steps(weights)
    return found if isinstance(found, Missing) else found[1:]


def entry_replicates(row: LayerReport, number: str) -> NDArray[np.float64] | Missing | None:
    """``held_out.slopes[k]``, ``held_out.h[k]`` or ``signal_share[k]`` without each sample group; None for others."""
    import numpy as np

    from spectrascope.numerics.sample_groups import group_means
    from spectrascope.numerics.steps import widened_slopes

    entry = _ENTRY.fullmatch(number)
    if entry is None:
        return None
    held, m = row.held_out, row.measurement
    if isinstance(held, Missing):
        return held
    sizes, table = np.asarray(m.group_sizes, dtype=np.float64), np.asarray(held.group_h)
    if entry[1] != "h":
        table = widened_slopes(held, m.sigma, m.group_sizes)
        if entry[2]:  # shares count from the window's first direction on
            table = (table / np.asarray(m.sigma[: len(held.slopes)]))[:, row.analysis.window[0] - 1 :]
    place = int(entry[3]) - 1
    if not 0 <= place < table.shape[1]:
        return Missing(f"{number} lies outside the directions held out")
    return group_means(table[:, [place]], sizes)[1][:, 0]


def held_out_beta_stderr(row: LayerReport) -> float | Missing:
    """Standard error of the held-out beta: the wider of the jackknife's and the straight line's."""
    from scipy import special

    if isinstance(row.held_out, Missing):
        return row.held_out
    fit = row.held_out.beta
    if not isinstance(fit, PowerFit):
        return fit
    if isinstance(fit.jackknife_ci95, Missing):
        return fit.jackknife_ci95
    quantile = float(special.stdtrit(len(row.measurement.group_sizes) - 1, 0.975))
    return max(fit.jackknife_ci95.half_width / quantile, fit.stderr)


def count_stderr(row: LayerReport, number: str, *, alone: bool = True) -> float | Missing:
    """Standard error of a layer's ``samples_needed.n_resolved`` or ``n_signal``, ``alone`` or as part of a total."""
    import numpy as np
    from scipy import special

    from spectrascope.numerics.signal import RESOLVED_T

    first, last = row.analysis.window
    window = slice(first - 1, last)
    if number == "n_signal":
        null, m = row.null, row.measurement
        if isinstance(null, Missing):
            return null
        sigma, draws = np.asarray(m.sigma)[window], np.asarray(null.sigma_1)
        groups = np.asarray(m.group_sigma)[:, window]
        own = groups.std(axis=0, ddof=1) / math.sqrt(len(groups))
        apart, error = sigma - null.quantile, np.hypot(own, draws.std(ddof=1))
    else:
        if isinstance(row.held_out, Missing):
            return row.held_out
        t = np.asarray(row.held_out.t)[window]
        # t has its standard error in the denominator, which is estimated from as many groups
        apart, error = t - RESOLVED_T, np.sqrt(1 + t**2 / (2 * max(len(row.measurement.group_sizes) - 1, 1)))
    chance = special.ndtr(np.divide(apart, error, out=np.sign(apart) * np.inf, where=error > 0))
    return (COUNTS[number] if alone else 1.0) * math.sqrt(float(np.sum(chance * (1 - chance))))


def total_stderr(rows: Sequence[LayerReport], number: str) -> float | Missing:
    """Standard error of a count over all layers: the layers' errors added, as one batch moves them together."""
    total = 0.0
    for row in rows:
        if isinstance(row.held_out, HeldOut) and (number != "n_signal" or isinstance(row.null, NullDraws)):
            error = count_stderr(row, number, alone=False)
            if isinstance(error, Missing):
                return error
            total += error
    return total
