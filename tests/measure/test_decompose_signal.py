"""What is held out is the same in a decomposition as in a probe, from one deal of the samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.measure import curvatures, decompose, signal, stages
from spectrascope.measure.signal import deal_samples
from spectrascope.numerics.rank_models import RESAMPLES, compare_rank_models, count_rank_wins, draw_group_counts
from spectrascope.records.decomposition import Decomposition
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import NOT_RESAMPLED, HeldOut, NullDraws, RankResamples
from spectrascope.records.values import EngineName, Missing, RankComparison
from spectrascope.reports import report_from_json, report_to_json
from spectrascope.reports.refit import refit
from spectrascope.workload import TensorSource
from tests.measure.test_held_out import GROUPS, K, N, Smooth, batch, model_of, relu
from tests.support import oracles


class Mixed(nn.Module):
    """A piecewise linear tail after the second weight, a smooth one after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.tanh(self.first(x)))))


OPTIONS = {"top_k": K, "groups": GROUPS, "self_check": False}


def layers_of(report: Report) -> list[LayerReport]:
    return [row for row in report.layers if isinstance(row, LayerReport)]


def assert_close(found: object, truth: object) -> None:
    a, b = np.array(found), np.array(truth)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, atol=1e-10 * max(np.abs(b).max(initial=0), 1e-300))


@pytest.mark.parametrize("kind", [relu, Smooth, Mixed])
@pytest.mark.parametrize("options", [{}, {"null_draws": 2, "curvature_samples": 24}])
def test_held_out_numbers_are_those_of_a_probe(kind: type, options: dict) -> None:
    model = model_of(kind)
    probed = spectrascope.probe(model, batch(), "cross-entropy", **OPTIONS, **options)
    report = spectrascope.decompose(model, batch(), "cross-entropy", **OPTIONS, **options)
    for row, one in zip(layers_of(report), layers_of(probed), strict=True):
        assert isinstance(row.held_out, HeldOut)
        assert isinstance(one.held_out, HeldOut)
        for name in ("slopes", "t", "h", "group_slopes", "group_h"):
            assert_close(getattr(row.held_out, name), getattr(one.held_out, name))
        assert_close(np.abs(row.held_out.curvature_matrix), np.abs(one.held_out.curvature_matrix))
        assert_close(row.measurement.h, one.measurement.h)
        assert isinstance(row.null, NullDraws)
        assert isinstance(one.null, NullDraws)
        for name in ("sigma_1", "sigma", "h"):
            assert_close(getattr(row.null, name), getattr(one.null, name))
        assert isinstance(row.decomposition, Decomposition)
        assert row.measurement.engine is one.measurement.engine


