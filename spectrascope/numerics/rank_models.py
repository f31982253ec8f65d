"""Which law the singular values follow in their rank: power law, exponential or log-normal, by BIC."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectrascope.numerics.fits import MIN_POINTS, compute_r2
from spectrascope.numerics.vectors import Vector, as_vector, find_nonfinite, too_few
from spectrascope.records.signal import RankResamples
from spectrascope.records.values import Missing, RankComparison, RankModel, RankModelFit

__all__ = ["RESAMPLES", "TIE_BELOW", "compare_rank_models", "count_rank_wins", "draw_group_counts"]

TIE_BELOW = 2.0
"""A difference in BIC below this is a tie ("not worth more than a bare mention", Kass and Raftery 1995)."""

RESAMPLES = 20
"""Resamples of the sample groups on which the rank models compete."""

_EPS = float(np.finfo(np.float64).eps)


def compare_rank_models(sigma: ArrayLike, first_rank: int = 1) -> RankComparison | Missing:
    """Fit three models to y_k = log sigma_k and compare them by BIC; the lowest wins.

    Power law y = a - gamma log k, exponential y = a - kappa k, log-normal y = a + b log k + c (log k)²;
    BIC = n ln(RSS/n) + p ln n and AIC = n ln(RSS/n) + 2p with p = 2, 2, 3.

    A residual sum of squares below what rounding alone leaves, n·(eps·max(1, max|y|))², is raised to that
    floor (in ``rss`` too): an exact fit then has a large but finite BIC, and two models that both fit
    exactly are told apart by their number of parameters instead of by rounding noise. Equal criteria go to
    the model named first above.

    Args:
        sigma: singular values in decreasing order, shape (n,); non-positive ones are left out, ranks kept.
        first_rank: the rank k of ``sigma[0]``, 1-based.

    Returns:
        All three fits (power law, exponential, log-normal) and the winner; or why there is no comparison:
        NaN or infinity, or fewer than 4 usable points.

    Raises:
        ValueError: ``sigma`` is not a vector, or ``first_rank`` below 1.

    Cost: three least-squares problems of n × 3 at most.

    Reference: MEASUREMENT section 3.

    >>> compare_rank_models([0.5**k for k in range(10)]).best.value
    'exponential'
    >>> compare_rank_models([3.0, 2.0, 1.0])
    Missing(reason='3 usable points of 3, comparing rank models needs at least 4')
    """
    sigma = as_vector(sigma, "sigma")
    if first_rank < 1:
        raise ValueError(f"ranks start at 1, got first_rank = {first_rank}")
    if nonfinite := find_nonfinite(sigma):
        return nonfinite
    usable = sigma > 0
    n = int(usable.sum())
    if n < MIN_POINTS:
        return too_few(n, "usable point", "comparing rank models", MIN_POINTS, of=sigma.size)
    k = np.arange(first_rank, first_rank + sigma.size, dtype=np.float64)[usable]
    y = np.log(sigma[usable])
    fits = (
        _fit_model(RankModel.POWER_LAW, np.log(k), y),
        _fit_model(RankModel.EXPONENTIAL, k, y),
        _fit_model(RankModel.LOGNORMAL, np.log(k), y),
    )
    best, runner_up, _ = sorted(fits, key=lambda fit: fit.bic)
    delta_bic = runner_up.bic - best.bic
    return RankComparison(
        best=best.model,
        runner_up=runner_up.model,
        delta_bic=delta_bic,
        tie=delta_bic < TIE_BELOW,
        best_aic=min(fits, key=lambda fit: fit.aic).model,
        n=n,
        fits=fits,
    )


def draw_group_counts(groups: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Draw sample groups with replacement: how often each is in each resample, shape (draws, groups).

    >>> draw_group_counts(4, 2, seed=0).sum(axis=1).tolist()
    [4, 4]
    """
    generator = np.random.default_rng([seed, groups, 1])  # other numbers than the signs of null draws
    return generator.multinomial(groups, np.full(groups, 1 / groups), size=draws)


def count_rank_wins(found: RankResamples | Missing, window: tuple[int, int]) -> RankResamples | Missing:
    """Count on how many resamples of the sample groups each rank model has the lowest BIC.

    Args:
        found: singular values of the resampled gradients.
        window: first and last rank, 1-based, both included.

    Returns:
        The same resamples with ``wins`` over this window; a resample with too few singular values counts for none.

    Reference: SIGNAL section 6.

    >>> steep = tuple(0.5**k for k in range(8))
    >>> count_rank_wins(RankResamples((steep, steep), {}), (1, 8)).wins
    {'power_law': 0, 'exponential': 2, 'lognormal': 0}
    """
    if isinstance(found, Missing):
        return found
    first, last = window
    models = [compare_rank_models(row[first - 1 : last], first) for row in found.sigma]
    best = [model.best for model in models if isinstance(model, RankComparison)]
    return replace(found, wins={model.value: best.count(model) for model in RankModel})


def _fit_model(model: RankModel, x: Vector, y: Vector) -> RankModelFit:
    degree = 2 if model is RankModel.LOGNORMAL else 1
    # Polynomial.fit works on x mapped to [-1, 1], so windows far from k = 1 stay well conditioned. Centring y
    # and one step of refinement bring an exact fit's residual below the rounding floor; without them exact
    # fits were told apart by rounding noise in a fifth of trials.
    centred = y - y.mean()
    first = np.polynomial.Polynomial.fit(x, centred, degree)
    correction = np.polynomial.Polynomial.fit(x, centred - first(x), degree)
    residual = centred - first(x) - correction(x)
    n, p = y.size, degree + 1
    rounding = n * (_EPS * max(1.0, float(np.abs(y).max()))) ** 2
    rss = max(float(residual @ residual), rounding)
    coefficients = (first + correction).convert().coef
    params = np.zeros(p)  # convert() trims trailing zeros
    params[: coefficients.size] = coefficients
    params[0] += y.mean()
    if degree == 1:
        params[1] = -params[1]  # gamma and kappa are rates of decay
    goodness = n * float(np.log(rss / n))
    return RankModelFit(
        model=model,
        params=tuple(float(value) for value in params),
        rss=rss,
        bic=goodness + p * float(np.log(n)),
        aic=goodness + 2.0 * p,
        r2=compute_r2(rss, y),
    )
