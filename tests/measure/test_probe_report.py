"""The whole run: the numbers in the report against the oracle, and what each row says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spectrascope
from spectrascope.measure.signal import deal_samples
from spectrascope.records.report import LayerReport, SkippedLayer
from spectrascope.records.values import EngineName, LayerStatus, Missing
from spectrascope.workload import SampleSource, TensorSource
from tests.support import oracles
from tests.support.cases import CASES, Net, img, make_workload, two_convs, vec
from tests.support.measure_helpers import layers_of as weights_of
from tests.support.measure_helpers import oracle_curvature, targets_of

N = 24


def _big() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))


def _batch(workload):
    return workload.source.fetch(0, workload.source.n)


def _dealt(workload, groups=5):
    """The same batch in the order in which its samples are dealt to groups."""
    deal = deal_samples(workload.source, groups=groups, folds=4, curvature_samples=N, seed=0)
    return replace(workload, source=TensorSource(*deal.source.fetch(0, N)))


def _slope(x, y):
    x, y = np.log(x), np.log(y)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


@pytest.fixture(scope="module")
def measured():
    workload = make_workload(vec(_big, 8), N)
    report = spectrascope.probe(workload.model, _batch(workload), top_k=6, groups=5, device="cpu")
    return workload, report


def test_every_weight_equals_the_oracle(measured):
    workload, report = measured
    workload = _dealt(workload)
    layers = weights_of(workload)
    assert [row.info.name for row in report.layers] == [la.name for la in layers]
    for row, target in zip(report.layers, targets_of(workload, layers, 6), strict=True):
        inputs, labels = _batch(workload)
        gradient = oracles.gradient_of(workload.model, row.info.name, inputs, labels, workload.loss_fn)
        sigma, _, _, rank = oracles.svd_directions(gradient, 6, 2**-52)
        matrix, group_h, group_sigma = oracle_curvature(workload, target, 5)
        m = row.measurement
        scale = float(matrix.diagonal().abs().max())
        np.testing.assert_allclose(m.sigma, sigma, rtol=1e-9)
        np.testing.assert_allclose(m.h, matrix.diagonal(), atol=1e-9 * scale)
        np.testing.assert_allclose(m.curvature_matrix, matrix, atol=1e-9 * scale)
        np.testing.assert_allclose(m.group_h, group_h, atol=1e-9 * float(group_h.abs().max()))
        np.testing.assert_allclose(m.group_sigma, group_sigma, atol=1e-9 * float(group_sigma.abs().max()))
        assert m.group_sizes == (5, 5, 4, 5, 5)
        assert (m.rank, m.full_rank) == (rank, min(row.info.shape))
        assert m.engine is EngineName.GAUSS_NEWTON
        assert m.exact
        spectrum = np.linalg.svd(gradient.numpy(), compute_uv=False)
        assert m.pr_g == pytest.approx(spectrum.sum() ** 2 / (spectrum**2).sum())


def test_fits_are_the_formulas(measured):
    _, report = measured
    for row in report.layers:
        sigma, h = np.array(row.measurement.sigma), np.array(row.measurement.h)
        assert (h > 0).all()
        k = np.arange(1, len(sigma) + 1)
        beta, alpha_g = _slope(sigma, h), -_slope(k, sigma)
        alpha_h = -_slope(k, np.sort(h)[::-1])
        a = row.analysis
        assert a.beta.value == pytest.approx(beta, rel=1e-9)
        assert a.alpha_g.value == pytest.approx(alpha_g, rel=1e-9)
        assert a.alpha_h.value == pytest.approx(alpha_h, rel=1e-9)
        assert a.triangle.predicted == pytest.approx(beta * alpha_g, rel=1e-9)
        assert a.pr_h == pytest.approx(h.sum() ** 2 / (h**2).sum())


def test_noise_floor_is_half_the_norm_of_the_half_batch_difference(measured):
    workload, report = measured
    (x, y), half = _batch(_dealt(workload)), N // 2
    for row in report.layers:
        first, second = (
            oracles.gradient_of(workload.model, row.info.name, x[s], y[s], workload.loss_fn)
            for s in (slice(0, half), slice(half, N))
        )
        expected = np.linalg.norm(((first - second) / 2).numpy(), 2)
        assert row.measurement.noise_floor == pytest.approx(expected, rel=1e-9)


def test_provenance(measured):
    workload, report = measured
    p = report.provenance
    x, y = _batch(workload)
    with torch.no_grad():
        output = workload.model(x)
    assert p.loss == pytest.approx(float(F.cross_entropy(output, y)), rel=1e-12)
    assert p.accuracy == pytest.approx(float((output.argmax(1) == y).double().mean()))
    assert p.engines == {"gauss-newton": 3}
    assert p.dtype == "float64"
    assert p.data.n == N
    assert p.data.n_classes == 8
    assert set(p.seconds) >= {"check", "gradient", "directions", "curvature", "self-check"}
    assert p.self_check.residual < p.self_check.tolerance == 1e-6
    assert p.self_check.n_pairs >= 3
    assert p.self_check.n_samples == 16


@pytest.mark.parametrize("n_classes", [1, 3])
def test_accuracy_only_where_outputs_are_class_scores(n_classes):
    def loss(output, target):
        return F.binary_cross_entropy_with_logits(output[:, 0], target.to(output.dtype))

    workload = make_workload(vec(lambda: nn.Linear(6, n_classes), 2, loss=loss), 8)
    report = spectrascope.probe(workload.model, _batch(workload), loss)
    assert isinstance(report.provenance.accuracy, Missing) == (n_classes == 1)
    assert isinstance(report.layers[0], LayerReport)


EXACT = (EngineName.AUTO, EngineName.GAUSS_NEWTON, EngineName.TANGENT, EngineName.DOUBLE_BACKPROP)


@pytest.mark.parametrize("engine", EXACT)
@pytest.mark.parametrize("name", ["residual", "conv1d", "bce_1", "mse", "shared_parallel"])
def test_engines_agree_end_to_end(name, engine):
    workload = make_workload(CASES[name], 9)
    report, other = (
        spectrascope.probe(workload.model, _batch(workload), workload.loss_fn, top_k=3, engine=e, micro_batch=m)
        for e, m in ((engine, 4), (EngineName.DOUBLE_BACKPROP, "auto"))
    )
    for a, b in zip(report.layers, other.layers, strict=True):
        if engine is not EngineName.AUTO:
            assert a.measurement.engine is engine
        assert a.measurement.h == pytest.approx(b.measurement.h, abs=1e-9 * max(map(abs, b.measurement.h)))


@pytest.mark.parametrize("name", ["attention", "tied_tokens", "squeeze_excite", "shared_sequence", "layer_norm"])
def test_smooth_networks_are_measured_and_say_why(name):
    workload = make_workload(CASES[name], 8)
    report = spectrascope.probe(workload.model, _batch(workload), top_k=3)
    assert {r.info.name for r in report.layers if isinstance(r, LayerReport)} >= set(CASES[name].smooth)
    for row in report.layers:
        smooth = row.info.name in CASES[name].smooth
        assert ("piecewise-linear tail" in row.measurement.engine_reason) != smooth
        if not isinstance(row.measurement.residual, Missing):
            assert row.measurement.residual < 1e-6


def test_unused_weight_and_dead_weight_fail_alone():
    net = Net(
        lambda s, x: s.b(F.relu(s.a(x))) + 0 * s.dead(x),
        a=nn.Linear(6, 5),
        b=nn.Linear(5, 4),
        dead=nn.Linear(6, 4),
        unused=nn.Linear(3, 3),
    )
    workload = make_workload(vec(lambda: net), 8)
    report = spectrascope.probe(net, _batch(workload))
    rows = {r.info.name: r for r in report.layers}
    assert rows["unused.weight"].status is LayerStatus.FAILED
    assert "does not reach the loss" in rows["unused.weight"].reason
    assert rows["dead.weight"].status is LayerStatus.FAILED
    assert "exactly zero" in rows["dead.weight"].reason
    assert isinstance(rows["a.weight"], LayerReport)
    assert report.summary.n_failed == 2
    assert report.summary.n_ok == 2


def test_k_above_rank_keeps_the_rank():
    workload = make_workload(CASES["mlp_relu"], 20)
    report = spectrascope.probe(workload.model, _batch(workload), top_k=50)
    head = report.layers[-1]
    assert head.info.shape == (4, 5)
    assert head.measurement.rank == len(head.measurement.h) == 3  # softmax: one row is minus the sum of the others
    assert isinstance(head.analysis.beta, Missing)


def test_one_sample():
    workload = make_workload(CASES["conv_batch_norm"], 1)
    report = spectrascope.probe(workload.model, _batch(workload))
    assert report.provenance.data.n == 1
    for row in report.layers:
        assert row.measurement.group_sizes == (1,)
        assert isinstance(row.measurement.noise_floor, Missing)


class _Source(SampleSource):
    n = 30

    def fetch(self, start, stop):
        x = torch.arange(start, stop)[:, None] * torch.arange(1.0, 7.0)
        return x.sin(), torch.arange(start, stop) % 4


def _inputs(kind: str):
    x, y = _Source().fetch(0, 30)
    return {
        "tensors": (x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=7),
        "generator": ((x[i : i + 4], y[i : i + 4]) for i in range(0, 30, 4)),
        "source": _Source(),
    }[kind]


@pytest.mark.parametrize("kind", ["tensors", "loader", "generator", "source"])
def test_every_kind_of_batches_gives_the_same_and_num_samples_counts(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    x, y = _Source().fetch(0, 18)
    expected = spectrascope.probe(net, (x, y))
    found = spectrascope.probe(net, _inputs(kind), num_samples=18)
    assert found.provenance.data.n == found.options.num_samples == 18
    assert found.provenance.data.digest == expected.provenance.data.digest
    for a, b in zip(found.layers, expected.layers, strict=True):
        assert a.measurement.h == pytest.approx(b.measurement.h, rel=1e-4)
    whole = spectrascope.probe(net, _inputs(kind), num_samples=None)
    assert whole.provenance.data.n == 30


def test_layers_and_exclude():
    workload = make_workload(CASES["residual"], 6)
    report = spectrascope.probe(workload.model, _batch(workload), layers=["a.*", "b.*"], exclude=["b.weight"])
    assert [r.info.name for r in report.layers if isinstance(r, LayerReport)] == ["a.weight"]
    assert {r.reason for r in report.layers if isinstance(r, SkippedLayer)} == {
        "not selected by --layers",
        "excluded by --exclude",
    }


def test_a_frozen_stem_without_gradients_is_no_obstacle():
    def run(s, x):
        with torch.no_grad():
            h = F.relu(s.a(x))
        return s.fc(h.mean((2, 3)))

    workload = make_workload(img(two_convs(run, fc=lambda: nn.Linear(4, 4))), 6)
    stem, head = spectrascope.probe(workload.model, _batch(workload)).layers
    assert "does not reach the loss" in stem.reason
    assert head.measurement.engine is EngineName.GAUSS_NEWTON
