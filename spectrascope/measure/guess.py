"""How long a measurement would take: a guess, from a few operations timed on the device asked for.

A cost is known in forward passes and in operations (``measure/cost.py``). What a pass takes is told by one, where the
network is small enough to be filled with random numbers; else by its own products and convolutions, those that do most
of the work, cut down to what takes milliseconds: seconds = sum over shapes of operations of that shape / their rate,
with operations of shapes not timed at the mean rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from spectrascope.curvature.microbatches import wait_for
from spectrascope.curvature.operations import storage_of
from spectrascope.measure.demand import curvature_samples
from spectrascope.network.effective import copy_of
from spectrascope.network.flops import FlopCount
from spectrascope.network.kept import random_state_kept
from spectrascope.records.inspection import CostEstimate, Remedy, TimeGuess
from spectrascope.records.report import ProbeOptions
from spectrascope.records.signal import Estimate
from spectrascope.records.values import EngineName, Missing
from spectrascope.text import first_line, plural
from spectrascope.workload import Workload

__all__ = ["Call", "CallsSeen", "guess_time"]

_LONG = 600.0  # seconds from which on it is said what would shorten them
_RUNS = 3  # the fastest counts: a busy machine makes runs slower, nothing makes them faster
_SHAPES = 6
_SHARE = 0.95  # of the operations of a pass, which the timed shapes do


@dataclass(frozen=True)
class _Scale:
    """What is timed at most: operations of one run, numbers in an operand; a whole pass, and the bytes of weights."""

    flops: float
    numbers: int
    pass_flops: float
    weight_bytes: int


_SCALES = {"cpu": _Scale(1e9, 1 << 22, 1e10, 1 << 28)}
_DEVICE = _Scale(5e11, 1 << 26, 1e13, 1 << 30)


@dataclass(frozen=True)
class Call:
    """Operations of one shape in a pass of one sample: ``args`` of one call, and the ``flops`` of ``count`` of them."""

    packet: Any
    args: tuple[Any, ...]
    count: int
    flops: int


class CallsSeen(FlopCount):
    """Counts operations by their shapes, and the bytes of what they make.

    ``made`` are the bytes of all values, views left out, ``widest`` those of the operands and results of one operation,
    without the storages ``held``, which are the network's own.
    """

    def __init__(self, more: Mapping[Any, Callable[..., int]] | None = None, held: Collection[int] = ()) -> None:
        super().__init__(more)
        self.calls: dict[tuple[object, ...], Call] = {}
        self.made = self.widest = 0
        self._held = held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at what it takes and makes."""
        found = super().__torch_dispatch__(func, types, args, kwargs)
        taken, new = ([t for t in tree_leaves(some) if isinstance(t, Tensor)] for some in (args, found))
        before = {storage_of(t) for t in taken}
        self.made += sum(t.nbytes for t in new if storage_of(t) not in before)
        self.widest = max(self.widest, sum(t.nbytes for t in (*taken, *new) if storage_of(t) not in self._held))
        return found

    def note(self, packet: Any, args: tuple[Any, ...], flops: int) -> None:
        """Add an operation to those of its shape."""
        key = (packet, *(tuple(a.shape) if isinstance(a, Tensor) else str(a) for a in args))
        args = tree_map_only(Tensor, lambda t: t.detach().to("meta"), args)
        before = self.calls.get(key, Call(packet, args, 0, 0))
        self.calls[key] = replace(before, count=before.count + 1, flops=before.flops + flops)


