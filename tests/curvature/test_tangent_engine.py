"""Tangents against double backprop in float64 on every family, and what they promise of memory, cuts and fallback."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import spectrascope
from spectrascope.curvature.choose import make_engine
from spectrascope.curvature.tangent import attention
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.curvature.tangent.plan import make_plan, record_loss
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import TensorSource, Workload
from tests.support import oracles
from tests.support.counting import bytes_alive
from tests.support.exactness import measured
from tests.support.families import FAMILIES, no_narrowing
from tests.support.measure_helpers import hold, layers_of, small_gpt2, stored_directions, targets_of


@pytest.mark.parametrize("name", FAMILIES)
def test_h_and_m_are_those_of_double_backprop(name):
    _, targets, found, truth = measured(name)
    family = FAMILIES[name]
    followed = 0
    for target, result, matrix in zip(targets, found, truth, strict=True):
        if isinstance(result, str):
            assert family.fallback is not None, f"{target.layer.name}: {result}"
            continue
        followed += 1
        scale = float(matrix.diagonal().abs().max())
        assert float((result.matrix - matrix).abs().max()) <= 1e-8 * scale, target.layer.name
        assert result.exact
        assert result.engine is EngineName.TANGENT
    assert followed == len(targets) or family.fallback is not None


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-masked", "vit", "swin", "convnext", "efficientnet", "lstm"])
def test_the_loss_itself_bends_as_much(name):
    """A third opinion that shares nothing with autograd: second differences of the loss along the first direction."""
    workload, targets, found, _ = measured(name)
    with no_narrowing(), hold(workload, [t.layer for t in targets]):
        inputs, labels = workload.fetch(0, workload.source.n)
        for target, result in zip(targets[:: len(targets) // 3], found[:: len(targets) // 3], strict=True):
            expected, spread = oracles.difference_of_losses(
                lambda: workload.loss(inputs, labels), target.layer.parameter, stored_directions(target)[0], kinks=False
            )
            scale = float(result.h.abs().max())
            assert spread <= 1e-6 * scale
            assert float(result.h[0]) == pytest.approx(expected, abs=1e-6 * scale), target.layer.name


@pytest.mark.parametrize("name", ["gpt2", "vit", "mixtral", "transposed-convolutions", "lstm"])
@pytest.mark.parametrize("cut", [{"directions": 1}, {"directions": 2}, {"memory": 1000}, {"micro_batch": 1}])
def test_cutting_changes_nothing(name, cut):
    workload, targets, whole, _ = measured(name)
    with no_narrowing(), hold(workload, [t.layer for t in targets]):
        found = Tangents(**cut).measure(workload, targets, groups=2)
    for a, b in zip(found, whole, strict=True):
        scale = float(b.matrix.abs().max())
        assert float((a.matrix - b.matrix).abs().max()) <= 1e-11 * scale
        assert float((a.group_h - b.group_h).abs().max()) <= 1e-11 * scale
        assert a.group_sigma == pytest.approx(b.group_sigma, abs=1e-11)


_HIDING = {
    "gpt2": True, "gpt2-padded": True, "llama": True, "sdpa": False, "sdpa-causal": True, "sdpa-masked": False,
    "cross-attention": False, "bert-masked": False,
}  # fmt: skip


@pytest.mark.parametrize("name", _HIDING)
def test_what_no_query_sees_is_not_computed(name, monkeypatch):
    """Queries in blocks of two, each beside the keys up to its own place alone: the same numbers for less."""
    workload, targets, whole, _ = measured(name)

    def run() -> tuple[list, int]:
        with FlopCounterMode(display=False) as counter:
            found = Tangents(micro_batch=workload.source.n).measure(workload, targets, groups=1)
        return found, counter.get_total_flops()

    with no_narrowing(), hold(workload, [t.layer for t in targets]):
        _, together = run()
        monkeypatch.setitem(attention._ROWS, "cpu", 2)
        found, apart = run()
    for a, b in zip(found, whole, strict=True):
        assert float((a.matrix - b.matrix).abs().max()) <= 1e-11 * float(b.matrix.abs().max())
    assert (apart < together) is _HIDING[name]
    assert apart <= together


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "swin", "convnext", "mobilenet-v3"])
def test_float32(name):
    workload, targets, _, truth = measured(name)
    single = Workload(FAMILIES[name]().model.float(), workload.source, workload.loss_fn, workload.device, torch.float32)
    layers = layers_of(single)
    with hold(single, layers):
        same = [type(t)(la, t.directions) for la, t in zip(layers, targets, strict=True)]
        found = Tangents(2).measure(single, same, groups=1)
    for target, result, matrix in zip(targets, found, truth, strict=True):
        scale = float(matrix.diagonal().abs().max())
        assert float((result.matrix - matrix).abs().max()) <= 1e-4 * scale, target.layer.name


def test_fused_attention_is_measured_straight_through():
    """The kernel that double backprop cannot differentiate is the one recorded, and the numbers are the same."""
    workload, targets, found, _ = measured("gpt2")
    with no_narrowing(), hold(workload, [t.layer for t in targets]):
        inputs, labels = workload.fetch(0, 2)
        weights = [targets[0].layer.parameter]
        recording, _ = record_loss(weights, lambda: workload.loss(inputs, labels))
        assert any("flash_attention" in node.name for node in recording.nodes)
        with sdpa_kernel(SDPBackend.MATH):
            recording, _ = record_loss(weights, lambda: workload.loss(inputs, labels))
            assert not any("flash_attention" in node.name for node in recording.nodes)
            spelled_out = Tangents(2).measure(workload, targets, groups=2)
    for a, b in zip(spelled_out, found, strict=True):
        assert float((a.matrix - b.matrix).abs().max()) <= 1e-11 * float(b.matrix.abs().max())


@pytest.mark.parametrize("name", ["python-function", "slice-assigned", "preallocated", "bloom"])
def test_what_tangents_cannot_follow_goes_to_double_backprop_by_name(name):
    workload = FAMILIES[name]()
    inputs, labels = workload.fetch(0, workload.source.n)
    report = spectrascope.probe(workload.model, (inputs, labels), workload.loss_fn, top_k=2, self_check=False)
    given_up = [r for r in report.layers if r.measurement.engine is EngineName.DOUBLE_BACKPROP]
    assert given_up
    for row in given_up:
        assert row.measurement.engine_reason.startswith("tangent gave up: ")
        assert row.measurement.exact


def test_a_weight_cut_off_by_detach_is_a_constant_there():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h * h.detach())

    torch.manual_seed(0)
    model, x, y = Cut().double(), torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    workload = Workload(model, TensorSource(x, y), nn.functional.cross_entropy, torch.device("cpu"), torch.float64)
    layers = layers_of(workload)
    with hold(workload, layers):
        targets = targets_of(workload, layers, 2)
        found = Tangents(5).measure(workload, targets, groups=1)
        frozen = torch.tanh(model.a(x)).detach()
        truth = oracles.curvature_of_weights(
            lambda: nn.functional.cross_entropy(model.b(torch.tanh(model.a(x)) * frozen), y),
            [t.layer.parameter for t in targets],
            [stored_directions(t) for t in targets],
        )
    for result, matrix in zip(found, truth, strict=True):
        assert float((result.matrix - matrix).abs().max()) <= 1e-12 * float(matrix.abs().max())


def _peak(workload: Workload, k: int, every: int = 1) -> int:
    layers = layers_of(workload)[::every]
    with hold(workload, layers):
        targets = targets_of(workload, layers, k)
        with bytes_alive() as alive:
            Tangents(4).measure(workload, targets, groups=1)  # samples at once are not left to the clock
    return alive.peak


def test_memory_grows_neither_with_directions_nor_with_weights():
    workload = small_gpt2()
    few, many = _peak(workload, 5), _peak(workload, 40)
    assert few > 1 << 20  # or nothing was counted
    assert many <= 2 * few
    # Half the weights, an early and a late one among them, take as much as all of them.
    assert _peak(workload, 10) <= 1.2 * _peak(workload, 10, every=2)


def test_memory_stays_below_the_budget_where_one_sample_allows():
    workload = small_gpt2(n=4)
    layers = layers_of(workload)[:2]
    with hold(workload, layers):
        targets = targets_of(workload, layers, 40)
        peaks = []
        for memory in (6 << 20, 1 << 30):
            with bytes_alive() as alive:
                Tangents(memory=memory).measure(workload, targets, groups=1)
            peaks.append(alive.peak)
    assert peaks[0] < 0.6 * peaks[1]


def test_memory_asked_for_wins_over_a_micro_batch_asked_for():
    workload, budget = small_gpt2(1, 8), 32 << 20
    layers = layers_of(workload)[:2]
    with hold(workload, layers):
        targets = targets_of(workload, layers, 40)
        found, peaks = [], []
        for memory in (budget, None):
            with bytes_alive() as alive:
                found.append(Tangents(8, memory=memory).measure(workload, targets, groups=1))
            peaks.append(alive.peak)
    assert peaks[0] <= budget < peaks[1]
    for few, all_at_once in zip(*found, strict=True):
        scale = float(all_at_once.matrix.abs().max())
        assert float((few.matrix - all_at_once.matrix).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_model_is_as_found_after_an_interruption(error, monkeypatch):
    workload = small_gpt2(1)
    model = workload.model.train()
    model.config.use_cache = True
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def interrupted(*args, **kwargs):
        raise error("stop")

    monkeypatch.setattr("spectrascope.curvature.tangent.sweeps.make_plan", interrupted)
    inputs, labels = workload.fetch(0, 4)
    random_state = torch.get_rng_state()
    with pytest.raises(error):
        spectrascope.probe(model, (inputs, labels), workload.loss_fn, top_k=2)
    assert all(module.training for module in model.modules())
    assert model.config.use_cache
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_checkpointing_is_switched_off_and_on_again():
    workload = small_gpt2(1)
    model = workload.model
    model.gradient_checkpointing_enable()
    flagged = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    assert flagged
    with hold(workload, layers_of(workload)):
        assert not any(m.gradient_checkpointing for m in flagged)
    assert all(m.gradient_checkpointing for m in flagged)


def test_a_plan_says_what_reaches_the_loss():
    workload = small_gpt2(1)
    layers = layers_of(workload)
    with hold(workload, layers):
        inputs, labels = workload.fetch(0, 1)
        weights = list({id(la.parameter): la.parameter for la in layers}.values())
        recording, loss = record_loss(weights, lambda: workload.loss(inputs, labels))
        plan = make_plan(recording, weights, loss, 4)
    assert plan.loss == pytest.approx(float(workload.loss(inputs, labels)), rel=1e-6)
    assert not plan.unsupported
    assert all(g is not None for g in plan.gradients)


def test_no_tensor_waits_for_a_search_for_garbage():
    """Activations in a cycle would stay in memory until the collector happens to run."""
    model = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 3))
    x, y = torch.randn(3, 5), torch.arange(3)
    workload = Workload(model, TensorSource(x, y), nn.CrossEntropyLoss(), torch.device("cpu"), torch.float32)
    targets = targets_of(workload, layers_of(workload), 2)
    gc.collect()
    gc.disable()
    try:
        Tangents().measure(workload, targets, groups=1)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [tuple(found.shape) for found in gc.garbage if isinstance(found, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


def test_the_report_of_a_language_model_names_engine_and_check():
    workload = small_gpt2(1)
    inputs, labels = workload.fetch(0, 4)
    report = spectrascope.probe(workload.model, (inputs, labels), workload.loss_fn, top_k=4)
    assert report.provenance.engines == {"tangent": len(report.layers) - report.summary.n_skipped}
    check = report.provenance.self_check
    assert not isinstance(check, Missing)
    assert check.residual <= check.tolerance


@pytest.mark.parametrize("name", [EngineName.TANGENT, EngineName.DOUBLE_BACKPROP, EngineName.FINITE_DIFFERENCE])
def test_progress_within_one_sample_goes_by_weights(name):
    x, y = torch.randn(1, 5), torch.tensor([1])
    model = nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3))
    workload = Workload(model, TensorSource(x, y), nn.CrossEntropyLoss(), torch.device("cpu"), torch.float32)
    seen: list[float] = []
    targets = targets_of(workload, layers_of(workload), 2)
    engine = Tangents(1, stacked=1) if name is EngineName.TANGENT else make_engine(name, 1)
    engine.measure(workload, targets, groups=1, progress=lambda done, total: seen.append(done / total))
    assert sorted(set(seen)) == pytest.approx([1 / 3, 2 / 3, 1])