def count_calls(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[int]:
    calls, original = [0], getattr(module, name)

    def counted(*args, **kwargs):
        calls[0] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_two_engines_share_one_deal_and_one_gradient_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = count_calls(monkeypatch, stages, "measure_gradients")
    deals = count_calls(monkeypatch, stages, "deal_samples")
    report = spectrascope.decompose(model_of(Mixed), batch(), "cross-entropy", **OPTIONS)
    assert {row.measurement.engine for row in layers_of(report)} == {EngineName.GAUSS_NEWTON, EngineName.TANGENT}
    assert gradients == deals == [1]


def test_published_alone_costs_no_other_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = count_calls(monkeypatch, curvatures, "make_engine")
    sweeps = count_calls(monkeypatch, decompose, "measure_with_curvature")
    report = spectrascope.decompose(model_of(relu), batch(), "cross-entropy", **OPTIONS, estimate="published")
    assert (engines, sweeps) == ([0], [1])
    assert all(isinstance(row.held_out, Missing) for row in layers_of(report))


@pytest.mark.parametrize("kind", [relu, Smooth])
def test_groups_of_the_factors_are_those_of_the_curvature(kind: type) -> None:
    """Samples are dealt at random: the jackknife of chi needs h and the factors of the same samples, group by group."""
    model = model_of(kind)
    report = spectrascope.decompose(model, batch(), "cross-entropy", **OPTIONS)
    dealt = deal_samples(TensorSource(*batch()), groups=GROUPS, folds=4, curvature_samples=N, seed=0)
    x, _ = dealt.source.fetch(0, N)
    assert isinstance(x, torch.Tensor)
    row = layers_of(report)[0]
    assert isinstance(row.decomposition, Decomposition)
    weight = next(iter(model.parameters()))
    gradient = oracles.gradient_of(model, row.info.name, *batch(), nn.functional.cross_entropy)
    assert gradient.shape == weight.shape
    right = np.linalg.svd(gradient.numpy())[2][:K].T
    truth = [((part.numpy() @ right) ** 2).mean(0) for part in x.chunk(GROUPS)]
    np.testing.assert_allclose(row.decomposition.factors.group_rayleigh_a, truth, rtol=1e-6)


def test_resamples_are_bootstrap_means_of_the_groups() -> None:
    model = model_of(relu)
    report = spectrascope.decompose(model, batch(), "cross-entropy", **OPTIONS)
    dealt = deal_samples(TensorSource(*batch()), groups=GROUPS, folds=4, curvature_samples=N, seed=0)
    x, y = dealt.source.fetch(0, N)
    counts = draw_group_counts(GROUPS, RESAMPLES, seed=0)
    assert (counts.sum(1) == GROUPS).all()
    for row in layers_of(report):
        assert isinstance(row.rank_resamples, RankResamples)
        parts = [
            oracles.gradient_of(model, row.info.name, a, b, nn.functional.cross_entropy).numpy()
            for a, b in zip(x.chunk(GROUPS), y.chunk(GROUPS), strict=True)
        ]
        means = [np.einsum("g,gmn->mn", weights, parts) / GROUPS for weights in counts]
        truth = [np.linalg.svd(mean, compute_uv=False)[:K] for mean in means]
        np.testing.assert_allclose(row.rank_resamples.sigma, truth, atol=1e-7 * np.max(truth))
        best = [compare_rank_models(values) for values in truth]
        wins = [model.best.value for model in best if isinstance(model, RankComparison)]
        assert row.rank_resamples.wins == {name: wins.count(name) for name in row.rank_resamples.wins}
        assert sum(row.rank_resamples.wins.values()) == RESAMPLES


def test_resamples_come_back_and_are_counted_again_over_another_window() -> None:
    report = spectrascope.decompose(model_of(relu), batch(), "cross-entropy", **OPTIONS)
    back = report_from_json(report_to_json(report))
    assert [row.rank_resamples for row in layers_of(back)] == [row.rank_resamples for row in layers_of(report)]
    again = refit(report, min_rank=2)
    for row in layers_of(again):
        assert row.rank_resamples == count_rank_wins(row.rank_resamples, (2, K))
    probed = spectrascope.probe(model_of(relu), batch(), "cross-entropy", **OPTIONS)
    assert {row.rank_resamples for row in layers_of(probed)} == {NOT_RESAMPLED}


def test_large_matrices_and_few_groups_are_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    few = spectrascope.decompose(model_of(relu), batch(), "cross-entropy", **{**OPTIONS, "groups": 3})
    assert {"4 sample groups" in row.rank_resamples.reason for row in layers_of(few)} == {True}  # type: ignore[union-attr]
    monkeypatch.setattr(signal, "RESAMPLED_UP_TO", 6)
    row = layers_of(spectrascope.decompose(model_of(relu), batch(), "cross-entropy", **OPTIONS))[1]
    assert row.rank_resamples == Missing("the gradient is not resampled where both sides of the matrix are above 6")


def test_along_a_momentum_every_sample_is_held_out_here_too() -> None:
    model = model_of(Mixed)
    momentum = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double()
                for name, p in model.named_parameters()}  # fmt: skip
    options = {**OPTIONS, "momentum": momentum, "dtype": "float64"}
    probed = spectrascope.probe(model, batch(), "cross-entropy", **options)
    for row, one in zip(
        layers_of(spectrascope.decompose(model, batch(), "cross-entropy", **options)), layers_of(probed), strict=True
    ):
        assert isinstance(row.held_out, HeldOut)
        assert isinstance(one.held_out, HeldOut)
        assert row.held_out.n_folds == 0
        assert_close(row.held_out.t, one.held_out.t)
        assert_close(row.held_out.h, one.held_out.h)
        assert isinstance(row.decomposition, Decomposition)
        assert isinstance(row.rank_resamples, Missing)
        assert "momentum" in row.rank_resamples.reason
