"""The exponent of the step that lowers the loss most on samples held out: of one weight, or one for several together.

The curvature of a jackknife replicate is the whole batch's, rescaled to the replicate's own diagonal (M_kj ·
sqrt(r_k r_j), r = h without the group over h): K numbers a group instead of K², and against the jackknife of the whole
matrix the standard error of the exponent differs by a few per cent, because slopes vary far more than curvature.
NumPy only; reference: SIGNAL section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from spectrascope.numerics.sample_groups import MIN_GROUPS, group_means, jackknife_stderr, jackknife_stderrs
from spectrascope.numerics.vectors import Table, Vector, as_vector, interval_about, too_few
from spectrascope.records.report import LayerReport
from spectrascope.records.signal import HeldOut, StepExponent
from spectrascope.records.values import Interval, Missing

__all__ = [
    "StepReplicates",
    "find_step_exponent",
    "meets_an_edge",
    "pool_step_exponents",
    "pooled_weights",
    "replicate_steps",
    "share_of",
    "step_replicates",
    "widen_groups",
    "widened_slopes",
]

_EXPONENTS = np.linspace(-1.0, 4.0, 501)  # wider than [0, 3], so that a replicate is free to move past the edge
_ALLOWED = (_EXPONENTS >= -1e-9) & (_EXPONENTS <= 3 + 1e-9)


def widen_groups(group_slopes: ArrayLike, sigma: ArrayLike, sizes: Sequence[int]) -> Table:
    """Spread the slopes of sample groups about their mean, so that their scatter is that of the mean over folds.

    Every fold's samples chose the directions of the other folds, so the folds' slopes are correlated: where a direction
    is all noise, a pair of groups enters twice by the same product, and the variance of the mean is twice what the
    groups' scatter says; where it is all signal, it is not. In between the factor taken is 2 - rho², rho = s/sigma the
    share of the direction that is signal. In simulations with known slopes it brings the share of slopes within two
    standard errors from 0.87 to 0.935 … 0.96, where Student's t with 15 degrees of freedom promises 0.936.

    Args:
        group_slopes: held-out slopes, shape (groups, k).
        sigma: singular values of the whole batch's gradient, shape (k,).
        sizes: samples per group.
    """
    table, weights = np.asarray(group_slopes, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    mean = weights @ table / weights.sum()
    share = np.clip(mean / as_vector(sigma, "sigma"), 0.0, 1.0)
    return np.asarray(mean + np.sqrt(2 - share**2) * (table - mean))


class StepReplicates:
    """The predicted decrease of one weight for every exponent: on all samples, and without each sample group.

    Args:
        sigma: singular values that the step's transfer sees, positive, shape (k,).
        group_slopes: held-out slopes by sample group, shape (groups, k).
        group_h: held-out curvature by sample group, shape (groups, k).
        matrix: held-out M, shape (k, k).
        sizes: samples per group.
    """

    def __init__(
        self, sigma: ArrayLike, group_slopes: ArrayLike, group_h: ArrayLike, matrix: ArrayLike, sizes: Sequence[int]
    ) -> None:
        values = as_vector(sigma, "sigma")
        weights = np.asarray(sizes, dtype=np.float64)
        slopes, without = group_means(np.asarray(group_slopes, dtype=np.float64), weights)
        h, h_without = group_means(np.asarray(group_h, dtype=np.float64), weights)
        block = np.asarray(matrix, dtype=np.float64)
        block = (block + block.T) / 2
        ratio = np.ones_like(h_without)
        np.divide(h_without, h, out=ratio, where=(h > 0) & (h_without > 0))
        scale = np.sqrt(ratio)
        self.slopes, self.matrix = slopes, block
        self.transfer = np.exp(np.log(values / values[0])[None, :] * (1 - _EXPONENTS[:, None]))  # (exponents, k)
        self.along = self.transfer @ slopes  # Tᵀs
        self.along_without = without @ self.transfer.T  # (groups, exponents)
        self.curvature = np.einsum("ek,kj,ej->e", self.transfer, block, self.transfer)
        scaled = scale[:, None, :] * self.transfer[None]
        self.curvature_without = np.einsum("gek,kj,gej->ge", scaled, block, scaled)

    @property
    def decrease(self) -> Vector:
        """By how much the loss falls, per exponent; NaN where the curvature along the step is not positive."""
        return _decrease(self.along, self.curvature)

    @property
    def decrease_without(self) -> Table:
        """The same without each sample group, (groups, exponents)."""
        return _decrease(self.along_without, self.curvature_without)

    @property
    def is_convex(self) -> bool:
        """Whether curvature is positive along the step of every exponent in [0, 3], also without any sample group."""
        return bool((self.curvature[_ALLOWED] > 0).all() and (self.curvature_without[:, _ALLOWED] > 0).all())

    def best_of_all(self) -> float | Missing:
        """½ sᵀ M⁻¹ s, the most that any combination of the directions promises."""
        try:
            np.linalg.cholesky(self.matrix)
        except np.linalg.LinAlgError:
            return Missing("the held-out curvature matrix is not positive definite")
        scale = np.sqrt(np.diag(self.matrix))
        solved = np.linalg.solve(self.matrix / np.outer(scale, scale), self.slopes / scale) / scale
        return float(self.slopes @ solved / 2)


def _decrease(along: NDArray[np.float64], curvature: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Tᵀs)² / (2 TᵀMT); 0 where a step raises the loss."""
    out = np.full_like(along, np.nan)
    np.divide(np.maximum(along, 0.0) ** 2, 2 * curvature, out=out, where=curvature > 0)
    return out


