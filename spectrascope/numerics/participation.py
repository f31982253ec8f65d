"""How many directions carry the curvature, and the bound a power law puts on that number."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from spectrascope.numerics.vectors import Vector, as_vector, find_nonfinite
from spectrascope.records.values import Missing, ZetaBound

__all__ = ["BOUND_TOLERANCE", "effective_rank", "participation_ratio", "zeta_bound"]

BOUND_TOLERANCE = 1e-9
"""Relative slack of "the bound holds": an exact power law meets the finite bound, up to rounding."""


def participation_ratio(values: ArrayLike) -> float | Missing:
    """Return (Σ λ)² / Σ λ² over the positive values: 1 if one carries all, K if K are equal.

    Args:
        values: curvatures or singular values in any order, shape (k,); non-positive ones are left out.

    Returns:
        A number in [1, K] with K the count of positive values, scale-free; or why there is none.

    Raises:
        ValueError: not a vector.

    Cost: O(k).

    Reference: MEASUREMENT section 4.

    >>> participation_ratio([4.0, 2.0, 2.0]) == 8 / 3, participation_ratio([2.0, 2.0, 2.0, -1.0])
    (True, 3.0)
    >>> participation_ratio([-1.0, 0.0])
    Missing(reason='none of 2 values is positive')
    """
    weights = _positive_weights(values)
    if isinstance(weights, Missing):
        return weights
    ratio = float(weights.sum()) ** 2 / float(weights @ weights)
    return float(np.clip(ratio, 1.0, weights.size))  # true by Cauchy-Schwarz, kept so under rounding


def effective_rank(values: ArrayLike) -> float | Missing:
    """Return exp(−Σ p ln p), p = λ/Σλ, over the positive values: the exponential of their entropy.

    Args:
        values: curvatures or singular values in any order, shape (k,); non-positive ones are left out.

    Returns:
        A number in [1, K] with K the count of positive values, never below the participation ratio; or why
        there is none.

    Raises:
        ValueError: not a vector.

    Cost: O(k).

    Reference: MEASUREMENT section 4.

    >>> round(effective_rank([5.0, 5.0, 5.0]), 12), effective_rank([7.0])
    (3.0, 1.0)
    """
    weights = _positive_weights(values)
    if isinstance(weights, Missing):
        return weights
    entropy = float(special.entr(weights / weights.sum()).sum())
    return float(np.clip(np.exp(entropy), 1.0, weights.size))


def zeta_bound(s: float, pr_h: float, n_window: int, *, first_rank: int = 1) -> ZetaBound:
    """Compare a measured PR_h with what curvature decaying as k^(-s) allows.

    The infinite form zeta(s)²/zeta(2s) needs s > 1. The finite form H_K(s)²/H_K(2s), with H_K the generalized
    harmonic number, holds for every s and is tighter. If the window starts past k = 1 all sums start there
    (Hurwitz zeta), as the window's power law does. A bound counts as held up to 1e-9 relative.

    Args:
        s: predicted decay exponent beta · alpha_g, finite.
        pr_h: measured participation ratio of the curvature.
        n_window: K, the number of values that entered ``pr_h``.
        first_rank: rank k of the window's first direction, 1-based.

    Returns:
        Both bounds and whether ``pr_h`` obeys them.

    Raises:
        ValueError: ``s`` not finite, or ``n_window`` or ``first_rank`` below 1.

    Cost: O(n_window).

    Reference: MEASUREMENT section 4.

    >>> bound = zeta_bound(2.0, 1.2, 2)
    >>> round(bound.infinite, 12), round(bound.finite, 12) == round(25 / 17, 12), bound.infinite_holds
    (2.5, True, True)
    >>> zeta_bound(0.5, 1.2, 2).infinite
    Missing(reason='s = 0.5 is not above 1, the infinite sum diverges')
    """
    if not math.isfinite(s):
        raise ValueError(f"s must be finite, got {s}")
    if n_window < 1 or first_rank < 1:
        raise ValueError(f"n_window and first_rank must be at least 1, got {n_window} and {first_rank}")
    infinite = _infinite_bound(s, first_rank)
    exponents = -s * np.log(np.arange(first_rank, first_rank + n_window, dtype=np.float64))
    # H_K(s)²/H_K(2s) is the participation ratio of k^(-s); scaled by its largest term it cannot overflow.
    finite = participation_ratio(np.exp(exponents - exponents.max()))
    assert isinstance(finite, float)  # the largest weight is exp(0)
    return ZetaBound(
        s=float(s),
        infinite=infinite,
        finite=finite,
        infinite_holds=infinite if isinstance(infinite, Missing) else _holds(pr_h, infinite),
        finite_holds=_holds(pr_h, finite),
    )


def _infinite_bound(s: float, first_rank: int) -> float | Missing:
    if s <= 1:
        return Missing(f"s = {s:.4g} is not above 1, the infinite sum diverges")
    denominator = float(special.zeta(2 * s, first_rank))
    if denominator == 0:
        return Missing(f"s = {s:.4g} is too steep: the sum from k = {first_rank} underflows")
    return float(special.zeta(s, first_rank)) ** 2 / denominator


def _holds(value: float, bound: float) -> bool:
    return value <= bound * (1 + BOUND_TOLERANCE)


def _positive_weights(values: ArrayLike) -> Vector | Missing:
    """Return the positive values divided by the largest, so that squares neither overflow nor vanish."""
    values = as_vector(values, "values")
    if nonfinite := find_nonfinite(values):
        return nonfinite
    positive: Vector = values[values > 0]
    if positive.size == 0:
        return Missing(f"none of {values.size} values is positive")
    weights: Vector = positive / positive.max()
    return weights
