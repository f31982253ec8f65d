import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrascope.errors import OptionError
from spectrascope.numerics.analysis import analyse, compare_triangle, find_window
from spectrascope.numerics.fits import fit_beta
from spectrascope.numerics.sample_groups import SampleGroups
from spectrascope.records.report import Analysis, Measurement
from spectrascope.records.values import Interval, Missing, PowerFit, RankModel, ZetaBound
from tests.support.numerics_cases import make_measurement, power_law, walk_floats


def make_triangle_case(n: int = 12, **options: object) -> Measurement:
    """alpha_g = 1.5, beta = 2, so alpha_h = 3."""
    sigma = power_law(1.5, n)
    return make_measurement(sigma, 4.0 * sigma**2, **options)


def make_fit(value: float) -> PowerFit:
    return PowerFit(value, 0.0, 0.0, Interval(value, value), Missing("not asked"), 1.0, 4, 0)


def values_of(analysis: Analysis) -> tuple[float, float, float]:
    fits = (analysis.beta, analysis.alpha_g, analysis.alpha_h)
    assert all(isinstance(fit, PowerFit) for fit in fits), fits
    return tuple(fit.value for fit in fits)


@pytest.mark.parametrize(
    ("top_k", "rank", "min_rank", "window"),
    [
        (20, 12, 1, (1, 12)),  # no more than was measured
        (5, 12, 1, (1, 5)),  # no more than was asked for
        (20, 9, 1, (1, 9)),  # nothing past the numerical rank
        (20, 500, 1, (1, 12)),  # the rank may exceed what was measured
        (20, 9, 3, (3, 9)),
        (20, 3, 3, (3, 3)),
        (20, 2, 3, (3, 2)),  # empty
        (20, 0, 1, (1, 0)),  # empty
    ],
)
def test_window(top_k: int, rank: int, min_rank: int, window: tuple[int, int]) -> None:
    measurement = make_triangle_case(rank=rank)
    assert find_window(measurement, top_k=top_k, min_rank=min_rank) == window
    analysis = analyse(measurement, top_k=top_k, min_rank=min_rank)
    assert analysis.window == window
    assert len(analysis.curvature_eigenvalues) == window[1] - window[0] + 1


def test_planted_triangle_is_recovered() -> None:
    analysis = analyse(make_triangle_case(), top_k=20)
    assert values_of(analysis) == pytest.approx((2.0, 1.5, 3.0), abs=1e-12)
    assert analysis.triangle.predicted == pytest.approx(3.0, abs=1e-12)
    assert analysis.triangle.relative_error == pytest.approx(0.0, abs=1e-12)
    assert analysis.triangle.well_conditioned is True
    assert analysis.rank_models.best is RankModel.POWER_LAW
    k = np.arange(1.0, 13.0)
    ratio = np.sum(k**-3) ** 2 / np.sum(k**-6)
    assert analysis.pr_h == pytest.approx(ratio, rel=1e-12)
    share = k**-3 / np.sum(k**-3)
    assert analysis.effective_rank_h == pytest.approx(math.exp(-np.sum(share * np.log(share))), rel=1e-12)
    assert isinstance(analysis.zeta_bound, ZetaBound)
    assert analysis.zeta_bound.s == pytest.approx(3.0, abs=1e-12)
    assert analysis.zeta_bound.finite == pytest.approx(ratio, rel=1e-10)
    assert analysis.zeta_bound.finite_holds
    assert analysis.zeta_bound.infinite_holds is True


def test_min_rank_keeps_the_ranks_of_the_directions() -> None:
    analysis = analyse(make_triangle_case(), top_k=10, min_rank=3)
    assert analysis.window == (3, 10)
    assert values_of(analysis) == pytest.approx((2.0, 1.5, 3.0), abs=1e-12)
    assert analysis.rank_models.best is RankModel.POWER_LAW
    assert analysis.rank_models.n == 8
    k = np.arange(3.0, 11.0)
    assert analysis.zeta_bound.finite == pytest.approx(np.sum(k**-3) ** 2 / np.sum(k**-6), rel=1e-10)


