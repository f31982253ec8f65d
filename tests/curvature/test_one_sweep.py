"""One sweep for all weights of a network and its sample groups: the numbers of one weight at a time, few launches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.tangent import within
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.curvature.tangent.sweep import sweep
from spectrascope.losses import CausalLM
from spectrascope.workload import TensorSource, Workload
from tests.support.counting import bytes_alive, operations
from tests.support.families import FAMILIES, no_narrowing
from tests.support.measure_helpers import hold, layers_of, small_gpt2, targets_of


@pytest.fixture
def launched_as_on_a_device(monkeypatch):
    """Whole tensors at a time: a CPU cuts work into blocks that stay in its cache."""
    monkeypatch.setattr(within, "_BLOCK_BYTES", {})


def _gpt2(length: int) -> Workload:
    """As ``examples/gpt2_workload.py:small``: three layers of width 96, 19 weights, 16 sequences."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3, n_embd=96, n_head=4, vocab_size=1000, n_positions=128, bos_token_id=None, eos_token_id=None
    )
    tokens = torch.randint(1000, (16, length))
    model = GPT2LMHeadModel(config).eval()
    return Workload(model, TensorSource(tokens, tokens), CausalLM(), torch.device("cpu"), torch.float32)


def _operations(workload: Workload, every: int = 1, groups: int = 16) -> tuple[float, int]:
    """Operations of a measurement with 20 directions, in forward passes, and how many weights."""
    layers = layers_of(workload)[::every]
    inputs, labels = workload.fetch(0, workload.source.n)
    with hold(workload, layers):
        targets = targets_of(workload, layers, 20)
        with torch.no_grad(), operations() as forward:
            workload.loss(inputs, labels)
        with operations() as measured:
            Tangents(micro_batch=16, stacked=1 << 15, memory=1 << 40).measure(workload, targets, groups=groups)
    return len(measured) / len(forward), len(layers)


def test_few_operations_however_many_the_weights(launched_as_on_a_device):
    workload = _gpt2(8)  # how many operations there are does not depend on the length of what they work on
    all_of_them, n = _operations(workload, 1)
    assert n == 19
    assert all_of_them <= 60
    some, n = _operations(workload, 4)
    assert n == 5
    assert all_of_them <= 1.2 * some


