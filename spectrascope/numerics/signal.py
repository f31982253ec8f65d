"""What of a measurement is signal: held-out slopes and exponents, null draws, samples needed.

A batch's gradient is the true one plus sampling noise, and near a minimum the noise's covariance is the curvature: so
singular values of noise alone follow h ∝ sigma² with R² near 0.95, whatever the network. Slopes on samples that did not
choose the directions are free of that: their mean is the true slope. NumPy only; reference: SIGNAL.

Thresholds of "signal" are empirical quantiles of the null, not spiked-matrix formulas, which hold for white noise only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectrascope.numerics.fits import MIN_POINTS, fit_beta, fit_log_log
from spectrascope.numerics.sample_groups import MIN_GROUPS, group_means, jackknife_stderr, jackknife_stderrs
from spectrascope.numerics.steps import (
    find_step_exponent,
    pool_step_exponents,
    share_of,
    step_replicates,
    widened_slopes,
)
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
    "count_signal",
    "draw_signs",
    "fit_held_out_beta",
    "null_quantile",
    "read_held_out",
    "read_null",
    "read_signal",
    "samples_needed",
    "split_folds",
    "summarise_signal",
    "t_values",
]

LEAST_T = 2.0
"""Least t of a slope that enters the held-out fit."""

RESOLVED_T = 3.0
"""Standard errors that a slope must have to count as resolved."""


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
    mean, without = group_means(table, np.asarray(sizes, dtype=np.float64))
    stderr = jackknife_stderrs(without)
    return np.asarray(np.divide(mean, stderr, out=np.zeros_like(mean), where=stderr > 0))


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
    if isinstance(null, Missing):
        n_signal: int | Missing = null
    else:
        null = read_null(null, analysis.beta, window)
        n_signal = count_signal(measurement.sigma[window[0] - 1 : window[1]], null.quantile)
    share: tuple[float, ...] | Missing
    needed: SamplesNeeded | Missing
    if isinstance(held_out, Missing):
        share, needed = held_out, held_out
    else:
        held_out = read_held_out(held_out, measurement.sigma, measurement.group_sizes, window)
        chosen = held_out.within(window)
        pairs = zip(held_out.slopes[chosen], measurement.sigma[chosen], strict=True)
        share = tuple(s / sigma for s, sigma in pairs)
        needed = samples_needed(held_out.t[chosen], sum(measurement.group_sizes))
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
        n_directions=sum(len(share_of(row)) for row in held),
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


def _held(row: LayerReport) -> HeldOut:
    assert isinstance(row.held_out, HeldOut)
    return row.held_out


def _median_of(values: Sequence[float | Missing]) -> float | Missing:
    """Median where half or more of the values are there; those that are not count as larger than any."""
    numbers = sorted(value for value in values if not isinstance(value, Missing))
    if 2 * len(numbers) <= len(values):
        return next((v for v in values if isinstance(v, Missing)), Missing("no weight has held-out slopes"))
    place = len(values) // 2
    return numbers[place] if len(values) % 2 else (numbers[place - 1] + numbers[min(place, len(numbers) - 1)]) / 2


def read_held_out(measured: HeldOut, sigma: ArrayLike, sizes: Sequence[int], window: tuple[int, int]) -> HeldOut:
    """Fit held-out beta and step exponent over a window of ranks; the arrays stay as they were measured.

    Args:
        measured: slopes and curvature; whatever it says of exponents is replaced.
        sigma: singular values of the whole batch's gradient.
        sizes: samples per group.
        window: first and last rank, 1-based and inclusive.
    """
    chosen = measured.within(window)
    if chosen.start == chosen.stop:
        empty = Missing("the window holds no held-out direction")
        return replace(measured, beta=empty, step_exponent=empty)
    beta = fit_held_out_beta(
        widened_slopes(measured, sigma, sizes)[:, chosen], np.asarray(measured.group_h)[:, chosen], sizes
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
