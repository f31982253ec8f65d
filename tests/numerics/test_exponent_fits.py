import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spectrascope.numerics import fits
from spectrascope.numerics.fits import fit_alpha_g, fit_alpha_h, fit_beta, fit_log_log
from spectrascope.records.values import Interval, Missing, PowerFit
from tests.support.numerics_cases import power_law, walk_floats

positive = st.floats(1e-6, 1e6)
exponents = st.floats(-4.0, 4.0)


def make_noisy_pair(seed: int, n: int, slope: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0.01, 1.0, n))[::-1]
    return x, x**slope * np.exp(0.3 * rng.normal(size=n))


def test_golden_fit_by_hand() -> None:
    # log x = 0, 1, 2, 3 and log y = 0, 1, 1, 2: Sxx = 5, Sxy = 3, RSS = 0.2, TSS = 2.
    fit = fit_log_log(np.exp([0.0, 1.0, 2.0, 3.0]), np.exp([0.0, 1.0, 1.0, 2.0]))
    assert isinstance(fit, PowerFit)
    assert fit.value == pytest.approx(0.6, abs=1e-14)
    assert fit.intercept == pytest.approx(0.1, abs=1e-14)
    assert fit.r2 == pytest.approx(0.9, abs=1e-14)
    assert fit.stderr == pytest.approx(math.sqrt(0.02), abs=1e-14)
    half_width = 4.302652729749464 * math.sqrt(0.02)  # Student t, 2 degrees of freedom, 97.5 %
    assert (fit.ci95.low, fit.ci95.high) == pytest.approx((0.6 - half_width, 0.6 + half_width), abs=1e-12)
    assert (fit.n, fit.n_dropped) == (4, 0)
    assert fit.jackknife_ci95 == Missing("no sample groups were given")


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scipy_linregress(seed: int) -> None:
    x, y = make_noisy_pair(seed, 17, 1.4)
    oracle = stats.linregress(np.log(x), np.log(y))
    fit = fit_log_log(x, y)
    assert isinstance(fit, PowerFit)
    assert (fit.value, fit.intercept, fit.stderr, fit.r2) == pytest.approx(
        (oracle.slope, oracle.intercept, oracle.stderr, oracle.rvalue**2), rel=1e-11
    )


def test_minus_sign_flips_value_and_interval_but_not_intercept() -> None:
    x, y = make_noisy_pair(0, 12, -0.7)
    rising, falling = fit_log_log(x, y), fit_log_log(x, y, sign=-1)
    assert isinstance(rising, PowerFit)
    assert isinstance(falling, PowerFit)
    assert falling.value == -rising.value
    assert falling.value == pytest.approx(0.7, abs=0.5)
    assert falling.ci95 == Interval(-rising.ci95.high, -rising.ci95.low)
    assert falling.intercept == rising.intercept


@given(
    beta=exponents,
    alpha_g=st.floats(0.1, 4.0),
    n=st.integers(4, 100),
    first=st.integers(1, 5),
    scale=positive,
)
def test_exact_power_laws_are_recovered(beta: float, alpha_g: float, n: int, first: int, scale: float) -> None:
    sigma = power_law(alpha_g, n, first, scale)
    h = 3.0 * sigma**beta
    fit_b, fit_g, fit_h = fit_beta(sigma, h), fit_alpha_g(sigma, first), fit_alpha_h(h, first)
    assert isinstance(fit_b, PowerFit)
    assert isinstance(fit_g, PowerFit)
    assert isinstance(fit_h, PowerFit)
    # The logarithms themselves carry eps·|log| of rounding, the window of ranks 5 … 8 magnifies it fivefold.
    assert fit_b.value == pytest.approx(beta, abs=1e-12)
    assert fit_g.value == pytest.approx(alpha_g, abs=1e-12)
    if beta >= 0:  # a rising h is sorted, so alpha_h is no longer beta · alpha_g
        assert fit_h.value == pytest.approx(beta * alpha_g, abs=1e-12)
    assert fit_g.r2 == pytest.approx(1.0, abs=1e-12)
    assert fit_g.stderr < 1e-12


@pytest.mark.parametrize("n", [5, 20])
def test_ols_interval_covers_a_planted_exponent_as_often_as_it_says(n: int) -> None:
    planted, seeds, covered = 1.4, 500, 0
    for seed in range(seeds):
        fit = fit_log_log(*make_noisy_pair(seed, n, planted))
        assert isinstance(fit, PowerFit)
        covered += fit.ci95.low <= planted <= fit.ci95.high
    assert 0.92 <= covered / seeds <= 0.98  # 95 % with a binomial standard deviation of 1 %


def test_alpha_h_ranks_curvature_not_sigma() -> None:
    h = power_law(2.0, 6)
    shuffled = h[[3, 0, 5, 1, 4, 2]]
    fit = fit_alpha_h(shuffled)
    assert isinstance(fit, PowerFit)
    assert fit.value == pytest.approx(2.0, abs=1e-12)
    assert fit == fit_alpha_h(h)


def test_first_rank_labels_the_first_direction() -> None:
    sigma = power_law(1.5, 10, first=3)
    right, wrong = fit_alpha_g(sigma, 3), fit_alpha_g(sigma, 1)
    assert isinstance(right, PowerFit)
    assert isinstance(wrong, PowerFit)
    assert right.value == pytest.approx(1.5, abs=1e-12)
    assert abs(wrong.value - 1.5) > 0.3


