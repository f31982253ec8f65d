"""Measure the mean gradient of every weight over the fixed batch, in micro-batches and in two halves."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spectrascope.curvature.microbatches import Schedule, is_out_of_memory
from spectrascope.errors import NonFiniteError, UnsupportedModelError
from spectrascope.losses import aligned, ignored_by
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.text import first_line
from spectrascope.workload import Workload


@dataclass(frozen=True)
class GradientPass:
    """Mean gradients and what the same pass tells about the batch.

    ``gradients[name]`` is the m × n mean gradient; ``half_difference[name]`` is (G_1 − G_2)/2 of the two
    half-batches, whose spectral norm estimates the sampling noise of the singular values. ``by_group[name]``
    (groups, m, n) are the mean gradients of the sample groups asked for. ``missing`` maps a
    weight without a gradient to the reason. ``accuracy`` is top-1 over all labels (tokens, for a
    language model), ``None`` where outputs are not class scores.
    """

    gradients: dict[str, Tensor]
    half_difference: dict[str, Tensor] | None
    missing: dict[str, str]
    loss: float
    accuracy: float | None
    micro_batch: int
    by_group: dict[str, Tensor]

    def without_gradients(self) -> GradientPass:
        """What the pass tells about the batch, without what takes memory."""
        return replace(self, gradients={}, half_difference=None, by_group={})


def gradient_memory(device: torch.device) -> int:
    """Bytes that gradients may take: half of what is free, on the device or in the host's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # not told on this system
        return 4 << 30


