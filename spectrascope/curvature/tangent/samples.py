"""Where samples lie in the values of a recording, so that one sweep can span several sample groups.

Told by looking, whatever the network's code: it is recorded on three samples, again with the first replaced by another,
and on two. What stays as it is depends on weights alone. Of what grows with the number of samples, the axis that grows
and the entries that change tell how many rounds of all samples it holds: one where samples come first, one per token
where tokens do, be samples an axis of their own or merged with tokens or heads. Where some second-order term is made of
anything else (statistics of a batch, rows that are routed), groups are swept one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.curvature.engine import UnsupportedOperationError
from spectrascope.curvature.recorder import Node, Recording
from spectrascope.curvature.tangent.compared import adds_up_samples
from spectrascope.curvature.tangent.table import is_pointwise
from spectrascope.workload import Inputs

__all__ = ["MixedSamplesError", "SampleOrder", "find_sample_order", "is_sum_over_samples"]


class MixedSamplesError(UnsupportedOperationError):
    """What several samples contribute cannot be told apart."""


@dataclass(frozen=True)
class SampleOrder:
    """Of every value of a recording: where samples lie, and how many numbers it has per sample (or at all).

    ``rounds`` says how often a value, read in order, goes through all samples: once for (samples, tokens, width), once
    per token for (tokens, samples, width). It is 0 of what depends on weights alone, ``None`` of anything else.
    """

    rounds: tuple[int | None, ...]
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
        if len(sizes) != len(self.sizes) or any(
            size != known * (samples if rounds else 1)
            for size, known, rounds in zip(sizes, self.sizes, self.rounds, strict=True)
            if rounds is not None
        ):
            raise MixedSamplesError("the network runs other operations on other samples")
        matters = {id(node): curved | wanted for node, curved, wanted in ruled}
        curved_here = {id(node) for node, curved, _ in ruled if curved}
        found: dict[int, tuple[bool, ...]] = {}
        for node in reaching:
            inputs = [self.rounds[n] for n in node.inputs.values()]
            outputs = [self.rounds[n] for n in node.outputs if n is not None]
            still = tuple(rounds == 0 for rounds in inputs)
            if any(still) and any(rounds != 0 for rounds in outputs):
                entering = 0
                for n, alone in zip(node.inputs.values(), still, strict=True):
                    entering |= recording.values[n].dep if alone else 0
                if not self.rounds_at(node) or entering & ~matters.get(id(node), 0):
                    raise MixedSamplesError(
                        f"{node.name.removeprefix('aten.')} meets a weight with samples out of order"
                    )
                found[id(node)] = still
            elif id(node) in curved_here and not self.rounds_at(node):
                raise MixedSamplesError(f"{node.name.removeprefix('aten.')} has samples out of order")
            if id(node) in curved_here and None in inputs:
                raise MixedSamplesError(f"{node.name.removeprefix('aten.')} takes samples out of order")
        return found

    def rounds_at(self, node: Node) -> int | None:
        """Rounds of what comes out, or of the entries added up to it; ``None`` where that is not one number."""
        found = {self.rounds[n] for n in node.outputs if n is not None}
        if found == {None} and adds_up_samples(node):
            found = {self.rounds[n] for n in node.inputs.values()}
        return found.pop() if len(found) == 1 else None


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
    numbers, *others = ([node.outputs for node in recording.nodes] for recording in (whole, other, fewer))
    if any(numbers != found for found in others):
        return None
    rounds: list[int | None] = [0 for _ in whole.values]  # of weights; all others follow
    sizes = [torch.Size(value.shape).numel() for value in whole.values]
    for node, another, smaller in zip(whole.nodes, other.nodes, fewer.nodes, strict=True):
        for n, out, changed, small in zip(node.outputs, node.outs, another.outs, smaller.outs, strict=True):
            if n is not None:
                rounds[n] = _rounds(out.detach(), changed.detach(), small.shape, _kept(node, rounds))
                sizes[n] //= 3 if rounds[n] else 1
                before = node.inputs.get(0)
                if node.name in _IN_ORDER and before is not None and rounds[before] is None and rounds[n]:
                    # It shows in the new shape alone: that of copies of weights, by (tokens, samples).
                    rounds[before], sizes[before] = rounds[n], sizes[n]
    return SampleOrder(tuple(rounds), tuple(sizes))


_IN_ORDER = frozenset(
    f"aten.{name}"
    for name in ("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten", "unflatten", "clone",
                 "contiguous", "alias", "_to_copy", "to")
)  # fmt: skip
_ROWS = {"aten.mm": 0, "aten.addmm": 1}  # whose rows are the product's


def _kept(node: Node, rounds: Sequence[int | None]) -> set[int]:
    """Rounds of inputs whose entries, or whose rows, come out in their order; none where there is no such input.

    Needed where nothing changes with the samples: copies of a class token say nothing of their order.
    """
    out = node.outs[0].shape
    units = out.numel()
    if node.name in _IN_ORDER:
        same = [0]
    elif node.name in _ROWS:
        same, units = [_ROWS[node.name]], out[0]
    elif is_pointwise(node):
        same = [p for p, t in enumerate(node.tensors()) if t.shape == out]
    else:
        return set()
    found = {rounds[node.inputs[p]] for p in same if p in node.inputs}
    return {r for r in found if r and units % (3 * r) == 0}


def _rounds(value: Tensor, other: Tensor, fewer: torch.Size, kept: set[int]) -> int | None:
    """Rounds of a value of three samples; ``other`` is that with the first replaced, ``fewer`` the shape of two.

    Only the true one is sure to fit, so that what does not show for certain is no order at all.
    """
    if value.shape != other.shape or value.dim() != len(fewer):
        return None
    if value.shape == fewer:
        return 0 if torch.equal(value, other) else None
    (axis, *more) = [a for a, (many, few) in enumerate(zip(value.shape, fewer, strict=True)) if many != few]
    each = value.shape[axis] // 3
    if more or (value.shape[axis], fewer[axis]) != (3 * each, 2 * each):
        return None
    before = math.prod(value.shape[:axis]) or 1
    possible = kept or {before * inside for inside in range(1, each + 1) if each % inside == 0}
    differs = value != other
    fitting = [r for r in possible if not differs.reshape(r, 3, value.numel() // (3 * r))[:, 1:].any()]
    return fitting[0] if len(fitting) == 1 else None


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
