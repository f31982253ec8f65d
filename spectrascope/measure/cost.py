"""What a measurement would cost: passes, operations and bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectrascope.curvature.choose import ENGINES, EnginePlan
from spectrascope.curvature.operations import storage_of
from spectrascope.curvature.references import Copies
from spectrascope.measure.asked import DTYPES
from spectrascope.measure.demand import count_direction_sets, curvature_samples, holds_out
from spectrascope.measure.gradients import blocks_within, gradient_bytes, gradient_memory
from spectrascope.measure.guess import Call, CallsSeen
from spectrascope.measure.room import HeldBytes, device_asked_for, need_of
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.lifted import is_below, wide
from spectrascope.records.inspection import CostEstimate, InspectedWeight, MemoryNeed
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import ALL_SAMPLES, CheckScope, EngineName, Missing
from spectrascope.text import first_line
from spectrascope.workload import Workload

__all__ = ["Held", "cost_of_headers", "cost_without_passes", "estimate_cost"]


def estimate_cost(
    workload: Workload,
    layers: Sequence[WeightLayer],
    plan: EnginePlan | Missing,
    options: ProbeOptions,
    held: Held,
    flops_of: Mapping[object, Callable[..., int]],
) -> tuple[CostEstimate, list[Call]]:
    """Foretell what a measurement costs, and the operations of one sample's forward pass.

    Args:
        workload: the network, on the meta device.
        layers: the weights to measure.
        plan: the engine of each, or why there is none.
        options: as for the measurement.
        held: the network as it was given.
        flops_of: operations that torch's counter does not know, and how it counts them.
    """
    if isinstance(plan, Missing):
        return cost_without_passes(workload.model, layers, plan, options, held), []
    measured = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    engines = [choice.engine for choice in plan.choices]
    blocks = _gradient_blocks(layers, options)
    seen = _pass(workload, measured, flops_of, twice=plan.passes[EngineName.DOUBLE_BACKPROP] > 0)
    tangent = plan.passes[EngineName.TANGENT] > 0
    sample = seen.tangents if tangent else seen.kept
    parts = _parts(workload.model, layers, engines, blocks, options, held, sample)
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
    cost = CostEstimate(
        gradient_passes=gradients,
        sweep_passes=over_all(plan.passes[EngineName.GAUSS_NEWTON]),
        tangent_passes=over_all(plan.passes[EngineName.TANGENT]),
        product_passes=over_all(plan.passes[EngineName.DOUBLE_BACKPROP]),
        estimate_passes=over_all(sum(plan.passes[engine.name] for engine in ENGINES if not engine.exact)),
        total_passes=total,
        flops_per_sample=seen.flops,
        total_flops=_times(total, seen.flops, options.num_samples),
        fixed_bytes=parts.fixed,
        bytes_per_sample=seen.kept,
        memory=need_of(parts, options, loaded=held.loaded),
    )
    return cost, seen.calls


def _times(passes: float | Missing, flops: int | Missing, samples: int) -> float | Missing:
    if isinstance(passes, Missing):
        return passes
    return flops if isinstance(flops, Missing) else flops * (passes * samples)


def cost_without_passes(
    network: nn.Module, layers: Sequence[WeightLayer], why: Missing, options: ProbeOptions, held: Held
) -> CostEstimate:
    """The memory that is known, where passes cannot be told."""
    engines, blocks = [options.engine] * len(layers), _gradient_blocks(layers, options)
    parts = _parts(network, layers, engines, blocks, options, held, why)
    return _without_passes(parts, need_of(parts, options, loaded=held.loaded), why)


def _without_passes(parts: HeldBytes, memory: MemoryNeed, why: Missing) -> CostEstimate:
    return CostEstimate(why, why, why, why, why, why, why, why, parts.fixed, why, memory, why)


def cost_of_headers(
    elements: Mapping[str, int], rows: Collection[InspectedWeight], why: Missing, options: ProbeOptions
) -> CostEstimate:
    """The memory that weights take of which only names and shapes are known.

    Args:
        elements: numbers in each tensor, by name.
        rows: the weights.
        why: why there is no network.
        options: as for the measurement.
    """
    size, count = DTYPES[options.dtype].itemsize, sum(elements.values())
    measured = {row.info.name.partition("[")[0] for row in rows if row.measured}
    gradients = [elements[name] * (24 + max(4, size) * _groups(options)) for name in measured]
    largest = max(gradients, default=0)
    block = min(sum(gradients), max(gradient_memory(_device_here(options), options), largest))
    kept = 8 * _kept_sets(options.engine, options) * sum(row.directions * sum(row.info.shape) for row in rows)
    parts = HeldBytes(
        weights=size * count,
        given=size * count,
        converted=False,
        owned=True,
        gradients=block,
        largest_gradient=largest,
        directions=kept,
        tangents=why,
        check=_check_bytes(count, options),
    )
    return _without_passes(parts, need_of(parts, options), why)


def _check_bytes(count: int, options: ProbeOptions) -> int:
    """Bytes of copies of ``count`` numbers to check by: in float32 of a narrower network, in float64 of a small one."""
    dtype = DTYPES[options.dtype]
    in_float32 = count * wide(dtype).itemsize if is_below(dtype, wide(dtype)) else 0
    return in_float32 + (0 if options.self_check is CheckScope.OFF else Copies.bytes_in_float64(count))


def _groups(options: ProbeOptions) -> int:
    """Sample groups, of which there are no more than samples."""
    return min(options.groups, options.num_samples)


def _kept_sets(engine: EngineName, options: ProbeOptions) -> int:
    """How many sets of directions are kept: each fold has its own."""
    return count_direction_sets(engine, options) + holds_out(options) * (options.folds - 1)


def _gradient_blocks(layers: Sequence[WeightLayer], options: ProbeOptions) -> list[list[WeightLayer]]:
    return blocks_within(layers, _groups(options), gradient_memory(_device_here(options), options))


def _device_here(options: ProbeOptions) -> torch.device:
    """The device asked for; where it is another machine's, this one's memory has to do."""
    device = device_asked_for(options)
    return torch.device("cpu") if isinstance(device, Missing) else device


def _parts(
    network: nn.Module,
    layers: Sequence[WeightLayer],
    engines: Sequence[EngineName],
    blocks: Sequence[Sequence[WeightLayer]],
    options: ProbeOptions,
    held: Held,
    tangents: int | Missing,
) -> HeldBytes:
    """The weights, the gradients of the largest block of weights and its sample groups, all directions, tangents."""
    count = sum(t.numel() for t in (*network.parameters(), *network.buffers()))
    own = {id(layer.parameter): gradient_bytes(layer, _groups(options)) for layer in layers}
    largest = max(sum(own[p] for p in {id(layer.parameter) for layer in block}) for block in blocks)
    kept = 0
    for layer, engine in zip(layers, engines, strict=True):
        kept += 8 * _kept_sets(engine, options) * min(options.top_k, *layer.info.shape) * sum(layer.info.shape)
    return HeldBytes(
        weights=DTYPES[options.dtype].itemsize * count,
        given=held.given,
        converted=held.dtypes != {DTYPES[options.dtype]},
        owned=held.owned,
        gradients=largest,
        largest_gradient=max(own.values(), default=0),
        directions=kept,
        tangents=tangents,
        check=_check_bytes(count, options),
    )


@dataclass(frozen=True)
class Held:
    """The network as it was given: its bytes, those in memory already, its weights' formats, who else holds it."""

    given: int
    loaded: int
    dtypes: set[torch.dtype]
    owned: bool

    @classmethod
    def of(cls, network: nn.Module, *, owned: bool) -> Held:
        """Look at a network, in memory or on the meta device."""
        tensors = [*network.parameters(), *network.buffers()]
        sizes = [(t.numel() * t.element_size(), t.is_meta) for t in tensors]  # a sparse one tells no bytes
        dtypes = {p.dtype for p in network.parameters() if p.is_floating_point()}
        return cls(sum(n for n, _ in sizes), sum(n for n, is_meta in sizes if not is_meta), dtypes, owned)


@dataclass(frozen=True)
class _Pass:
    """One sample's forward pass: operations, bytes that autograd keeps of it, bytes of a recording and one tangent."""

    flops: int | Missing
    kept: int | Missing
    tangents: int | Missing
    calls: list[Call]


def _pass(
    workload: Workload, weights: Sequence[nn.Parameter], flops_of: Mapping[object, Callable[..., int]], *, twice: bool
) -> _Pass:
    """Look at one sample's forward pass (``twice``: bytes of the gradient's graph too)."""
    tensors = (*workload.model.parameters(), *workload.model.buffers())
    held = {storage_of(t) for t in tensors if t.layout is torch.strided}
    kept: dict[int, Tensor] = {}  # keeps the storages alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        if storage_of(tensor) not in held:
            kept[storage_of(tensor)] = tensor
        return tensor

    inputs, targets = workload.fetch(0, 1)
    counter = CallsSeen(flops_of, held)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), hooks:
            with counter:
                loss = workload.loss(inputs, targets)
            if twice:
                torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    except Exception as error:
        why = Missing(f"not counted: {first_line(error)}")
        return _Pass(why, why, why, [])
    graph = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return _Pass(counter.total, graph, 5 * counter.made + 2 * counter.widest, [*counter.calls.values()])
