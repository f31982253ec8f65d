"""Make a run ready to be measured: device, dtype, weights, shapes, labels, memory order, engines; all checked."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from spectrascope.curvature.choose import EngineChoice, choose_engines
from spectrascope.curvature.microbatches import is_out_of_memory, wait_for
from spectrascope.errors import DataError, OptionError, UnsupportedModelError
from spectrascope.losses import (
    is_per_sample,
    per_sample_words,
    require_labels_below,
    weighing_of,
    with_whole_batch,
)
from spectrascope.measure.asked import device_name
from spectrascope.measure.degenerate import look_for_degenerate
from spectrascope.measure.demand import count_direction_sets
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.labels import relabel
from spectrascope.measure.workloads import prepare_workload
from spectrascope.network.effective import parametrized_weights, unwrapped
from spectrascope.network.guards import (
    held_still,
    require_deterministic,
    require_finite_weights,
)
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.network.loss_weights import with_weights_in_loss_seen
from spectrascope.network.mean_loss import require_mean_loss
from spectrascope.numerics.lifted import CastsSeen
from spectrascope.optim.precision import is_full_float32
from spectrascope.records.report import LayerInfo, ProbeOptions, SkippedLayer
from spectrascope.text import first_line, plural
from spectrascope.workload import Inputs, Run, Workload


@dataclass(frozen=True)
class Ready:
    """A network that is known to run on its samples, held still, and what is to measure each of its weights.

    ``candidates`` are all weights in network order, ``layers`` those to be measured, ``choices`` one for each of
    them. ``settled``: when and by which command the measurement began, on which device, and in which memory order
    images are handed to the network; ``notes`` what a reader of the report must know of it.
    """

    workload: Workload
    candidates: list[WeightLayer | SkippedLayer]
    layers: list[WeightLayer]
    choices: list[EngineChoice]
    settled: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@contextmanager
def prepare(run: Run, division: Division = WHOLE) -> Iterator[Ready]:
    """Check all that can be checked before any long work; the network is held still until the block ends.

    Args:
        run: what is measured.
        division: with whom this process must agree.

    Raises:
        SpectrascopeError: one of its kinds.
    """
    if run.options.device_map != "none" and division.ranks.count > 1:
        raise OptionError(
            f"--device-map {run.options.device_map[:60]!r} spreads the network of one process over all devices; drop "
            "it, or start one process without torchrun"
        )
    workload = prepare_workload(run)
    with workload.with_weights(), _prepared(run, workload, division) as ready:
        yield ready


@contextmanager
def _prepared(run: Run, workload: Workload, division: Division) -> Iterator[Ready]:
    require_finite_weights(workload.model)
    options = run.options
    candidates = _with_parametrized_marked(
        find_layers(workload.model, options.layers, options.exclude, split_fused=options.split_fused),
        parametrized_weights(unwrapped(run.model)),
    )
    layers = [c for c in candidates if isinstance(c, WeightLayer)]
    if not layers:
        raise OptionError(f"every weight is left out: nothing to measure; {_why_none(candidates)}")
    weights = [layer.parameter for layer in layers]
    with held_still(workload, weights) as switched:
        with run.clock.stage("check"):
            run.on_progress("check", 0, 1)
            workload = _in_asked_precision(_with_matching_labels(workload), switched)
            workload = with_weights_in_loss_seen(workload, unwrapped(run.model))
            workload = relabel(workload, options.labels, options.seed)
            workload = _with_whole_batch_weights(workload)
            require_deterministic(workload)
            run.on_progress("check", 0.3, 1)  # each of these takes passes of its own: a deadline is met between them
            require_mean_loss(workload)
            notes = look_for_degenerate(workload)
            run.on_progress("check", 0.6, 1)
            settled = division.settle(run, workload, functools.partial(_settle, workload, options))
            workload = replace(workload, channels_last=settled["channels_last"])
            choices = choose_engines(
                workload, layers, options.engine, options.top_k, lambda engine: count_direction_sets(engine, options)
            )
            run.on_progress("check", 1, 1)
        notes = (*_notes_on_precision(switched, workload.dtype), *notes)
        yield Ready(workload, candidates, layers, choices, settled, notes)


def _why_none(skipped: Sequence[WeightLayer | SkippedLayer]) -> str:
    """Why nothing is left, of weights that are skipped: the first reason that is not a choice of the user's."""
    own = [
        s for s in skipped if isinstance(s, SkippedLayer) and "--layers" not in s.reason and "--exclude" not in s.reason
    ]
    return f"{own[0].info.name} is left out: {own[0].reason}" if own else "see --layers and --exclude"


