import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrascope.numerics.rank_models import compare_rank_models, count_rank_wins, draw_group_counts
from spectrascope.records.signal import RankResamples
from spectrascope.records.values import Missing, RankComparison, RankModel, RankModelFit
from tests.support.numerics_cases import power_law, walk_floats

K20 = np.arange(1.0, 21.0)


def compare(sigma: np.ndarray, first_rank: int = 1) -> RankComparison:
    comparison = compare_rank_models(sigma, first_rank)
    assert isinstance(comparison, RankComparison), comparison
    return comparison


def find_fit(comparison: RankComparison, model: RankModel) -> RankModelFit:
    return next(fit for fit in comparison.fits if fit.model is model)


def make_noisy_spectrum(seed: int, n: int = 20) -> np.ndarray:
    return power_law(1.1, n) * np.exp(0.2 * np.random.default_rng(seed).normal(size=n))


def test_golden_exponential_by_hand() -> None:
    # y = 0, -1, -1, -2 at k = 1 … 4: kappa = 0.6, a = 0.5, RSS = 0.2, BIC = 4 ln 0.05 + 2 ln 4 = ln 1e-4.
    fit = find_fit(compare(np.exp([0.0, -1.0, -1.0, -2.0])), RankModel.EXPONENTIAL)
    assert fit.params == pytest.approx((0.5, 0.6), abs=1e-13)
    assert fit.rss == pytest.approx(0.2, abs=1e-13)
    assert fit.bic == pytest.approx(math.log(1e-4), abs=1e-12)
    assert fit.aic == pytest.approx(4 * math.log(0.05) + 4, abs=1e-12)
    assert fit.r2 == pytest.approx(0.9, abs=1e-13)


@pytest.mark.parametrize("first_rank", [1, 7])
def test_agrees_with_plain_least_squares(first_rank: int) -> None:
    sigma = make_noisy_spectrum(1)
    k = np.arange(first_rank, first_rank + 20.0)
    y, ones = np.log(sigma), np.ones(20)
    designs = {
        RankModel.POWER_LAW: np.column_stack([ones, -np.log(k)]),
        RankModel.EXPONENTIAL: np.column_stack([ones, -k]),
        RankModel.LOGNORMAL: np.column_stack([ones, np.log(k), np.log(k) ** 2]),
    }
    comparison = compare(sigma, first_rank)
    assert comparison.n == 20
    for model, design in designs.items():
        params = np.linalg.lstsq(design, y, rcond=None)[0]
        rss = float(np.sum((y - design @ params) ** 2))
        p = design.shape[1]
        fit = find_fit(comparison, model)
        assert fit.params == pytest.approx(params, rel=1e-9)
        assert fit.rss == pytest.approx(rss, rel=1e-11)
        assert fit.bic == pytest.approx(20 * math.log(rss / 20) + p * math.log(20), rel=1e-11)
        assert fit.aic == pytest.approx(20 * math.log(rss / 20) + 2 * p, rel=1e-11)


def test_fits_come_in_the_documented_order() -> None:
    assert [fit.model for fit in compare(make_noisy_spectrum(0)).fits] == list(RankModel)


@pytest.mark.parametrize(
    ("best", "log_sigma", "params"),
    [
        (RankModel.POWER_LAW, 2.0 - 1.3 * np.log(K20), (2.0, 1.3)),
        (RankModel.EXPONENTIAL, 1.0 - 0.4 * K20, (1.0, 0.4)),
        (RankModel.LOGNORMAL, -1.0 - 0.2 * np.log(K20) - 0.5 * np.log(K20) ** 2, (-1.0, -0.2, -0.5)),
    ],
)
def test_planted_model_wins_and_its_parameters_are_recovered(
    best: RankModel, log_sigma: np.ndarray, params: tuple[float, ...]
) -> None:
    comparison = compare(np.exp(log_sigma))
    assert comparison.best is best
    assert comparison.best_aic is best
    assert find_fit(comparison, best).params == pytest.approx(params, abs=1e-11)
    assert not comparison.tie
    assert all(map(math.isfinite, walk_floats(comparison)))


@given(gamma=st.floats(0.1, 4.0), n=st.integers(8, 100))
def test_exact_power_law_never_loses_to_rounding_noise(gamma: float, n: int) -> None:
    comparison = compare(power_law(gamma, n))
    assert comparison.best is RankModel.POWER_LAW
    assert math.isfinite(comparison.delta_bic)


def test_exact_fit_has_the_documented_floor() -> None:
    sigma = power_law(1.0, 20)
    floor = 20 * (np.finfo(float).eps * math.log(20)) ** 2
    fit = find_fit(compare(sigma), RankModel.POWER_LAW)
    assert fit.rss == pytest.approx(floor, rel=1e-12)
    assert fit.bic == pytest.approx(20 * math.log(floor / 20) + 2 * math.log(20), rel=1e-12)


def test_constant_spectrum_is_a_tie_between_flat_laws() -> None:
    comparison = compare(np.full(10, 0.3))
    assert (comparison.best, comparison.runner_up) == (RankModel.POWER_LAW, RankModel.EXPONENTIAL)
    assert comparison.tie
    assert comparison.delta_bic == 0.0
    assert all(fit.r2 == 1.0 for fit in comparison.fits)
    assert all(map(math.isfinite, walk_floats(comparison)))


