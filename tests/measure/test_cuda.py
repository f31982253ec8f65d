"""On a CUDA device the numbers are those of the CPU, and nothing is left behind there.

Skipped, saying so, where there is none. What the CPU finds is held to oracles elsewhere; here double backprop on the
CPU, in float64, is the truth.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.engine import Target
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.integrations.monitor import CurvatureMonitor
from spectrascope.numerics.directions import top_directions
from spectrascope.optim import SpectralNewton
from spectrascope.optim.matrix_transfer import apply_transfer
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing
from spectrascope.workload import Workload
from tests.support.cases import CASES, make_workload
from tests.support.exactness import by_chosen_engine, largest_difference, measured
from tests.support.families import FAMILIES, no_narrowing
from tests.support.measure_helpers import hold, layers_of, small_gpt2, targets_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # several workers share one device


def _moved(workload: Workload, dtype: torch.dtype | None = None) -> Workload:
    dtype = dtype or workload.dtype
    model = copy.deepcopy(workload.model).to(DEVICE, dtype)
    return replace(workload, model=model, device=torch.device(DEVICE), dtype=dtype)


def _same_targets(workload: Workload, targets: list[Target]) -> list[Target]:
    """The same directions of the same weights of a moved network."""
    layers = {la.name: la for la in layers_of(workload)}
    return [Target(layers[t.layer.name], t.directions) for t in targets]


STAYS = {"einsum-attention", "rotary-complex", "gather-and-scatter", "sdpa-masked"}
"""Their networks make a constant without saying where."""

COARSE = {"hardswish", "hardsigmoid", "mobilenet-v3"}
"""On CUDA their h differs by up to 1e-6 in float64, as if torch's kernels of hard-sigmoid kept 1/6 in float32."""


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in STAYS])
def test_every_family_is_exact_in_float64(name):
    workload, targets, _, truth = measured(name)
    with no_narrowing():
        there = _moved(workload)
        targets = _same_targets(there, targets)
        with hold(there, [t.layer for t in targets]):
            found = by_chosen_engine(there, targets, Tangents(2).measure_each(there, targets, groups=2))
    assert largest_difference(found, truth) <= (1e-5 if name in COARSE else 1e-8)


@pytest.mark.parametrize("name", CASES)
def test_every_engine_in_float32(name):
    workload = make_workload(CASES[name], 7)
    layers = layers_of(workload)
    with hold(workload, layers):
        targets = targets_of(workload, layers)
        truth = [c.matrix for c in DoubleBackprop(3).measure(workload, targets, groups=2)]
    there = _moved(workload, torch.float32)
    moved = _same_targets(there, targets)
    smooth = CASES[name].smooth or {}
    plain = [i for i, t in enumerate(targets) if t.layer.name not in smooth]
    with hold(there, [t.layer for t in moved]):
        assert largest_difference(Tangents().measure(there, moved, groups=2), truth) <= 1e-4
        assert largest_difference(DoubleBackprop().measure(there, moved, groups=2), truth) <= 1e-4
        if plain:
            found = GaussNewton().measure(there, [moved[i] for i in plain], groups=2)
            assert largest_difference(found, [truth[i] for i in plain]) <= 1e-4


def _cnn() -> Workload:
    return make_workload(CASES["conv_batch_norm"], 64, torch.float32)


def _probe(workload: Workload, **options: object) -> Report:
    batch = workload.source.fetch(0, workload.source.n)
    given = {"top_k": 4, "device": DEVICE, **options}
    return spectrascope.probe(workload.model, batch, workload.loss_fn, **given)  # type: ignore[arg-type]


def _assert_same(report: Report, truth: Report, tolerance: float = 2e-4) -> None:
    """Curvatures of all weights, in units of each weight's largest."""
    rows = [
        (one, other) for one, other in zip(truth.layers, report.layers, strict=True) if isinstance(one, LayerReport)
    ]
    assert rows
    for one, other in rows:
        assert isinstance(other, LayerReport), other
        expected = one.measurement.h
        found = pytest.approx(expected, abs=tolerance * max(map(abs, expected)))
        assert other.measurement.h == found, one.info.name


@pytest.mark.parametrize("make", [small_gpt2, _cnn])
@pytest.mark.parametrize("engine", ["auto", "double-backprop"])
def test_a_probe_there_is_a_probe_here(make, engine):
    here, there = (_probe(make(), device=device, engine=engine, num_samples=16) for device in ("cpu", DEVICE))
    assert "NVIDIA" in there.provenance.device
    _assert_same(there, here)
    check = there.provenance.self_check
    assert not isinstance(check, Missing)
    assert check.residual <= check.tolerance


def test_differences_of_the_gradient_are_close():
    exact, differences = (
        _probe(small_gpt2(), engine=engine, layers=["*.mlp.*"], self_check=False)
        for engine in ("double-backprop", "finite-difference")
    )
    _assert_same(differences, exact, 0.02)


