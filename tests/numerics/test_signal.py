"""Held-out slopes, step exponents and null draws against a population that is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrascope.numerics.fits import fit_beta
from spectrascope.numerics.signal import (
    count_signal,
    draw_signs,
    fit_held_out_beta,
    null_quantile,
    samples_needed,
    split_folds,
    t_values,
)
from spectrascope.numerics.steps import StepReplicates, find_step_exponent, pool_step_exponents, widen_groups
from spectrascope.records.signal import HeldOut, StepExponent
from spectrascope.records.values import Missing, PowerFit
from tests.support.made_up_reports import make_info, make_layer, make_measurement, with_signal
from tests.support.planted_softmax import Batch, population

SEEDS = 100


@cache
def batches(signal: float, n: int = 1024) -> tuple[Batch, ...]:
    return tuple(population(signal).draw(n, seed) for seed in range(SEEDS))


def wide(batch: Batch) -> np.ndarray:
    return widen_groups(batch.slopes, batch.sigma, batch.sizes)


def step_of(batch: Batch) -> StepExponent:
    found = find_step_exponent(
        [StepReplicates(batch.sigma, wide(batch), batch.curvature, batch.matrix, batch.sizes)], 16
    )
    assert isinstance(found, StepExponent)
    return found


@pytest.mark.parametrize("signal", [0.0, 0.3, 0.6])
def test_slopes_are_within_two_standard_errors_of_the_truth(signal: float) -> None:
    inside = [
        np.abs(b.slopes.mean(0) - b.true_slopes) <= 2 * np.abs(b.slopes.mean(0) / t_values(wide(b), b.sizes))
        for b in batches(signal)
    ]
    assert np.mean(inside) >= 0.93


@pytest.mark.parametrize("signal", [0.3, 0.6])
def test_the_populations_best_exponent_lies_in_the_interval(signal: float) -> None:
    steps = [(step_of(b), b.optimum) for b in batches(signal)]
    assert sum(step.interval.low - 1e-9 <= best <= step.interval.high + 1e-9 for step, best in steps) >= 90
    assert sum(step.determined for step, _ in steps) >= 90


def test_the_same_samples_mislead_where_held_out_ones_do_not() -> None:
    drawn = batches(0.3)
    best = np.array([b.optimum for b in drawn])
    same = np.array([b.same_sample_optimum for b in drawn])
    held = np.array([step_of(b).value for b in drawn])
    assert np.median(same - best) > 0.4  # noise makes a larger exponent look better
    assert abs(np.median(held - best)) < 0.2
    assert sum(same < best) <= 5


def test_noise_alone_is_called_noise() -> None:
    drawn = batches(0.0)
    quantiles = [null_quantile(b.null_sigma) for b in drawn]
    found = [count_signal(b.sigma, q) for b, q in zip(drawn, quantiles, strict=True) if not isinstance(q, Missing)]
    assert len(found) == SEEDS
    assert np.mean(np.array(found) > 0) <= 0.10  # the level is 5 %
    assert sum(step_of(b).determined for b in drawn) <= 8
    fits = [fit_held_out_beta(wide(b), b.curvature, b.sizes) for b in drawn]
    assert all(isinstance(fit, Missing) for fit in fits)
    published = [fit_beta(b.sigma, b.h) for b in drawn]
    assert all(isinstance(fit, PowerFit) and fit.r2 > 0.8 for fit in published)  # straight as can be, and nothing in it


def test_planted_signal_is_seen() -> None:
    drawn = batches(0.6)
    quantiles = [null_quantile(b.null_sigma) for b in drawn]
    assert all(count_signal(b.sigma, q) >= 1 for b, q in zip(drawn, quantiles, strict=True))  # type: ignore[arg-type]


def test_held_out_beta_is_the_slope_of_exact_slopes() -> None:
    s, sizes = np.array([8.0, 4.0, 2.0, 1.0, 0.5]), (5,) * 16
    noise = np.random.default_rng(0).standard_normal((16, 5)) * 1e-6
    fit = fit_held_out_beta(s + noise, np.tile(3 * s**1.5, (16, 1)), sizes)
    assert isinstance(fit, PowerFit)
    assert fit.value == pytest.approx(1.5, abs=1e-5)
    assert math.exp(fit.intercept) == pytest.approx(3, rel=1e-4)
    assert not isinstance(fit.jackknife_ci95, Missing)


def test_errors_of_the_slopes_are_allowed_for() -> None:
    """The median over many draws of noisy slopes is nearer to the planted exponent than a plain fit's."""
    generator, s, sizes = np.random.default_rng(3), 2.0 ** -np.arange(8.0), (4,) * 16
    corrected, plain = [], []
    for _ in range(60):
        groups = s * (1 + generator.standard_normal((16, 8)) * 1.2)  # t about 3.3
        fit = fit_held_out_beta(groups, np.tile(s**2, (16, 1)), sizes)
        naive = fit_beta(groups.mean(0), s**2)
        if isinstance(fit, PowerFit) and isinstance(naive, PowerFit):
            corrected.append(fit.value)
            plain.append(naive.value)
    assert len(corrected) > 50
    assert abs(np.median(corrected) - 2) < abs(np.median(plain) - 2)


