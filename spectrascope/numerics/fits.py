"""Exponents by ordinary least squares on natural logarithms, and how well the batch determines them.

Two intervals stand beside every exponent. The OLS interval says how straight the line is; the jackknife over
sample groups says how far the exponent would move with other samples. NumPy and SciPy only: a saved report is
refitted without torch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from spectrascope.numerics.sample_groups import Refit, Refits, SampleGroups, jackknife
from spectrascope.numerics.vectors import (
    Table,
    Vector,
    as_vector,
    find_nonfinite,
    interval_about,
    is_constant,
    too_few,
)
from spectrascope.records.values import Missing, PowerFit

__all__ = ["MIN_POINTS", "compute_r2", "fit_alpha_g", "fit_alpha_h", "fit_beta", "fit_log_log", "log_slopes"]

MIN_POINTS = 4
"""Fewest points of a fit: two parameters and two degrees of freedom left to judge them by."""

_EPS = float(np.finfo(np.float64).eps)


def compute_r2(rss: float, y: Vector) -> float:
    """Return the share of the variance of ``y`` that a least-squares fit with intercept explains.

    Always in [0, 1], never NaN: a constant ``y`` (0/0) counts as explained, since the fitted line passes
    through every point.

    Args:
        rss: residual sum of squares of the fit.
        y: ordinates, shape (n,).

    >>> compute_r2(0.5, np.array([0.0, 1.0])), compute_r2(0.0, np.array([3.0, 3.0]))
    (0.0, 1.0)
    """
    if is_constant(y):
        return 1.0
    return float(np.clip(1.0 - rss / float(np.sum((y - y.mean()) ** 2)), 0.0, 1.0))


def fit_log_log(x: ArrayLike, y: ArrayLike, *, sign: int = 1, n_dropped: int = 0) -> PowerFit | Missing:
    """Fit y = e^intercept · x^slope by ordinary least squares on natural logarithms.

    Points with a non-positive coordinate have no logarithm: they are left out and counted. A constant ``y``
    is an exact exponent 0 with R² = 1 (see :func:`compute_r2`).

    Args:
        x: abscissae, shape (n,), any unit.
        y: ordinates, shape (n,), any unit.
        sign: 1 to report the slope, -1 to report minus the slope (decay exponents). The intercept keeps its
            sign.
        n_dropped: points the caller has already left out, added to those left out here.

    Returns:
        The exponent with intercept, standard error, 95 % interval by Student's t with n - 2 degrees of
        freedom and R², all finite; or why there is none: NaN or infinity, fewer than 4 usable points, or no
        spread in x.

    Raises:
        ValueError: ``x`` and ``y`` of different length or not vectors, or ``sign`` not 1 or -1.

    Cost: O(n).

    Reference: MEASUREMENT section 2.

    >>> fit = fit_log_log([1, 2, 4, 8], [3, 12, 48, 192])
    >>> round(fit.value, 12), round(float(np.exp(fit.intercept)), 12), round(fit.r2, 12), fit.n
    (2.0, 3.0, 1.0, 4)
    >>> fit_log_log([1, 2, 3, 4], [1.0, 0.5, 0.25, -0.1])
    Missing(reason='3 usable points of 4, a fit needs at least 4')
    """
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, got {sign}")
    x, y = as_vector(x, "x"), as_vector(y, "y")
    if x.size != y.size:
        raise ValueError(f"x has {x.size} points, y has {y.size}")
    if nonfinite := find_nonfinite(x, y):
        return nonfinite
    usable = (x > 0) & (y > 0)
    n, n_all = int(usable.sum()), x.size + n_dropped
    if n < MIN_POINTS:
        return too_few(n, "usable point", "a fit", MIN_POINTS, of=n_all)
    log_x, log_y = np.log(x[usable]), np.log(y[usable])
    if is_constant(log_x):
        return Missing(f"all {n} abscissae are equal, a slope is not defined")

    # Centred sums: the uncentred normal equations lose half the digits on short windows at high rank.
    centred_x = log_x - log_x.mean()
    sxx = float(centred_x @ centred_x)
    slope = 0.0 if is_constant(log_y) else float(centred_x @ (log_y - log_y.mean())) / sxx
    intercept = float(log_y.mean() - slope * log_x.mean())
    residual = log_y - log_y.mean() - slope * centred_x
    rss = float(residual @ residual)
    stderr = float(np.sqrt(rss / (n - 2) / sxx))
    value = sign * slope
    return PowerFit(
        value=value,
        intercept=intercept,
        stderr=stderr,
        ci95=interval_about(value, stderr, dof=n - 2),
        jackknife_ci95=Missing("no sample groups were given"),
        r2=compute_r2(rss, log_y),
        n=n,
        n_dropped=n_all - n,
    )


def log_slopes(x: Table, y: Table) -> Vector:
    """Return what :func:`fit_log_log` gives as slope, for many small sets of points at once.

    Args:
        x: abscissae, shape (G, n).
        y: ordinates, shape (G, n).

    Returns:
        Slopes of shape (G,); NaN where a set has no fit.

    Cost: O(G · n) in a dozen array operations, a fiftieth of the time of 16 fits.

    >>> log_slopes(np.array([[1.0, 2.0, 4.0, 8.0]] * 2), np.array([[1.0, 4.0, 16.0, 64.0], [1.0, 0.5, 0.25, -1.0]]))
    array([ 2., nan])
    """
    finite = np.isfinite(x) & np.isfinite(y)
    usable = finite & (x > 0) & (y > 0)
    n = usable.sum(axis=1)
    log_x, log_y = np.log(np.where(usable, x, 1.0)), np.log(np.where(usable, y, 1.0))
    mean = log_x.sum(axis=1) / np.maximum(n, 1)
    centred = np.where(usable, log_x - mean[:, None], 0.0)
    largest = np.abs(log_x).max(axis=1, initial=0.0)
    spread = centred.max(axis=1, initial=0.0) - centred.min(axis=1, initial=0.0)
    fitted = finite.all(axis=1) & (n >= MIN_POINTS) & (spread > 8 * _EPS * np.maximum(1.0, largest))
    slopes = np.full(len(x), np.nan)
    # The centred x add up to 0 over the usable points, so y need not be centred.
    np.divide((centred * log_y).sum(axis=1), (centred**2).sum(axis=1), out=slopes, where=fitted)
    return slopes


def fit_beta(sigma: ArrayLike, h: ArrayLike, *, groups: SampleGroups | None = None) -> PowerFit | Missing:
    """Fit the curvature exponent beta, h_k ∝ sigma_k^beta, over the directions with h_k > 0.

    Args:
        sigma: gradient singular values, shape (k,), loss per weight.
        h: curvatures along the same directions, shape (k,), loss per weight².
        groups: the same directions by sample group, for the jackknife interval.

    Returns:
        beta (the slope of log h on log sigma), or why there is none; ``n_dropped`` counts non-positive h.

    Raises:
        ValueError: shapes that do not match.

    Cost: O(k) and one refit per group.

    Reference: MEASUREMENT section 2.

    >>> round(fit_beta([8, 4, 2, 1], [16, 8, 4, 2]).value, 12)
    1.0
    """
    fit = fit_log_log(sigma, h)
    return _add_jackknife(fit, groups, len(as_vector(sigma, "sigma")), fit_log_log, log_slopes)


def fit_alpha_g(sigma: ArrayLike, first_rank: int = 1, *, groups: SampleGroups | None = None) -> PowerFit | Missing:
    """Fit the gradient's rank-decay exponent alpha_g, sigma_k ∝ k^(-alpha_g).

    Args:
        sigma: gradient singular values in decreasing order, shape (k,).
        first_rank: the rank k of ``sigma[0]``, 1-based.
        groups: the same directions by sample group, for the jackknife interval.

    Returns:
        alpha_g (minus the slope of log sigma on log k), or why there is none.

    Raises:
        ValueError: ``first_rank`` below 1, or shapes that do not match.

    Cost: O(k) and one refit per group.

    Reference: MEASUREMENT section 2.

    >>> round(fit_alpha_g([1, 1 / 4, 1 / 9, 1 / 16]).value, 12)
    2.0
    """
    sigma = as_vector(sigma, "sigma")
    fit = fit_log_log(_ranks(sigma.size, first_rank), sigma, sign=-1)
    # A replicate's sigma need not be in order: its k stays that of the direction, which is held fixed.
    return _add_jackknife(
        fit,
        groups,
        sigma.size,
        lambda s, _: fit_alpha_g(s, first_rank),
        lambda s, _: -log_slopes(np.broadcast_to(_ranks(sigma.size, first_rank), s.shape), s),
    )


def fit_alpha_h(h: ArrayLike, first_rank: int = 1, *, groups: SampleGroups | None = None) -> PowerFit | Missing:
    """Fit the curvature decay exponent alpha_h, h_(j) ∝ j^(-alpha_h), over the positive h in falling order.

    j is a rank of curvature, not of sigma.

    Args:
        h: curvatures in any order, shape (k,).
        first_rank: the rank given to the largest h, 1-based (the window's first k).
        groups: the same directions by sample group, for the jackknife interval; each replicate is sorted
            anew.

    Returns:
        alpha_h (minus the slope of log h_(j) on log j), or why there is none; ``n_dropped`` counts
        non-positive h.

    Raises:
        ValueError: ``first_rank`` below 1, or shapes that do not match.

    Cost: O(k log k) and one refit per group.

    Reference: MEASUREMENT section 2.

    >>> fit = fit_alpha_h([1 / 9, 1, -5, 1 / 16, 1 / 4])
    >>> round(fit.value, 12), fit.n, fit.n_dropped
    (2.0, 4, 1)
    """
    h = as_vector(h, "h")
    if nonfinite := find_nonfinite(h):
        return nonfinite
    ordered = np.sort(h[h > 0])[::-1]
    fit = fit_log_log(_ranks(ordered.size, first_rank), ordered, sign=-1, n_dropped=h.size - ordered.size)
    return _add_jackknife(
        fit,
        groups,
        h.size,
        lambda _, h_without: fit_alpha_h(h_without, first_rank),
        # In falling order the positive ones, which alone enter, come first.
        lambda _, h_without: (
            -log_slopes(np.broadcast_to(_ranks(h.size, first_rank), h_without.shape), -np.sort(-h_without))
        ),
    )


def _ranks(count: int, first_rank: int) -> Vector:
    if first_rank < 1:
        raise ValueError(f"ranks start at 1, got first_rank = {first_rank}")
    return np.arange(first_rank, first_rank + count, dtype=np.float64)


def _add_jackknife(
    fit: PowerFit | Missing, groups: SampleGroups | None, n_directions: int, refit: Refit, refits: Refits
) -> PowerFit | Missing:
    if isinstance(fit, Missing) or groups is None:
        return fit
    if groups.sigma and len(groups.sigma[0]) != n_directions:
        raise ValueError(f"sample groups over {len(groups.sigma[0])} directions, the fit is over {n_directions}")
    return replace(fit, jackknife_ci95=jackknife(fit.value, groups, refit, refits))
