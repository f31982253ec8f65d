"""The self-check: every weight is compared, and what an engine gets wrong is measured by the next one."""

from __future__ import annotations

import contextlib
import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spectrascope
from spectrascope.curvature import double_backprop, gauss_newton, references
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.errors import DataError, OptionError, SelfCheckError, UnsupportedModelError
from spectrascope.records.values import Missing
from spectrascope.workload import PickedSamples, SampleSource, TensorSource
from tests.support.cases import Net, labels

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(3)), labels(12, 4)


def _mlp(act: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), act or nn.ReLU(), nn.Linear(5, 4))


def _wrong_gauss_newton(monkeypatch, what="matrix"):
    real = gauss_newton.GaussNewton.measure

    def sabotaged(self, *args, **rest):
        found = real(self, *args, **rest)
        for curvature in found:
            getattr(curvature, what).mul_(1.01)
        return found

    monkeypatch.setattr(gauss_newton.GaussNewton, "measure", sabotaged)


def _wrong_double_backprop(monkeypatch, *modules, factor=1.01):
    real = double_backprop.hessian_products
    for module in modules:
        monkeypatch.setattr(
            f"spectrascope.curvature.{module}.hessian_products", lambda *args: [factor * p for p in real(*args)]
        )


def _wrong_tangents(monkeypatch, factor=1.01, *, where=lambda workload, targets, name: True):
    real = Tangents.measure_each

    def sabotaged(self, workload, targets, **rest):
        found = real(self, workload, targets, **rest)
        for target, curvature in zip(targets, found, strict=True):
            if where(workload, targets, target.layer.name):
                curvature.matrix.mul_(factor)
        return found

    monkeypatch.setattr(Tangents, "measure_each", sabotaged)


def _same_h(found, right, rel=1e-4):
    for one, other in zip(found.layers, right.layers, strict=True):
        assert one.measurement.h == pytest.approx(other.measurement.h, rel=rel, abs=1e-9), one.info.name


# --- what one engine gets wrong goes to the next -------------------------------------------------------------------


def test_what_gauss_newton_gets_wrong_is_measured_by_tangents(monkeypatch):
    right = spectrascope.probe(_mlp(), (X, Y))
    _wrong_gauss_newton(monkeypatch)
    found = spectrascope.probe(_mlp(), (X, Y))
    _same_h(found, right)
    assert found.provenance.engines == {"tangent": 2}
    assert found.provenance.self_check.residual < 1e-4
    assert found.provenance.self_check.n_weights == 2
    for row in found.layers:
        reason = row.measurement.engine_reason
        assert reason.startswith("gauss-newton failed the self-check: the weight differs from the reference by 0.01")
    unchecked = spectrascope.probe(_mlp(), (X, Y), self_check=False)
    assert unchecked.provenance.engines == {"gauss-newton": 2}


def test_an_engine_asked_for_by_name_is_not_replaced(monkeypatch):
    _wrong_gauss_newton(monkeypatch)
    with pytest.raises(SelfCheckError, match=r"by 0.01 of its largest .*, measured by gauss-newton; try engine='auto'"):
        spectrascope.probe(_mlp(), (X, Y), engine="gauss-newton")


def test_what_tangents_get_wrong_is_measured_by_double_backprop(monkeypatch):
    right = spectrascope.probe(_mlp(nn.Tanh()), (X, Y))
    _wrong_tangents(monkeypatch)
    found = spectrascope.probe(_mlp(nn.Tanh()), (X, Y))
    _same_h(found, right)
    assert found.layers[0].measurement.engine.value == "double-backprop"
    assert found.layers[0].measurement.engine_reason.startswith("tangent failed the self-check: the weight differs")


@pytest.mark.parametrize(("bytes_of_a_copy", "copies"), [(1 << 30, 1), (0, 0)], ids=["small", "large"])
def test_a_large_network_is_not_copied_in_float64_unless_something_differs(monkeypatch, bytes_of_a_copy, copies):
    made = []
    monkeypatch.setattr(references, "_SMALL", bytes_of_a_copy)
    monkeypatch.setattr(references, "copy_of", lambda model: made.append(1) or copy.deepcopy(model))
    report = spectrascope.probe(_mlp(nn.Tanh()), (X, Y))
    assert len(made) == copies
    assert report.provenance.self_check.n_weights == len(report.layers)


