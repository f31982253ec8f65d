"""Exact curvature of smooth networks: adjoint-weighted first-order tangents, for every network autograd can follow.

    h_k = f'ᵀ (∇²_f L) f' + sum over nonlinear operations n of <delta_n, D²phi_n[z_k, z_k]>

z_k are the tangents along D_k = u_k v_k^T at the operation's inputs, delta_n the loss's adjoint at its output. One
forward and one backward pass per micro-batch give every adjoint for all weights and all k; a sweep then pushes the
tangents of as many weights as memory allows through the network, each from its weight on. Fused attention kernels are
measured straight through, as only one first-order backward pass is needed. References: MEASUREMENT section 5c,
SECOND_ORDER, SCALE section 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectrascope.curvature.engine import (
    Curvature,
    CurvatureEngine,
    CurvatureSums,
    Downstream,
    JointForm,
    Progress,
    Target,
    UnsupportedOperationError,
)
from spectrascope.curvature.microbatches import Groups, MicroBatch, Schedule
from spectrascope.curvature.tangent.joint import measure_joint
from spectrascope.curvature.tangent.plan import Footprint
from spectrascope.curvature.tangent.samples import MixedSamplesError
from spectrascope.curvature.tangent.sweeps import Sweeps
from spectrascope.errors import UnsupportedModelError
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = ["Tangents"]


@dataclass(frozen=True)
class Tangents(CurvatureEngine):
    """Measure by first-order tangents, those of many weights in one sweep: exact on every tail.

    Args:
        micro_batch: samples per recording; ``None`` chooses within ``memory`` and by timing.
        directions: tangents swept together; ``None`` takes all of a weight's, fewer only where one sample
            would not fit otherwise.
        memory: bytes to stay within, whatever the micro-batch; ``None`` is 1 GiB on a CPU and half of what is free on
            a device, and for one sample where ``micro_batch`` is a number.
        stacked: samples × tangents, of however many weights, swept together; ``None`` goes by the device.
    """

    directions: int | None = None
    memory: int | None = None
    stacked: int | None = None
    name: ClassVar = EngineName.TANGENT
    exact: ClassVar = True
    next: ClassVar = EngineName.DOUBLE_BACKPROP
    reference: ClassVar = (EngineName.DOUBLE_BACKPROP, EngineName.FINITE_DIFFERENCE)
    joint: ClassVar = JointForm.HESSIAN

    @classmethod
    def make(cls, micro_batch: MicroBatch, seed: int, memory: int | None) -> Tangents:
        """An engine that stays within ``memory``."""
        return cls(micro_batch, memory=memory)

    @classmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        """A recording with its adjoints and constants, and 1.2 forward-equivalents per tangent through all of it."""
        return 4.0 + sum(1.2 * w.share * w.k for w in weights) if weights else 0.0

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature]:
        """Curvature of each target over the whole batch.

        Raises:
            UnsupportedModelError: some target cannot be followed; :meth:`measure_each` says which.
        """
        found = self.measure_each(workload, targets, groups=groups, progress=progress)
        for target, result in zip(targets, found, strict=True):
            if isinstance(result, str):
                raise UnsupportedModelError(f"tangent cannot follow weight {target.layer.name!r}: {result}")
        return [result for result in found if not isinstance(result, str)]

    def measure_each(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature | str]:
        """Curvature of each target over the whole batch, or why it cannot be followed.

        Cost: about four forward-equivalents, and per (weight, k) one first-order pass through what lies downstream
        of the weight. Memory: one micro-batch's activations and adjoints, and at a few operations the tangents of
        as many weights as ``memory`` allows (a CPU's caches hold), those the network meets first before the others.
        """
        if not targets:
            return []
        n = workload.source.n
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        borders = sums[0].borders
        sweeps = Sweeps(workload, targets)
        limits = self._limits(sweeps)
        failed: dict[int, str] = {}

        def work(start: int, stop: int) -> None:
            inside = [start, *(b for b in borders if start < b < stop), stop]
            measured = None
            if sweeps.spans_groups:
                try:
                    measured = [part(inside)]
                except MixedSamplesError:
                    sweeps.spans_groups = False
            if measured is None:
                measured = [part(pair) for pair in itertools.pairwise(inside)]
            # Only now: what runs out of memory is done again.
            for found, (first, *_, last) in measured:
                for i, (slopes, matrices) in found.items():
                    sums[i].add_groups(sums[i].group_of(first), slopes, matrices, last - first)

        def part(inside: Sequence[int]) -> tuple[dict[int, tuple[Tensor, Tensor]], Sequence[int]]:
            start, stop = inside[0], inside[-1]
            found: dict[int, tuple[Tensor, Tensor]] = {}
            try:
                plan = sweeps.plan(inside)
            except MixedSamplesError:
                raise
            except UnsupportedOperationError as error:
                failed.update({i: str(error) for i in range(len(targets)) if i not in failed})
                return found, inside
            alive = [i for i in range(len(targets)) if i not in failed]
            together = limits.of_one_weight(stop - start) if self.memory else limits.directions
            for chunk in sweeps.chunks(plan, alive, limits.tangents(stop - start)):
                for i, result in sweeps.sweep(plan, chunk, together, sums[0].dtype).items():
                    if isinstance(result, str):
                        failed[i] = result
                    else:
                        found[i] = result
                if progress is not None:
                    progress(start + (stop - start) * (len(found) + len(failed)) / len(targets), n)
            return found, inside

        smallest = min(b - a for a, b in itertools.pairwise(borders))
        # Only where a sweep of all weights over one group leaves room: telling groups apart costs a little.
        if smallest < limits.samples and smallest * sum(t.directions.k for t in targets) < limits.stacked:
            sweeps.spans_groups = sweeps.look_for_order()
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= limits.samples]
        if workload.device.type != "cpu":
            sizes = sizes[-1:]  # a device is at its best with as much as fits
        between = () if sweeps.spans_groups else borders
        Schedule(n, self.micro_batch, between, candidates=sizes, device=workload.device).run(work, progress)
        return [failed[i] if i in failed else s.finish(self.name, exact=True) for i, s in enumerate(sums)]

    def measure_joint(
        self, workload: Workload, targets: Sequence[Target], *, progress: Progress | None = None
    ) -> Tensor:
        """The Hessian's form on all directions of all targets at once.

        Cost: as of measuring each target, and the products of every pair of tangents at each nonlinear operation.
        Memory: the tangents of all targets, in pairs of parts of them where that is more than ``memory``.
        """
        return measure_joint(
            workload, targets, self.micro_batch, self.memory or _free_memory(workload.device), progress
        )

    def _limits(self, sweeps: Sweeps) -> _Limits:
        """Samples per micro-batch, and directions of a weight and tangents per sweep, that stay within memory."""
        device = sweeps.workload.device
        budget = self.memory or _free_memory(device)
        most = max(t.directions.k for t in sweeps.targets)
        stacked = self.stacked or _STACKED
        try:
            need = sweeps.plan([0, 1], prepared=False).footprint
        except UnsupportedOperationError:
            return _Limits(1, self.directions or most, self.directions or most, Footprint(0, 0), budget)
        together = self.directions or most
        if self.directions is None and need.of(together) > budget:
            room = max(budget - need.fixed, need.fixed // 2)  # what one sample takes anyway may be half as much again
            together = max(1, min(together, int(room // max(need.per_direction, 1))))
        if self.stacked is None and device.type == "cpu":
            stacked = max(together, min(stacked, _CACHE // max(need.per_direction, 1)))
        samples = max(1, min(stacked // together, int(budget // max(need.of(together), 1))))
        return _Limits(samples, together, stacked, need, budget)


@dataclass(frozen=True, slots=True)
class _Limits:
    """At a time at most so many ``samples``, ``directions`` of one weight, samples × tangents ``stacked``."""

    samples: int
    directions: int
    stacked: int
    need: Footprint
    budget: int

    def tangents(self, samples: int) -> int:
        """How many tangents, of however many weights, are swept together."""
        room = (self.budget / samples - self.need.fixed) // max(self.need.per_direction, 1)
        return int(min(self.stacked // samples, room))

    def of_one_weight(self, samples: int) -> int:
        """How many tangents of one weight are swept together: fewer where more samples are asked for than have room."""
        room = max(self.budget / samples - self.need.fixed, self.need.fixed / 2) // max(self.need.per_direction, 1)
        return max(1, int(min(self.directions, room)))


_STACKED = 1 << 15
"""Samples × tangents swept together at most: more rows than that no device needs to be busy."""

_CACHE = 16 << 20
"""Bytes of the tangents at one step that a CPU works on at a time: more than its caches hold is slower."""


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    return 1 << 30