def _in_asked_precision(workload: Workload, switched: set[str]) -> Workload:
    """Leave out casts to less than the precision asked for that the network or its loss makes itself.

    ``switched`` is told of them.

    Raises:
        UnsupportedModelError: it computes in lower precision all the same, or switches float32 products to less.
    """
    if seen := _casts(workload):
        workload = workload.without_casts()
        switched.update(seen)
        if left := _casts(workload):
            raise UnsupportedModelError(
                f"the network makes {' and '.join(left)} that cannot be left out, whatever its weights and inputs "
                "are: its curvature would be of that precision; cast to the inputs' dtype instead"
                + (", or measure with --dtype float32" if all("float32" in each for each in left) else "")
            )
    if not is_full_float32():
        raise UnsupportedModelError(
            "the network switches torch's float32 products to lower precision in its forward pass (allow_tf32 or "
            "set_float32_matmul_precision): take that out of forward; where it is set once, it has no effect here"
        )
    return workload


def _casts(workload: Workload) -> list[str]:
    """Casts to less than the precision asked for in a forward pass over two samples, and in their loss."""
    inputs, targets = workload.fetch(0, min(2, workload.source.n))
    with torch.no_grad():
        with CastsSeen(workload.dtype) as seen:
            output = workload.forward(inputs)
        with CastsSeen(workload.dtype) as in_loss:
            workload.loss_fn(output, targets)
    return [f"casts to {name}" for name in seen.names] + [f"casts to {name} in its loss" for name in in_loss.names]


def _notes_on_precision(switched: set[str], dtype: torch.dtype) -> tuple[str, ...]:
    if not switched:
        return ()
    name = str(dtype).removeprefix("torch.")
    return (f"the network's own {' and '.join(sorted(switched))}: left out; all numbers are of the {name} network",)


def _settle(workload: Workload, options: ProbeOptions) -> dict[str, Any]:
    """What all processes must agree on; with a fixed micro-batch nothing is left to the clock."""
    timed = options.micro_batch == "auto"
    return {
        "device": workload.places or device_name(workload.device),
        "channels_last": timed and _is_faster_channels_last(workload),
    }


def _with_parametrized_marked(
    candidates: Sequence[WeightLayer | SkippedLayer], names: Sequence[str]
) -> list[WeightLayer | SkippedLayer]:
    """Mark parametrized weights: they were found in a copy with plain ones, where nothing tells them apart."""

    def is_parametrized(info: LayerInfo) -> bool:
        return any(name.partition("[")[0] in names for name in (info.name, *info.tied_names))

    return [replace(c, info=replace(c.info, parametrized=True)) if is_parametrized(c.info) else c for c in candidates]


def _with_matching_labels(workload: Workload) -> Workload:
    """Check shapes on a few samples, and have labels checked as they are read."""
    inputs, targets = workload.fetch(0, min(2, workload.source.n))
    workload, output = _first_output(workload, inputs)
    n_classes = _n_classes(output, targets)
    if n_classes is not None and weighing_of(workload.loss_fn) is None:
        _require_labels_accepted(workload, n_classes)
    elif n_classes is not None:
        workload = replace(workload, n_classes=n_classes)
        workload.fetch(0, min(2, workload.source.n))
    try:
        with torch.no_grad():
            loss = workload.loss_fn(output, targets)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"the loss does not accept the model's output and targets of shape {tuple(targets.shape)}: "
            f"{_why_no_loss(output, targets) or first_line(error)}"
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        raise DataError("the loss function must return a scalar tensor: the mean over the samples it is given")
    return workload


