"""What a measurement would cost: passes, operations and bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from spectrascope.curvature.choose import ENGINES, EnginePlan
from spectrascope.errors import OptionError
from spectrascope.measure.demand import count_direction_sets, curvature_samples, holds_out
from spectrascope.measure.gradients import blocks_within, gradient_bytes, gradient_memory
from spectrascope.measure.prepare import device_named
from spectrascope.network.layers import WeightLayer
from spectrascope.records.inspection import CostEstimate, InspectedWeight
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import ALL_SAMPLES, EngineName, Missing
from spectrascope.text import first_line
from spectrascope.workload import Workload

__all__ = ["bytes_of_headers", "cost_without_passes", "estimate_cost"]


def estimate_cost(
    workload: Workload,
    layers: Sequence[WeightLayer],
    plan: EnginePlan | Missing,
    options: ProbeOptions,
    size: int,
    flops_of: Mapping[object, object],
) -> CostEstimate:
    """Foretell what a measurement costs.

    Args:
        workload: the network, on the meta device.
        layers: the weights to measure.
        plan: the engine of each, or why there is none.
        options: as for the measurement.
        size: bytes of one number.
        flops_of: operations that torch's counter does not know, and how it counts them.
    """
    if isinstance(plan, Missing):
        return cost_without_passes(workload.model, layers, plan, options, size)
    measured = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    engines = [choice.engine for choice in plan.choices]
    blocks = _gradient_blocks(layers, options)
    flops, kept = _pass(workload, measured, flops_of, twice=plan.passes[EngineName.DOUBLE_BACKPROP] > 0)
    share: float | Missing = Missing("how many samples there are is not known before the dataset is read")
    if options.num_samples < ALL_SAMPLES:
        share = curvature_samples(engines, options, options.num_samples) / options.num_samples

    def over_all(passes: float) -> float | Missing:
        """Passes over the samples that curvature is measured on, in passes over all."""
        if not passes:
            return 0.0
        return share if isinstance(share, Missing) else passes * share

    gradients = plan.gradient_passes * len(blocks)
    curvature = over_all(sum(plan.passes.values()))
    total = curvature if isinstance(curvature, Missing) else gradients + curvature
    return CostEstimate(
        gradient_passes=gradients,
        sweep_passes=over_all(plan.passes[EngineName.GAUSS_NEWTON]),
        tangent_passes=over_all(plan.passes[EngineName.TANGENT]),
        product_passes=over_all(plan.passes[EngineName.DOUBLE_BACKPROP]),
        estimate_passes=over_all(sum(plan.passes[engine.name] for engine in ENGINES if not engine.exact)),
        total_passes=total,
        flops_per_sample=flops,
        total_flops=_times(total, flops, options.num_samples),
        fixed_bytes=_fixed_bytes(workload.model, layers, engines, blocks, options, size),
        bytes_per_sample=kept,
    )


def _times(passes: float | Missing, flops: int | Missing, samples: int) -> float | Missing:
    if isinstance(passes, Missing):
        return passes
    return flops if isinstance(flops, Missing) else flops * (passes * samples)


def cost_without_passes(
    network: nn.Module, layers: Sequence[WeightLayer], why: Missing, options: ProbeOptions, size: int
) -> CostEstimate:
    """The memory that is known, where passes cannot be told."""
    engines, blocks = [options.engine] * len(layers), _gradient_blocks(layers, options)
    fixed = _fixed_bytes(network, layers, engines, blocks, options, size)
    return CostEstimate(why, why, why, why, why, why, why, why, fixed, why)


def bytes_of_headers(
    elements: Mapping[str, int], rows: Collection[InspectedWeight], options: ProbeOptions, size: int
) -> int:
    """Bytes held throughout for weights of which only names and shapes are known.

    Args:
        elements: numbers in each tensor, by name.
        rows: the weights.
        options: as for the measurement.
        size: bytes of one number.
    """
    measured = {row.info.name.partition("[")[0] for row in rows if row.measured}
    gradients = [elements[name] * (24 + size * options.groups) for name in measured]
    memory = gradient_memory(_device_asked_for(options))
    fixed = size * sum(elements.values()) + min(sum(gradients), max(memory, *gradients, 0))
    return fixed + 8 * _kept_sets(options.engine, options) * sum(row.directions * sum(row.info.shape) for row in rows)


def _kept_sets(engine: EngineName, options: ProbeOptions) -> int:
    """How many sets of directions are kept: each fold has its own."""
    return count_direction_sets(engine, options) + holds_out(options) * (options.folds - 1)


def _gradient_blocks(layers: Sequence[WeightLayer], options: ProbeOptions) -> list[list[WeightLayer]]:
    return blocks_within(layers, options.groups, gradient_memory(_device_asked_for(options)))


def _device_asked_for(options: ProbeOptions) -> torch.device:
    try:
        return device_named(options.device)
    except OptionError:  # of another machine: this one's memory has to do
        return torch.device("cpu")


def _fixed_bytes(
    network: nn.Module,
    layers: Sequence[WeightLayer],
    engines: Sequence[EngineName],
    blocks: Sequence[Sequence[WeightLayer]],
    options: ProbeOptions,
    size: int,
) -> int:
    """The weights, the gradients of the largest block of weights and its sample groups, and all directions."""
    weights = size * sum(t.numel() for t in _tensors(network))
    own = {id(layer.parameter): gradient_bytes(layer, options.groups) for layer in layers}
    largest = max(sum(own[p] for p in {id(layer.parameter) for layer in block}) for block in blocks)
    kept = 0
    for layer, engine in zip(layers, engines, strict=True):
        kept += 8 * _kept_sets(engine, options) * min(options.top_k, *layer.info.shape) * sum(layer.info.shape)
    return weights + largest + kept


def _pass(
    workload: Workload, weights: Sequence[nn.Parameter], flops_of: Mapping[object, object], *, twice: bool
) -> tuple[int | Missing, int | Missing]:
    """Count one sample's forward FLOPs, and the bytes autograd keeps of it (``twice``: of the gradient's graph too)."""
    held = {_storage(t) for t in _tensors(workload.model) if t.layout is torch.strided}
    kept: dict[int, Tensor] = {}  # keeps the storages alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in held:
            kept[_storage(tensor)] = tensor
        return tensor

    inputs, targets = workload.fetch(0, 1)
    counter = FlopCounterMode(display=False, custom_mapping=dict(flops_of))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), hooks:
            with counter:
                loss = workload.loss(inputs, targets)
            if twice:
                torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    except Exception as error:
        return (why := Missing(f"not counted: {first_line(error)}")), why
    return int(counter.get_total_flops()), sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _tensors(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