def test_few_operations_however_many_the_groups(launched_as_on_a_device):
    """In torchvision's ViT tokens come before samples within attention."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.VisionTransformer(16, 8, 2, 2, 16, 24, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight)
    source = TensorSource(torch.randn(16, 3, 16, 16), torch.arange(16) % 4)
    workload = Workload(model, source, F.cross_entropy, torch.device("cpu"), torch.float32)
    (one, _), (many, n) = (_operations(workload, groups=groups) for groups in (1, 16))
    assert n == 14
    assert many <= 60
    assert many <= 1.2 * one


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "mixtral", "bert-masked", "swiglu", "tied-head", "lstm"])
def test_together_is_one_by_one(name):
    """All weights in one sweep, few at a time or one by one, groups together or alone: the same to rounding."""
    workload = FAMILIES[name]()
    layers = layers_of(workload)
    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, 3)
        uneven = [
            replace(t, directions=t.directions.pick(range(min(t.directions.k, 1 + i % 3))))
            for i, t in enumerate(targets)
        ]
        together = Tangents(micro_batch=workload.source.n).measure(workload, uneven, groups=3)
        some = Tangents(micro_batch=workload.source.n, stacked=5 * workload.source.n).measure(
            workload, uneven, groups=3
        )
        for i, (target, whole, part) in enumerate(zip(uneven, together, some, strict=True)):
            (alone,) = Tangents(micro_batch=1).measure(workload, [target], groups=3)
            for found in (whole, part):
                for field in ("matrix", "group_h", "group_sigma"):
                    one, other = getattr(found, field), getattr(alone, field)
                    assert float((one - other).abs().max()) <= 1e-12 * float(other.abs().max()), (i, field)


def test_groups_in_one_micro_batch_are_those_of_double_backprop(monkeypatch):
    workload = replace(small_gpt2(2, 7), dtype=torch.float64)
    workload.model.double()
    seen = []
    monkeypatch.setattr(
        "spectrascope.curvature.tangent.sweeps.sweep",
        lambda plan, seeds: seen.append((plan.borders, len(seeds))) or sweep(plan, seeds),
    )
    layers = layers_of(workload)
    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, 4)
        found = Tangents(micro_batch=7, stacked=1 << 15).measure(workload, targets, groups=(1, 2, 4))
        truth = DoubleBackprop(micro_batch=7).measure(workload, targets, groups=(1, 2, 4))
    assert seen == [((0, 1, 3, 7), len(targets))]
    for one, other in zip(found, truth, strict=True):
        assert float((one.matrix - other.matrix).abs().max()) <= 1e-12 * float(other.matrix.abs().max())
        assert float((one.group_h - other.group_h).abs().max()) <= 1e-12 * float(other.group_h.abs().max())
        assert float((one.group_sigma - other.group_sigma).abs().max()) <= 1e-12 * float(other.group_sigma.abs().max())


def test_weights_are_swept_in_chunks_within_memory(launched_as_on_a_device):
    workload = _gpt2(24)
    layers = layers_of(workload)
    peaks = {}
    with hold(workload, layers):
        targets = targets_of(workload, layers, 20)
        for budget in (64 << 20, 128 << 20, 1 << 40):
            with bytes_alive() as alive:
                Tangents(micro_batch=4, stacked=1 << 15, memory=budget).measure(workload, targets, groups=1)
            peaks[budget] = alive.peak
    whole = peaks.pop(1 << 40)
    for budget, peak in peaks.items():
        assert 0.2 * budget <= peak <= budget < whole, (budget, peak, whole)


_COMPARING = {
    "mse": F.mse_loss,
    "mse, entries first": lambda out, y: F.mse_loss(out, y, reduction="none").mean(),
    "mse of two outputs": lambda out, y: F.mse_loss(out.tanh(), out + y),
    "huber": lambda out, y: F.huber_loss(out, y, delta=0.7),
    "smooth l1": lambda out, y: F.smooth_l1_loss(out, y, beta=0.5),
    "soft margin": lambda out, y: F.soft_margin_loss(out, y.sign()),
    "bce": lambda out, y: F.binary_cross_entropy_with_logits(out, (y > 0).to(out)),
    "bce, weighed": lambda out, y: F.binary_cross_entropy_with_logits(
        out, (y > 0).to(out), pos_weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    ),
    "bce of probabilities": lambda out, y: F.binary_cross_entropy(out.sigmoid(), (y > 0).to(out)),
}


def _comparing(loss) -> tuple[Workload, list]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.GELU(), nn.Linear(6, 3)).double()
    source = TensorSource(torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64))
    workload = Workload(net, source, loss, torch.device("cpu"), torch.float64)
    return workload, layers_of(workload)


@pytest.mark.parametrize("name", _COMPARING)
def test_losses_that_compare_entries_keep_samples_apart(name):
    """Exact group by group, in about as many operations for four groups as for one."""
    workload, layers = _comparing(_COMPARING[name])
    with hold(workload, layers):
        targets = targets_of(workload, layers, 4)
        truth = DoubleBackprop().measure(workload, targets, groups=4)
        with operations() as apart:
            found = Tangents(micro_batch=12).measure(workload, targets, groups=4)
        with operations() as whole:
            Tangents(micro_batch=12).measure(workload, targets, groups=1)
    for a, b in zip(found, truth, strict=True):
        scale = float(b.matrix.abs().max())
        assert float((a.matrix - b.matrix).abs().max()) <= 1e-12 * scale
        assert float((a.group_h - b.group_h).abs().max()) <= 1e-12 * scale
        assert a.group_sigma == pytest.approx(b.group_sigma, abs=1e-12)
    looking = 400  # three more recordings, to see where samples lie
    assert len(apart) <= len(whole) + looking


def test_a_loss_bent_once_more_is_exact_too():
    workload, layers = _comparing(lambda out, y: F.mse_loss(out, y).sqrt())
    with hold(workload, layers):
        targets = targets_of(workload, layers, 4)
        truth = DoubleBackprop().measure(workload, targets, groups=1)
        found = Tangents(micro_batch=12).measure(workload, targets, groups=1)
    for a, b in zip(found, truth, strict=True):
        assert float((a.matrix - b.matrix).abs().max()) <= 1e-12 * float(b.matrix.abs().max())
