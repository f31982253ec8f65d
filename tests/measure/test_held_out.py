"""Held-out slopes and curvature of a run against the long way round: gradients and Hessians fold by fold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import OptionError
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.measure.gradients import blocks_within
from spectrascope.measure.signal import deal_samples, find_signal_target
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.numerics.fits import fit_beta
from spectrascope.numerics.signal import draw_signs
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import Estimate, HeldOut, LabelSource, NullDraws, SignalSummary, SignalVerdict
from spectrascope.records.values import Missing
from spectrascope.workload import TensorSource
from tests.support import oracles

N, K, GROUPS, FOLDS = 48, 5, 8, 4


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def relu() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7))


def batch(n: int = N, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(7, (n,), generator=generator)


def model_of(kind: type) -> nn.Module:
    torch.manual_seed(0)
    return kind().double().eval()


def measure(model: nn.Module, **options) -> Report:
    data = options.pop("data", None) or batch()
    return spectrascope.probe(model, data, "cross-entropy", top_k=K, groups=GROUPS, self_check=False, **options)


def held(row: object) -> HeldOut:
    assert isinstance(row, LayerReport)
    assert isinstance(row.held_out, HeldOut)
    return row.held_out


def hessian_along(model: nn.Module, name: str, x: torch.Tensor, y: torch.Tensor, left: np.ndarray, right: np.ndarray):
    """M of the mean loss along u_k v_kᵀ by differentiating twice."""
    weight = dict(model.named_parameters())[name]
    loss = nn.functional.cross_entropy(model(x), y)
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    directions = [torch.from_numpy(np.outer(left[:, k], right[:, k])) for k in range(left.shape[1])]
    products = [torch.autograd.grad((gradient * d).sum(), weight, retain_graph=True)[0] for d in directions]
    return np.array([[float((p * d).sum()) for d in directions] for p in products])


@pytest.mark.parametrize("kind", [relu, Smooth])
def test_every_number_is_that_of_the_folds_taken_one_by_one(kind: type) -> None:
    model = model_of(kind)
    report = measure(model)
    dealt = deal_samples(TensorSource(*batch()), groups=GROUPS, folds=FOLDS, curvature_samples=N, seed=0)
    x, y = dealt.source.fetch(0, N)
    assert isinstance(x, torch.Tensor)
    size = N // FOLDS
    for row in report.layers:
        name, found = row.info.name, held(row)
        slopes, matrix, groups = np.zeros(K), np.zeros((K, K)), []
        for fold in range(FOLDS):
            inside = np.arange(N) // size == fold
            others, own = (torch.from_numpy(np.flatnonzero(mask)) for mask in (~inside, inside))
            trained = oracles.gradient_of(model, name, x[others], y[others], nn.functional.cross_entropy)
            u, _, vt = np.linalg.svd(trained.numpy())
            left, right = u[:, :K], vt[:K].T
            fresh = oracles.gradient_of(model, name, x[own], y[own], nn.functional.cross_entropy).numpy()
            slopes += np.einsum("mk,mn,nk->k", left, fresh, right) / FOLDS
            matrix += hessian_along(model, name, x[own], y[own], left, right) / FOLDS
            for half in own.chunk(GROUPS // FOLDS):
                one = oracles.gradient_of(model, name, x[half], y[half], nn.functional.cross_entropy).numpy()
                groups.append(np.einsum("mk,mn,nk->k", left, one, right))
        scale = np.abs(matrix).max()
        np.testing.assert_allclose(found.slopes, slopes, atol=1e-9)
        np.testing.assert_allclose(found.h, np.diag(matrix), atol=1e-9 * scale)
        np.testing.assert_allclose(
            np.abs(found.curvature_matrix), np.abs(matrix), atol=1e-9 * scale
        )  # signs of u_k v_k
        np.testing.assert_allclose(found.group_slopes, groups, atol=1e-9)
        np.testing.assert_allclose(np.mean(found.group_h, 0), np.diag(matrix), atol=1e-9 * scale)


def test_null_draws_are_sign_flipped_groups_and_their_curvature() -> None:
    model = model_of(relu)
    report = measure(model, null_draws=2)
    dealt = deal_samples(TensorSource(*batch()), groups=GROUPS, folds=FOLDS, curvature_samples=N, seed=0)
    x, y = dealt.source.fetch(0, N)
    signs = draw_signs(GROUPS, 20, seed=0)
    for row in report.layers:
        assert isinstance(row, LayerReport)
        assert isinstance(row.null, NullDraws)
        parts = [
            oracles.gradient_of(model, row.info.name, a, b, nn.functional.cross_entropy).numpy()
            for a, b in zip(x.chunk(GROUPS), y.chunk(GROUPS), strict=True)
        ]
        draws = [np.einsum("g,gmn->mn", row_of_signs, parts) / GROUPS for row_of_signs in signs]
        np.testing.assert_allclose(row.null.sigma_1, [np.linalg.norm(d, 2) for d in draws], rtol=1e-9)
        for draw, sigma, h in zip(draws, row.null.sigma, row.null.h, strict=False):
            u, s, vt = np.linalg.svd(draw)
            np.testing.assert_allclose(sigma, s[:K], rtol=1e-9)
            expected = np.diag(hessian_along(model, row.info.name, x, y, u[:, :K], vt[:K].T))
            np.testing.assert_allclose(h, expected, atol=1e-9 * np.abs(expected).max())


def test_the_published_numbers_do_not_depend_on_what_rides_along() -> None:
    model = model_of(relu)
    both, alone = measure(model), measure(model, estimate="published")
    for one, other in zip(both.layers, alone.layers, strict=True):
        assert isinstance(one, LayerReport)
        assert isinstance(other, LayerReport)
        np.testing.assert_allclose(one.measurement.h, other.measurement.h, rtol=1e-9)
        np.testing.assert_allclose(one.measurement.group_h, other.measurement.group_h, atol=1e-12)
        np.testing.assert_allclose(one.measurement.group_sigma, other.measurement.group_sigma, atol=1e-12)
        assert isinstance(other.held_out, Missing)
        assert isinstance(other.null, NullDraws)  # its threshold costs no curvature
        fit = fit_beta(one.measurement.sigma, one.measurement.h)
        assert not isinstance(fit, Missing)
        assert not isinstance(one.analysis.beta, Missing)
        assert one.analysis.beta.value == pytest.approx(fit.value)


def test_held_out_alone_has_the_same_held_out_numbers_and_says_what_is_missing() -> None:
    model = model_of(Smooth)
    both, alone = measure(model), measure(model, estimate=Estimate.HELD_OUT)
    for one, other in zip(both.layers, alone.layers, strict=True):
        np.testing.assert_allclose(held(one).h, held(other).h, rtol=1e-9)
        assert isinstance(other, LayerReport)
        assert isinstance(other.analysis.beta, Missing)
        assert "--estimate" in other.analysis.beta.reason
        assert not isinstance(other.analysis.alpha_g, Missing)


def test_fewer_samples_for_curvature_leave_the_slopes_as_they_are() -> None:
    model = model_of(relu)
    everything, fewer = measure(model), measure(model, curvature_samples=16)
    dealt = deal_samples(TensorSource(*batch()), groups=GROUPS, folds=FOLDS, curvature_samples=16, seed=0)
    x, y = dealt.source.pick(dealt.places).fetch(0, 16)
    for one, other in zip(everything.layers, fewer.layers, strict=True):
        np.testing.assert_allclose(held(one).group_slopes, held(other).group_slopes, rtol=1e-9)
        assert isinstance(one, LayerReport)
        assert isinstance(other, LayerReport)
        assert one.measurement.sigma == other.measurement.sigma
        np.testing.assert_allclose(one.measurement.group_sigma, other.measurement.group_sigma, atol=1e-12)
        gradient = oracles.gradient_of(model, one.info.name, *batch(), nn.functional.cross_entropy).numpy()
        u, _, vt = np.linalg.svd(gradient)
        expected = np.diag(hessian_along(model, one.info.name, x, y, u[:, :K], vt[:K].T))
        np.testing.assert_allclose(other.measurement.h, expected, atol=1e-9 * np.abs(expected).max())


def test_weights_in_blocks_give_what_they_give_together() -> None:
    model = model_of(relu)
    together, alone = measure(model), measure(model, memory=1)
    for one, other in zip(together.layers, alone.layers, strict=True):
        assert held(one) == held(other)


def test_folds_with_more_directions_than_the_whole_batch() -> None:
    """Gradients of the groups that cancel: the mean has a lower numerical rank than any fold's complement."""
    layer = next(c for c in find_layers(nn.Linear(5, 4)) if isinstance(c, WeightLayer))
    deal = deal_samples(
        TensorSource(torch.zeros(32, 1), torch.zeros(32)), groups=8, folds=4, curvature_samples=32, seed=0
    )
    one, other = (torch.randn(4, 1).double() @ torch.randn(1, 5).double() for _ in range(2))
    by_group = one + torch.tensor([1.0, 1, -1, -1, 2, 2, -2, -2])[:, None, None] * other
    target = find_signal_target(
        layer, by_group.mean(0), by_group, deal, top_k=3, dtype=torch.float64, folds=True, nulls=0, seed=0
    )
    assert target.directions.k == 1
    assert [d.k for d in target.folds] == [1] * 4