def gradient_bytes(layer: WeightLayer, groups: int) -> int:
    """Bytes that the gradients of a weight take: of the batch and its halves, and of each sample group."""
    return layer.parameter.numel() * (24 + 4 * groups * max(1, layer.parameter.element_size() // 4))


def blocks_within(layers: Sequence[WeightLayer], groups: int, memory: int) -> list[list[WeightLayer]]:
    """Deal weights to blocks whose gradients, by sample group and in all, fit in ``memory`` bytes; order is kept."""
    blocks: list[list[WeightLayer]] = [[]]
    held: dict[int, int] = {}
    for layer in layers:
        size = gradient_bytes(layer, groups)
        if blocks[-1] and id(layer.parameter) not in held and sum(held.values()) + size > memory:
            blocks.append([])
            held = {}
        held[id(layer.parameter)] = size
        blocks[-1].append(layer)
    return blocks


def measure_gradients(
    workload: Workload,
    layers: Sequence[WeightLayer],
    *,
    micro_batch: int | None = None,
    borders: Sequence[int] = (),
    progress: Callable[[float, int], None] | None = None,
) -> GradientPass:
    """Run one forward and one backward pass over the batch.

    Args:
        workload: the model is expected in eval mode with only the layers' weights requiring gradients.
        layers: the weights.
        micro_batch: samples per pass; ``None`` tunes it.
        borders: sample numbers [0, …, n] between which gradients are kept by group; none are when empty.
        progress: called with (samples done, samples in all).

    Returns:
        Mean gradients in float64 (float32 on devices without it), on the workload's device.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite.
        UnsupportedModelError: no weight reaches the loss, or autograd fails on the network.

    Cost: about three forward-equivalents. Memory: 16 bytes per weight, and for each group 4 (8 in float64).
    """
    n = workload.source.n
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    sums = _GradientSums(workload, parameters, borders)
    totals = torch.zeros(3, dtype=sums.dtype, device=workload.device)
    classes = [True]
    schedule = Schedule(n, micro_batch, sums.cuts, device=workload.device)

    def work(start: int, stop: int) -> None:
        inputs, targets = workload.fetch(start, stop)
        with torch.enable_grad():
            output = workload.forward(inputs)
            loss = workload.loss_fn(output, targets)
            found = _differentiate(loss, parameters)
        sums.add(found, start, stop)
        counts = _count_labels(workload.loss_fn, output, targets)
        if counts is None:
            classes[0] = False
        else:
            totals[1:] += counts
        totals[0] += loss.detach() * (stop - start)

    schedule.run(work, progress)
    loss, n_correct, n_labels = totals.tolist()
    loss /= n
    if not torch.isfinite(totals[0]):
        raise NonFiniteError(f"the mean loss over {n} samples is {loss}: check the preprocessing and the labels")
    accuracy = n_correct / n_labels if classes[0] and n_labels else None
    return sums.finish(layers, loss, accuracy, schedule.chosen)


class _GradientSums:
    """Gradients added up over micro-batches: by half batch in float64, by sample group in the precision they have."""

    def __init__(self, workload: Workload, parameters: Sequence[nn.Parameter], borders: Sequence[int]) -> None:
        self.n, self.half, self.borders = workload.source.n, workload.source.n // 2, list(borders)
        self.dtype = sum_dtype(workload.device)
        self.kept = torch.float64 if workload.dtype is torch.float64 else torch.float32
        shapes, device = [tuple(p.shape) for p in parameters], workload.device
        self.halves = [[torch.zeros(shape, dtype=self.dtype, device=device) for shape in shapes] for _ in range(2)]
        n_groups = max(0, len(borders) - 1)
        self.groups = [torch.zeros((n_groups, *shape), dtype=self.kept, device=device) for shape in shapes]
        self.seen = [False] * len(parameters)
        self.index = {id(p): i for i, p in enumerate(parameters)}

    @property
    def cuts(self) -> list[int]:
        """Sample numbers that no micro-batch may straddle."""
        return sorted({self.half, *self.borders} - {0})

    def add(self, gradients: Sequence[Tensor | None], start: int, stop: int) -> None:
        """Add the gradients of a micro-batch's mean loss, one per parameter."""
        side = self.halves[int(start >= self.half)]
        group = bisect.bisect_right(self.borders, start) - 1
        for i, gradient in enumerate(gradients):
            if gradient is not None:
                self.seen[i] = True
                side[i].add_(gradient, alpha=stop - start)
                if self.borders:
                    self.groups[i][group].add_(gradient, alpha=stop - start)

    def finish(self, layers: Sequence[WeightLayer], loss: float, accuracy: float | None, chosen: int) -> GradientPass:
        """Mean gradients of every weight, seen as a matrix."""
        gradients: dict[str, Tensor] = {}
        difference: dict[str, Tensor] = {}
        by_group: dict[str, Tensor] = {}
        missing: dict[str, str] = {}
        sizes = torch.tensor(self.borders).diff()[:, None, None]
        for layer in layers:
            i = self.index[id(layer.parameter)]
            if not self.seen[i]:
                missing[layer.name] = "the weight does not reach the loss (unused, or cut off by detach)"
                continue
            first, second = (layer.matrix(side[i]) for side in self.halves)
            gradients[layer.name] = (first + second) / self.n
            if self.borders:
                by_group[layer.name] = torch.stack([layer.matrix(g) for g in self.groups[i]]) / sizes.to(first.device)
            if self.half:
                difference[layer.name] = (first / self.half - second / (self.n - self.half)) / 2
        return GradientPass(gradients, difference if self.half else None, missing, loss, accuracy, chosen, by_group)


def _differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        raise UnsupportedModelError(
            "the loss does not depend on any measured weight through autograd: the model detaches its "
            "output or runs under no_grad or inference_mode"
        )
    try:
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:  # reentrant checkpoints, activations overwritten while still needed
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(f"autograd cannot differentiate this network: {first_line(error)}") from error


def _count_labels(loss_fn: object, output: object, targets: Tensor) -> Tensor | None:
    """Count labels (2,): predicted, and in all; ``None`` where outputs are no class scores."""
    if not isinstance(output, Tensor) or targets.is_floating_point():
        return None
    output, targets = aligned(output, targets, loss_fn)
    if output.dim() == targets.dim() + 1 and output.shape[:-1] == targets.shape:
        best = output.detach().argmax(-1) if output.shape[-1] > 1 else None
    elif output.dim() == targets.dim() + 1 and output.shape[:1] + output.shape[2:] == targets.shape:
        best = output.detach().argmax(1) if output.shape[1] > 1 else None  # class scores per pixel
    else:
        return None
    if best is None:  # one score is not one score per class
        return None
    labelled = targets != ignored_by(loss_fn)
    return torch.stack([(best == targets).logical_and(labelled).sum(), labelled.sum()])
