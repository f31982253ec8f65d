"""Where samples lie in the values of a recording, so that one sweep can span several sample groups.

Told by looking, whatever the network's code: it is recorded on three samples, again with the first replaced by another,
and on two. What stays as it is depends on weights alone; what changes within the first third of memory, and grows with
the number of samples, holds one sample after another. Where some second-order term is made of anything else (positions
before samples, statistics of a batch), groups are swept one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from spectrascope.curvature.engine import UnsupportedOperationError
from spectrascope.curvature.recorder import Node, Recording
from spectrascope.curvature.tangent.compared import adds_up_samples
from spectrascope.workload import Inputs

__all__ = ["MixedSamplesError", "SampleOrder", "find_sample_order", "is_sum_over_samples"]


class MixedSamplesError(UnsupportedOperationError):
    """What several samples contribute cannot be told apart."""


class _Place(Enum):
    STILL = "depends on weights alone"
    IN_ORDER = "one sample after another"
    MIXED = "anything else"


@dataclass(frozen=True)
class SampleOrder:
    """Of every value of a recording: where samples lie, and how many numbers it has per sample (or at all)."""

    places: tuple[_Place, ...]
    sizes: tuple[int, ...]

    def entries(
        self, recording: Recording, reaching: Sequence[Node], ruled: Sequence[tuple[Node, int, int]], samples: int
    ) -> dict[int, tuple[bool, ...]]:
        """By the id of each node at which tangents of weights alone meet samples: which inputs those are.

        Args:
            recording: of ``samples`` samples of the same network.
            reaching: the nodes that reach the loss.
            ruled: those that matter, with the weights that are curved there and those whose outputs are wanted.
            samples: how many were recorded.

        Raises:
            MixedSamplesError: the contributions of some node cannot be told apart by sample.
        """
        sizes = [torch.Size(value.shape).numel() for value in recording.values]
        factor = {_Place.IN_ORDER: samples, _Place.STILL: 1}
        if len(sizes) != len(self.sizes) or any(
            size != known * factor[place]
            for size, known, place in zip(sizes, self.sizes, self.places, strict=True)
            if place in factor
        ):
            raise MixedSamplesError("the network runs other operations on other samples")
        matters = {id(node): curved | wanted for node, curved, wanted in ruled}
        curved_here = {id(node) for node, curved, _ in ruled if curved}
        found: dict[int, tuple[bool, ...]] = {}
        for node in reaching:
            still = tuple(self.places[n] is _Place.STILL for n in node.inputs.values())
            outputs = [self.places[n] for n in node.outputs if n is not None]
            inputs = [self.places[n] for n in node.inputs.values()]
            if any(still) and any(place is not _Place.STILL for place in outputs):
                entering = 0
                for n, alone in zip(node.inputs.values(), still, strict=True):
                    entering |= recording.values[n].dep if alone else 0
                if any(place is not _Place.IN_ORDER for place in outputs) or entering & ~matters.get(id(node), 0):
                    raise MixedSamplesError(
                        f"{node.name.removeprefix('aten.')} meets a weight with samples out of order"
                    )
                found[id(node)] = still
            elif id(node) in curved_here and any(place is not _Place.IN_ORDER for place in outputs):
                if adds_up_samples(node) and all(place is _Place.IN_ORDER for place in inputs):
                    continue
                raise MixedSamplesError(f"{node.name.removeprefix('aten.')} has samples out of order")
            if id(node) in curved_here and _Place.MIXED in inputs:
                raise MixedSamplesError(f"{node.name.removeprefix('aten.')} takes samples out of order")
        return found


def find_sample_order(
    record: Callable[[Inputs, Tensor], Recording], inputs: Inputs, labels: Tensor
) -> SampleOrder | None:
    """Look where samples lie; ``None`` where that does not show.

    Args:
        record: records the network.
        inputs: three samples.
        labels: theirs.
    """

    def each(change: Callable[[Tensor], Tensor]) -> Recording:
        some = change(inputs) if isinstance(inputs, Tensor) else {name: change(x) for name, x in inputs.items()}
        return record(some, change(labels))

    first = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    if len(first) != 3 or torch.equal(first[0], first[2]):
        return None
    whole, other, fewer = each(lambda x: x), each(lambda x: x[[2, 1, 2]]), each(lambda x: x[:2])
    if not len(whole.values) == len(other.values) == len(fewer.values):
        return None
    places = [_Place.STILL for _ in whole.values]  # of weights; all others follow
    sizes = [torch.Size(value.shape).numel() for value in whole.values]
    outs = [_outputs(recording) for recording in (whole, other, fewer)]
    for number, value in outs[0].items():
        places[number] = _place(value, outs[1][number], outs[2][number].numel())
        sizes[number] //= 3 if places[number] is _Place.IN_ORDER else 1
    return SampleOrder(tuple(places), tuple(sizes))


def _outputs(recording: Recording) -> dict[int, Tensor]:
    pairs = [pair for node in recording.nodes for pair in zip(node.outputs, node.outs, strict=True)]
    recording.release()
    return {n: out.detach() for n, out in pairs if n is not None}


def _place(value: Tensor, other: Tensor, fewer: int) -> _Place:
    if value.shape != other.shape:
        return _Place.MIXED
    size = value.numel()
    if fewer == size:
        return _Place.STILL if torch.equal(value, other) else _Place.MIXED
    if size % 3 or fewer != size // 3 * 2:
        return _Place.MIXED
    if value.shape[0] % 3:
        value, other = value.flatten(), other.flatten()
    others = slice(value.shape[0] // 3, None)
    return _Place.IN_ORDER if torch.equal(value[others], other[others]) else _Place.MIXED


def is_sum_over_samples(
    loss_fn: Callable[[Tensor, Tensor], Tensor], output: object, labels: Tensor, loss: Tensor, borders: Sequence[int]
) -> bool:
    """Whether the loss is the mean of its groups' mean losses: not so where samples have more labels or fewer."""
    n = borders[-1]
    if not isinstance(output, Tensor) or output.dim() == 0 or not len(output) == len(labels) == n:
        return False
    parts = [
        loss_fn(output[start:stop], labels[start:stop]) * ((stop - start) / n)
        for start, stop in itertools.pairwise(borders)
    ]
    difference = float((torch.stack(parts).double().sum() - loss.double()).abs())
    return difference <= 16 * torch.finfo(output.dtype).eps * max(abs(float(loss)), torch.finfo(output.dtype).tiny)