def guess_time(
    cost: CostEstimate, calls: Sequence[Call], workload: Workload, device: torch.device, options: ProbeOptions
) -> TimeGuess | Missing:
    """Guess how long a measurement takes.

    Args:
        cost: its passes and operations.
        calls: the operations of one sample's forward pass.
        workload: the network, on the meta device or anywhere.
        device: where it would be measured.
        options: as for the measurement.
    """
    samples = options.num_samples
    if isinstance(cost.total_passes, Missing):
        return cost.total_passes
    if isinstance(cost.flops_per_sample, Missing):
        return cost.flops_per_sample
    scale = _SCALES.get(device.type, _DEVICE)
    tensors = (*workload.model.parameters(), *workload.model.buffers())
    weights = workload.dtype.itemsize * sum(t.numel() for t in tensors)
    try:
        with random_state_kept():
            if weights <= scale.weight_bytes and cost.flops_per_sample <= scale.pass_flops:
                batch = int(max(1, min(16 if device.type == "cpu" else 64, scale.pass_flops // cost.flops_per_sample)))
                per_sample = _time_pass(workload, device, batch) / batch
                basis, runs = f"one forward pass over {plural(batch, 'sample')}", 1
            else:
                per_sample, runs = _time_calls(calls, device, workload.dtype, scale)
                basis = f"{plural(runs, 'product')} of the network's own shapes"
    except Exception as error:  # whatever a network may do with numbers made up for it
        return Missing(f"not timed: {first_line(error)}")
    total = per_sample * samples * cost.total_passes
    return TimeGuess(
        total_seconds=total,
        pass_seconds=per_sample * samples,
        flops_per_second=cost.flops_per_sample / per_sample,
        timed_operations=runs * _RUNS,
        basis=basis,
        device=str(device),
        threads=torch.get_num_threads() if device.type == "cpu" else Missing("not a CPU"),
        helps=_helps(cost, cost.total_passes, options, per_sample * samples) if total >= _LONG else (),
    )


def _helps(cost: CostEstimate, total: float, options: ProbeOptions, each: float) -> tuple[Remedy, ...]:
    """What shortens a run of ``total`` passes of ``each`` seconds, and to how many seconds, most of all first."""
    along = sum(passes for passes in (cost.tangent_passes, cost.product_passes) if not isinstance(passes, Missing))
    curvature = sum(p for p in (cost.sweep_passes, cost.estimate_passes) if not isinstance(p, Missing)) + along
    engines = [EngineName.TANGENT if along else EngineName.GAUSS_NEWTON]
    fewer = curvature_samples(engines, options, options.num_samples) // 4
    left = {
        f"--top-k {max(1, options.top_k // 2)}": total - along / 2,
        "8 ranks (torchrun)": total / 8,
    }
    if fewer >= options.groups:
        left[f"--curvature-samples {fewer}"] = total - curvature * 3 / 4
    if options.estimate is Estimate.BOTH:
        left["--estimate published"] = total - along / 2
    found = [Remedy(name, passes * each, "seconds") for name, passes in left.items() if passes < 0.9 * total]
    return tuple(sorted(found, key=lambda remedy: remedy.left))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes on a device that is warm: the least of a few runs."""
    work()
    found = []
    for _ in range(_RUNS):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        found.append(time.perf_counter() - began)
    return max(min(found), 1e-9)


def _time_pass(workload: Workload, device: torch.device, batch: int) -> float:
    network = _with_numbers(workload.model, device, workload.dtype)
    real = replace(workload, model=network, device=device)
    inputs, _ = real.fetch(0, 1)
    if isinstance(inputs, Tensor):
        inputs = inputs.expand(batch, *inputs.shape[1:]).contiguous()
    else:
        inputs = {name: x.expand(batch, *x.shape[1:]).contiguous() for name, x in inputs.items()}
    with nullcontext() if workload.differentiates else torch.no_grad():
        return seconds_of(lambda: real.forward(inputs), device)


def _with_numbers(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy on a device, in which tensors without numbers have some: how long a pass takes does not depend on them."""
    network = copy_of(model).eval()
    made: dict[int, Tensor] = {}
    for module in network.modules():
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for store in stores:
            for name, old in store.items():
                if old is None or not old.is_meta:
                    continue
                if id(old) not in made:
                    new = _numbers(old, device, dtype)
                    made[id(old)] = nn.Parameter(new, False) if isinstance(old, nn.Parameter) else new
                store[name] = made[id(old)]
    return network.to(device, dtype)


def _numbers(tensor: Tensor, device: torch.device, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Tensor:
    shape = tuple(tensor.shape if shape is None else shape)
    if not tensor.is_floating_point():
        return torch.zeros(shape, device=device, dtype=tensor.dtype)
    return torch.rand(shape, device=device, dtype=dtype).mul_(0.1)


def _time_calls(calls: Sequence[Call], device: torch.device, dtype: torch.dtype, scale: _Scale) -> tuple[float, int]:
    """Seconds of one sample's forward pass, and how many shapes were timed for it."""
    total = sum(call.flops for call in calls)
    covered, seconds, shapes = 0, 0.0, 0
    for call in sorted(calls, key=lambda call: -call.flops):
        if shapes == _SHAPES or covered >= _SHARE * total:
            break
        work, flops = _cut_down(call, device, dtype, scale)
        seconds += seconds_of(work, device) * call.flops / flops
        covered += call.flops
        shapes += 1
    return seconds * total / covered, shapes


def _cut_down(
    call: Call, device: torch.device, dtype: torch.dtype, scale: _Scale
) -> tuple[Callable[[], object], float]:
    """What takes about as long per operation as the call, within the scale, and its number of operations."""
    if call.packet is torch.ops.aten.convolution:
        return _smaller_convolution(call, device, dtype, scale)
    tensors = [a for a in call.args if isinstance(a, Tensor)]
    left, right = tensors[-2:] if call.packet in _WITH_OFFSET else tensors[:2]
    batch = left.shape[0] if left.dim() == 3 else 1
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    rows *= max(1, min(16, int(scale.flops // (2 * batch * rows * inner * columns))))  # a micro-batch has many samples
    while inner * columns > scale.numbers or (2 * batch * rows * inner * columns > scale.flops and inner * columns > 1):
        if batch > 1:
            batch //= 2
        elif rows > max(64, inner, columns):
            rows //= 2
        elif inner >= columns:
            inner //= 2
        else:
            columns //= 2
    a, b = (_numbers(t, device, dtype, s) for t, s in ((left, (batch, rows, inner)), (right, (batch, inner, columns))))
    if batch == 1:
        a, b = a[0], b[0]
    return (lambda: a @ b), 2.0 * batch * rows * inner * columns


_WITH_OFFSET = (torch.ops.aten.addmm, torch.ops.aten.baddbmm)


def _smaller_convolution(
    call: Call, device: torch.device, dtype: torch.dtype, scale: _Scale
) -> tuple[Callable[[], object], float]:
    x, weight = call.args[:2]
    each = call.flops / call.count
    shape = [max(1, min(16, int(scale.flops // each))), *x.shape[1:]]
    kernel = weight.shape[2:]
    while each * shape[0] > scale.flops or math.prod(shape) > scale.numbers:
        axis = max(range(2, len(shape)), key=lambda i: shape[i] / kernel[i - 2])
        if shape[axis] // 2 < kernel[axis - 2]:
            break
        each *= (shape[axis] // 2) / shape[axis]
        shape[axis] //= 2
    made = [_numbers(x, device, dtype, shape), _numbers(weight, device, dtype)]
    rest = (None, *call.args[3:])
    return (lambda: torch.ops.aten.convolution(*made, *rest)), each * shape[0]
