"""From what was measured on one layer to what it says: every fit and count over one window of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spectrascope.errors import OptionError
from spectrascope.numerics.fits import fit_alpha_g, fit_alpha_h, fit_beta
from spectrascope.numerics.participation import effective_rank, participation_ratio, zeta_bound
from spectrascope.numerics.rank_models import compare_rank_models
from spectrascope.numerics.sample_groups import SampleGroups
from spectrascope.numerics.vectors import too_few
from spectrascope.records.report import Analysis, Measurement
from spectrascope.records.values import BetaQuartile, Missing, PowerFit, Triangle, ZetaBound

__all__ = ["MIN_QUARTILE_WINDOW", "WELL_CONDITIONED_UP_TO", "analyse", "compare_triangle", "find_window"]

WELL_CONDITIONED_UP_TO = 0.1
"""Largest relative triangle error of a layer called well conditioned."""

MIN_QUARTILE_WINDOW = 40
"""Fewest directions for beta by quarter of the window: ten points in each."""

_QUARTER_NAMES = ("top", "mid_high", "mid_low", "bottom")


def find_window(measurement: Measurement, *, top_k: int, min_rank: int = 1) -> tuple[int, int]:
    """Return the ranks (k1, k2), 1-based and inclusive, that may enter a fit.

    k1 is ``min_rank``; k2 the least of ``top_k``, the numerical rank and the number of directions measured.
    Directions past the numerical rank are rounding noise. An empty window is ``(min_rank, min_rank - 1)``, so
    k2 - k1 + 1 is always the number of directions.

    Raises:
        OptionError: ``top_k`` or ``min_rank`` below 1.

    Reference: MEASUREMENT section 1.
    """
    for name, value in (("top_k", top_k), ("min_rank", min_rank)):
        if value < 1:
            raise OptionError(f"{name} must be at least 1, got {value}")
    last = min(top_k, measurement.rank, len(measurement.sigma))
    return min_rank, max(last, min_rank - 1)


def analyse(measurement: Measurement, *, top_k: int, min_rank: int = 1) -> Analysis:
    """Fit everything that follows from a measurement over the window ``min_rank … min(top_k, rank)``.

    Each exponent carries both intervals (OLS, jackknife over sample groups). ``n_negative`` counts the
    window's directions with h ≤ 0, that is, all that log fits leave out. ``n_above_noise`` counts its sigma
    above the noise floor. The off-diagonal mass ‖M - diag M‖_F / ‖M‖_F and the eigenvalues (decreasing, of
    the symmetrised block) are those of M over the window; eigenvalues are empty if M is not finite. What
    cannot be computed is Missing with a reason; on an empty window (numerical rank below ``min_rank``) that
    is everything but the counts, which are 0.

    Args:
        measurement: sigma, h, M and sample groups of one weight.
        top_k: largest rank in the window.
        min_rank: smallest rank in the window, 1-based.

    Returns:
        The analysis; every float in it is finite.

    Raises:
        OptionError: ``top_k`` or ``min_rank`` below 1.

    Cost: a few milliseconds: O(groups · K log K) for the fits, O(K³) for the eigenvalues.

    Reference: MEASUREMENT sections 1 to 4.
    """
    first, last = find_window(measurement, top_k=top_k, min_rank=min_rank)
    window = slice(first - 1, last)
    if not measurement.h and measurement.sigma:
        return _without_curvature(measurement, first, last)
    sigma, h = measurement.sigma[window], measurement.h[window]
    groups = SampleGroups(measurement.group_sizes, measurement.group_sigma, measurement.group_h).restrict(first, last)
    block = np.array([row[window] for row in measurement.curvature_matrix[window]], dtype=np.float64)

    beta = fit_beta(sigma, h, groups=groups)
    alpha_g = fit_alpha_g(sigma, first, groups=groups)
    alpha_h = fit_alpha_h(h, first, groups=groups)
    pr_h = participation_ratio(h)
    return Analysis(
        window=(first, last),
        beta=beta,
        alpha_g=alpha_g,
        alpha_h=alpha_h,
        triangle=compare_triangle(beta, alpha_g, alpha_h),
        rank_models=compare_rank_models(sigma, first),
        pr_h=pr_h,
        effective_rank_h=effective_rank(h),
        zeta_bound=_bound_participation(beta, alpha_g, pr_h, sum(value > 0 for value in h), first),
        n_negative=sum(value <= 0 for value in h),
        n_above_noise=_count_above(measurement.noise_floor, sigma),
        off_diagonal_mass=_off_diagonal_mass(block),
        curvature_eigenvalues=_eigenvalues(block),
        beta_quartiles=_fit_quartiles(sigma, h, groups, first),
    )


def _without_curvature(measurement: Measurement, first: int, last: int) -> Analysis:
    """What the singular values alone say, where curvature was measured along held-out directions only."""
    why = Missing("curvature was measured along held-out directions only: see --estimate")
    sigma = measurement.sigma[first - 1 : last]
    rows = tuple(row[first - 1 : last] for row in measurement.group_sigma)
    alpha_g = fit_alpha_g(sigma, first, groups=SampleGroups(measurement.group_sizes, rows, rows))
    return Analysis(
        window=(first, last),
        beta=why,
        alpha_g=alpha_g,
        alpha_h=why,
        triangle=why,
        rank_models=compare_rank_models(sigma, first),
        pr_h=why,
        effective_rank_h=why,
        zeta_bound=why,
        n_negative=0,
        n_above_noise=_count_above(measurement.noise_floor, sigma),
        off_diagonal_mass=why,
        curvature_eigenvalues=(),
        beta_quartiles=why,
    )


def _count_above(noise_floor: float | Missing, sigma: Sequence[float]) -> int | Missing:
    return noise_floor if isinstance(noise_floor, Missing) else sum(value > noise_floor for value in sigma)


def compare_triangle(
    beta: PowerFit | Missing, alpha_g: PowerFit | Missing, alpha_h: PowerFit | Missing
) -> Triangle | Missing:
    """Compare the measured alpha_h with beta · alpha_g.

    Returns:
        The prediction and its error relative to |alpha_h|; Missing if an exponent is missing (the reason says
        which) or alpha_h is 0.

    Reference: MEASUREMENT section 2.
    """
    if isinstance(beta, Missing):
        return Missing(f"no beta: {beta.reason}")
    if isinstance(alpha_g, Missing):
        return Missing(f"no alpha_g: {alpha_g.reason}")
    if isinstance(alpha_h, Missing):
        return Missing(f"no alpha_h: {alpha_h.reason}")
    predicted = beta.value * alpha_g.value
    if alpha_h.value == 0:
        return Missing("alpha_h is 0, a relative error is not defined")
    error = abs(alpha_h.value - predicted) / abs(alpha_h.value)
    if not math.isfinite(error):
        return Missing(f"alpha_h = {alpha_h.value:.3g} is too small for a relative error")
    return Triangle(predicted, error, well_conditioned=error <= WELL_CONDITIONED_UP_TO)


def _bound_participation(
    beta: PowerFit | Missing, alpha_g: PowerFit | Missing, pr_h: float | Missing, n_positive: int, first: int
) -> ZetaBound | Missing:
    if isinstance(beta, Missing):
        return Missing(f"no beta: {beta.reason}")
    if isinstance(alpha_g, Missing):
        return Missing(f"no alpha_g: {alpha_g.reason}")
    if isinstance(pr_h, Missing):
        return Missing(f"no PR_h: {pr_h.reason}")
    return zeta_bound(beta.value * alpha_g.value, pr_h, n_positive, first_rank=first)


def _off_diagonal_mass(block: NDArray[np.float64]) -> float | Missing:
    if block.size == 0:
        return Missing("the window holds no direction")
    if not np.isfinite(block).all():
        return Missing("the curvature matrix has NaN or infinite entries")
    largest = float(np.abs(block).max())
    if largest == 0:
        return Missing("the curvature matrix is zero")
    scaled = block / largest  # so that squares neither overflow nor vanish
    off_diagonal = scaled - np.diag(np.diag(scaled))
    return float(np.linalg.norm(off_diagonal) / np.linalg.norm(scaled))


def _eigenvalues(block: NDArray[np.float64]) -> tuple[float, ...]:
    if block.size == 0 or not np.isfinite(block).all():
        return ()
    return tuple(float(value) for value in np.linalg.eigvalsh((block + block.T) / 2)[::-1])


def _fit_quartiles(
    sigma: tuple[float, ...], h: tuple[float, ...], groups: SampleGroups, first: int
) -> tuple[BetaQuartile, ...] | Missing:
    if len(sigma) < MIN_QUARTILE_WINDOW:
        return too_few(len(sigma), "direction", "beta by quarter", MIN_QUARTILE_WINDOW)
    quartiles = []
    # array_split: where four does not divide the window, the top quarters are one direction longer.
    for name, members in zip(_QUARTER_NAMES, np.array_split(np.arange(len(sigma)), 4), strict=True):
        start, stop = int(members[0]), int(members[-1]) + 1
        fit = fit_beta(sigma[start:stop], h[start:stop], groups=groups.restrict(start + 1, stop))
        quartiles.append(BetaQuartile(name, (first + start, first + stop - 1), fit))
    return tuple(quartiles)