def test_without_room_for_a_copy_a_difference_is_a_fault(monkeypatch):
    monkeypatch.setattr(references, "available_bytes", lambda device: 100)
    report = spectrascope.probe(_mlp(nn.Tanh()), (X, Y))
    assert report.provenance.self_check.n_weights == len(report.layers)
    _wrong_tangents(monkeypatch)
    report = spectrascope.probe(_mlp(nn.Tanh()), (X, Y), engine="tangent")
    assert "differs from the reference by" in report["0.weight"].measurement.engine_reason


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wrong_double_backprop_ends_the_run(monkeypatch, dtype):
    _wrong_double_backprop(monkeypatch, "double_backprop", "references")
    with pytest.raises(SelfCheckError, match=r"differs from the reference by 0.0(099|1) of its largest") as caught:
        spectrascope.probe(_mlp(nn.Tanh()), (X, Y), dtype=dtype, engine="double-backprop")
    assert "measured by double-backprop, and no exact engine is left" in str(caught.value)
    assert "--engine double-backprop" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_error_that_both_ways_of_autograd_share_is_caught(monkeypatch):
    """Tangents and double backprop wrong alike: only differences of the gradient can tell."""
    _wrong_tangents(monkeypatch, 1.1)
    _wrong_double_backprop(monkeypatch, "double_backprop", "references", factor=1.1)
    with pytest.raises(SelfCheckError, match=r"weight '0.weight' differs from the reference by 0.1 "):
        spectrascope.probe(_mlp(nn.Tanh()), (X, Y), dtype="float64")


class _Detaches(torch.autograd.Function):
    """A tanh whose backward pass is right, and whose second derivative lacks a term: what it saved is a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].detach().tanh() ** 2)


def _three(act):
    torch.manual_seed(0)
    parts = {"a": nn.Linear(6, 5), "b": nn.Linear(5, 5), "c": nn.Linear(5, 4)}
    return Net(lambda s, x: s.c(s.b(act(s.a(x))).tanh()), **parts)


@pytest.mark.parametrize("engine", ["auto", "double-backprop"])
def test_a_weight_that_no_engine_gets_right_fails_alone(engine):
    x = X.double()
    first, *others = spectrascope.probe(_three(_Detaches.apply), (x, Y), dtype="float64", engine=engine).layers
    assert first.status.value == "failed"
    assert first.reason.startswith("self-check failed: the weight differs from the reference by ")
    assert first.reason.endswith("--exclude leaves the weight out")
    right = spectrascope.probe(_three(torch.tanh), (x, Y), dtype="float64", engine="double-backprop").layers[1:]
    for one, other in zip(others, right, strict=True):
        assert one.measurement.h == pytest.approx(other.measurement.h, rel=1e-9, abs=1e-12)
        assert one.measurement.residual < 1e-6
    with pytest.raises(SelfCheckError, match=r"weight 'a.weight' differs from the reference"):
        spectrascope.probe(_three(_Detaches.apply), (x, Y), dtype="float64", engine=engine, layers=["a.weight"])


def test_a_wrong_weight_ends_the_run_where_others_were_not_compared(monkeypatch):
    real = double_backprop.hessian_products
    for module in ("double_backprop", "references"):
        monkeypatch.setattr(
            f"spectrascope.curvature.{module}.hessian_products",
            lambda target, *rest: [1.05 * p if target.layer.name == "0.weight" else p for p in real(target, *rest)],
        )
    options = {"dtype": "float64", "engine": "double-backprop", "top_k": 2}
    with pytest.raises(SelfCheckError, match=r"weight '0.weight' differs from the reference by 0.05"):
        spectrascope.probe(_deep(), (X, Y), self_check="sampled", **options)
    rows = spectrascope.probe(_deep(), (X, Y), **options).layers
    assert [row.info.name for row in rows if row.status.value == "failed"] == ["0.weight"]


def test_wrong_slopes_hand_on(monkeypatch):
    _wrong_gauss_newton(monkeypatch, "group_sigma")
    found = spectrascope.probe(_mlp(), (X, Y))
    assert found.provenance.engines == {"tangent": 2}
    assert "different slopes in the gradient and the curvature pass" in found.layers[0].measurement.engine_reason


def test_wrong_slopes_hand_on_where_curvature_sees_a_part_of_the_batch(monkeypatch):
    """The report's slopes are then of the gradient pass: the self-check's samples show the engine's."""
    right = spectrascope.probe(_mlp(), (X, Y), curvature_samples=8, groups=4)
    _wrong_gauss_newton(monkeypatch, "group_sigma")
    found = spectrascope.probe(_mlp(), (X, Y), curvature_samples=8, groups=4)
    assert found.provenance.engines == {"tangent": 2}
    assert "different slopes in the gradient and the curvature pass" in found.layers[0].measurement.engine_reason
    _same_h(found, right)