def find_step_exponent(weights: Sequence[StepReplicates], n_groups: int) -> StepExponent | Missing:
    """Find the exponent whose step lowers the held-out loss most: of one weight, or one for several together.

    Args:
        weights: the predicted decreases of each weight; those of several add up, as if the weights did not interact.
        n_groups: number of sample groups.

    Returns:
        The exponent with its jackknife interval and predicted decreases, possibly undetermined; Missing where no step
        has positive curvature.

    Cost: 501 evaluations of a quadratic form per sample group.

    Reference: SIGNAL section 2.
    """
    if not weights:
        return Missing("no weight has held-out slopes")
    if all(w.slopes.size < 2 for w in weights):
        return Missing("one direction: every exponent makes the same step")
    if n_groups < MIN_GROUPS:
        return too_few(n_groups, "sample group", "the interval of a step exponent", MIN_GROUPS)
    found = replicate_steps(weights)
    if isinstance(found, Missing):
        return found
    total = np.sum([w.decrease for w in weights], axis=0)
    place, replicates, decreases = found
    value = round(min(max(float(_peaks(total[None], np.array([place]))[0]), 0.0), 3.0), 3)
    if meets_an_edge(replicates):
        wide = _indistinguishable(weights, place, n_groups)
    else:
        spread = jackknife_stderr(replicates)
        assert not isinstance(spread, Missing)  # exponents on a grid are finite
        wide = interval_about(value, spread, dof=n_groups - 1)
    interval = Interval(min(max(wide.low, 0.0), value), max(min(wide.high, 3.0), value))
    stderr = jackknife_stderr(decreases)
    decrease = float(total[place])
    reason = ""
    if not _falls_beyond_error(weights, n_groups):
        reason = "no exponent predicts a decrease beyond its error"
    elif interval.low <= 0.0 and interval.high >= 3.0:
        reason = "its interval covers every exponent from 0 to 3"
    elif isinstance(stderr, Missing):
        reason = "without one of the sample groups the curvature along the step is negative"
    return StepExponent(
        value=value,
        interval=interval,
        determined=not reason,
        reason=reason,
        decrease=decrease,
        decrease_stderr=stderr,
        **{f"decrease_{b}": _at(total, b) for b in (0, 1, 2)},
        decrease_best=_sum_or_missing([w.best_of_all() for w in weights]),
    )


def _indistinguishable(weights: Sequence[StepReplicates], place: int, n_groups: int) -> Interval:
    """Hull of the exponents whose step is not worse than the best one's by more than the error of the difference.

    For where exponents without a sample group end at the edge of the grid: there they show no spread, whatever their
    error. Compared are slopes along steps of equal curvature, whose squares are the decreases.
    """
    threshold = float(special.stdtrit(n_groups - 1, 0.975))
    along, without = _joint_slopes(weights)
    gap, error = along[place] - along, jackknife_stderrs(without[:, [place]] - without)
    alike = np.flatnonzero(_ALLOWED & (gap <= threshold * error))
    return Interval(float(_EXPONENTS[alike[0]]), float(_EXPONENTS[alike[-1]]))


def replicate_steps(weights: Sequence[StepReplicates]) -> tuple[int, Vector, Vector] | Missing:
    """Find the best exponent of weights together, and leave out one sample group after the other.

    Args:
        weights: the predicted decreases of each weight, at least one.

    Returns:
        The place of the best exponent on its grid; without each group the exponent that is best then, free to leave
        [0, 3], and the decrease for the one that is best on all samples, both (groups,). Missing where no step has
        positive curvature.
    """
    total = np.sum([w.decrease for w in weights], axis=0)
    without = np.sum([w.decrease_without for w in weights], axis=0)
    allowed = np.where(_ALLOWED, total, np.nan)
    if np.isnan(allowed).all():
        return Missing("the curvature along the step is negative for every exponent")
    place = int(np.nanargmax(allowed))
    free = np.where(np.isnan(without), -np.inf, without)
    return place, _peaks(free, free.argmax(axis=1)), without[:, place]