@given(n=st.integers(4, 30), seed=st.integers(0, 1000), scale=st.floats(1e-9, 1e9))
def test_units_do_not_matter(n: int, seed: int, scale: float) -> None:
    sigma, h = make_noisy_pair(seed, n, 1.8)
    pairs = [
        (fit_beta(sigma, h), fit_beta(sigma * scale, h)),
        (fit_beta(sigma, h), fit_beta(sigma, h * scale)),
        (fit_alpha_g(sigma), fit_alpha_g(sigma * scale)),
        (fit_alpha_h(h), fit_alpha_h(h * scale)),
    ]
    for plain, scaled in pairs:
        if isinstance(plain, Missing):
            assert plain == scaled
            continue
        assert isinstance(scaled, PowerFit)
        assert (scaled.value, scaled.r2, scaled.stderr) == pytest.approx(
            (plain.value, plain.r2, plain.stderr), rel=1e-6, abs=1e-9
        )


@given(st.lists(st.tuples(st.floats(-1e3, 1e300), st.floats(-1e3, 1e300)), max_size=12))
@settings(max_examples=200)
def test_results_are_always_finite(points: list[tuple[float, float]]) -> None:
    fit = fit_log_log([x for x, _ in points], [y for _, y in points])
    usable = sum(x > 0 and y > 0 for x, y in points)
    if isinstance(fit, Missing):
        assert usable < 4 or "equal" in fit.reason
    else:
        assert all(map(math.isfinite, walk_floats(fit)))
        assert 0 <= fit.r2 <= 1
        assert (fit.n, fit.n_dropped) == (usable, len(points) - usable)


def test_constant_ordinate_is_an_exact_exponent_of_zero() -> None:
    fit = fit_log_log([1, 2, 3, 4, 5], [0.1] * 5)
    assert isinstance(fit, PowerFit)
    assert (fit.value, fit.r2, fit.stderr, fit.ci95) == (0.0, 1.0, 0.0, Interval(0.0, 0.0))


def test_ordinate_constant_up_to_rounding_is_exactly_zero() -> None:
    up = math.nextafter(0.3, 1.0)
    fit = fit_log_log([1, 2, 3, 4, 5], [0.3, 0.3, up, up, up])
    assert isinstance(fit, PowerFit)
    assert (fit.value, fit.r2) == (0.0, 1.0)


def test_r2_of_a_useless_line_is_zero() -> None:
    fit = fit_log_log(np.exp([-1.0, -1.0, 1.0, 1.0]), np.exp([-1.0, 1.0, -1.0, 1.0]))
    assert isinstance(fit, PowerFit)
    assert (fit.value, fit.r2) == pytest.approx((0.0, 0.0), abs=1e-15)


def test_non_positive_curvature_is_dropped_and_counted() -> None:
    sigma = [9.0, 8.0, 4.0, 2.0, 1.0, 0.5]
    h = [0.0, 64.0, 16.0, 4.0, 1.0, -3.0]
    for fit in (fit_beta(sigma, h), fit_alpha_h(h)):
        assert isinstance(fit, PowerFit)
        assert (fit.n, fit.n_dropped) == (4, 2)
    assert fit_beta(sigma, h) == fits.replace(fit_beta(sigma[1:5], h[1:5]), n_dropped=2)


@pytest.mark.parametrize(
    ("fit", "reason"),
    [
        (fit_log_log([], []), "0 usable points of 0, a fit needs at least 4"),
        (fit_log_log([1, 2, 3], [1, 2, 3], n_dropped=2), "3 usable points of 5, a fit needs at least 4"),
        (fit_log_log([1, 2, -3, 4], [1, 2, 3, 4]), "3 usable points of 4, a fit needs at least 4"),
        (fit_beta([4, 3, 2, 1], [1, -1, 0, 2]), "2 usable points of 4, a fit needs at least 4"),
        (fit_alpha_h([1, -1, 0, 2]), "2 usable points of 4, a fit needs at least 4"),
        (fit_alpha_g([3, 2, 1]), "3 usable points of 3, a fit needs at least 4"),
        (fit_beta([0.3] * 5, [1, 2, 3, 4, 5]), "all 5 abscissae are equal, a slope is not defined"),
        (fit_beta([4, 3, 2, 1], [1, math.nan, 2, 3]), "NaN or infinity in 1 of 4 points"),
        (fit_alpha_g([math.inf, 3, 2, 1]), "NaN or infinity in 1 of 4 points"),
        (fit_alpha_h([1, math.nan, -math.inf, 3, 4, 5]), "NaN or infinity in 2 of 6 points"),
    ],
)
def test_what_cannot_be_fitted_is_missing_with_the_count(fit: PowerFit | Missing, reason: str) -> None:
    assert fit == Missing(reason)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="x has 4 points, y has 5"):
        fit_log_log([1, 2, 3, 4], [1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="x must be one-dimensional, got shape \\(2, 2\\)"):
        fit_log_log([[1, 2], [3, 4]], [1, 2])
    with pytest.raises(ValueError, match="sign must be 1 or -1, got 0"):
        fit_log_log([1, 2, 3, 4], [1, 2, 3, 4], sign=0)
    with pytest.raises(ValueError, match="ranks start at 1, got first_rank = 0"):
        fit_alpha_g([4, 3, 2, 1], 0)
    with pytest.raises(ValueError, match="ranks start at 1, got first_rank = -1"):
        fit_alpha_h([4, 3, 2, 1], -1)
