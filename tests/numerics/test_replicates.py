"""Replicates of all numbers at once are what one fit after the other gives."""

from dataclasses import replace

import numpy as np
import pytest

from spectrascope.numerics.analysis import analyse
from spectrascope.numerics.fits import fit_alpha_g, fit_alpha_h, fit_beta
from spectrascope.numerics.participation import effective_rank, participation_ratio
from spectrascope.numerics.replicates import perturb_curvatures, replicate_numbers
from spectrascope.numerics.sample_groups import SampleGroups, jackknife_stderr
from spectrascope.records.report import LayerInfo, LayerReport
from spectrascope.records.values import LayerKind, LayerRole, Missing
from tests.support.numerics_cases import make_measurement

INFO = LayerInfo("w", LayerKind.LINEAR, LayerRole.MATRIX, (40, 50), (40, 50))


def layer(*, k: int = 10, n_negative: int = 0, min_rank: int = 1, sizes: tuple[int, ...] = (30, 20, 25, 40, 10)):
    rng = np.random.default_rng(k + n_negative)
    sigma = np.arange(1, k + 1) ** -0.9
    h = 2 * sigma**1.7
    h[k - n_negative :] *= -1
    group_sigma = sigma * (1 + 0.05 * rng.standard_normal((len(sizes), k)))
    group_h = h * (1 + 0.3 * rng.standard_normal((len(sizes), k)))
    weights = np.array(sizes) / sum(sizes)
    measurement = replace(
        make_measurement(sigma, weights @ group_h),
        group_sizes=sizes,
        group_sigma=tuple(map(tuple, group_sigma.tolist())),
        group_h=tuple(map(tuple, group_h.tolist())),
    )
    return LayerReport(INFO, measurement, analyse(measurement, top_k=k, min_rank=min_rank))


@pytest.mark.parametrize("options", [{}, {"n_negative": 3}, {"min_rank": 3}, {"k": 20, "n_negative": 1}], ids=str)
def test_against_one_fit_after_the_other(options: dict) -> None:
    row = layer(**options)
    first, last = row.analysis.window
    m = row.measurement
    found = replicate_numbers(row)
    groups = SampleGroups(m.group_sizes, m.group_sigma, m.group_h).restrict(first, last)
    for g, (sigma, h) in enumerate(zip(*groups.leave_one_out(), strict=True)):
        assert found.sigma[g] == pytest.approx(sigma, rel=1e-13)
        assert found.h[g] == pytest.approx(h, rel=1e-13)
        assert found.beta[g] == pytest.approx(fit_beta(sigma, h).value, rel=1e-10)
        assert found.alpha_g[g] == pytest.approx(fit_alpha_g(sigma, first).value, rel=1e-10)
        assert found.alpha_h[g] == pytest.approx(fit_alpha_h(h, first).value, rel=1e-10)
        assert found.pr_h[g] == pytest.approx(participation_ratio(h), rel=1e-12)
        assert found.effective_rank_h[g] == pytest.approx(effective_rank(h), rel=1e-12)


def test_the_standard_error_is_that_of_the_interval() -> None:
    row = layer(sizes=(30,) * 8)
    interval = row.analysis.beta.jackknife_ci95
    half_width = (interval.high - interval.low) / 2
    assert half_width == pytest.approx(2.3646242510103 * jackknife_stderr(replicate_numbers(row).beta), rel=1e-9)


def test_what_cannot_be_replicated() -> None:
    assert replicate_numbers(layer(sizes=(5, 5, 5))) == Missing("3 sample groups, a jackknife needs at least 4")
    row = layer()
    empty = replace(row, analysis=replace(row.analysis, window=(4, 3)))
    assert replicate_numbers(empty) == Missing("the window holds no direction")
    few = replicate_numbers(layer(k=4, n_negative=1))
    assert np.isnan(few.beta).all()
    assert jackknife_stderr(few.beta) == Missing("it cannot be worked out without one of the sample groups")
    assert np.isfinite(few.alpha_g).all()


@pytest.mark.parametrize("min_rank", [1, 3])
def test_each_curvature_is_raised_by_its_own_error_in_turn(min_rank: int) -> None:
    row = layer(n_negative=2, min_rank=min_rank)
    m, (first, last) = row.measurement, row.analysis.window
    errors = tuple(0.1 * abs(h) for h in m.h)
    row = replace(row, measurement=replace(m, exact=False, h_stderr=errors))
    as_measured, raised = perturb_curvatures(row)
    sigma, h = np.array(m.sigma[first - 1 : last]), np.array(m.h[first - 1 : last])
    assert as_measured.beta == pytest.approx([fit_beta(sigma, h).value], rel=1e-10)
    assert as_measured.alpha_h == pytest.approx([fit_alpha_h(h, first).value], rel=1e-10)
    assert raised.h.shape == (len(h), len(h))
    for k in range(len(h)):
        moved = h.copy()
        moved[k] += errors[first - 1 + k]
        assert raised.h[k] == pytest.approx(moved, rel=1e-15)
        assert raised.beta[k] == pytest.approx(fit_beta(sigma, moved).value, rel=1e-10)
        assert raised.alpha_g[k] == pytest.approx(fit_alpha_g(sigma, first).value, rel=1e-10)
        assert raised.pr_h[k] == pytest.approx(participation_ratio(moved), rel=1e-12)


def test_what_cannot_be_perturbed() -> None:
    assert perturb_curvatures(layer()) == Missing("the engine is exact")
    row = layer()
    m = replace(row.measurement, exact=False, h_stderr=(0.1,) * len(row.measurement.h))
    empty = replace(row, measurement=m, analysis=replace(row.analysis, window=(5, 4)))
    assert perturb_curvatures(empty) == Missing("the window holds no direction")
