"""What the tests of the measuring room share: measuring a case by an engine, and by the oracle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from torch import Tensor

from spectrascope.curvature.engine import Curvature, Target
from spectrascope.losses import CausalLM
from spectrascope.measure.gradients import measure_gradients
from spectrascope.network.guards import held_still
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.numerics.directions import top_directions
from spectrascope.workload import TensorSource, Workload
from tests.support import oracles

TOP_K = 4
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def layers_of(workload: Workload, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[WeightLayer]:
    return [c for c in find_layers(workload.model, include, exclude) if isinstance(c, WeightLayer)]


def targets_of(workload: Workload, layers: Sequence[WeightLayer], k: int = TOP_K) -> list[Target]:
    found = measure_gradients(workload, layers, micro_batch=3)
    return [Target(la, top_directions(found.gradients[la.name], k, workload.dtype)) for la in layers]


def hold(workload: Workload, layers: Sequence[WeightLayer]):
    return held_still(workload, [la.parameter for la in layers])


def parameter_name(layer: WeightLayer) -> str:
    return layer.info.name.split("[")[0]


def oracle_hessian(workload: Workload, layer: WeightLayer, start: int, stop: int) -> Tensor:
    inputs, targets = workload.source.fetch(start, stop)
    return oracles.hessian_block(workload.model, parameter_name(layer), inputs, targets, workload.loss_fn)


def stored_directions(target: Target) -> list[Tensor]:
    layer, d = target.layer, target.directions
    return [
        oracles.from_matrix(
            torch.outer(d.left[:, k], d.right[:, k]), layer.parameter, layer.layout, layer.rows, layer.expert
        )
        for k in range(d.k)
    ]


def oracle_curvature(workload: Workload, target: Target, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """M, group_h and group_sigma from dense Hessians and gradients of each group."""
    directions = stored_directions(target)
    n = workload.source.n
    whole = oracle_hessian(workload, target.layer, 0, n)
    group_h, group_sigma = [], []
    for start, stop in oracles.group_ranges(n, groups):
        hessian = oracle_hessian(workload, target.layer, start, stop)
        group_h.append(oracles.curvature_matrix(hessian, directions).diagonal())
        inputs, labels = workload.source.fetch(start, stop)
        name = parameter_name(target.layer)
        gradient = oracles.gradient_of(workload.model, name, inputs, labels, workload.loss_fn)
        group_sigma.append(torch.stack([(gradient * d).sum() for d in directions]))
    return oracles.curvature_matrix(whole, directions), torch.stack(group_h), torch.stack(group_sigma)


def assert_close(found: Tensor, truth: Tensor, scale: float, tolerance: float, what: str) -> None:
    assert found.shape == truth.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(truth.shape)}"
    error = float((found - truth).abs().max()) / scale
    assert error <= tolerance, f"{what}: off by {error:.3g} of the largest, allowed {tolerance:g}"


def assert_curvature(
    found: Curvature, truth: tuple[Tensor, Tensor, Tensor], sigma: Tensor, dtype: torch.dtype, name: str
) -> None:
    matrix, group_h, group_sigma = truth
    tolerance = TOLERANCE[dtype]
    h_scale = float(matrix.diagonal().abs().max())
    assert h_scale > 1e-8, f"{name}: the case has no curvature, so nothing is tested"
    assert_close(found.matrix, matrix, h_scale, tolerance, f"{name} M")
    assert_close(found.h, matrix.diagonal(), h_scale, tolerance, f"{name} h")
    assert_close(found.group_h, group_h, float(group_h.abs().max()), tolerance, f"{name} group_h")
    assert_close(found.group_sigma, group_sigma, float(group_sigma.abs().max()), tolerance, f"{name} group_sigma")
    mean = (torch.tensor(found.group_sizes)[:, None] * found.group_sigma).sum(0) / sum(found.group_sizes)
    assert_close(mean, sigma, float(sigma[0]), tolerance, f"{name} mean of group_sigma")


def small_gpt2(layers: int = 2, n: int = 16) -> Workload:
    """A GPT-2 of width 64 in float32, random weights and tokens; the same every time."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=64, n_head=4, vocab_size=101, n_positions=48, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.randint(0, 101, (n, 48))
    model = transformers.GPT2LMHeadModel(config).eval()
    return Workload(model, TensorSource(tokens, tokens), CausalLM(), torch.device("cpu"), torch.float32)