@given(seed=st.integers(0, 500), scale=st.floats(1e-9, 1e9), n=st.integers(5, 40))
def test_scale_of_sigma_changes_no_criterion(seed: int, scale: float, n: int) -> None:
    plain, scaled = compare(make_noisy_spectrum(seed, n)), compare(scale * make_noisy_spectrum(seed, n))
    assert [fit.bic for fit in scaled.fits] == pytest.approx([fit.bic for fit in plain.fits], abs=1e-6)
    assert scaled.delta_bic == pytest.approx(plain.delta_bic, abs=1e-6)
    for model in RankModel:  # the decay parameters stay, only a shifts
        assert find_fit(scaled, model).params[1:] == pytest.approx(
            find_fit(plain, model).params[1:], rel=1e-6, abs=1e-7
        )


@given(seed=st.integers(0, 500), n=st.integers(4, 40))
def test_winner_is_the_lowest_and_models_are_nested(seed: int, n: int) -> None:
    comparison = compare(make_noisy_spectrum(seed, n))
    ordered = sorted(comparison.fits, key=lambda fit: fit.bic)
    assert (comparison.best, comparison.runner_up) == (ordered[0].model, ordered[1].model)
    assert comparison.delta_bic == ordered[1].bic - ordered[0].bic >= 0
    assert comparison.tie == (comparison.delta_bic < 2)
    assert comparison.best_aic is min(comparison.fits, key=lambda fit: fit.aic).model
    power, lognormal = find_fit(comparison, RankModel.POWER_LAW), find_fit(comparison, RankModel.LOGNORMAL)
    assert lognormal.rss <= power.rss * (1 + 1e-12)
    assert lognormal.r2 >= power.r2 - 1e-12


def test_ties_and_clear_wins_both_occur() -> None:
    ties = [compare(make_noisy_spectrum(seed)).tie for seed in range(40)]
    assert any(ties)
    assert not all(ties)


def test_first_rank_keeps_a_cut_power_law_a_power_law() -> None:
    comparison = compare(power_law(1.3, 12, first=4), first_rank=4)
    assert comparison.best is RankModel.POWER_LAW
    assert find_fit(comparison, RankModel.POWER_LAW).params == pytest.approx((0.0, 1.3), abs=1e-12)
    assert compare(power_law(1.3, 12, first=4), first_rank=1).best is not RankModel.POWER_LAW


def test_non_positive_sigma_leaves_the_other_ranks_in_place() -> None:
    sigma = power_law(1.3, 10)
    sigma[4] = 0.0
    comparison = compare(sigma)
    assert comparison.n == 9
    assert find_fit(comparison, RankModel.POWER_LAW).params == pytest.approx((0.0, 1.3), abs=1e-12)


def test_four_points_are_enough() -> None:
    assert compare(np.array([4.0, 2.0, 1.5, 1.0])).n == 4


@pytest.mark.parametrize(
    ("sigma", "reason"),
    [
        ([], "0 usable points of 0, comparing rank models needs at least 4"),
        ([4.0, 3.0, 2.0, 0.0], "3 usable points of 4, comparing rank models needs at least 4"),
        ([4.0, 3.0, 2.0, 1.0, math.nan], "NaN or infinity in 1 of 5 points"),
    ],
)
def test_too_little_is_missing_with_the_count(sigma: list[float], reason: str) -> None:
    assert compare_rank_models(sigma) == Missing(reason)


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="ranks start at 1, got first_rank = 0"):
        compare_rank_models([4.0, 3.0, 2.0, 1.0], 0)
    with pytest.raises(ValueError, match="sigma must be one-dimensional"):
        compare_rank_models([[4.0, 3.0], [2.0, 1.0]])


def resampled(scatter: float, seed: int = 0) -> RankResamples:
    rng = np.random.default_rng(seed)
    rows = [np.sort(np.exp(-0.3 * K20 + scatter * rng.normal(size=20)))[::-1] for _ in range(20)]
    return RankResamples(tuple(tuple(row.tolist()) for row in rows), {})


def test_a_clear_law_wins_every_resample_and_a_blurred_one_does_not() -> None:
    clear = count_rank_wins(resampled(0.01), (1, 20))
    assert isinstance(clear, RankResamples)
    assert clear.wins == {"power_law": 0, "exponential": 20, "lognormal": 0}
    blurred = count_rank_wins(resampled(1.5), (1, 20))
    assert isinstance(blurred, RankResamples)
    assert 0 < blurred.wins["exponential"] < 20
    assert sum(blurred.wins.values()) == 20


def test_wins_are_of_the_window_and_a_short_one_has_none() -> None:
    found = resampled(0.01)
    narrow = count_rank_wins(found, (5, 12))
    assert isinstance(narrow, RankResamples)
    assert narrow.sigma == found.sigma
    bests = [compare(np.array(row[4:12]), 5).best for row in found.sigma]
    assert narrow.wins == {model.value: bests.count(model) for model in RankModel}
    short = count_rank_wins(found, (1, 3))
    assert isinstance(short, RankResamples)
    assert set(short.wins.values()) == {0}
    assert count_rank_wins(Missing("no"), (1, 20)) == Missing("no")


def test_groups_are_drawn_with_replacement_and_by_seed() -> None:
    counts = draw_group_counts(16, 200, seed=3)
    assert (counts.sum(1) == 16).all()
    assert counts.mean() == 1
    assert (counts == 0).mean() == pytest.approx((15 / 16) ** 16, abs=0.02)
    assert (counts == draw_group_counts(16, 200, seed=3)).all()
    assert (counts != draw_group_counts(16, 200, seed=4)).any()