def test_fewer_than_four_clear_slopes_are_no_fit() -> None:
    groups = np.random.default_rng(1).standard_normal((16, 6))
    fit = fit_held_out_beta(groups, np.ones((16, 6)), (3,) * 16)
    assert isinstance(fit, Missing)
    assert "a fit needs at least 4" in fit.reason


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 1000))
def test_a_scale_of_the_loss_changes_no_exponent(scale: float, seed: int) -> None:
    b = batches(0.6)[seed % 5]
    one = step_of(b)
    slopes, curvature, matrix = scale * wide(b), scale * b.curvature, scale * b.matrix
    other = find_step_exponent([StepReplicates(scale * b.sigma, slopes, curvature, matrix, b.sizes)], 16)
    assert isinstance(other, StepExponent)
    assert (other.value, other.determined) == (one.value, one.determined)
    assert other.decrease == pytest.approx(scale * one.decrease, rel=1e-9)
    fits = [fit_held_out_beta(s * wide(b), s * b.curvature, b.sizes) for s in (1.0, scale)]
    assert isinstance(fits[0], PowerFit) == isinstance(fits[1], PowerFit)
    if isinstance(fits[0], PowerFit) and isinstance(fits[1], PowerFit):
        assert fits[1].value == pytest.approx(fits[0].value, rel=1e-6)


def test_the_order_of_groups_changes_nothing() -> None:
    b = batches(0.3)[0]
    order = np.random.default_rng(0).permutation(16)
    again = find_step_exponent([StepReplicates(b.sigma, wide(b)[order], b.curvature[order], b.matrix, b.sizes)], 16)
    one = step_of(b)
    assert isinstance(again, StepExponent)
    assert again.value == one.value
    assert again.interval.low == pytest.approx(one.interval.low, abs=1e-9)


def test_two_folds_and_four_agree_within_their_errors() -> None:
    two, four = (population(0.6).draw(2048, 7, folds=folds) for folds in (2, 4))
    gap = np.abs(two.slopes.mean(0) - four.slopes.mean(0))
    error = np.abs(four.slopes.mean(0) / t_values(wide(four), four.sizes))
    assert np.mean(gap <= 3 * error) >= 0.9


def test_rescaled_curvature_stands_for_the_jackknife_of_the_whole_matrix() -> None:
    """The interval from K numbers a group against the one from K² numbers a group."""
    ratios = []
    exponents = np.linspace(-1, 4, 501)
    for b in batches(0.6)[:30]:
        step, best = step_of(b), []
        if not 0 < step.interval.low < step.interval.high < 3:
            continue
        transfer = (b.sigma / b.sigma[0]) ** (1 - exponents[:, None])
        for g in range(16):
            keep = np.arange(16) != g
            along = transfer @ wide(b)[keep].mean(0)
            across = np.einsum("ek,kj,ej->e", transfer, b.matrices[keep].mean(0), transfer)
            best.append(exponents[np.argmax(np.maximum(along, 0) ** 2 / across)])
        exact = np.sqrt(15 / 16 * np.sum((np.array(best) - np.mean(best)) ** 2))
        ratios.append((step.interval.high - step.value) / 2.1314 / exact)
    assert len(ratios) > 20
    assert np.all(np.abs(np.log(ratios)) < 0.25)
    assert abs(np.median(ratios) - 1) < 0.05


def test_signs_cancel_the_mean_and_keep_the_variance() -> None:
    for groups in (4, 5, 16):
        signs = draw_signs(groups, 50, seed=1)
        assert np.abs(signs.sum(1)).max() < 1e-12
        assert np.allclose((signs**2).sum(1), groups)
    assert np.array_equal(draw_signs(8, 3, seed=2), draw_signs(8, 3, seed=2))


