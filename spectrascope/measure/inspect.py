"""Look at a network without measuring it: shapes only, on the meta device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectrascope.curvature.choose import EnginePlan, plan_engines
from spectrascope.errors import OptionError, SpectrascopeError
from spectrascope.losses import usual_loss
from spectrascope.measure.asked import DTYPES
from spectrascope.measure.cost import Held, cost_of_headers, cost_without_passes, estimate_cost
from spectrascope.measure.demand import count_direction_sets
from spectrascope.measure.guess import Call, guess_time
from spectrascope.measure.room import device_asked_for
from spectrascope.measure.run import versions
from spectrascope.network.effective import (
    copy_of,
    effective_tensors,
    parametrized_weights,
    unwrapped,
    with_effective_weights,
)
from spectrascope.network.guards import require_whole_weights
from spectrascope.network.kept import random_state_kept, settings_kept
from spectrascope.network.layers import WeightLayer, find_layers, find_vectors
from spectrascope.records.inspection import CostEstimate, InspectedWeight, Inspection, TimeGuess
from spectrascope.records.report import LayerInfo, ModelInfo, ProbeOptions, SkippedLayer
from spectrascope.records.values import LayerKind, LayerRole, LayerStatus, Missing
from spectrascope.text import first_line
from spectrascope.workload import LossFunction, SampleSource, Workload, shape_of

_META = torch.device("meta")


def inspect_model(
    model: nn.Module,
    source: SampleSource | Missing,
    loss_fn: LossFunction | None = None,
    scores: str | None = None,
    *,
    options: ProbeOptions,
    model_info: ModelInfo,
    command: str = "",
    notes: Sequence[str] = (),
    timed: bool = True,
    owned: bool = False,
) -> Inspection:
    """List every parameter and run the network once on shapes alone.

    Args:
        model: any module, in memory or on the meta device; left as found.
        source: a few samples of the shape to be measured; their values do not matter. Where there are none (``Missing``
            with the reason) the weights are listed without engines and without the cost of passes.
        loss_fn: (output, targets) -> mean loss; the usual one of the network when ``None``.
        scores: which output it compares, of a network that returns several.
        options: as for a measurement.
        model_info: provenance of the model.
        command: the command line, for the record.
        notes: what the reader must know.
        timed: time a few operations on the device asked for, for a guess at seconds.
        owned: nobody else would hold the network that is measured.

    Raises:
        OptionError: an option is out of range, or a glob matches no weight.
        UnsupportedModelError: the model holds quantized weights, its weights are spread over processes or offloaded, or
            the engine asked for does not fit.
    """
    require_whole_weights(model)
    loaded = "headers" if any(p.is_meta for p in model.parameters()) else "weights"
    dtype = DTYPES[options.dtype]
    network = _on_meta(model, dtype)
    rows = find_layers(network, options.layers, options.exclude, split_fused=options.split_fused)
    layers = [row for row in rows if isinstance(row, WeightLayer)]
    vectors = find_vectors(network)
    _require_grad(network, layers)
    held = Held.of(model, owned=owned)
    inputs: str | Missing
    plan: EnginePlan | Missing
    if isinstance(source, Missing):
        inputs = plan = source
        cost = cost_without_passes(network, layers, source, options, held)
    else:
        workload = Workload(
            network, source, loss_fn or usual_loss(network, source.fetch_targets(0, 1)), _META, dtype, scores=scores
        )
        with _ShapesOnly(), random_state_kept(), settings_kept():
            plan = _plan(workload, layers, options)
            cost, calls = estimate_cost(workload, layers, plan, options, held, _GROUPED_FLOPS)
        if timed:
            cost = replace(cost, time=_time_of(cost, calls, workload, options))
        inputs = "×".join(str(n) for n in shape_of(source.fetch(0, 1)[0]))
    weights = _in_model_order(network, _rows(rows, plan, options), vectors)
    return Inspection(
        model=model_info,
        versions=versions(),
        command=command,
        loaded=loaded,
        inputs=inputs,
        options=options,
        weights=weights,
        n_measured=len(layers),
        n_skipped=len(weights) - len(layers),
        cost=cost,
        notes=tuple(notes),
    )


class _ShapesOnly(TorchDispatchMode):
    """Answers what PyTorch refuses on the meta device, so that code runs through.

    A meta tensor's value: yes, or zero. Hugging Face's masks ask whether nothing is padded and no two texts share a
    row; either answer leads to the same operations downstream of the weights, which are all that is looked at here.
    Grouped products, which mixtures of experts are made of: they run in float32 everywhere else.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping means importing the compiler (seconds)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 0
        if func is _GROUPED and args[0].is_meta:
            return args[0].new_empty(_grouped_shape(args[0].shape, args[1].shape, *args[2:3], **(kwargs or {})))
        return func(*args, **(kwargs or {}))


