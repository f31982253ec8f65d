"""Add one micro-batch's inputs and cotangents to the sums of Kronecker factors; begin again where it does not fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.engine import Progress, Target
from spectrascope.curvature.factor_sums import GramSum, ParameterSums, TargetSums
from spectrascope.curvature.loss_root import LossColumns
from spectrascope.curvature.microbatches import (
    Groups,
    MicroBatch,
    OutOfMemoryError,
    Schedule,
    candidate_sizes,
    group_borders,
    is_out_of_memory,
    release_memory,
)
from spectrascope.curvature.patches import gram_of_patches, kernel_first, patches_of, project_patches
from spectrascope.records.decomposition import DecomposeOptions, Factors, Sharing
from spectrascope.workload import Workload

__all__ = ["FactorSlice", "Keeper", "Key", "OpenUse", "Summing", "finish_factors", "run_restarting"]

Key = tuple[int, "int | None"]
Split = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Summing:
    """Sums over samples: what adds some of them, what was summed so far as plain values, and how to go on from that."""

    work: Callable[[int, int], None]
    state: Callable[[], dict[str, Any]]
    restore: Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Keeper:
    """Where sums are kept as they grow, so that another process can go on with them."""

    read: Callable[[], Mapping[str, Any] | None]
    write: Callable[[Mapping[str, Any]], None]


_WRITING = 20
"""Seconds of summing for each second of writing sums down."""


class _TooLargeError(Exception):
    """A micro-batch did not fit; what was summed of it cannot be taken back."""


class FactorSlice:
    """Sums of all targets, and what is open of the current micro-batch.

    Of every micro-batch :meth:`begin` says where it starts. A use is opened with its input (b, t, g, n), then
    cotangents (c, b, t, g, w) of its output are added in any number of parts, then it is closed.
    """

    def __init__(
        self, workload: Workload, targets: Sequence[Target], options: DecomposeOptions, groups: Groups
    ) -> None:
        self.options = options
        self.workload = workload
        self.borders = group_borders(workload.source.n, groups)
        self.middle = self.borders[(len(self.borders) - 1) // 2]
        self.first, self.half = True, 0
        places = [t.layer.parameter.device for t in targets]
        self.left = [t.directions.left.to(at, workload.dtype) for t, at in zip(targets, places, strict=True)]
        self.right = [t.directions.right.to(at, workload.dtype) for t, at in zip(targets, places, strict=True)]
        self.numbers: dict[Key, list[int]] = {}
        for i, target in enumerate(targets):
            self.numbers.setdefault((id(target.layer.parameter), target.layer.expert), []).append(i)
        self.targets: list[TargetSums] = [None] * len(targets)  # type: ignore[list-item]
        for members in self.numbers.values():
            basis = torch.cat([targets[i].directions.right for i in members], 1)
            n = targets[members[0]].layer.info.shape[1]
            a = GramSum(1, n, basis, places[members[0]], workload.dtype)
            shared = ParameterSums(a)
            for i in members:
                self.targets[i] = TargetSums(targets[i], shared, self.borders, places[i])

    def state(self) -> dict[str, Any]:
        """What was summed so far, to go on from with :meth:`restore`."""
        shared = [self.targets[members[0]].parameter.state() for members in self.numbers.values()]
        return {"shared": shared, "targets": [target.state() for target in self.targets]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept of the same targets."""
        for members, kept in zip(self.numbers.values(), state["shared"], strict=True):
            self.targets[members[0]].parameter.restore(kept)
        for target, kept in zip(self.targets, state["targets"], strict=True):
            target.restore(kept)

    def begin(self, start: int) -> None:
        """Say where a micro-batch starts: in which half of the samples. None may straddle the middle."""
        self.first, self.half = start == 0, int(start >= self.middle)

    def open_linear(self, key: Key, a: Tensor) -> OpenUse:
        """Add the input (b, t, 1, n) of a linear layer to C_A."""
        members = self.numbers[key]
        self._count(key, a.shape[1], 1)
        rows = a if self.options.sharing is Sharing.EXPAND else a.sum(1, keepdim=True)
        self.targets[members[0]].parameter.a.add(rows.reshape(-1, 1, a.shape[-1]), half=self.half)
        return OpenUse(self, members, [a @ self.right[i] for i in members])

    def open_conv(self, key: Key, x: Tensor, shape: Sequence[int], conv: tuple[Any, ...], split: Split) -> OpenUse:
        """Add a convolution's input (images, C, …) to C_A; ``split`` makes (b, t, …) of (images, t, …)."""
        members = self.numbers[key]
        factor = self.targets[members[0]].parameter.a
        gram = None
        if self.options.sharing is Sharing.EXPAND and factor.whole:
            gram = gram_of_patches(x, shape, conv)
        if gram is None:
            a = split(patches_of(x, shape, conv))
            rows = a if self.options.sharing is Sharing.EXPAND else a.sum(1, keepdim=True)
            factor.add(rows.reshape(-1, 1, a.shape[-1]), half=self.half)
            q = [a @ kernel_first(self.right[i], shape[1]) for i in members]
        else:
            factor.add_gram(gram, half=self.half)
            q = [split(project_patches(x, self.right[i], shape, conv)) for i in members]
        self._count(key, q[0].shape[1], q[0].shape[2])
        return OpenUse(self, members, q)

    def _count(self, key: Key, positions: int, groups: int) -> None:
        if self.first:
            parameter = self.targets[self.numbers[key][0]].parameter
            parameter.positions += positions * groups
            parameter.blocks += groups