@given(st.integers(1, 40), st.integers(1, 10))
def test_folds_hold_every_group_once(groups: int, folds: int) -> None:
    found = split_folds(groups, folds)
    assert [g for fold in found for g in fold] == list(range(groups))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_further_draw_lies_above_the_quantile_one_time_in_twenty() -> None:
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((4000, 21))
    above = [row[20] > null_quantile(row[:20]) for row in draws]  # type: ignore[operator]
    assert 0.04 < np.mean(above) < 0.06


def test_samples_needed_grow_with_the_square_of_t() -> None:
    found = samples_needed([4.0, 3.0, 2.0, 1.5], 1000)
    assert (found.n_resolved, found.for_4, found.for_all) == (2, 4000.0, 4000.0)
    assert isinstance(samples_needed([4.0, -1.0, 2.0, 1.5], 1000).for_4, Missing)
    assert samples_needed([9.0, 9.0, 9.0, 9.0], 1000).for_all == 1000  # never fewer than there are


def test_negative_curvature_everywhere_has_no_exponent() -> None:
    slopes, curvature = np.ones((8, 3)), -np.ones((8, 3))
    found = find_step_exponent([StepReplicates([3.0, 2.0, 1.0], slopes, curvature, -np.eye(3), (2,) * 8)], 8)
    assert isinstance(found, Missing)
    assert "negative" in found.reason


def test_slopes_that_all_point_the_wrong_way_are_undetermined() -> None:
    slopes = -np.ones((8, 3)) + np.random.default_rng(0).standard_normal((8, 3)) * 0.1
    found = find_step_exponent([StepReplicates([3.0, 2.0, 1.0], slopes, np.ones((8, 3)), np.eye(3), (2,) * 8)], 8)
    assert isinstance(found, StepExponent)
    assert not found.determined
    assert "beyond its error" in found.reason


def test_an_exponent_at_the_edge_of_the_grid_is_not_falsely_sure() -> None:
    """Replicates that all end at the edge show no spread; the interval then says which steps are as good."""
    generator = np.random.default_rng(0)
    sigma, h = 2.0 ** -np.arange(6.0), 8.0 ** -np.arange(6.0) * 4.0  # the best step leans on the last directions
    slopes = sigma * (1 + generator.standard_normal((16, 6)) * 2.0)
    step = find_step_exponent([StepReplicates(sigma, slopes, np.tile(h, (16, 1)), np.diag(h), (4,) * 16)], 16)
    assert isinstance(step, StepExponent)
    assert step.value == 3.0
    assert step.interval.low < 2.9
    exact = np.tile(sigma, (16, 1))
    sure = find_step_exponent([StepReplicates(sigma, exact, np.tile(h, (16, 1)), np.diag(h), (4,) * 16)], 16)
    assert isinstance(sure, StepExponent)
    assert sure.determined
    assert sure.interval.low > 2.9


def test_an_interval_shrinks_with_the_noise_and_never_to_nothing() -> None:
    sigma = 1 / np.arange(1.0, 7)
    h = sigma**1.3
    noise = np.random.default_rng(0).normal(size=(16, 6))
    widths = []
    for size in (0.1, 0.01, 0.001):  # the last moves no exponent by half a step of the grid
        slopes = sigma * (1 + size * (noise - noise.mean(0)))
        step = find_step_exponent([StepReplicates(sigma, slopes, np.tile(h, (16, 1)), np.diag(h), (4,) * 16)], 16)
        assert isinstance(step, StepExponent)
        assert step.value == pytest.approx(1.3, abs=0.001)
        widths.append(step.interval.high - step.interval.low)
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.2)
    assert widths[1] / widths[2] == pytest.approx(10, rel=0.2)


def test_one_weight_without_a_step_length_leaves_the_others_theirs() -> None:
    rows = [make_layer(make_info(name), make_measurement()) for name in ("a", "b")]
    first, second = (with_signal(row) for row in rows)
    assert isinstance(second.held_out, HeldOut)
    bent = replace(
        second.held_out, curvature_matrix=tuple(tuple(-v for v in r) for r in second.held_out.curvature_matrix)
    )
    alone, together = pool_step_exponents([first]), pool_step_exponents([first, replace(second, held_out=bent)])
    assert isinstance(alone, StepExponent)
    assert together == alone
