import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spectrascope.numerics.fits import fit_alpha_g, fit_alpha_h, fit_beta, fit_log_log, log_slopes
from spectrascope.numerics.sample_groups import SampleGroups, jackknife
from spectrascope.records.values import Interval, Missing, PowerFit
from tests.support.numerics_cases import power_law


def make_groups(
    seed: int, n_groups: int = 16, n_directions: int = 12, noise: float = 0.05, sizes: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray, SampleGroups]:
    """sigma, h and groups around alpha_g = 1.2, beta = 1.7; sigma and h are the weighted group means."""
    rng = np.random.default_rng(seed)
    sigma = power_law(1.2, n_directions)
    sizes = sizes or (8,) * n_groups
    group_sigma = sigma * (1 + noise * rng.normal(size=(len(sizes), n_directions)))
    group_h = sigma**1.7 * (1 + noise * rng.normal(size=(len(sizes), n_directions)))
    weights = np.array(sizes) / sum(sizes)
    return weights @ group_sigma, weights @ group_h, pack(sizes, group_sigma, group_h)


def pack(sizes: tuple[int, ...], sigma: np.ndarray, h: np.ndarray) -> SampleGroups:
    return SampleGroups(
        tuple(sizes),
        tuple(tuple(map(float, row)) for row in sigma),
        tuple(tuple(map(float, row)) for row in h),
    )


def slope(x: np.ndarray, y: np.ndarray) -> float:
    usable = (x > 0) & (y > 0)
    return float(np.polyfit(np.log(x[usable]), np.log(y[usable]), 1)[0])


def oracle_interval(value: float, replicates: list[float]) -> tuple[float, float]:
    n, mean = len(replicates), math.fsum(replicates) / len(replicates)
    stderr = math.sqrt((n - 1) / n * math.fsum((theta - mean) ** 2 for theta in replicates))
    half_width = float(stats.t.ppf(0.975, n - 1)) * stderr
    return value - half_width, value + half_width


coordinates = st.sampled_from([-1.0, 0.0, math.nan, math.inf]) | st.floats(1e-6, 1e6) | st.just(3.0)
"""Those that have no logarithm, are not finite, or are likely to be all the same, among others."""


def fake_fit(value: float) -> PowerFit:
    return PowerFit(value, 0.0, 0.0, Interval(value, value), Missing("fake"), 1.0, 4, 0)


def bounds(interval: Interval | Missing) -> tuple[float, float]:
    assert isinstance(interval, Interval), interval
    return interval.low, interval.high


def test_of_a_mean_is_the_textbook_interval() -> None:
    # Of a plain mean the jackknife standard error is the sample deviation / √n: here √(10/4)/√5 = √0.5.
    groups = pack((3,) * 5, np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]), np.zeros((5, 1)))
    interval = jackknife(3.0, groups, lambda sigma, _: fake_fit(float(sigma[0])))
    half_width = 2.7764451051977987 * math.sqrt(0.5)  # Student t, 4 degrees of freedom, 97.5 %
    assert bounds(interval) == pytest.approx((3 - half_width, 3 + half_width), abs=1e-12)


@pytest.mark.parametrize("first_rank", [1, 3])
@pytest.mark.parametrize("sizes", [(8,) * 6, (1, 2, 30, 4, 5, 6, 7)])
def test_all_three_exponents_against_an_explicit_loop(sizes: tuple[int, ...], first_rank: int) -> None:
    sigma, h, groups = make_groups(0, sizes=sizes)
    k = first_rank + np.arange(12.0)
    betas, alphas_g, alphas_h = [], [], []
    for left_out in range(len(sizes)):
        total = sum(size for g, size in enumerate(sizes) if g != left_out)
        others = [g for g in range(len(sizes)) if g != left_out]
        sigma_g = sum(sizes[g] * np.array(groups.sigma[g]) for g in others) / total
        h_g = sum(sizes[g] * np.array(groups.h[g]) for g in others) / total
        betas.append(slope(sigma_g, h_g))
        alphas_g.append(-slope(k, sigma_g))
        alphas_h.append(-slope(k, np.sort(h_g)[::-1]))
    for fit, replicates in (
        (fit_beta(sigma, h, groups=groups), betas),
        (fit_alpha_g(sigma, first_rank, groups=groups), alphas_g),
        (fit_alpha_h(h, first_rank, groups=groups), alphas_h),
    ):
        assert isinstance(fit, PowerFit)
        assert bounds(fit.jackknife_ci95) == pytest.approx(oracle_interval(fit.value, replicates), abs=1e-11)
        assert fit.jackknife_ci95.low < fit.value < fit.jackknife_ci95.high


def test_covers_the_planted_exponents_in_at_least_90_percent_of_batches() -> None:
    seeds, covered = 200, {"beta": 0, "alpha_g": 0}
    for seed in range(seeds):
        sigma, h, groups = make_groups(seed)
        for name, planted, fit in (
            ("beta", 1.7, fit_beta(sigma, h, groups=groups)),
            ("alpha_g", 1.2, fit_alpha_g(sigma, groups=groups)),
        ):
            assert isinstance(fit, PowerFit)
            low, high = bounds(fit.jackknife_ci95)
            covered[name] += low <= planted <= high
    assert all(0.90 <= count / seeds <= 0.99 for count in covered.values()), covered


def test_identical_groups_leave_no_doubt() -> None:
    sigma = power_law(1.2, 8)
    groups = pack((5,) * 4, np.tile(sigma, (4, 1)), np.tile(sigma**2, (4, 1)))
    fit = fit_beta(sigma, sigma**2, groups=groups)
    assert isinstance(fit, PowerFit)
    assert bounds(fit.jackknife_ci95) == pytest.approx((2.0, 2.0), abs=1e-12)


