"""Measure the mean gradient of every weight over the fixed batch, in micro-batches and in two halves."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spectrascope.curvature.microbatches import MicroBatch, Schedule, available_bytes, is_out_of_memory
from spectrascope.errors import NonFiniteError, UnsupportedModelError
from spectrascope.losses import aligned, ignored_by
from spectrascope.measure.asked import memory_asked_for
from spectrascope.measure.ranks import ALONE, Ranks
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import Missing
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

    def add(self, name: str, cells: Tensor, cuts: Sequence[int], borders: Sequence[int]) -> None:
        """Add a weight's sums (cells, m, n) over the samples between ``cuts``, in order."""
        n = cuts[-1]
        halves = [torch.zeros(cells.shape[1:], dtype=sum_dtype(cells.device), device=cells.device) for _ in range(2)]
        for start, cell in zip(cuts, cells, strict=False):
            halves[int(start >= n // 2)].add_(cell)
        self.gradients[name] = (halves[0] + halves[1]) / n
        if self.half_difference is not None:
            self.half_difference[name] = (halves[0] / (n // 2) - halves[1] / (n - n // 2)) / 2
        if borders:
            if len(cells) >= len(borders):  # the middle of the batch lies inside a group: its two cells make one
                second = cuts.index(n // 2)
                cells[second - 1] += cells[second]
                cells = torch.cat([cells[:second], cells[second + 1 :]])
            sizes = torch.tensor(borders).diff()[:, None, None]
            self.by_group[name] = cells.div_(sizes.to(cells.device))

    def without_gradients(self) -> GradientPass:
        """What the pass tells about the batch, without what takes memory."""
        return replace(self, gradients={}, half_difference=None, by_group={})


def gradient_memory(device: torch.device, options: ProbeOptions) -> int:
    """Bytes that gradients may take: as asked for, else half of what is free, on the device or in the host's memory."""
    asked = memory_asked_for(options)
    if asked is not None:
        return asked
    free = available_bytes(device)
    return 4 << 30 if isinstance(free, Missing) else free // 2


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
    micro_batch: MicroBatch = None,
    borders: Sequence[int] = (),
    progress: Callable[[float, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> GradientPass:
    """Run one forward and one backward pass over the batch.

    Args:
        workload: the model is expected in eval mode with only the layers' weights requiring gradients.
        layers: the weights.
        micro_batch: samples per pass; ``None`` tunes it.
        borders: sample numbers [0, …, n] between which gradients are kept by group; none are when empty.
        progress: called with (samples done, samples in all).
        ranks: the processes that measure together; each does some of the samples, and is handed the gradients of some
            of the weights.

    Returns:
        Mean gradients in float64 (float32 on devices without it), each on its weight's device; of the weights that fall
        to this process.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite.
        UnsupportedModelError: no weight reaches the loss, or autograd fails on the network.

    Cost: about three forward-equivalents. Memory: 8 bytes per weight, and for each group 4 (8 in float64); then
    16 more for each weight that falls to this process.
    """
    n = workload.source.n
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    cuts = sorted({0, n // 2, n, *borders})
    cells = ranks.share(len(cuts) - 1)
    sums = _CellSums(workload, parameters, cuts[cells.start : cells.stop + 1])
    found = ranks.each(lambda: sums.measure(workload, micro_batch, progress))
    loss, n_correct, n_labels = torch.cat([part.totals for part in found]).sum(0).tolist()
    loss /= n
    if not math.isfinite(loss):
        raise NonFiniteError(f"the mean loss over {n} samples is {loss}: check the preprocessing and the labels")
    accuracy = n_correct / n_labels if all(part.classes for part in found) and n_labels else None
    seen = [any(flags) for flags in zip(*(part.seen for part in found), strict=True)]
    whole = GradientPass({}, {} if n > 1 else None, {}, loss, accuracy, max(part.micro_batch for part in found), {})
    owners = ranks.deal([p.numel() for p in parameters])
    by_parameter: dict[int, list[WeightLayer]] = {}
    for layer in layers:
        by_parameter.setdefault(id(layer.parameter), []).append(layer)
    for i, parameter in enumerate(parameters):
        members = by_parameter[id(parameter)]
        if not seen[i]:
            whole.missing.update(dict.fromkeys((layer.name for layer in members), _UNREACHED))
            continue
        gathered = ranks.gather(sums.give(i), len(cuts) - 1, owners[i])
        if gathered is None:  # another rank's
            continue
        for layer in members:
            whole.add(layer.name, torch.stack([layer.matrix(cell) for cell in gathered]), cuts, borders)
    return whole


_UNREACHED = "the weight does not reach the loss (unused, or cut off by detach)"


@dataclass(frozen=True)
class _Totals:
    """What the samples of some cells add up to besides gradients: ``totals`` (cells, 3) loss and counts of labels."""

    totals: Tensor
    classes: bool
    seen: list[bool]
    micro_batch: int


class _CellSums:
    """Gradients added up over the samples between two cuts, in float64, and kept in the precision they have.

    No cell straddles a border between sample groups or the middle of the batch, and nothing is added across cells here:
    so it does not matter which process measures which of them.
    """

    def __init__(self, workload: Workload, parameters: Sequence[nn.Parameter], cuts: Sequence[int]) -> None:
        self.cuts, self.parameters, self.device = cuts, parameters, workload.device
        self.dtype = sum_dtype(workload.device)
        kept = torch.float64 if workload.dtype is torch.float64 else torch.float32
        self.cells: list[Tensor | None] = [
            torch.zeros((max(0, len(cuts) - 1), *p.shape), dtype=kept, device=p.device) for p in parameters
        ]
        self.seen = [False] * len(parameters)

    def measure(
        self, workload: Workload, micro_batch: MicroBatch, progress: Callable[[float, int], None] | None
    ) -> _Totals:
        """Run forward and backward over the samples of these cells.

        Raises:
            UnsupportedModelError: no weight reaches the loss, or autograd fails on the network.
        """
        totals = torch.zeros(max(0, len(self.cuts) - 1), 3, dtype=self.dtype, device=self.device)
        classes, chosen = [True], 0
        if len(self.cuts) < 2:  # more processes than cells
            return _Totals(totals.cpu(), True, self.seen, chosen)
        first, last = self.cuts[0], self.cuts[-1]
        sums = [torch.zeros(p.shape, dtype=self.dtype, device=p.device) for p in self.parameters]
        schedule = Schedule(last - first, micro_batch, [cut - first for cut in self.cuts[1:]], device=workload.device)

        def work(start: int, stop: int) -> None:
            start, stop = start + first, stop + first
            inputs, targets = workload.fetch(start, stop)
            with torch.enable_grad():
                output = workload.forward(inputs)
                loss = workload.loss_fn(output, targets)
                found = _differentiate(loss, self.parameters)
            cell = bisect.bisect_right(self.cuts, start) - 1
            for i, gradient in enumerate(found):
                if gradient is not None:
                    self.seen[i] = True
                    sums[i].add_(gradient, alpha=stop - start)
            if stop == self.cuts[cell + 1]:
                for kept, total in zip(self.cells, sums, strict=True):
                    assert kept is not None  # nothing was given away yet
                    kept[cell] = total
                    total.zero_()
            counts = _count_labels(workload.loss_fn, output, targets)
            if counts is None:
                classes[0] = False
            else:
                totals[cell, 1:] += counts
            totals[cell, 0] += loss.detach() * (stop - start)

        schedule.run(work, progress)
        return _Totals(totals.cpu(), classes[0], self.seen, schedule.chosen)

    def give(self, i: int) -> Tensor:
        """Hand over the sums (cells, *shape) of one parameter, which are not kept."""
        given, self.cells[i] = self.cells[i], None
        assert given is not None
        return given


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