def test_blocks_hold_what_fits_and_keep_blocks_of_one_parameter_together() -> None:
    layers = [layer for layer in find_layers(nn.MultiheadAttention(4, 2), (), ()) if hasattr(layer, "parameter")]
    blocks = blocks_within(layers, 16, 1)  # type: ignore[arg-type]
    assert [len(block) for block in blocks] == [3, 1]  # q, k and v share a parameter
    assert len(blocks_within(layers, 16, 1 << 30)) == 1  # type: ignore[arg-type]


def test_samples_sorted_by_class_are_dealt_to_every_group() -> None:
    x, y = batch(160)
    order = y.sort().indices
    report = measure(model_of(relu), data=(x[order], y[order]))
    shuffled = measure(model_of(relu), data=(x, y))
    for one, other in zip(report.layers, shuffled.layers, strict=True):
        spread = [np.std(np.array(held(row).group_slopes), 0).mean() for row in (one, other)]
        assert spread[0] < 2 * spread[1]


def test_the_scale_of_the_loss_changes_no_exponent() -> None:
    model, data = model_of(relu), batch(160)
    one = spectrascope.probe(model, data, nn.functional.cross_entropy, groups=GROUPS, self_check=False)
    other = spectrascope.probe(
        model, data, lambda output, y: 8 * nn.functional.cross_entropy(output, y), groups=GROUPS, self_check=False
    )
    for first, second in zip(one.layers, other.layers, strict=True):
        np.testing.assert_allclose(np.array(held(second).slopes), 8 * np.array(held(first).slopes), rtol=1e-9)
        np.testing.assert_allclose(held(second).t, held(first).t, rtol=1e-6)
        a, b = held(first).step_exponent, held(second).step_exponent
        assert not isinstance(a, Missing)
        assert not isinstance(b, Missing)
        assert a.value == b.value