@given(order=st.permutations(range(6)))
@settings(max_examples=25)
def test_order_of_groups_does_not_matter(order: list[int]) -> None:
    sizes = (1, 2, 3, 4, 5, 6)
    sigma, h, groups = make_groups(3, sizes=sizes)
    shuffled = SampleGroups(
        tuple(sizes[g] for g in order),
        tuple(groups.sigma[g] for g in order),
        tuple(groups.h[g] for g in order),
    )
    plain, other = fit_beta(sigma, h, groups=groups), fit_beta(sigma, h, groups=shuffled)
    assert isinstance(plain, PowerFit)
    assert isinstance(other, PowerFit)
    assert bounds(other.jackknife_ci95) == pytest.approx(bounds(plain.jackknife_ci95), abs=1e-11)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_do_not_matter(scale: float) -> None:
    sigma, h, groups = make_groups(4)
    scaled = pack(groups.sizes, scale * np.array(groups.sigma), np.array(groups.h))
    plain, other = fit_beta(sigma, h, groups=groups), fit_beta(scale * sigma, h, groups=scaled)
    assert isinstance(plain, PowerFit)
    assert isinstance(other, PowerFit)
    assert bounds(other.jackknife_ci95) == pytest.approx(bounds(plain.jackknife_ci95), abs=1e-9)


def test_sigma_that_turns_negative_without_a_group_drops_out_of_that_replicate() -> None:
    _, _, groups = make_groups(5, sizes=(1,) * 5)
    rows = np.array(groups.sigma)
    rows[0, -1] = 5.0  # the last direction lives on the first group alone …
    rows[1:, -1] = -1.0  # … so without it sigma^(-1) is negative
    groups = pack(groups.sizes, rows, np.array(groups.h))
    sigma = rows.mean(axis=0)
    assert sigma[-1] > 0
    replicates = [-slope(np.arange(1.0, 13.0), np.delete(rows, g, axis=0).mean(axis=0)) for g in range(5)]
    fit = fit_alpha_g(sigma, groups=groups)
    assert isinstance(fit, PowerFit)
    assert fit.n == 12
    assert bounds(fit.jackknife_ci95) == pytest.approx(oracle_interval(fit.value, replicates), abs=1e-11)


def test_a_replicate_without_a_fit_is_missing_but_the_fit_stands() -> None:
    sigma, h = power_law(1.2, 4), power_law(2.0, 4)
    rows = np.tile(h, (4, 1))
    rows[2] = h + 12.0  # without the third group every h is negative
    rows[[0, 1, 3]] = h - 4.0
    fit = fit_beta(sigma, h, groups=pack((1,) * 4, np.tile(sigma, (4, 1)), rows))
    assert isinstance(fit, PowerFit)
    assert fit.value == pytest.approx(5 / 3, abs=1e-12)
    assert fit.jackknife_ci95 == Missing("without sample group 3: 0 usable points of 4, a fit needs at least 4")


@pytest.mark.parametrize("n_groups", [0, 1, 3])
def test_fewer_than_four_groups_are_missing(n_groups: int) -> None:
    sigma = power_law(1.2, 6)
    rows = np.tile(sigma, (n_groups, 1))
    fit = fit_alpha_g(sigma, groups=pack((2,) * n_groups, rows, rows))
    assert isinstance(fit, PowerFit)
    assert fit.jackknife_ci95 == Missing(
        f"{n_groups} sample group{'' if n_groups == 1 else 's'}, a jackknife needs at least 4"
    )


def test_restrict_keeps_the_window_of_every_group() -> None:
    groups = SampleGroups((1, 2), ((4.0, 3.0, 2.0), (7.0, 6.0, 5.0)), ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)))
    assert groups.restrict(1, 2) == SampleGroups((1, 2), ((4.0, 3.0), (7.0, 6.0)), ((1.0, 2.0), (4.0, 5.0)))
    assert groups.restrict(3, 2).sigma == ((), ())


def test_malformed_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="2 group sizes, 1 rows of sigma, 2 rows of h"):
        SampleGroups((1, 1), ((1.0,),), ((1.0,), (1.0,)))
    with pytest.raises(ValueError, match="different numbers of directions"):
        SampleGroups((1, 1), ((1.0,), (1.0, 2.0)), ((1.0,), (1.0,)))
    with pytest.raises(ValueError, match="at least one sample, sizes are \\(0, 1\\)"):
        SampleGroups((0, 1), ((1.0,), (1.0,)), ((1.0,), (1.0,)))
    with pytest.raises(ValueError, match="sample groups over 12 directions, the fit is over 6"):
        fit_alpha_g(power_law(1.2, 6), groups=make_groups(0)[2])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(coordinates, coordinates), min_size=6, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_slopes_of_many_are_the_slopes_of_each(sets: list[list[tuple[float, float]]]) -> None:
    x, y = (np.array([[point[axis] for point in points] for points in sets]) for axis in (0, 1))
    for found, *points in zip(log_slopes(x, y), x, y, strict=True):
        fit = fit_log_log(*points)
        if isinstance(fit, Missing):
            assert math.isnan(found), fit
        else:
            assert found == pytest.approx(fit.value, rel=1e-9, abs=1e-9)


def test_replicates_that_the_quick_way_leaves_open_are_refitted() -> None:
    groups = pack((3,) * 5, np.array([[1.0], [2.0], [3.0], [4.0], [5.0]]), np.zeros((5, 1)))

    def refit(sigma: np.ndarray, _: np.ndarray) -> PowerFit:
        return fake_fit(float(sigma[0]))

    def all_but_two(sigma: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.where(np.arange(5) % 3 == 1, np.nan, sigma[:, 0])

    assert jackknife(3.0, groups, refit, all_but_two) == jackknife(3.0, groups, refit)