@dataclass
class OpenUse:
    """One use of a weight within a micro-batch."""

    of: FactorSlice
    members: list[int]
    q: list[Tensor]  # per member (b, t, g, K)
    energy: dict[int, Tensor] = field(default_factory=dict)
    energy_of_sums: dict[int, Tensor] = field(default_factory=dict)

    def add(self, delta: Tensor, scale: Tensor | None, *, factor: bool = True) -> list[Tensor]:
        """Add cotangents (c, b, t, g, w), each output times ``scale`` (m,); with ``factor`` they belong to C_delta.

        Returns:
            Per member, Σ over positions of (u·delta)(v·a), (c, b, K).
        """
        found = []
        for i, q in zip(self.members, self.q, strict=True):
            layer = self.of.targets[i].target.layer
            part, weights = delta, scale
            if layer.rows is not None:
                part = torch.cat([delta[..., run] for run in layer.rows], -1)
                weights = None if scale is None else torch.cat([scale[run] for run in layer.rows])
            left = self.of.left[i] if weights is None else self.of.left[i] * weights[:, None]
            groups, width = part.shape[-2:]
            if groups == 1:
                p = part[..., 0, :] @ left
                p = p[..., None, :]
            else:
                p = torch.einsum("cbtgw,gwk->cbtgk", part, left.reshape(groups, width, -1))
            if factor:
                self._add_factor(i, part, weights, p)
            found.append(p.mul_(q).sum((2, 3)))
        return found

    def _add_factor(self, i: int, part: Tensor, scale: Tensor | None, p: Tensor) -> None:
        reduce = self.of.options.sharing is Sharing.REDUCE
        rows = part.sum(2) if reduce else part
        sums = self.of.targets[i]
        if sums.delta is None:
            groups, width = part.shape[-2:]
            sums.delta = GramSum(groups, width, self.of.left[i], part.device, part.dtype)
        sums.delta.add(rows.reshape(-1, *part.shape[-2:]), scale, half=self.of.half)
        if i not in self.energy:
            self.energy[i] = torch.zeros_like(p[0])
        for column in p:
            self.energy[i].addcmul_(column, column)
        if reduce:
            summed = p.sum(2).square().sum(0)
            self.energy_of_sums[i] = self.energy_of_sums[i] + summed if i in self.energy_of_sums else summed

    def close(self, start: int) -> None:
        """Add what needs the sum over all columns: Rayleigh quotients, concentration."""
        for i, q in zip(self.members, self.q, strict=True):
            if i not in self.energy:
                continue  # no cotangent arrived: the output does not depend on this use
            squares = q.square()
            if self.of.options.sharing is Sharing.EXPAND:
                left, right = self.energy[i], squares
            else:
                left, right = self.energy_of_sums[i][:, None], q.sum(1, keepdim=True).square()
            self.of.targets[i].add_rows(start, squares, self.energy[i], left, right)


def finish_factors(sums: FactorSlice, shape: LossColumns | None, n: int) -> list[Factors]:
    """Make every target's factors of sums over n samples and the columns of any micro-batch."""
    assert shape is not None  # at least one micro-batch was run
    return [s.finish(n, shape.terms, shape.draws, len(shape.columns), shape.exact, sums.options) for s in sums.targets]


class _Writer:
    """Writes sums down, at the end and as often as takes a small share of the time."""

    def __init__(self, keeper: Keeper | None, n: int, size: int | None) -> None:
        self._keeper, self._n, self._size, self._next = keeper, n, size, 0.0

    def offer(self, done: int, summing: Summing) -> None:
        began = time.perf_counter()
        if self._keeper is None or (done < self._n and began < self._next):
            return
        self._keeper.write({"done": done, "size": self._size, "sums": summing.state()})
        ended = time.perf_counter()
        self._next = ended + _WRITING * (ended - began)


def run_restarting(
    workload: Workload,
    n: int,
    micro_batch: MicroBatch,
    groups: Groups,
    begin: Callable[[], Summing],
    progress: Progress | None,
    keeper: Keeper | None = None,
) -> None:
    """Run a schedule whose slices lie in one half of the groups; where one does not fit, start again with smaller.

    With a ``keeper`` what was summed is written down now and then, and gone on from: in the same slices, so that the
    sums are the same to the last digit.
    """
    borders = group_borders(n, groups)
    middle = borders[(len(borders) - 1) // 2]
    candidates = candidate_sizes(workload.device, 256)
    kept = keeper.read() if keeper is not None else None
    size = micro_batch if kept is None or kept["size"] is None else kept["size"]
    while True:
        summing = begin()
        if kept is not None:
            summing.restore(kept["sums"])
        first, kept = 0 if kept is None else kept["done"], None
        writer = _Writer(keeper, n, size if isinstance(size, int) else None)
        largest = [0]

        def guarded(
            start: int, stop: int, summing: Summing = summing, largest: list[int] = largest, writer: _Writer = writer
        ) -> None:
            largest[0] = stop - start
            try:
                summing.work(start, stop)
            except Exception as error:
                if is_out_of_memory(error):
                    raise _TooLargeError from error
                raise
            writer.offer(stop, summing)

        try:
            Schedule(n, size, [middle], candidates, workload.device, first).run(guarded, progress)
        except _TooLargeError as error:
            size = largest[0] // 2
            if size < 1:
                raise OutOfMemoryError(
                    "out of memory with one sample at a time: use a smaller input, fewer directions (--top-k) or fewer "
                    "layers (--layers)"
                ) from error
            release_memory()
        else:
            return