def test_directions_past_the_rank_change_nothing() -> None:
    sigma, h = power_law(1.5, 9), 4.0 * power_law(3.0, 9)
    noisy = make_measurement([*sigma, 1e-9], [*h, -5.0], rank=9, noise_floor=0.1)
    clean = make_measurement(sigma, h, rank=9, noise_floor=0.1)
    assert analyse(noisy, top_k=20) == analyse(clean, top_k=20)
    assert analyse(make_measurement([*sigma, 1e-9], [*h, -5.0], noise_floor=0.1), top_k=20) != analyse(clean, top_k=20)


def test_counts_of_negative_and_noisy_directions() -> None:
    h = [5.0, -1.0, 3.0, 0.0, 2.0, 1.0, -7.0]
    measurement = make_measurement([7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], h, noise_floor=4.0)
    analysis = analyse(measurement, top_k=6)
    assert analysis.n_negative == 2  # -1 and 0; the -7 is outside the window
    assert analysis.n_above_noise == 3  # 7, 6, 5: a sigma at the floor is not above it
    assert analysis.beta.n_dropped == analysis.alpha_h.n_dropped == 2
    assert analysis.pr_h == pytest.approx(11**2 / 39, rel=1e-14)  # 5, 3, 2, 1
    missing = make_measurement([4.0, 3.0], [1.0, 1.0], noise_floor=Missing("one batch only"))
    assert analyse(missing, top_k=2).n_above_noise == Missing("one batch only")


def test_zeta_window_counts_positive_curvature_only() -> None:
    sigma = power_law(1.0, 6)
    analysis = analyse(make_measurement(sigma, [*sigma[:4], -1.0, -1.0]), top_k=6)
    s, k = analysis.zeta_bound.s, np.arange(1.0, 5.0)
    assert s == pytest.approx(1.0, abs=1e-12)
    assert analysis.zeta_bound.finite == pytest.approx(np.sum(k**-s) ** 2 / np.sum(k ** (-2 * s)), rel=1e-12)


def test_curvature_block() -> None:
    matrix = np.array([[3.0, 1.0, 9.0], [1.0, 3.0, 9.0], [9.0, 9.0, 9.0]])
    measurement = make_measurement([3.0, 2.0, 1.0], [3.0, 3.0, 9.0], matrix=matrix)
    analysis = analyse(measurement, top_k=2)
    assert analysis.curvature_eigenvalues == pytest.approx((4.0, 2.0), abs=1e-14)
    assert analysis.off_diagonal_mass == pytest.approx(math.sqrt(2 / 20), abs=1e-14)
    tail = analyse(measurement, top_k=3, min_rank=3)
    assert tail.curvature_eigenvalues == (9.0,)
    assert tail.off_diagonal_mass == 0.0


def test_asymmetric_block_is_symmetrised_for_eigenvalues() -> None:
    matrix = np.array([[3.0, 2.0], [0.0, 3.0]])
    analysis = analyse(make_measurement([2.0, 1.0], [3.0, 3.0], matrix=matrix), top_k=2)
    assert analysis.curvature_eigenvalues == pytest.approx((4.0, 2.0), abs=1e-14)
    assert analysis.off_diagonal_mass == pytest.approx(2 / math.sqrt(22), abs=1e-14)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_off_diagonal_mass_does_not_depend_on_scale(scale: float) -> None:
    matrix = scale * np.array([[3.0, 1.0], [1.0, 3.0]])
    analysis = analyse(make_measurement([2.0, 1.0], [3.0 * scale] * 2, matrix=matrix), top_k=2)
    assert analysis.off_diagonal_mass == pytest.approx(math.sqrt(2 / 20), rel=1e-14)


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (np.zeros((2, 2)), "the curvature matrix is zero"),
        (np.array([[1.0, math.nan], [0.0, 1.0]]), "the curvature matrix has NaN or infinite entries"),
    ],
)
def test_unusable_curvature_block(matrix: np.ndarray, reason: str) -> None:
    analysis = analyse(make_measurement([2.0, 1.0], [1.0, 1.0], matrix=matrix), top_k=2)
    assert analysis.off_diagonal_mass == Missing(reason)
    assert analysis.curvature_eigenvalues == ((0.0, 0.0) if matrix.any() == 0 else ())