def _require_labels_accepted(workload: Workload, n_classes: int) -> None:
    """Try labels outside 0 … n_classes − 1 on a loss of the user's own, which may have one that stands for none.

    Raises:
        DataError: it does not know some label.
    """
    tried: set[int] = set()
    for start, targets in workload.source.all_targets():
        outside = {int(label) for label in targets[(targets < 0) | (targets >= n_classes)].unique()} - tried
        for label in outside:
            place = start + int((targets == label).nonzero()[0, 0])
            inputs, own = workload.fetch(place, place + 1)
            try:
                with torch.no_grad():
                    workload.loss_fn(workload.forward(inputs).cpu(), own.cpu())
            except IndexError:
                require_labels_below(own, n_classes)
        tried |= outside


def _why_no_loss(output: object, targets: torch.Tensor) -> str | None:
    """What is wrong with an output that goes with no loss, where that can be told."""
    if is_per_sample(output):
        return per_sample_words(output)
    if isinstance(output, torch.Tensor) and output.shape == targets.shape and not targets.is_floating_point():
        return (
            "the targets are whole numbers in the shape of the scores: probabilities, and the 0 and 1 of binary "
            "losses, are floating-point numbers (targets.float()); class numbers are one per sample (of one-hot rows "
            "targets.argmax(-1))"
        )
    if isinstance(output, torch.Tensor) and targets.dim() == 2 and not targets.is_floating_point():
        positions = output.shape[1] if output.dim() == 3 else 1
        if output.dim() in (2, 3) and positions != targets.shape[1]:
            return (
                f"the model gives scores of {plural(positions, 'position')} for texts of {targets.shape[1]} tokens "
                "(the last alone, as for generation?), and the loss is of every token; have it return scores at all of "
                "them"
            )
    return None


def _with_whole_batch_weights(workload: Workload) -> Workload:
    """Have a loss that weighs its terms divided by the weights of the whole batch, whichever samples are looked at."""
    source = workload.source
    return replace(workload, loss_fn=with_whole_batch(workload.loss_fn, source.n, source.all_targets))


def _first_output(workload: Workload, inputs: Inputs) -> tuple[Workload, object]:
    """Run the network for the first time; one that takes gradients inside its forward pass needs grad mode for it."""
    refused = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)
    try:
        with torch.no_grad():
            return workload, workload.forward(inputs)
    except refused as error:
        with_grad = replace(workload, differentiates=True)
        try:
            with torch.no_grad():
                return with_grad, with_grad.forward(inputs)
        except refused:
            raise DataError(f"the model does not accept {_describe(inputs)}: {first_line(error)}") from error


def _n_classes(output: object, targets: torch.Tensor) -> int | None:
    """Count the class scores, where the targets are class numbers."""
    if not isinstance(output, torch.Tensor) or targets.is_floating_point() or output.dim() != targets.dim() + 1:
        return None
    axis = -1 if output.shape[:-1] == targets.shape else 1
    if axis == 1 and output.shape[:1] + output.shape[2:] != targets.shape:
        return None
    # one score goes with a binary or regression loss
    return output.shape[axis] if output.shape[axis] > 1 else None


def _describe(inputs: Inputs) -> str:
    if isinstance(inputs, torch.Tensor):
        return f"inputs of shape {tuple(inputs.shape)} {inputs.dtype}"
    return "inputs " + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())


def with_fastest_format(workload: Workload) -> Workload:
    """Choose the memory order in which images go through the network faster, by trying both."""
    return replace(workload, channels_last=_is_faster_channels_last(workload))


def _is_faster_channels_last(workload: Workload) -> bool:
    inputs, _ = workload.fetch(0, min(32, workload.source.n))
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 4:
        return False
    times: dict[bool, float] = {}
    for _ in range(3):  # the first round warms both up
        for last in (False, True):
            x = inputs.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            x = x.detach().requires_grad_()
            began = time.perf_counter()
            # Input gradients are what the sweeps are made of, and some layouts are slow only there.
            output = workload.forward(x)
            if not isinstance(output, torch.Tensor) or not output.requires_grad:
                return False
            try:
                torch.autograd.grad(output.sum(), x, allow_unused=True)
            except RuntimeError as error:  # the gradient pass says what is wrong with the network
                if is_out_of_memory(error):
                    raise
                return False
            wait_for(workload.device)
            times[last] = min(times.get(last, float("inf")), time.perf_counter() - began)
    return times[True] < times[False]