def test_a_sketch_is_within_its_error():
    """Of a network whose Hessian blocks are its Gauss–Newton blocks."""
    exact, sketch = (_probe(_cnn(), engine=engine, self_check=False) for engine in ("auto", "gauss-newton-sketch"))
    for one, other in zip(exact.layers, sketch.layers, strict=True):
        errors = np.subtract(other.measurement.h, one.measurement.h) / other.measurement.h_stderr
        assert np.abs(errors).max() < 6


def test_kronecker_factors_there_are_those_here():
    def run(device: str) -> Report:
        workload = _cnn()
        batch = workload.source.fetch(0, 32)
        return spectrascope.decompose(workload.model, batch, workload.loss_fn, top_k=4, device=device)

    for one, other in zip(run("cpu").layers, run(DEVICE).layers, strict=True):
        chi, expected = (row.decomposition.alignment.chi for row in (other, one))
        assert chi == pytest.approx(expected, rel=1e-2)


def test_a_model_that_lives_there_is_left_as_it_was():
    workload = small_gpt2()
    model = workload.model.to(DEVICE).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.cuda.get_rng_state()
    switch = torch.backends.cuda.matmul
    before, switch.allow_tf32 = switch.allow_tf32, True
    try:
        inputs, labels = workload.source.fetch(0, 8)
        report = spectrascope.probe(model, (inputs.to(DEVICE), labels.to(DEVICE)), workload.loss_fn, top_k=4)
        assert switch.allow_tf32
    finally:
        switch.allow_tf32 = before
    here = _probe(small_gpt2(), num_samples=8, device="cpu")
    _assert_same(report, here)  # TF32 would be off by about 1e-3
    assert all(p.device.type == DEVICE and p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.cuda.get_rng_state(), random_state)


def _peak(workload: Workload, k: int, every: int = 1) -> int:
    layers = layers_of(workload)[::every]
    with hold(workload, layers):
        targets = targets_of(workload, layers, k)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        Tangents().measure(workload, targets, groups=1)
        return torch.cuda.max_memory_allocated() - before


def test_memory_grows_neither_with_directions_nor_with_weights():
    """In a batch that is large enough to cut it for more directions."""
    workload = _moved(small_gpt2(n=256))
    few, many = _peak(workload, 5), _peak(workload, 40)
    assert few > 1 << 20
    assert many <= 2 * few
    assert _peak(workload, 10) <= 1.2 * _peak(workload, 10, every=2)


@pytest.mark.parametrize("engine", ["gauss-newton", "tangent", "double-backprop"])
def test_what_does_not_fit_is_done_in_smaller_parts(engine):
    """With most of the device's memory taken away, the same numbers."""
    torch.manual_seed(0)
    layers = [m for _ in range(6) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(32, 4))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 3, 64, 64, generator=generator)
    batch = (x, torch.arange(256) % 4)
    options = {"top_k": 4, "engine": engine, "layers": ["1.weight", "7.weight"], "self_check": False, "groups": 2}
    roomy = spectrascope.probe(model, batch, device=DEVICE, micro_batch=64, **options)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(0.7e9 / total)
        tight = spectrascope.probe(model, batch, device=DEVICE, micro_batch=256, **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    _assert_same(tight, roomy)


@pytest.mark.parametrize("shape", [(5, 9), (300, 40), (1200, 1100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    here, there = top_directions(matrix, 4, dtype), top_directions(matrix.to(DEVICE), 4, dtype)
    assert there.rank == here.rank
    assert there.left.device.type == "cpu"
    assert torch.allclose(there.sigma, here.sigma, rtol=1e-9)
    assert torch.allclose(there.left, here.left, atol=1e-6)
    assert torch.allclose(there.right, here.right, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("scale_free", [False, True])
def test_the_transfer(beta, scale_free):
    stack = torch.randn(3, 20, 33, generator=torch.Generator().manual_seed(0))
    here = apply_transfer(stack, beta, 0.1, scale_free=scale_free)
    there = apply_transfer(stack.to(DEVICE), beta, 0.1, scale_free=scale_free)
    assert there.device.type == DEVICE
    assert float((there.cpu() - here).norm() / here.norm()) <= 1e-4


def _trained(device: str, watched: bool) -> tuple[nn.Module, CurvatureMonitor | None]:
    workload = _cnn()
    model = workload.model.train().to(device)
    optimizer = SpectralNewton(model.parameters(), lr=0.01, beta=1.37, scale_free=True)
    inputs, labels = (t.to(device) for t in workload.fetch(0, 64))
    monitor = CurvatureMonitor(model, (inputs, labels), workload.loss_fn, every=5, budget=1e9, top_k=4)
    for step in range(1, 16):
        optimizer.zero_grad()
        workload.loss_fn(model(inputs), labels).backward()
        optimizer.step()
        if watched:
            monitor.step(step)
    return model, monitor


def test_training_is_the_same_with_a_monitor_and_close_to_training_here():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        plain, _ = _trained(DEVICE, False)
        probed, monitor = _trained(DEVICE, True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert monitor.n_probes == 3
    for one, other in zip(plain.parameters(), probed.parameters(), strict=True):
        assert torch.equal(one, other)
    here, _ = _trained("cpu", False)
    for one, other in zip(here.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, other.cpu(), atol=1e-3)