@pytest.mark.parametrize("size", [3, 7])
def test_how_samples_are_cut_into_micro_batches_changes_nothing(size: int) -> None:
    model = model_of(Smooth)
    one, other = measure(model), measure(model, micro_batch=size)
    for first, second in zip(one.layers, other.layers, strict=True):
        np.testing.assert_allclose(held(second).slopes, held(first).slopes, atol=1e-12)
        np.testing.assert_allclose(held(second).h, held(first).h, rtol=1e-9)


def test_labels_of_the_model_leave_no_signal() -> None:
    model = model_of(relu)
    signals = found = 0
    for seed in range(4):
        report = spectrascope.probe(
            model, batch(800), "cross-entropy", labels=LabelSource.MODEL, seed=seed, self_check=False, top_k=6
        )
        summary = report.summary.signal
        assert isinstance(summary, SignalSummary)
        assert summary.verdict is not SignalVerdict.SIGNAL
        for row in report.layers:
            assert isinstance(row, LayerReport)
            found += 1
            signals += row.analysis.n_signal != 0
            assert isinstance(held(row).beta, Missing)
    assert signals <= 1, f"{signals} of {found}"


def test_a_network_with_much_to_learn_is_signal() -> None:
    x, _ = batch(800)
    labels = (x @ torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).argmax(1)
    summary = spectrascope.probe(model_of(relu), (x, labels), "cross-entropy", top_k=6).summary.signal
    assert isinstance(summary, SignalSummary)
    assert summary.verdict is SignalVerdict.SIGNAL
    assert summary.n_signal >= 2


def test_too_few_samples_are_said_to_be_too_few() -> None:
    report = measure(model_of(relu), data=batch(3))
    for row in report.layers:
        assert isinstance(row, LayerReport)
        assert isinstance(row.held_out, Missing)
        assert "at least 4 sample groups" in row.held_out.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null_draws": -1}, "null_draws -1: expected auto or a whole number from 0 on"),
        ({"curvature_samples": 0}, "curvature_samples 0: expected auto or all or a whole number from 1 on"),
        ({"folds": 1}, "folds 1: must be at least 2"),
        ({"estimate": "none"}, "estimate 'none': expected one of both, published, held-out"),
        ({"labels": "mine"}, "labels 'mine': expected one of data, model, shuffled"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        measure(model_of(relu), **options)


def test_the_embedded_network_with_labels_of_its_own_is_noise() -> None:
    """Published numbers of pure noise look as good as any: beta near 2, straight lines, closed triangles."""
    loaded = load_model("digits-cnn@final")
    data = load_dataset("digits", loaded, num_samples=600, seed=0).source
    signals, fits, determined = [], [], []
    for seed in range(3):
        report = spectrascope.probe(
            loaded.model, data, "cross-entropy", labels="model", seed=seed, self_check=False, null_draws=0
        )
        rows = [row for row in report.layers if isinstance(row, LayerReport)]
        signals += [row.analysis.n_signal for row in rows]
        fits += [row.analysis.beta for row in rows]
        assert all(isinstance(held(row).beta, Missing) for row in rows)
        t = np.abs(np.concatenate([held(row).t for row in rows]))
        assert t.mean() < 1
        summary = report.summary.signal
        assert isinstance(summary, SignalSummary)
        determined.append(summary.verdict is SignalVerdict.SIGNAL)
    assert sum(n != 0 for n in signals) <= 2
    assert not any(determined)
    assert np.median([fit.value for fit in fits]) > 1.5
    assert np.median([fit.r2 for fit in fits]) > 0.8
