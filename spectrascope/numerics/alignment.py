"""Spectral alignment: beta as a sum of slopes: of factor eigenvalues, of alignment, of what the factors leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectrascope.errors import SelfCheckError
from spectrascope.numerics.fits import fit_log_log, log_slopes
from spectrascope.numerics.mechanisms import read_mechanisms, suits_kronecker
from spectrascope.numerics.rank_models import compare_rank_models
from spectrascope.numerics.sample_groups import SampleGroups, jackknife
from spectrascope.numerics.vectors import Table, Vector, too_few
from spectrascope.records.decomposition import Alignment, FactorReading, Factors
from spectrascope.records.report import Measurement
from spectrascope.records.values import Missing, PowerFit, RankComparison, RankModel

__all__ = ["IDENTITY_TOLERANCE", "align", "correlate_logs", "read_factors"]

IDENTITY_TOLERANCE = 1e-8
"""Largest |beta − (beta_lambda + beta_phi + beta_chi)|; rounding alone leaves about 1e-15."""

_NOTHING = Missing("the window holds no direction")


def align(measurement: Measurement, factors: Factors, window: tuple[int, int]) -> Alignment:
    """Decompose beta over a window of ranks.

    Args:
        measurement: sigma, h and sample groups of one weight.
        factors: its Kronecker factors along the same directions.
        window: first and last rank, 1-based, both included.

    Returns:
        rho, chi and the slopes, each with its least-squares interval; those of chi and beta with a jackknife interval
        over sample groups too (lambda has none by group). A direction whose h, eigenvalue or Rayleigh quotient is not
        positive enters no slope.

    Raises:
        SelfCheckError: the slopes do not add up to beta within 1e-8.

    Reference: MEASUREMENT section 6.
    """
    first, last = window
    chosen = slice(first - 1, last)
    sigma, h = _vector(measurement.sigma[chosen]), _vector(measurement.h[chosen])
    lambda_delta, lambda_a = _vector(factors.delta.eigenvalues[chosen]), _vector(factors.a.eigenvalues[chosen])
    ray_delta, ray_a = _vector(factors.rayleigh_delta[chosen]), _vector(factors.rayleigh_a[chosen])
    rho_delta, rho_a = _divide(ray_delta, lambda_delta), _divide(ray_a, lambda_a)
    chi = _divide(h, ray_delta * ray_a)
    usable = (h > 0) & (lambda_delta > 0) & (lambda_a > 0) & (ray_delta > 0) & (ray_a > 0)

    def slope(*ordinates: Vector) -> PowerFit | Missing:
        product = np.exp(sum(np.log(y[usable]) for y in ordinates))
        return fit_log_log(sigma[usable], product, n_dropped=int((~usable).sum()))

    beta, beta_chi = _with_jackknife(measurement, factors, chosen, usable, slope(h), slope(chi))
    beta_lambda, beta_phi = slope(lambda_delta, lambda_a), slope(rho_delta, rho_a)
    residual = _identity_residual(beta, beta_lambda, beta_phi, beta_chi)
    h_kron = ray_delta * ray_a
    h_gn = None if isinstance(factors.h_gn, Missing) else _vector(factors.h_gn[chosen])
    gn_missing = factors.h_gn if isinstance(factors.h_gn, Missing) else _NOTHING
    alignment = Alignment(
        window=window,
        rho_delta=tuple(rho_delta.tolist()),
        rho_a=tuple(rho_a.tolist()),
        chi=tuple(chi.tolist()),
        beta=beta,
        beta_lambda=beta_lambda,
        beta_lambda_delta=slope(lambda_delta),
        beta_lambda_a=slope(lambda_a),
        beta_phi=beta_phi,
        beta_rho_delta=slope(rho_delta),
        beta_rho_a=slope(rho_a),
        beta_chi=beta_chi,
        identity_residual=residual,
        chi_median=float(np.median(chi)) if chi.size else _NOTHING,
        r2_h_sigma2=_square(correlate_logs(h, sigma**2)),
        r2_h_gn_sigma2=gn_missing if h_gn is None else _square(correlate_logs(h_gn, sigma**2)),
        r2_h_h_gn=gn_missing if h_gn is None else _square(correlate_logs(h, h_gn)),
        r_h_kron_sigma2=correlate_logs(h_kron, sigma**2),
        concentration_ratio=_median(factors.concentration.ratio[chosen]),
        reading=read_factors(
            factors.delta.eigenvalues[chosen], factors.a.eigenvalues[chosen], sigma, factors, first_rank=first
        ),
        profile_distance=_NOTHING,
        profile_scale=_NOTHING,
        mechanisms=(),
        kronecker=suits_kronecker(beta_chi, chi, _median(factors.concentration.ratio[chosen])),
        beta_lambda_cv=_cross_validated(sigma, factors, chosen, usable),
    )
    distance, scale = _profile(factors, sigma, chosen)
    alignment = replace(alignment, profile_distance=distance, profile_scale=scale)
    return replace(alignment, mechanisms=read_mechanisms(alignment, positions=factors.positions))


def _cross_validated(sigma: Vector, factors: Factors, chosen: slice, usable: NDArray[np.bool_]) -> PowerFit | Missing:
    """Slope of the product of cross-validated eigenvalues, over the points of all other slopes."""
    found = (factors.delta.cross_validated, factors.a.cross_validated)
    for values in found:
        if isinstance(values, Missing):
            return values
    delta, a = (_vector(values[chosen]) for values in found if not isinstance(values, Missing))
    return fit_log_log(sigma[usable], (delta * a)[usable], n_dropped=int((~usable).sum()))


def _vector(values: Sequence[float]) -> Vector:
    return np.asarray(values, dtype=np.float64)


def _divide(a: Vector, b: Vector) -> Vector:
    """A / b where b is positive, 0 where it is not (an eigenvalue past the factor's rank)."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _median(values: Sequence[float]) -> float | Missing:
    return float(np.median(values)) if len(values) else _NOTHING


def _square(value: float | Missing) -> float | Missing:
    return value if isinstance(value, Missing) else value**2


def _identity_residual(beta: PowerFit | Missing, *parts: PowerFit | Missing) -> float | Missing:
    if isinstance(beta, Missing):
        return beta
    values = [part.value for part in parts if isinstance(part, PowerFit)]
    if len(values) < len(parts):
        return next(part for part in parts if isinstance(part, Missing))
    residual = abs(beta.value - sum(values))
    if not residual <= IDENTITY_TOLERANCE * max(1.0, abs(beta.value)):
        raise SelfCheckError(
            f"self-check failed: beta {beta.value:.9g} is not the sum of its parts {sum(values):.9g}: report this "
            "network"
        )
    return residual


def _with_jackknife(
    measurement: Measurement,
    factors: Factors,
    chosen: slice,
    usable: NDArray[np.bool_],
    beta: PowerFit | Missing,
    beta_chi: PowerFit | Missing,
) -> tuple[PowerFit | Missing, PowerFit | Missing]:
    """Add the intervals over sample groups; directions and points are those of the whole batch."""
    if isinstance(beta, Missing) or isinstance(beta_chi, Missing):
        return beta, beta_chi
    sizes = measurement.group_sizes
    sigma, h = (np.asarray(rows)[:, chosen][:, usable] for rows in (measurement.group_sigma, measurement.group_h))
    one = SampleGroups(sizes, _rows(sigma), _rows(h))
    beta = replace(beta, jackknife_ci95=jackknife(beta.value, one, fit_log_log, log_slopes))
    if len(factors.group_rayleigh_delta) != len(sizes):
        return beta, replace(beta_chi, jackknife_ci95=Missing("the factors have no sample groups"))
    delta, a = (
        np.asarray(rows)[:, chosen][:, usable] for rows in (factors.group_rayleigh_delta, factors.group_rayleigh_a)
    )
    # One vector per group carries all three: their means over groups are what a replicate needs.
    joint = SampleGroups(sizes, _rows(np.tile(sigma, 3)), _rows(np.concatenate([h, delta, a], 1)))

    def refit(sigma: Vector, stacked: Vector) -> PowerFit | Missing:
        h, delta, a = np.split(stacked, 3)
        return fit_log_log(sigma[: h.size], h / (delta * a))

    def refits(sigma: Table, stacked: Table) -> Vector:
        h, delta, a = np.split(stacked, 3, axis=1)
        return log_slopes(sigma[:, : h.shape[1]], h / (delta * a))

    return beta, replace(beta_chi, jackknife_ci95=jackknife(beta_chi.value, joint, refit, refits))


def _rows(table: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())


def correlate_logs(x: ArrayLike, y: ArrayLike) -> float | Missing:
    """Pearson correlation of the logarithms of two vectors, over the points where both are positive.

    Returns:
        A number in [−1, 1], or why there is none: fewer than 4 points, or no spread.

    >>> round(correlate_logs([1, 2, 4, 8], [5, 20, 80, 320]), 12)
    1.0
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    usable = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
    if usable.sum() < 4:
        return too_few(int(usable.sum()), "usable point", "a correlation", 4)
    a, b = np.log(x[usable]), np.log(y[usable])
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    if size <= 1e-14 * a.size:
        return Missing("all values are equal, a correlation is not defined")
    return float(np.clip(a @ b / size, -1.0, 1.0))


def read_factors(
    lambda_delta: ArrayLike,
    lambda_a: ArrayLike,
    sigma: ArrayLike,
    factors: Factors | None = None,
    *,
    first_rank: int = 1,
) -> FactorReading:
    """Compare the rank models of the factors' leading eigenvalues with that of the gradient.

    Args:
        lambda_delta: leading eigenvalues of C_delta, decreasing.
        lambda_a: leading eigenvalues of C_A, decreasing.
        sigma: singular values of the gradient over the same ranks.
        factors: where the effective ranks come from; without it they are missing.
        first_rank: the rank of the first of each, 1-based.

    Returns:
        Rank models by BIC, whether a factor's winner is the gradient's, and which factor that is. Where both are, the
        driver is the one whose BIC prefers it by more.

    Reference: MEASUREMENT section 6.

    >>> fast, slow = [0.5**k for k in range(12)], [1 / (k + 1) for k in range(12)]
    >>> reading = read_factors(fast, slow, [0.7**k for k in range(12)])
    >>> reading.matches, reading.driver
    (True, 'delta')
    """
    gradient = compare_rank_models(sigma, first_rank)
    models = {
        "delta": compare_rank_models(lambda_delta, first_rank), "a": compare_rank_models(lambda_a, first_rank)
    }  # fmt: skip
    ranks = () if factors is None else (factors.delta.effective_rank, factors.a.effective_rank)
    numbers = [rank for rank in ranks if not isinstance(rank, Missing)]
    least = min(numbers) if len(numbers) == 2 else Missing("the effective rank of a factor is not known")
    winner: RankModel | Missing = gradient if isinstance(gradient, Missing) else gradient.best
    matches: bool | Missing
    driver: str | Missing
    if isinstance(winner, Missing):
        matches = driver = winner
    else:
        margins = {
            name: model.delta_bic
            for name, model in models.items()
            if isinstance(model, RankComparison) and model.best is winner
        }
        matches = bool(margins)
        driver = max(margins, key=lambda name: margins[name]) if margins else Missing("neither factor has its model")
    return FactorReading(models["delta"], models["a"], winner, matches, driver, least)


def _profile(factors: Factors, sigma: Vector, chosen: slice) -> tuple[float | Missing, float | Missing]:
    """RMS difference of log singular values, predicted and measured, once their means agree; and that factor."""
    if isinstance(factors.profile, Missing):
        return factors.profile, factors.profile
    predicted = _vector(factors.profile.sigma[chosen])
    n = min(predicted.size, sigma.size)
    usable = (predicted[:n] > 0) & (sigma[:n] > 0)
    if usable.sum() < 4:
        missing = too_few(int(usable.sum()), "predicted singular value", "a comparison", 4)
        return missing, missing
    gap = np.log(sigma[:n][usable]) - np.log(predicted[:n][usable])
    return float(gap.std()), float(np.exp(gap.mean()))