@pytest.mark.parametrize("rank", [0, 2])
def test_empty_window_is_missing_everywhere_with_reasons(rank: int) -> None:
    measurement = make_triangle_case(
        rank=rank,
        noise_floor=0.01,
        group_sizes=(1,),
        group_sigma=[power_law(1.5, 12)],
        group_h=[power_law(3.0, 12)],
    )
    analysis = analyse(measurement, top_k=20, min_rank=3)
    no_points = Missing("0 usable points of 0, a fit needs at least 4")
    assert analysis == Analysis(
        window=(3, 2),
        beta=no_points,
        alpha_g=no_points,
        alpha_h=no_points,
        triangle=Missing(f"no beta: {no_points.reason}"),
        rank_models=Missing("0 usable points of 0, comparing rank models needs at least 4"),
        pr_h=Missing("none of 0 values is positive"),
        effective_rank_h=Missing("none of 0 values is positive"),
        zeta_bound=Missing(f"no beta: {no_points.reason}"),
        n_negative=0,
        n_above_noise=0,
        off_diagonal_mass=Missing("the window holds no direction"),
        curvature_eigenvalues=(),
        beta_quartiles=Missing("0 directions, beta by quarter needs at least 40"),
    )


def test_three_directions_have_curvature_but_no_exponents() -> None:
    analysis = analyse(make_triangle_case(n=3), top_k=20)
    reason = "3 usable points of 3, a fit needs at least 4"
    assert analysis.beta == analysis.alpha_g == analysis.alpha_h == Missing(reason)
    assert analysis.zeta_bound == Missing(f"no beta: {reason}")
    assert isinstance(analysis.pr_h, float)
    assert len(analysis.curvature_eigenvalues) == 3


def make_grouped(n: int = 44, n_groups: int = 8) -> Measurement:
    rng = np.random.default_rng(0)
    group_sigma = power_law(1.5, n) * (1 + 0.001 * rng.normal(size=(n_groups, n)))
    group_h = power_law(3.0, n) * (1 + 0.01 * rng.normal(size=(n_groups, n)))
    sigma, h = group_sigma.mean(axis=0), group_h.mean(axis=0)
    return make_measurement(sigma, h, group_sizes=(4,) * n_groups, group_sigma=group_sigma, group_h=group_h)


def test_every_exponent_carries_a_jackknife_interval_over_its_window() -> None:
    measurement = make_grouped()
    wide, narrow = analyse(measurement, top_k=20), analyse(measurement, top_k=8, min_rank=2)
    for analysis in (wide, narrow):
        for fit, planted in zip((analysis.beta, analysis.alpha_g, analysis.alpha_h), (2, 1.5, 3), strict=True):
            assert isinstance(fit.jackknife_ci95, Interval)
            assert fit.jackknife_ci95.low < fit.value < fit.jackknife_ci95.high
            assert fit.value == pytest.approx(planted, abs=0.02)
    assert wide.beta.jackknife_ci95 != narrow.beta.jackknife_ci95


def test_quartiles_of_beta() -> None:
    # Steeper by quarter: beta = 1, 2, 3, 4 over ranks of 2 … 45 (44 = 4 · 11).
    measurement = make_grouped(n=45)
    sigma = np.array(measurement.sigma)
    h = np.concatenate([[1.0], *(sigma[1 + 11 * q : 12 + 11 * q] ** (q + 1) for q in range(4))])
    quartiles = analyse(make_measurement(sigma, h), top_k=45, min_rank=2).beta_quartiles
    assert [quartile.name for quartile in quartiles] == ["top", "mid_high", "mid_low", "bottom"]
    assert [quartile.window for quartile in quartiles] == [(2, 12), (13, 23), (24, 34), (35, 45)]
    assert [quartile.fit.value for quartile in quartiles] == pytest.approx([1, 2, 3, 4], abs=1e-10)