class _Restless(SampleSource):
    """Augments: other samples on every read."""

    n = 12

    def fetch(self, start, stop):
        return X[start:stop] + 0.1 * torch.randn(stop - start, 6), Y[start:stop]


@pytest.mark.parametrize("options", [{}, {"curvature_samples": 8, "groups": 4}], ids=["all", "some"])
def test_samples_that_change_from_read_to_read_are_told(options):
    with pytest.raises(
        DataError, match=r"the samples differ from one reading to the next: two gradients of weight '0.weight'"
    ):
        spectrascope.probe(_mlp(), _Restless(), **options)


# --- every weight --------------------------------------------------------------------------------------------------


def _deep():
    torch.manual_seed(0)
    layers = [layer for _ in range(9) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, 4))


def test_one_wrong_weight_of_many_is_found(monkeypatch):
    names = [f"{2 * i}.weight" for i in range(10)]
    right = spectrascope.probe(_deep(), (X, Y), top_k=3)
    assert right.provenance.self_check.n_weights == 10
    assert all(not isinstance(row.measurement.residual, Missing) for row in right.layers)
    few = spectrascope.probe(_deep(), (X, Y), top_k=3, self_check="sampled")
    missed = [i for i, row in enumerate(few.layers) if isinstance(row.measurement.residual, Missing)]
    assert len(missed) == 5
    assert few.provenance.self_check.n_weights == 5
    wrong = [names[missed[0]], names[missed[-1]]]
    _wrong_tangents(monkeypatch, 0.05, where=lambda workload, targets, name: name in wrong)
    assert set(spectrascope.probe(_deep(), (X, Y), top_k=3, self_check="sampled").provenance.engines) <= {
        "tangent", "gauss-newton",
    }  # fmt: skip
    found = spectrascope.probe(_deep(), (X, Y), top_k=3)
    moved = [row.info.name for row in found.layers if row.measurement.engine.value == "double-backprop"]
    assert moved == wrong
    _same_h(found, right)


def test_what_is_wrong_among_others_alone_is_found(monkeypatch):
    right = spectrascope.probe(_deep(), (X, Y), top_k=3)
    _wrong_tangents(monkeypatch, 0.9, where=lambda workload, targets, name: len(targets) > 1 and name == "8.weight")
    found = spectrascope.probe(_deep(), (X, Y), top_k=3)
    assert [row.info.name for row in found.layers if row.measurement.engine.value == "double-backprop"] == ["8.weight"]
    _same_h(found, right)


def test_samples_are_drawn_anywhere_in_the_batch(monkeypatch):
    """A rule that is wrong for the last three quarters of the batch alone."""
    _wrong_tangents(
        monkeypatch,
        1.5,
        where=lambda workload, *_: bool((workload.fetch(0, workload.source.n)[0][:, 0] > 0).all()),
    )
    x = torch.randn(64, 6)
    x[:, 0] = torch.where(torch.arange(64) < 16, -1.0, 1.0)
    y = labels(64, 4)
    few = spectrascope.probe(_mlp(nn.Tanh()), (x, y), self_check="sampled", layers=["0.weight"])
    assert few.provenance.engines == {"tangent": 1}
    found = [
        spectrascope.probe(_mlp(nn.Tanh()), (x, y), layers=["0.weight"], seed=seed).provenance.engines
        for seed in range(3)
    ]
    assert {"double-backprop": 1} in found


def test_an_expert_that_few_samples_reach_is_compared_on_more():
    def route(net, x):
        return net.b(torch.where((torch.arange(len(x)) < 0)[:, None] | (x[:, :1] > 1.5), net.rare(x), net.a(x)).tanh())

    torch.manual_seed(0)
    net = Net(route, a=nn.Linear(6, 5), rare=nn.Linear(6, 5), b=nn.Linear(5, 4))
    x = torch.randn(96, 6)
    report = spectrascope.probe(net, (x, labels(96, 4)), top_k=2)
    assert [row.info.name for row in report.layers] == ["a.weight", "rare.weight", "b.weight"]
    assert all(row.measurement.residual < 1e-4 for row in report.layers)