def _peaks(curves: Table, places: NDArray[np.int_]) -> Vector:
    """Where each curve (curves, exponents) is highest: of the parabola through its highest point and the two beside it.

    On the grid alone, replicates that differ by less than half its step would show no spread at all, and the interval
    of a well determined exponent no width.
    """
    rows, inner = np.arange(len(curves)), np.clip(places, 1, len(_EXPONENTS) - 2)
    left, middle, right = (curves[rows, inner + shift] for shift in (-1, 0, 1))
    bend, tilt = 2 * middle - left - right, right - left
    shift = np.zeros(len(curves))
    np.divide(tilt, 2 * bend, out=shift, where=(inner == places) & np.isfinite(bend) & (bend > 0))
    return np.asarray(_EXPONENTS[places] + np.clip(shift, -0.5, 0.5) * (_EXPONENTS[1] - _EXPONENTS[0]))


def meets_an_edge(replicates: Vector) -> bool:
    """Whether exponents end at the edge of what they may be: then they show no spread, whatever the error."""
    return bool(((replicates <= _EXPONENTS[0]) | (replicates >= _EXPONENTS[-1])).any())


def _falls_beyond_error(weights: Sequence[StepReplicates], n_groups: int) -> bool:
    """Whether along some step the loss falls by more than the error of its slope."""
    threshold = float(special.stdtrit(n_groups - 1, 0.975))
    along, without = _joint_slopes(weights)
    return bool((along > threshold * jackknife_stderrs(without))[_ALLOWED].any())


def _joint_slopes(weights: Sequence[StepReplicates]) -> tuple[Vector, Table]:
    """Slopes of all weights together along steps of equal curvature, on all samples and without each group."""
    along = np.sum([_normalised(w.along, w) for w in weights], axis=0)
    return along, np.sum([_normalised(w.along_without, w) for w in weights], axis=0)


def _normalised(along: NDArray[np.float64], weight: StepReplicates) -> NDArray[np.float64]:
    """Slopes along steps of equal curvature, so that those of several weights can be added."""
    out = np.zeros_like(along)
    curvature = np.broadcast_to(weight.curvature, along.shape)
    np.divide(along, np.sqrt(np.maximum(curvature, 0.0)), out=out, where=curvature > 0)
    return out


def _at(total: Vector, exponent: float) -> float:
    value = float(total[int(np.argmin(np.abs(_EXPONENTS - exponent)))])
    return 0.0 if math.isnan(value) else value


def _sum_or_missing(values: Sequence[float | Missing]) -> float | Missing:
    total = 0.0
    for value in values:
        if isinstance(value, Missing):
            return value
        total += value
    return total


def pool_step_exponents(layers: Sequence[LayerReport]) -> StepExponent | Missing:
    """Find the one exponent for all weights together, from their held-out slopes and curvature.

    Of the weights that :func:`pooled_weights` leaves in.
    """
    weights = pooled_weights(layers)
    return weights if isinstance(weights, Missing) else find_step_exponent(weights, len(weights[0].along_without))


def pooled_weights(layers: Sequence[LayerReport]) -> list[StepReplicates] | Missing:
    """The predicted decreases of the weights whose exponent is found together.

    Left out are weights whose curvature along some step is not positive, with or without one of the sample groups: the
    quadratic model gives such a step no length, and one of them would leave no exponent for all the others.
    """
    weights, groups = [], set()
    for row in layers:
        if isinstance(row.held_out, HeldOut) and share_of(row):
            sizes = row.measurement.group_sizes
            weights.append(step_replicates(row.held_out, row.measurement.sigma, sizes, row.analysis.window))
            groups.add(len(sizes))
    if not weights:
        return Missing("no weight has held-out slopes")
    if len(groups) > 1:
        return Missing("weights were measured with different numbers of sample groups")
    return [w for w in weights if w.is_convex] or weights


def share_of(row: LayerReport) -> tuple[float, ...]:
    """Share of each direction of the window that is signal; nothing where no samples were held out."""
    return () if isinstance(row.analysis.signal_share, Missing) else row.analysis.signal_share


def step_replicates(
    held_out: HeldOut, sigma: ArrayLike, sizes: Sequence[int], window: tuple[int, int]
) -> StepReplicates:
    """Predict the decrease of steps along the window's directions, on all samples and without each group.

    Args:
        held_out: slopes and curvature on samples held out.
        sigma: singular values of the whole batch's gradient, shape (k,) or more.
        sizes: samples per group.
        window: first and last rank, 1-based and inclusive, not empty.
    """
    chosen = held_out.within(window)
    return StepReplicates(
        as_vector(sigma, "sigma")[chosen],
        widened_slopes(held_out, sigma, sizes)[:, chosen],
        np.asarray(held_out.group_h)[:, chosen],
        np.asarray(held_out.curvature_matrix)[chosen, chosen],
        sizes,
    )


def widened_slopes(held_out: HeldOut, sigma: ArrayLike, sizes: Sequence[int]) -> Table:
    """Held-out slopes by sample group, with the scatter that their mean over folds really has."""
    if held_out.n_folds == 0:  # the directions came from elsewhere: no sample chose them
        return np.asarray(held_out.group_slopes, dtype=np.float64)
    return widen_groups(held_out.group_slopes, as_vector(sigma, "sigma")[: len(held_out.slopes)], sizes)
