"""Power-law tails of weight spectra (HT-SR): the exponent of a density, by maximum likelihood.

Not to be confused with a rank-decay slope: eigenvalues that fall as k^(−s) have a density with exponent 1 + 1/s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from spectrascope.numerics.vectors import Vector, as_vector, find_nonfinite
from spectrascope.records.values import Missing
from spectrascope.records.weights import TailFit

__all__ = ["MIN_EVALUES", "fit_tail"]

MIN_EVALUES = 8
"""Fewest eigenvalues a tail is fitted to."""

_PROBES = 48  # points at which every candidate's distance is bounded from below before any is computed in full


def fit_tail(eigenvalues: ArrayLike, resolution: float = 1e-13) -> TailFit | Missing:
    """Fit p(x) ∝ x^(−alpha), x ≥ xmin, to the eigenvalues of WᵀW.

    For each candidate xmin (every eigenvalue but the largest) alpha is the maximum-likelihood exponent
    1 + n / Σ ln(x/xmin) of the n eigenvalues from it on; the candidate whose fitted distribution is nearest to the
    empirical one, D = max |1 − (x/xmin)^(1−alpha) − i/n| over the tail's points i = 0 … n−1, is chosen.

    Args:
        eigenvalues: squared singular values in any order, shape (n,); non-positive ones are left out.
        resolution: relative difference below which two of them are equal, because their matrix was rounded.

    Returns:
        The fit; or why there is none: NaN or infinity, fewer than 8 positive values, all equal, or fewer than 8
        different ones.

    Raises:
        ValueError: not a vector.

    Cost: O(n log n) and n · 48 exponentials; the distance in full, O(n), only for candidates that could win.

    Reference: Clauset, Shalizi and Newman 2009, section 3; MEASUREMENT section 7. The convention of D is that of
    the packages powerlaw and WeightWatcher (the empirical distribution from the left only). Below 20 eigenvalues
    WeightWatcher chooses xmin by another rule.

    >>> quantiles = (np.arange(2000) + 0.5) / 2000
    >>> fit = fit_tail((1 - quantiles) ** (-1 / 1.5))  # density x^-2.5 from 1 on
    >>> round(fit.alpha, 1), fit.num_pl_spikes > 1900
    (2.5, True)
    >>> fit_tail([1.0, 2.0, 3.0])
    Missing(reason='3 positive eigenvalues, a tail needs at least 8')
    """
    values = as_vector(eigenvalues, "eigenvalues")
    if nonfinite := find_nonfinite(values):
        return nonfinite
    x = np.sort(values[values > 0])
    if x.size < MIN_EVALUES:
        return Missing(f"{x.size} positive eigenvalues, a tail needs at least {MIN_EVALUES}")
    log_x = np.log(x)
    # Rounding makes equal eigenvalues differ, and a power law of any steepness fits the differences.
    different = _count_different(log_x, resolution)
    if different < MIN_EVALUES:
        exactly = "" if x[0] == x[-1] else f" to a relative {resolution:.0e}, which is rounding"
        if different == 1:
            return Missing(f"all {x.size} eigenvalues are equal{exactly}, they have no tail")
        return Missing(
            f"{different} different eigenvalues among {x.size}{exactly}, a tail needs at least {MIN_EVALUES}"
        )
    rates, counts = _tail_rates(log_x, resolution)
    usable = np.flatnonzero(np.isfinite(rates))
    start, distance = _nearest(log_x, rates, counts, usable)
    rate, n = float(rates[start]), int(counts[start])
    return TailFit(
        alpha=1 + rate,
        xmin=float(x[start]),
        xmax=float(x[-1]),
        D=distance,
        sigma=rate / float(np.sqrt(n)),
        num_pl_spikes=n,
    )


def _count_different(log_x: Vector, resolution: float) -> int:
    """How many steps wider than the resolution it takes to walk up the values; no more than are asked for."""
    count, at = 0, 0
    while at < log_x.size and count < MIN_EVALUES:
        count += 1
        at = int(np.searchsorted(log_x, log_x[at] + resolution, side="right"))
    return count


def _tail_rates(log_x: Vector, resolution: float) -> tuple[Vector, Vector]:
    """Return alpha − 1 and size of the tail from each value but the last on; infinite where all of it is equal."""
    counts = np.arange(log_x.size, 1, -1, dtype=np.float64)
    # Sums of differences from the largest value: subtracting sums of logs themselves would cancel.
    below = (log_x[-1] - log_x)[::-1].cumsum()[::-1]
    spread = counts * (log_x[-1] - log_x[:-1]) - below[:-1]
    with np.errstate(divide="ignore"):
        wide = log_x[-1] - log_x[:-1] > resolution
        return counts / np.where(wide & (spread > counts * 1e-13), spread, 0.0), counts


def _nearest(log_x: Vector, rates: Vector, counts: Vector, usable: np.ndarray) -> tuple[int, float]:
    """The start of the tail with the smallest distance, and that distance.

    The distance at a few points bounds it from below, so that most candidates need not be computed in full.
    """
    steps = np.linspace(0.0, 1.0, _PROBES)
    offsets = (steps[None, :] * (counts[usable, None] - 1)).astype(np.int64)
    gaps = log_x[usable[:, None] + offsets] - log_x[usable, None]
    probed = np.abs(-np.expm1(-rates[usable, None] * gaps) - offsets / counts[usable, None])
    bounds = probed.max(1)
    best, nearest = -1, np.inf
    for place in np.argsort(bounds, kind="stable"):
        if bounds[place] > nearest:
            break
        start = int(usable[place])
        tail = log_x[start:] - log_x[start]
        distance = float(np.abs(-np.expm1(-rates[start] * tail) - np.arange(tail.size) / tail.size).max())
        if distance < nearest or (distance == nearest and start < best):
            best, nearest = start, distance
    return best, nearest