def test_it_costs_a_few_per_cent():
    """Counted in multiplications; the run's grow with the samples, the check's do not."""
    batch = (torch.randn(256, 16, generator=torch.Generator().manual_seed(0)), labels(256, 10))
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(1) for m in (nn.Linear(16, 16), nn.ReLU())], nn.Linear(16, 10))

    def operations(**options):
        with FlopCounterMode(display=False) as counter:
            spectrascope.probe(net, batch, micro_batch=128, estimate="published", **options)
        return counter.get_total_flops()

    unchecked = operations(self_check="off")
    at_2048 = 2048 / 256 * unchecked
    assert 0 < operations() - unchecked < 0.05 * at_2048


def test_off_is_said_and_words_are_checked():
    check = spectrascope.probe(_mlp(), (X, Y), self_check="off").provenance.self_check
    assert check == Missing("switched off (--self-check off)")
    with pytest.raises(OptionError, match="self_check 'most': expected one of all, sampled, off"):
        spectrascope.probe(_mlp(), (X, Y), self_check="most")


# --- scales, and rounding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()], ids=["relu", "tanh"])
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_scale_of_the_loss_changes_nothing_but_the_scale(act, factor):
    x, y = torch.randn(96, 12, generator=torch.Generator().manual_seed(1)), labels(96, 8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), act, nn.Linear(16, 8))
    usual = spectrascope.probe(net, (x, y), F.cross_entropy, top_k=6)
    found = spectrascope.probe(net, (x, y), lambda o, t: factor * F.cross_entropy(o, t), top_k=6)
    assert 1e-9 < found.provenance.self_check.residual < 1e-4  # neither alarmed nor blind
    for one, other in zip(found.layers, usual.layers, strict=True):
        assert one.measurement.h == pytest.approx([factor * h for h in other.measurement.h], rel=1e-3)
        assert one.analysis.beta.value == pytest.approx(other.analysis.beta.value, rel=1e-3)
        assert one.held_out.step_exponent.value == other.held_out.step_exponent.value


@pytest.mark.parametrize("scale", [200, 400, 1000])
def test_a_network_that_is_certain_of_every_label_is_no_alarm(scale):
    """Gradients of 1e-20 and 1e-40: one line, which blames neither the network nor an engine."""
    net = _mlp(nn.Tanh())
    with torch.no_grad():
        net[2].weight.mul_(scale)
        first, second = net(torch.cat([X, X * 2, X * 3])).topk(2).values.T
    x = torch.cat([X, X * 2, X * 3])[first - second > 70 * scale / 400]
    ends = contextlib.nullcontext()
    if scale != 400:
        ends = pytest.raises(
            UnsupportedModelError, match=r"no weight could be measured .*(certain|rounding|exactly zero)"
        )
    rows = ()
    with ends:
        rows = spectrascope.probe(net, (x, net(x).argmax(1))).layers
    for row in rows:
        if row.status.value == "ok":  # what no rounding touches, even at 1e-32
            assert row.measurement.residual < 1e-4
        else:
            assert re.search("certain|rounding|exactly zero", row.reason)


# --- samples of the user's own ---


class _Scaled(TensorSource):
    """A source of the user's own on top of tensors: what it returns is not what it holds."""

    def fetch(self, start, stop):
        inputs, targets = super().fetch(start, stop)
        return inputs * 3, targets


def test_samples_are_read_by_the_users_own_fetch():
    source = _Scaled(X, Y)
    picked, targets = PickedSamples(source, (7, 2, 3)).fetch(0, 3)
    assert torch.equal(picked, 3 * X[[7, 2, 3]])
    assert torch.equal(targets, Y[[7, 2, 3]])
    found, right = spectrascope.probe(_mlp(), source), spectrascope.probe(_mlp(), (3 * X, Y))
    _same_h(found, right)
    for one, other in zip(found.layers, right.layers, strict=True):
        assert one.measurement.sigma == pytest.approx(other.measurement.sigma, rel=1e-5)