def test_quartiles_are_fitted_with_their_own_groups() -> None:
    measurement = make_grouped()
    for quartile in analyse(measurement, top_k=44).beta_quartiles:
        first, last = quartile.window
        window = slice(first - 1, last)
        groups = SampleGroups(
            measurement.group_sizes,
            tuple(row[window] for row in measurement.group_sigma),
            tuple(row[window] for row in measurement.group_h),
        )
        assert quartile.fit == fit_beta(measurement.sigma[window], measurement.h[window], groups=groups)
        assert isinstance(quartile.fit.jackknife_ci95, Interval)


@pytest.mark.parametrize(("n", "lengths"), [(40, [10, 10, 10, 10]), (42, [11, 11, 10, 10])])
def test_quartiles_share_the_window_evenly(n: int, lengths: list[int]) -> None:
    quartiles = analyse(make_triangle_case(n=n), top_k=n).beta_quartiles
    assert [last - first + 1 for first, last in (quartile.window for quartile in quartiles)] == lengths
    assert quartiles[0].window[0] == 1
    assert quartiles[-1].window[1] == n


def test_quartiles_need_forty_directions() -> None:
    assert analyse(make_triangle_case(n=60), top_k=39).beta_quartiles == Missing(
        "39 directions, beta by quarter needs at least 40"
    )


@pytest.mark.parametrize(
    ("alpha_h", "error", "well_conditioned"), [(3.0, 0.0, True), (2.5, 0.2, False), (-3.0, 2.0, False)]
)
def test_triangle_error_is_relative_to_alpha_h(alpha_h: float, error: float, well_conditioned: bool) -> None:
    triangle = compare_triangle(make_fit(2.0), make_fit(1.5), make_fit(alpha_h))
    assert (triangle.predicted, triangle.well_conditioned) == (3.0, well_conditioned)
    assert triangle.relative_error == pytest.approx(error, abs=1e-15)


def test_ten_percent_is_still_well_conditioned() -> None:
    assert compare_triangle(make_fit(9.0), make_fit(1.0), make_fit(10.0)).well_conditioned
    assert not compare_triangle(make_fit(8.99), make_fit(1.0), make_fit(10.0)).well_conditioned


def test_triangle_says_which_side_is_missing() -> None:
    fit, gone = make_fit(1.0), Missing("too few")
    assert compare_triangle(gone, fit, fit) == Missing("no beta: too few")
    assert compare_triangle(fit, gone, fit) == Missing("no alpha_g: too few")
    assert compare_triangle(fit, fit, gone) == Missing("no alpha_h: too few")
    assert compare_triangle(fit, fit, make_fit(0.0)) == Missing("alpha_h is 0, a relative error is not defined")
    assert compare_triangle(make_fit(1e200), fit, make_fit(1e-200)) == Missing(
        "alpha_h = 1e-200 is too small for a relative error"
    )


def test_bad_options_are_refused() -> None:
    with pytest.raises(OptionError, match="top_k must be at least 1, got 0"):
        analyse(make_triangle_case(), top_k=0)
    with pytest.raises(OptionError, match="min_rank must be at least 1, got 0"):
        analyse(make_triangle_case(), top_k=5, min_rank=0)


@given(
    sigma=st.lists(st.floats(0.0, 1e3), min_size=1, max_size=45),
    seed=st.integers(0, 100),
    share_negative=st.floats(0.0, 1.0),
    min_rank=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_number_is_finite_and_counts_add_up(
    sigma: list[float], seed: int, share_negative: float, min_rank: int
) -> None:
    rng = np.random.default_rng(seed)
    sigma = sorted(sigma, reverse=True)
    h = np.abs(rng.normal(size=len(sigma))) * np.where(rng.random(len(sigma)) < share_negative, -1, 1)
    measurement = make_measurement(sigma, h, noise_floor=1.0)
    analysis = analyse(measurement, top_k=50, min_rank=min_rank)
    assert all(map(math.isfinite, walk_floats(analysis)))
    inside = h[min_rank - 1 :]
    assert analysis.n_negative == np.sum(inside <= 0)
    if isinstance(analysis.alpha_h, PowerFit):
        assert analysis.alpha_h.n + analysis.n_negative == len(inside)