_GROUPED = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)  # absent from older torch


def _grouped_shape(left: torch.Size, right: torch.Size, offs: Tensor | None = None, **_: Any) -> tuple[int, ...]:
    """Return a grouped product's shape; of two matrices, groups cut the dimension they share, so there is one each."""
    if len(left) == len(right) == 2 and offs is not None:
        return (offs.shape[0], left[0], right[1])
    batch = left[:1] if len(left) == len(right) == 3 else ()
    return (*batch, left[-2], right[-1])


def _grouped_flops(left: torch.Size, right: torch.Size, *_: Any, **__: Any) -> int:
    """Count a grouped product's operations: every row, column or shared entry belongs to one group."""
    batch = left[0] if len(left) == len(right) == 3 else 1
    return 2 * batch * left[-2] * left[-1] * right[-1]


_GROUPED_FLOPS = {} if _GROUPED is None else {_GROUPED.overloadpacket: _grouped_flops}


def _on_meta(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    model = unwrapped(model)
    if parametrized_weights(model):
        model = with_effective_weights(model)
    network = copy_of(model).eval()
    if any(hasattr(module, "_hf_hook") for module in network.modules()):  # which would move inputs off this device
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(network)
    doubles: dict[int, nn.Parameter] = {}  # ``Module.to`` would untie tied weights on this device
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                double = doubles.setdefault(id(p), nn.Parameter(_without_numbers(p, dtype), p.requires_grad))
                module._parameters[name] = double
                doubles[id(double)] = double
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _without_numbers(buffer, dtype)
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False
    return network


def _time_of(
    cost: CostEstimate, calls: Sequence[Call], workload: Workload, options: ProbeOptions
) -> TimeGuess | Missing:
    device = device_asked_for(options)
    if isinstance(device, Missing):
        return device
    return guess_time(cost, calls, workload, device, options)


def _without_numbers(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(_META, dtype if tensor.is_floating_point() else None)


def _require_grad(network: nn.Module, layers: Sequence[WeightLayer]) -> None:
    wanted = {id(layer.parameter) for layer in layers}
    for p in network.parameters():
        p.requires_grad_(id(p) in wanted)


def _plan(workload: Workload, layers: list[WeightLayer], options: ProbeOptions) -> EnginePlan | Missing:
    if not layers:
        return Missing("every weight is left out")
    try:
        return plan_engines(
            workload, layers, options.engine, options.top_k, lambda engine: count_direction_sets(engine, options)
        )
    except SpectrascopeError:
        raise
    except Exception as error:  # whatever a network may do that shapes alone cannot answer
        return Missing(f"the network does not run on shapes alone: {first_line(error)}")


def _rows(
    rows: Sequence[WeightLayer | SkippedLayer], plan: EnginePlan | Missing, options: ProbeOptions
) -> list[InspectedWeight]:
    found = []
    choices = iter([] if isinstance(plan, Missing) else plan.choices)
    for row in rows:
        if isinstance(row, SkippedLayer):
            found.append(_skipped(row))
            continue
        k = min(options.top_k, *row.info.shape)
        if isinstance(plan, Missing):
            found.append(InspectedWeight(row.info, True, "", k, plan, ""))
        else:
            choice = next(choices)
            found.append(InspectedWeight(row.info, True, "", k, choice.engine, choice.reason))
    return found


def _skipped(row: SkippedLayer) -> InspectedWeight:
    return InspectedWeight(row.info, False, row.reason, 0, Missing("the weight would be skipped"), "")


def _in_model_order(
    network: nn.Module, rows: list[InspectedWeight], vectors: list[SkippedLayer]
) -> tuple[InspectedWeight, ...]:
    order = {name: i for i, (name, _) in enumerate(network.named_parameters())}
    everything = rows + [_skipped(vector) for vector in vectors]
    return tuple(sorted(everything, key=lambda row: order[row.info.name.partition("[")[0]]))


# -- a checkpoint whose architecture nobody knows ---------------------------------------------------------------


def inspect_headers(
    tensors: dict[str, Tensor],
    why: str,
    *,
    options: ProbeOptions,
    model_info: ModelInfo,
    command: str = "",
) -> Inspection:
    """List a checkpoint's tensors where the network they belong to is not known: roles are read off names.

    Args:
        tensors: name to tensor; only shapes and dtypes are looked at.
        why: why there is no network.
        options: as for a measurement.
        model_info: provenance of the file.
        command: the command line, for the record.

    Raises:
        OptionError: there is no tensor that could be a weight.
    """
    missing = Missing(why)
    rows = []
    tensors = effective_tensors(tensors)
    for name, tensor in tensors.items():
        if _STATISTICS.search(name) or not tensor.is_floating_point():
            continue
        rows += _header_rows(name, tensor, options, missing)
    if not rows:
        raise OptionError("the file holds no floating-point tensor that could be a weight")
    elements = {name.partition("[")[0]: tensor.numel() for name, tensor in tensors.items()}
    n_measured = sum(row.measured for row in rows)
    return Inspection(
        model=model_info,
        versions=versions(),
        command=command,
        loaded="headers",
        inputs=missing,
        options=options,
        weights=tuple(rows),
        n_measured=n_measured,
        n_skipped=len(rows) - n_measured,
        cost=cost_of_headers(elements, rows, missing, options),
        notes=("kinds and roles are read off names and shapes, without the network",),
    )


_STATISTICS = re.compile(r"(running_mean|running_var|num_batches_tracked|inv_freq|rotary_emb\.\w+|masked_bias)$")
_UNEMBEDDING = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.weight$")
_EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|wpe|word_embeddings?|token_embeddings?|position\w*|pos_embed)([._]|$)")
_NORM = re.compile(r"(norm|(^|\.)ln_?\w*|(^|\.)bn\d*)[._\w]*\.(weight|gamma)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Guess:
    kind: LayerKind
    role: LayerRole
    why_not: str = ""


def _guess(name: str, dim: int) -> _Guess:
    vector = "a vector has no singular directions"
    if dim < 2:
        if name.endswith(("bias", "beta")):
            return _Guess(LayerKind.BIAS, LayerRole.BIAS, vector)
        norm = _NORM.search(name) is not None
        return _Guess(LayerKind.NORM if norm else LayerKind.OTHER, LayerRole.NORM if norm else LayerRole.OTHER, vector)
    if _UNEMBEDDING.search(name):
        return _Guess(LayerKind.LINEAR, LayerRole.UNEMBEDDING)
    if _EMBEDDING.search(name):
        return _Guess(LayerKind.EMBEDDING, LayerRole.EMBEDDING, "embedding look-up table: name it with --layers")
    expert = "expert" in name.lower()
    if dim == 2:
        return _Guess(LayerKind.LINEAR, LayerRole.EXPERT if expert else LayerRole.MATRIX)
    if dim == 3 and expert:
        return _Guess(LayerKind.LINEAR, LayerRole.EXPERT)
    return _Guess(LayerKind.CONV, LayerRole.CONV)


def _header_rows(name: str, tensor: Tensor, options: ProbeOptions, missing: Missing) -> list[InspectedWeight]:
    stored = tuple(tensor.shape)
    guess = _guess(name, len(stored))
    shape = (stored[0], tensor.numel() // max(stored[0], 1)) if len(stored) > 1 else (tensor.numel(), 1)
    info = LayerInfo(name, guess.kind, guess.role, shape, stored)
    if guess.why_not:
        return [_skipped(SkippedLayer(info, LayerStatus.SKIPPED, guess.why_not))]
    infos = [info]
    if len(stored) == 3 and guess.role is LayerRole.EXPERT:
        infos = [replace(info, name=f"{name}[{i}]", shape=(stored[1], stored[2])) for i in range(stored[0])]
    return [InspectedWeight(i, True, "", min(options.top_k, *i.shape), missing, "") for i in infos]
