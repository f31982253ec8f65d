"""The jackknife's replicates of every number that sample groups determine, all groups at once.

:func:`spectrascope.numerics.fits.jackknife` gives one interval of one exponent. Comparing two measurements needs
more: differences of replicates, where both saw the same samples, and replicates of several layers side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectrascope.numerics.fits import MIN_GROUPS, MIN_POINTS, SampleGroups
from spectrascope.records import LayerReport, Missing

__all__ = ["Replicates", "jackknife_stderr", "replicate_numbers"]

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Replicates:
    """Numbers of one layer without each of G sample groups in turn, directions held fixed.

    Attributes:
        sigma: shape (G, k), over the window's directions.
        h: shape (G, k).
        beta: shape (G,); NaN where a replicate cannot be fitted, likewise below.
        alpha_g: shape (G,).
        alpha_h: shape (G,).
        pr_h: shape (G,).
        effective_rank_h: shape (G,).
    """

    sigma: Vector
    h: Vector
    beta: Vector
    alpha_g: Vector
    alpha_h: Vector
    pr_h: Vector
    effective_rank_h: Vector


def replicate_numbers(row: LayerReport) -> Replicates | Missing:
    """Leave out one sample group after the other and work out the layer's numbers from the others.

    The same definitions as in :mod:`spectrascope.numerics.analysis`, over the layer's own window, with arrays in
    place of a loop of fits: 300 layers take a fraction of a second.

    Args:
        row: a measured layer.

    Returns:
        The replicates, or why there are none: fewer than 4 sample groups, or an empty window.

    Cost: O(G · k log k).

    Reference: MEASUREMENT section 2.
    """
    measurement, (first, last) = row.measurement, row.analysis.window
    n = len(measurement.group_sizes)
    if n < MIN_GROUPS:
        return Missing(f"{n} sample groups, a jackknife needs at least {MIN_GROUPS}")
    if last < first:
        return Missing("the window holds no direction")
    groups = SampleGroups(measurement.group_sizes, measurement.group_sigma, measurement.group_h).restrict(first, last)
    sigma, h = _leave_one_out(groups)
    k = np.log(np.arange(first, last + 1, dtype=np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sigma, log_h = np.log(sigma), np.log(h)
        falling = np.log(-np.sort(-h, axis=1))  # the positive ones first; they alone have a logarithm
        weights = np.where(h > 0, h, 0.0)
        shares = weights / weights.sum(axis=1, keepdims=True)
        entropy = -np.sum(shares * np.where(shares > 0, np.log(shares), 0.0), axis=1)
        return Replicates(
            sigma=sigma,
            h=h,
            beta=_slopes(log_sigma, log_h),
            alpha_g=-_slopes(np.broadcast_to(k, sigma.shape), log_sigma),
            alpha_h=-_slopes(np.broadcast_to(k, h.shape), falling),
            pr_h=1.0 / np.sum(shares**2, axis=1),
            effective_rank_h=np.exp(entropy),
        )


def jackknife_stderr(replicates: Vector) -> float | Missing:
    """Return the jackknife's standard error of a number: SE² = (G - 1)/G Σ (θ_g - mean θ)².

    Args:
        replicates: the number without each group, shape (G,).

    Returns:
        The standard error, in the number's unit; or why there is none.

    Reference: MEASUREMENT section 2.

    >>> jackknife_stderr(np.array([1.0, 3.0, 1.0, 3.0]))
    1.7320508075688772
    """
    if not np.isfinite(replicates).all():
        return Missing("it cannot be worked out without one of the sample groups")
    n = replicates.size
    return float(np.sqrt((n - 1) / n * np.sum((replicates - replicates.mean()) ** 2)))


def _leave_one_out(groups: SampleGroups) -> tuple[Vector, Vector]:
    """Size-weighted means over all groups but one, (G, k) each."""
    sizes = np.asarray(groups.sizes, dtype=np.float64)
    keep = (1.0 - np.eye(sizes.size)) * sizes
    keep /= keep.sum(axis=1, keepdims=True)
    sigma: Vector = keep @ np.asarray(groups.sigma, dtype=np.float64)
    h: Vector = keep @ np.asarray(groups.h, dtype=np.float64)
    return sigma, h


def _slopes(x: Vector, y: Vector) -> Vector:
    """Least-squares slopes of rows (G, k) over the points where both are finite; NaN below four such points."""
    usable = np.isfinite(x) & np.isfinite(y)
    n = usable.sum(axis=1, keepdims=True)
    x, y = np.where(usable, x, 0.0), np.where(usable, y, 0.0)
    centred = np.where(usable, x - x.sum(axis=1, keepdims=True) / np.maximum(n, 1), 0.0)
    spread = np.sum(centred**2, axis=1)
    slopes: Vector = np.sum(centred * y, axis=1) / np.where(spread > 0, spread, np.nan)
    return np.where(n[:, 0] >= MIN_POINTS, slopes, np.nan)
