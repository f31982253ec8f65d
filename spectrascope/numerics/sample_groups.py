"""How far a number moves without one sample group at a time. NumPy and SciPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectrascope.numerics.vectors import Table, Vector, interval_about, too_few
from spectrascope.records.values import Interval, Missing, PowerFit

__all__ = [
    "MIN_GROUPS",
    "Refit",
    "Refits",
    "SampleGroups",
    "group_means",
    "jackknife",
    "jackknife_stderr",
    "jackknife_stderrs",
]

Refit = Callable[[Vector, Vector], PowerFit | Missing]
Refits = Callable[[Table, Table], Vector]

MIN_GROUPS = 4
"""Fewest sample groups of a jackknife: with three, Student's factor alone is 4.3."""


@dataclass(frozen=True, slots=True)
class SampleGroups:
    """The measurement split by sample group, over the directions of one window.

    The directions u_k, v_k are those of the whole batch, the same for every group.

    Attributes:
        sizes: samples per group, all positive.
        sigma: ``sigma[g][k]`` = u_kᵀ G_g v_k with G_g the mean gradient of group g.
        h: ``h[g][k]`` = the curvature of group g's mean loss along direction k.

    Raises:
        ValueError: tables of unequal shape, or an empty group.
    """

    sizes: tuple[int, ...]
    sigma: tuple[tuple[float, ...], ...]
    h: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not len(self.sizes) == len(self.sigma) == len(self.h):
            raise ValueError(f"{len(self.sizes)} group sizes, {len(self.sigma)} rows of sigma, {len(self.h)} rows of h")
        if len({len(row) for row in (*self.sigma, *self.h)}) > 1:
            raise ValueError("sample groups measured along different numbers of directions")
        if any(size < 1 for size in self.sizes):
            raise ValueError(f"every sample group needs at least one sample, sizes are {self.sizes}")

    def restrict(self, first: int, last: int) -> SampleGroups:
        """Return the same groups over directions ``first`` … ``last`` (1-based, inclusive).

        >>> SampleGroups((1,), ((3.0, 2.0, 1.0),), ((9.0, 4.0, 1.0),)).restrict(2, 3).h
        ((4.0, 1.0),)
        """
        window = slice(first - 1, last)
        return SampleGroups(self.sizes, tuple(row[window] for row in self.sigma), tuple(row[window] for row in self.h))

    def leave_one_out(self) -> tuple[Table, Table]:
        """Return, for each group in turn, the size-weighted means of all the others: sigma and h, each (G, k).

        >>> sigma, h = SampleGroups((1, 3), ((1.0,), (5.0,)), ((2.0,), (4.0,))).leave_one_out()
        >>> sigma.tolist(), h.tolist()
        ([[5.0], [1.0]], [[4.0], [2.0]])
        """
        sizes = np.asarray(self.sizes, dtype=np.float64)
        sigma, h = (np.asarray(table, dtype=np.float64) for table in (self.sigma, self.h))
        return group_means(sigma, sizes)[1], group_means(h, sizes)[1]


def group_means(table: Table, sizes: Vector) -> tuple[Vector, Table]:
    """Size-weighted mean over all groups (k,), and over all but one (groups, k).

    >>> group_means(np.array([[1.0], [5.0]]), np.array([1.0, 3.0]))[1].tolist()
    [[5.0], [1.0]]
    """
    weights = (1.0 - np.eye(sizes.size)) * sizes
    weights /= weights.sum(axis=1, keepdims=True)
    return sizes @ table / sizes.sum(), weights @ table


def jackknife(value: float, groups: SampleGroups, refit: Refit, refits: Refits | None = None) -> Interval | Missing:
    """Return the 95 % interval of an exponent under leaving out one sample group at a time.

    For each group g the exponent θ_g is refitted to sigma^(-g) and h^(-g), the size-weighted means over the
    other groups; SE² = (n - 1)/n Σ (θ_g - mean θ)², and the interval is value ± t(n - 1, 0.975)·SE. The
    directions u_k, v_k are held fixed: u_kᵀ G^(-g) v_k is the k-th singular value of G^(-g) to first order,
    so the interval leaves out how the directions themselves turn from batch to batch. Groups are treated as
    of equal weight, which is exact when their sizes are equal. A sigma^(-g) or h^(-g) that is not positive
    drops out of that one replicate.

    Args:
        value: the exponent on all samples; the interval is centred there.
        groups: sigma and h by sample group over the fit's window.
        refit: (sigma, h), each of shape (k,), to a fit.
        refits: the same for all replicates at once, (G, k) each to exponents of shape (G,); those it leaves NaN are
            refitted one by one.

    Returns:
        The interval, or why there is none: fewer than 4 groups, or a replicate that cannot be fitted.

    Cost: one refit per group, or one of all at once.

    Reference: MEASUREMENT section 2.
    """
    n = len(groups.sizes)
    if n < MIN_GROUPS:
        return too_few(n, "sample group", "a jackknife", MIN_GROUPS)
    sigma, h = groups.leave_one_out()
    replicates = np.full(n, np.nan) if refits is None else refits(sigma, h)
    for g in np.flatnonzero(np.isnan(replicates)):
        fit = refit(sigma[g], h[g])
        if isinstance(fit, Missing):
            return Missing(f"without sample group {g + 1}: {fit.reason}")
        replicates[g] = fit.value
    stderr = jackknife_stderr(replicates)
    return stderr if isinstance(stderr, Missing) else interval_about(value, stderr, dof=n - 1)


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
    return float(jackknife_stderrs(replicates))


def jackknife_stderrs(replicates: Table) -> Vector:
    """Return the jackknife's standard errors of several numbers (k,), from each without every group (groups, k)."""
    n = len(replicates)
    return np.asarray(np.sqrt((n - 1) / n * np.sum((replicates - replicates.mean(axis=0)) ** 2, axis=0)))
