"""What of a measurement is signal: held-out slopes and exponents, null draws, samples needed.

A batch's gradient is the true one plus sampling noise, and near a minimum the noise's covariance is the curvature: so
singular values of noise alone follow h ∝ sigma² with R² near 0.95, whatever the network. Slopes on samples that did not
choose the directions are free of that: their mean is the true slope. NumPy only; reference: SIGNAL.

Two decisions. The curvature of a jackknife replicate is the whole batch's, rescaled to the replicate's own diagonal
(M_kj · sqrt(r_k r_j), r = h without the group over h): K numbers a group instead of K², and against the jackknife of
the whole matrix the standard error of the step exponent differs by a few per cent, because slopes vary far more than
curvature. And thresholds of "signal" are empirical quantiles of the null, not spiked-matrix formulas, which hold for
white noise only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from spectrascope.numerics.fits import MIN_POINTS, fit_beta, fit_log_log
from spectrascope.numerics.sample_groups import MIN_GROUPS, jackknife_stderr
from spectrascope.numerics.vectors import Table, Vector, as_vector, interval_about, too_few
from spectrascope.records.report import Analysis, LayerReport, Measurement
from spectrascope.records.signal import (
    HeldOut,
    NullBeta,
    NullDraws,
    SamplesNeeded,
    SignalSummary,
    SignalVerdict,
    StepExponent,
)
from spectrascope.records.values import Interval, Missing, PowerFit

__all__ = [
    "LEAST_T",
    "RESOLVED_T",
    "StepReplicates",
    "count_signal",
    "draw_signs",
    "find_step_exponent",
    "fit_held_out_beta",
    "null_quantile",
    "pool_step_exponents",
    "read_held_out",
    "read_null",
    "read_signal",
    "replicate_steps",
    "samples_needed",
    "split_folds",
    "step_replicates",
    "summarise_signal",
    "t_values",
    "widen_groups",
]

LEAST_T = 2.0
"""Least t of a slope that enters the held-out fit."""

RESOLVED_T = 3.0
"""Standard errors that a slope must have to count as resolved."""

_EXPONENTS = np.linspace(-1.0, 4.0, 501)  # wider than [0, 3], so that a replicate is free to move past the edge
_ALLOWED = (_EXPONENTS >= -1e-9) & (_EXPONENTS <= 3 + 1e-9)


def split_folds(groups: int, folds: int) -> list[range]:
    """Deal sample groups to folds of nearly equal size, in order.

    Args:
        groups: number of sample groups.
        folds: folds asked for; fewer where there are fewer groups.

    >>> split_folds(8, 4)
    [range(0, 2), range(2, 4), range(4, 6), range(6, 8)]
    """
    folds = max(1, min(folds, groups))
    borders = [round(f * groups / folds) for f in range(folds + 1)]
    return [range(a, b) for a, b in itertools.pairwise(borders)]


def draw_signs(groups: int, draws: int, seed: int) -> NDArray[np.float64]:
    """Draw signs ε of sample groups whose sum is zero, so that the mean gradient cancels.

    Args:
        groups: number of sample groups; of an odd number one, drawn at random, gets the sign 0.
        draws: how many draws.
        seed: of the draws.

    Returns:
        Signs, shape (draws, groups): (1/groups) Σ ε_b G_b is a draw of the noise in the mean gradient.

    Reference: SIGNAL section 3.

    >>> draw_signs(4, 2, seed=0).sum(axis=1).tolist()
    [0.0, 0.0]
    """
    generator = np.random.default_rng([seed, groups])
    half = groups // 2
    signs = np.concatenate([np.ones(half), -np.ones(half), np.zeros(groups - 2 * half)])
    scale = math.sqrt(groups / max(2 * half, 1))  # an odd group out must not shrink the noise
    return np.array([generator.permutation(signs) for _ in range(draws)]).reshape(draws, groups) * scale


def null_quantile(sigma_1: ArrayLike) -> float | Missing:
    """Return the 95 % quantile of the largest singular values of null draws.

    By Weibull's plotting positions, so that a further draw lies above it with probability 5 %: of 20 draws that is
    nearly the largest.

    >>> null_quantile([1.0, 2.0, 3.0, 4.0])
    Missing(reason='4 null draws, a 95 % quantile needs at least 19')
    """
    values = as_vector(sigma_1, "sigma_1")
    if values.size < 19:
        return too_few(values.size, "null draw", "a 95 % quantile", 19)
    return float(np.quantile(values, 0.95, method="weibull"))


def count_signal(sigma: ArrayLike, quantile: float) -> int:
    """Count the leading directions whose singular value noise alone would not reach.

    >>> count_signal([5.0, 3.0, 1.0], quantile=2.0)
    2
    """
    above = as_vector(sigma, "sigma") > quantile
    return int(np.argmin(above)) if not above.all() else int(above.size)


def t_values(group_slopes: ArrayLike, sizes: Sequence[int]) -> Vector:
    """Return slopes over their standard errors, from the slopes of the sample groups.

    Args:
        group_slopes: shape (groups, k).
        sizes: samples per group.

    Returns:
        t, shape (k,); 0 where every group has the slope 0.

    >>> t_values([[1.0], [3.0], [1.0], [3.0]], (5, 5, 5, 5)).round(3).tolist()
    [3.464]
    """
    table = np.asarray(group_slopes, dtype=np.float64)
    mean, without = _means(table, np.asarray(sizes, dtype=np.float64))
    n = len(table)
    stderr = np.sqrt((n - 1) / n * np.sum((without - without.mean(axis=0)) ** 2, axis=0))
    return np.asarray(np.divide(mean, stderr, out=np.zeros_like(mean), where=stderr > 0))


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


def _means(table: Table, sizes: Vector) -> tuple[Vector, Table]:
    """Size-weighted mean over all groups (k,), and over all but one (groups, k)."""
    weights = (1.0 - np.eye(sizes.size)) * sizes
    weights /= weights.sum(axis=1, keepdims=True)
    return sizes @ table / sizes.sum(), weights @ table


def fit_held_out_beta(group_slopes: ArrayLike, group_h: ArrayLike, sizes: Sequence[int]) -> PowerFit | Missing:
    """Fit h ∝ s^beta on samples held out, over the directions whose slope has t of at least 2.

    A slope's logarithm is corrected for its noise, log s + 1/(2t²), and the fitted exponent for the attenuation that
    errors of the abscissa cause. The interval is the jackknife's of the whole chain: slopes, choice of directions, fit.

    Args:
        group_slopes: held-out slopes by sample group, shape (groups, k).
        group_h: held-out curvature by sample group, shape (groups, k).
        sizes: samples per group.

    Returns:
        The exponent, or why there is none: fewer than 4 directions with t of at least 2.

    Cost: one fit per group.

    Reference: SIGNAL section 2.
    """
    slopes, curvature = (np.asarray(a, dtype=np.float64) for a in (group_slopes, group_h))
    weights = np.asarray(sizes, dtype=np.float64)
    fit = _fit_once(slopes, curvature, weights)
    if isinstance(fit, Missing):
        return fit
    if len(slopes) <= MIN_GROUPS:
        return replace(fit, jackknife_ci95=too_few(len(slopes), "sample group", "this jackknife", MIN_GROUPS + 1))
    replicates = np.full(len(slopes), np.nan)
    for g in range(len(slopes)):
        keep = np.arange(len(slopes)) != g
        again = _fit_once(slopes[keep], curvature[keep], weights[keep])
        if not isinstance(again, Missing):
            replicates[g] = again.value
    stderr = jackknife_stderr(replicates)
    if isinstance(stderr, Missing):
        return replace(fit, jackknife_ci95=Missing("without one of the sample groups too few slopes have t of 2"))
    return replace(fit, jackknife_ci95=interval_about(fit.value, stderr, dof=len(slopes) - 1))


def _fit_once(slopes: Table, curvature: Table, sizes: Vector) -> PowerFit | Missing:
    t = t_values(slopes, sizes.astype(int).tolist())
    mean, h = sizes @ slopes / sizes.sum(), sizes @ curvature / sizes.sum()
    clear = t >= LEAST_T
    if int((clear & (h > 0)).sum()) < MIN_POINTS:
        return Missing(
            f"{int((clear & (h > 0)).sum())} of {t.size} held-out slopes have t of at least {LEAST_T:g} and positive "
            f"curvature, a fit needs at least {MIN_POINTS}"
        )
    noise = 1 / t[clear] ** 2
    x = np.log(mean[clear]) + noise / 2
    fit = fit_log_log(np.exp(x - x.mean()), h[clear])  # centred: slopes of 1e-30 are no trouble
    if isinstance(fit, Missing):
        return fit
    spread = float(np.mean((x - x.mean()) ** 2))
    reliability = spread / (spread + float(noise.mean()))
    value, stderr = fit.value / reliability, fit.stderr / reliability
    return replace(
        fit,
        value=value,
        intercept=fit.intercept - value * float(x.mean()),
        stderr=stderr,
        ci95=interval_about(value, stderr, dof=fit.n - 2),
        n_dropped=int(t.size) - fit.n,
    )


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
        slopes, without = _means(np.asarray(group_slopes, dtype=np.float64), weights)
        h, h_without = _means(np.asarray(group_h, dtype=np.float64), weights)
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
    if n_groups < MIN_GROUPS:
        return too_few(n_groups, "sample group", "the interval of a step exponent", MIN_GROUPS)
    found = replicate_steps(weights)
    if isinstance(found, Missing):
        return found
    total = np.sum([w.decrease for w in weights], axis=0)
    place, replicates, decreases = found
    value = float(round(_EXPONENTS[place], 2))
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
    return place, _EXPONENTS[free.argmax(axis=1)], without[:, place]


def _falls_beyond_error(weights: Sequence[StepReplicates], n_groups: int) -> bool:
    """Whether along some step the loss falls by more than the error of its slope."""
    threshold = float(special.stdtrit(n_groups - 1, 0.975))
    along = np.sum([_normalised(w.along, w) for w in weights], axis=0)
    without = np.sum([_normalised(w.along_without, w) for w in weights], axis=0)
    stderr = np.sqrt((n_groups - 1) / n_groups * np.sum((without - without.mean(axis=0)) ** 2, axis=0))
    return bool((along[_ALLOWED] > threshold * stderr[_ALLOWED]).any())


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


def read_signal(
    measurement: Measurement, held_out: HeldOut | Missing, null: NullDraws | Missing, analysis: Analysis
) -> tuple[HeldOut | Missing, NullDraws | Missing, Analysis]:
    """Fit everything of one weight that tells signal from noise, over the window of its analysis.

    Args:
        measurement: sigma and sample groups.
        held_out: held-out slopes and curvature; its fits are replaced.
        null: null draws; their fits are replaced.
        analysis: whose ``n_signal``, ``signal_share`` and ``samples_needed`` are filled in.

    Returns:
        The three, fitted; arrays stay as they were measured.
    """
    window = analysis.window
    first, last = window[0] - 1, window[1]
    if isinstance(null, Missing):
        n_signal: int | Missing = null
    else:
        null = read_null(null, analysis.beta, window)
        n_signal = count_signal(measurement.sigma[first:last], null.quantile)
    share: tuple[float, ...] | Missing
    needed: SamplesNeeded | Missing
    if isinstance(held_out, Missing):
        share, needed = held_out, held_out
    else:
        held_out = read_held_out(held_out, measurement.sigma, measurement.group_sizes, window)
        last = min(last, len(held_out.slopes))
        pairs = zip(held_out.slopes[first:last], measurement.sigma[first:last], strict=True)
        share = tuple(s / sigma for s, sigma in pairs)
        needed = samples_needed(held_out.t[first:last], sum(measurement.group_sizes))
    return held_out, null, replace(analysis, n_signal=n_signal, signal_share=share, samples_needed=needed)


def summarise_signal(layers: Sequence[LayerReport]) -> SignalSummary | Missing:
    """Say what of a whole report is signal: counts, one exponent for all weights together, and a verdict.

    "No signal" where no exponent is determined and the null's threshold is passed on no more weights than chance passes
    it; "undetermined" where no exponent is determined.

    Args:
        layers: measured weights.
    """
    held = [row for row in layers if isinstance(row.held_out, HeldOut)]
    if not held:
        return next((row.held_out for row in layers if isinstance(row.held_out, Missing)), Missing("no layer"))
    steps = [s for row in held if isinstance(s := _held(row).step_exponent, StepExponent) and s.determined]
    pooled = pool_step_exponents(held)
    signals = [row.analysis.n_signal for row in held if not isinstance(row.analysis.n_signal, Missing)]
    needed = [row.analysis.samples_needed for row in held if isinstance(row.analysis.samples_needed, SamplesNeeded)]
    nulls = [row.null.beta for row in layers if isinstance(row.null, NullDraws) and isinstance(row.null.beta, NullBeta)]
    inside = [row.null.contains_beta for row in layers if isinstance(row.null, NullDraws)]
    known = [flag for flag in inside if not isinstance(flag, Missing)]
    values = [step.value for step in steps]
    n_layers_signal = sum(n > 0 for n in signals)
    determined = isinstance(pooled, StepExponent) and pooled.determined
    chance = 0.05 * len(signals) + 2 * math.sqrt(0.05 * 0.95 * len(signals))
    verdict = SignalVerdict.SIGNAL if determined else SignalVerdict.UNDETERMINED
    if not determined and signals and n_layers_signal <= chance:
        verdict = SignalVerdict.NO_SIGNAL
    nothing = Missing("no weight determines an exponent of its own")
    return SignalSummary(
        verdict=verdict,
        n_layers=len(held),
        n_directions=sum(len(_share(row)) for row in held),
        n_signal=sum(signals),
        n_layers_signal=n_layers_signal,
        n_resolved=sum(n.n_resolved for n in needed),
        step_exponent=pooled,
        n_determined=len(steps),
        exponent_median=float(np.median(values)) if values else nothing,
        exponent_iqr=Interval(*map(float, np.quantile(values, [0.25, 0.75]))) if values else nothing,
        null_beta_median=float(np.median([n.value for n in nulls])) if nulls else Missing("no null beta was measured"),
        n_null=len(known),
        n_inside_null=sum(known),
        samples_for_4=_median_of([n.for_4 for n in needed]),
        samples_for_all=_median_of([n.for_all for n in needed]),
    )


def pool_step_exponents(layers: Sequence[LayerReport]) -> StepExponent | Missing:
    """Find the one exponent for all weights together, from their held-out slopes and curvature."""
    weights, groups = [], set()
    for row in layers:
        if isinstance(row.held_out, HeldOut) and _share(row):
            sizes = row.measurement.group_sizes
            weights.append(step_replicates(row.held_out, row.measurement.sigma, sizes, row.analysis.window))
            groups.add(len(sizes))
    if len(groups) > 1:
        return Missing("weights were measured with different numbers of sample groups")
    return find_step_exponent(weights, groups.pop()) if weights else Missing("no weight has held-out slopes")


def _held(row: LayerReport) -> HeldOut:
    assert isinstance(row.held_out, HeldOut)
    return row.held_out


def _share(row: LayerReport) -> tuple[float, ...]:
    return () if isinstance(row.analysis.signal_share, Missing) else row.analysis.signal_share


def _median_of(values: Sequence[float | Missing]) -> float | Missing:
    """Median where half or more of the values are there; those that are not count as larger than any."""
    numbers = sorted(value for value in values if not isinstance(value, Missing))
    if 2 * len(numbers) <= len(values):
        return next((v for v in values if isinstance(v, Missing)), Missing("no weight has held-out slopes"))
    place = len(values) // 2
    return numbers[place] if len(values) % 2 else (numbers[place - 1] + numbers[min(place, len(numbers) - 1)]) / 2


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
    first, last = window[0] - 1, min(window[1], len(held_out.slopes))
    chosen = slice(first, last)
    return StepReplicates(
        as_vector(sigma, "sigma")[chosen],
        _widened(held_out, sigma, sizes)[:, chosen],
        np.asarray(held_out.group_h)[:, chosen],
        np.asarray(held_out.curvature_matrix)[chosen, chosen],
        sizes,
    )


def _widened(held_out: HeldOut, sigma: ArrayLike, sizes: Sequence[int]) -> Table:
    if held_out.n_folds == 0:  # the directions came from elsewhere: no sample chose them
        return np.asarray(held_out.group_slopes, dtype=np.float64)
    return widen_groups(held_out.group_slopes, as_vector(sigma, "sigma")[: len(held_out.slopes)], sizes)


def read_held_out(measured: HeldOut, sigma: ArrayLike, sizes: Sequence[int], window: tuple[int, int]) -> HeldOut:
    """Fit held-out beta and step exponent over a window of ranks; the arrays stay as they were measured.

    Args:
        measured: slopes and curvature; whatever it says of exponents is replaced.
        sigma: singular values of the whole batch's gradient.
        sizes: samples per group.
        window: first and last rank, 1-based and inclusive.
    """
    first, last = window[0] - 1, min(window[1], len(measured.slopes))
    if last <= first:
        empty = Missing("the window holds no held-out direction")
        return replace(measured, beta=empty, step_exponent=empty)
    chosen = slice(first, last)
    beta = fit_held_out_beta(
        _widened(measured, sigma, sizes)[:, chosen], np.asarray(measured.group_h)[:, chosen], sizes
    )
    step = find_step_exponent([step_replicates(measured, sigma, sizes, window)], len(sizes))
    return replace(measured, beta=beta, step_exponent=step)


def read_null(measured: NullDraws, beta: PowerFit | Missing, window: tuple[int, int]) -> NullDraws:
    """Fit the null's beta over a window of ranks, and say whether the measured beta lies in its range.

    Args:
        measured: singular values and curvature of null draws; whatever it says of exponents is replaced.
        beta: the measured beta.
        window: first and last rank, 1-based and inclusive.
    """
    if not measured.sigma:
        missing = Missing("no curvature was measured along null draws: see --null-draws")
        return replace(measured, beta=missing, contains_beta=missing)
    chosen = slice(window[0] - 1, window[1])
    fits = [fit_beta(s[chosen], h[chosen]) for s, h in zip(measured.sigma, measured.h, strict=True)]
    values = [fit.value for fit in fits if isinstance(fit, PowerFit)]
    if not values:
        missing = next(fit for fit in fits if isinstance(fit, Missing))
        return replace(measured, beta=missing, contains_beta=missing)
    found = NullBeta(float(np.mean(values)), min(values), max(values), len(values))
    if isinstance(beta, Missing):
        return replace(measured, beta=found, contains_beta=Missing(f"no beta: {beta.reason}"))
    # A few draws hardly span the null, so the measured beta counts as inside up to its own error.
    reach = beta.stderr * 2
    inside = found.low - reach <= beta.value <= found.high + reach
    return replace(measured, beta=found, contains_beta=inside)


def samples_needed(t: ArrayLike, n: int) -> SamplesNeeded:
    """Foretell how many samples bring directions to three standard errors: n (3/t)².

    Args:
        t: slopes over their standard errors on ``n`` samples, shape (k,).
        n: samples now.

    Returns:
        How many are there already, and the samples for four and for all of them, as far as their slopes are positive.

    Reference: SIGNAL section 4.

    >>> samples_needed([6.0, 3.0, 1.5, 1.0, -0.5], 100)
    SamplesNeeded(n_resolved=2, for_4=900.0, for_all=Missing(reason='1 of 5 held-out slopes is not positive'))
    """
    values = as_vector(t, "t")
    positive = np.sort(values[values > 0])[::-1]
    needed = n * (RESOLVED_T / positive) ** 2
    n_not = int(values.size - positive.size)
    why = Missing(f"{n_not} of {values.size} held-out slopes {'is' if n_not == 1 else 'are'} not positive")
    return SamplesNeeded(
        n_resolved=int((values >= RESOLVED_T).sum()),
        for_4=float(max(needed[3], n)) if needed.size >= 4 else why,
        for_all=why if n_not or not values.size else float(max(needed[-1], n)),
    )
