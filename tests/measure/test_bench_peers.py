"""Other tools in the bench: called by their own interfaces, held to double backprop; absent or failing ones say why."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from torch import nn

from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.measure import bench as bench_module
from spectrascope.measure import peers
from spectrascope.measure.bench import run_bench
from spectrascope.measure.peers import PEERS, Peer
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import Run, TensorSource
from tests.measure.test_bench_report import DATA, MODEL
from tests.support.cases import CASES, make_workload

FAKES = {
    "pyhessian": '''
import torch

def hessian_vector_product(gradients, parameters, v):
    return torch.autograd.grad(gradients, parameters, grad_outputs=v, retain_graph=True)

class hessian:
    def __init__(self, model, criterion, data=None, dataloader=None, cuda=True):
        assert not cuda and (data is None) != (dataloader is None)
        self.model, self.criterion, self.data = model.eval(), criterion, dataloader
        self.params = [p for p in model.parameters() if p.requires_grad]
        if data is not None:
            self.gradsH = self._gradients(*data)

    def _gradients(self, inputs, targets):
        self.model.zero_grad()
        self.criterion(self.model(inputs), targets).backward(create_graph=True)
        return [p.grad + 0.0 for p in self.params]

    def dataloader_hv_product(self, v):
        n, total = 0, [torch.zeros_like(p) for p in self.params]
        for inputs, targets in self.data:
            found = torch.autograd.grad(self._gradients(inputs, targets), self.params, grad_outputs=v)
            total = [t + f * len(targets) for t, f in zip(total, found)]
            n += len(targets)
        return 0.0, [t / n for t in total]
''',
    "curvlinops": '''
import torch

class HessianLinearOperator:
    def __init__(self, model_func, loss_func, params, data, *, check_deterministic, batch_size_fn):
        assert loss_func.reduction == "mean" and not check_deterministic
        self.parts = model_func, loss_func, params, data, batch_size_fn

    def __matmul__(self, matrices):
        network, loss_fn, params, data, count = self.parts
        total, n = [torch.zeros_like(m) for m in matrices], sum(count(x) for x, _ in data)
        for inputs, targets in data:
            gradients = torch.autograd.grad(loss_fn(network(inputs), targets), params, create_graph=True)
            for k in range(matrices[0].shape[-1]):
                v = [m[..., k] for m in matrices]
                found = torch.autograd.grad(gradients, params, grad_outputs=v, retain_graph=True)
                for t, f in zip(total, found):
                    t[..., k] += f * count(inputs) / n
        return total
''',
    "hessian_eigenthings": '''
import torch

class HessianOperator:
    def __init__(self, model, dataloader, loss_fn, *, param_filter):
        self.params = [p for name, p in model.named_parameters() if p.requires_grad and param_filter(name, p)]
        self.model, self.batches, self.loss_fn = model, dataloader, loss_fn

    def matvec(self, v):
        (p,) = self.params
        total = torch.zeros_like(v)
        for batch in self.batches:
            (gradient,) = torch.autograd.grad(self.loss_fn(self.model, batch), p, create_graph=True)
            total += torch.autograd.grad(gradient, p, grad_outputs=v.view_as(p))[0].reshape(-1)
        return total / len(self.batches)
''',
}  # fmt: skip


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """Tools of the same interfaces; one may be written anew, or left out by an empty text."""

    def fake(**changed: str) -> None:
        for name, text in (FAKES | changed).items():
            for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
                monkeypatch.delitem(sys.modules, loaded)
            if text:
                (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        real = importlib.util.find_spec
        absent = {name for name, text in changed.items() if not text}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else real(name))

    yield fake
    for name in FAKES:
        sys.modules.pop(name, None)


def _bench(name="residual", n=64, dtype=torch.float64, **rest):
    workload = make_workload(CASES[name], n, dtype)
    options = ProbeOptions(num_samples=n, top_k=4, device="cpu", dtype=str(dtype).removeprefix("torch."))
    run = Run(workload.model, workload.source, workload.loss_fn, options, MODEL, DATA)
    return run_bench(run, **{"rounds": 2, "peers": True} | rest)


def test_each_is_called_by_its_own_interface_and_agrees(faked):
    faked()
    report = _bench("residual", 64, reference_samples=64)
    assert [p.name for p in report.peers] == ["PyHessian", "curvlinops", "hessian-eigenthings"]
    for peer in report.peers:
        assert peer.max_relative_difference < 1e-10, peer
        assert len(peer.ratio_rounds) == 2
        assert peer.seconds > 0
        assert peer.per_product == pytest.approx(peer.seconds / report.forward_seconds / report.n_products)
    assert [p.n_products_timed for p in report.peers] == [report.n_layers, report.n_products, report.n_layers]


def test_several_batches_are_averaged(faked):
    faked()
    report = _bench("mlp_relu", 70, reference_samples=70, rounds=1)
    assert report.n_samples_timed in (32, 64)  # whole micro-batches
    if report.n_samples_timed == 64:
        assert max(p.max_relative_difference for p in report.peers) < 1e-10


def test_batches_of_a_data_set_and_the_kept_graph_of_one(faked):
    faked()
    workload = make_workload(CASES["mlp_relu"], 12, torch.float64)
    weight = next(p for p in workload.model.parameters() if p.dim() == 2)
    vector = torch.randn_like(weight)
    found = []
    for size in (12, 4, 3):
        batches = [workload.fetch(start, start + size) for start in range(0, 12, size)]
        for peer in PEERS:
            problem = peers.Problem.of(workload, weight, batches)
            with problem.alone():
                (product,) = peer.prepare(peer.find(), problem)([vector])
            found.append(product)
    for product in found[1:]:
        torch.testing.assert_close(product, found[0], rtol=1e-10, atol=1e-12)


def test_one_that_is_absent_says_how_to_get_it(faked):
    faked(hessian_eigenthings="")
    *others, absent = _bench("mlp_relu", 16, rounds=1).peers
    assert absent.ratio == Missing("not installed: pip install hessian-eigenthings, or spectrascope[peers]")
    assert absent.n_products_timed == 0
    assert not any(isinstance(other.ratio, Missing) for other in others)


def test_one_that_fails_says_why_in_one_line_and_ends_nothing(faked):
    refusal = FAKES["curvlinops"].replace(
        "        self.parts =", "        raise ValueError('no\\nsuch layer')\n        self.parts ="
    )
    faked(curvlinops=refusal, pyhessian="raise ImportError('cannot import name main')\n")
    broken, refused, fine = _bench("mlp_relu", 16, rounds=2).peers
    assert broken.seconds == Missing("ImportError: cannot import name main")
    assert refused.ratio.reason.endswith(": ValueError: no such layer")
    assert refused.ratio.reason.startswith("on ")
    assert fine.max_relative_difference < 1e-10


def test_one_that_is_wrong_shows(faked):
    faked(hessian_eigenthings=FAKES["hessian_eigenthings"].replace("total / len", "1.5 * total / len"))
    *_, wrong = _bench("mlp_relu", 16, rounds=1, dtype=torch.float32).peers
    assert wrong.max_relative_difference > 1e-3


def test_the_network_is_handed_on_as_found(faked):
    faked()
    workload = make_workload(CASES["residual"], 8, torch.float32)
    weights = list(workload.model.parameters())
    for i, weight in enumerate(weights):
        weight.requires_grad_(i % 2 == 0)
    wanted = next(p for p in weights if p.dim() > 1)
    problem = peers.Problem.of(workload, wanted, [workload.fetch(0, 8)])
    with problem.alone():
        PEERS[0].prepare(PEERS[0].find(), problem)([torch.randn_like(wanted)])
    assert [p.requires_grad for p in weights] == [i % 2 == 0 for i in range(len(weights))]
    assert all(p.grad is None for p in weights)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_real_one_agrees(peer: Peer):
    if isinstance(peer.find(), Missing):
        pytest.skip(peer.find().reason)
    workload = make_workload(CASES["layer_norm"], 12, torch.float32)
    weight = next(p for p in workload.model.parameters() if p.dim() == 2)
    batches = [workload.fetch(0, 6), workload.fetch(6, 12)]
    vectors = [torch.randn_like(weight) for _ in range(2)]
    problem = peers.Problem.of(workload, weight, batches)
    with problem.alone():
        found = peer.prepare(peer.find(), problem)(vectors)
    inputs, targets = workload.fetch(0, 12)
    (gradient,) = torch.autograd.grad(workload.loss(inputs, targets), weight, create_graph=True)
    for vector, product in zip(vectors, found, strict=True):
        (truth,) = torch.autograd.grad((gradient * vector).sum(), weight, retain_graph=True)
        torch.testing.assert_close(product, truth, rtol=1e-4, atol=1e-6)


def _deep(monkeypatch):
    """More weights than other sides are timed on; and of how many weights and products double backprop is asked."""
    passes = []
    real = bench_module.DoubleBackpropSide._pass

    def seen(self, targets, picks, n):
        passes.append((len(targets), sum(map(len, picks))))
        return real(self, targets, picks, n)

    monkeypatch.setattr(bench_module.DoubleBackpropSide, "_pass", seen)
    torch.manual_seed(0)
    network = nn.Sequential(*[m for _ in range(28) for m in (nn.Linear(4, 4), nn.Tanh())])
    for module in network[::2]:
        nn.init.orthogonal_(module.weight)
    data = TensorSource(torch.randn(32, 4), torch.randint(4, (32,)))
    options = ProbeOptions(num_samples=32, top_k=2, device="cpu")
    return run_bench(Run(network, data, None, options, MODEL, DATA), rounds=1), passes


def test_a_deep_network_asks_for_products_of_some_weights_evenly(monkeypatch):
    report, passes = _deep(monkeypatch)
    assert (report.n_layers, report.n_layers_timed) == (28, bench_module.REFERENCE_WEIGHTS)
    assert report.n_products_timed == 2 * bench_module.REFERENCE_WEIGHTS
    assert sum(weights == 1 for weights, _ in passes) <= bench_module.REFERENCE_WEIGHTS + 4  # and the trial of sizes
    assert [products for weights, products in passes if weights > 1] == [2 * bench_module.REFERENCE_WEIGHTS]
    assert report.max_relative_difference < 1e-3


def test_costly_networks_are_timed_on_fewer_samples(monkeypatch):
    monkeypatch.setattr(bench_module, "ROUND_PASSES", 32 * 16)
    seen = []
    real = DoubleBackprop.measure
    monkeypatch.setattr(
        DoubleBackprop, "measure", lambda self, w, *a, **k: seen.append(w.source.n) or real(self, w, *a, **k)
    )
    workload = make_workload(CASES["mlp_relu"], 256, torch.float32)
    options = ProbeOptions(num_samples=256, top_k=4, device="cpu", engine=EngineName.DOUBLE_BACKPROP)
    run = Run(workload.model, workload.source, workload.loss_fn, options, MODEL, DATA)
    report = run_bench(run, rounds=1)
    assert report.n_samples_asked == 256
    assert report.n_samples == report.n_samples_timed == 32
    assert max(seen) <= 32
