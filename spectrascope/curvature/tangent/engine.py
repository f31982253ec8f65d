"""Exact curvature of smooth networks: adjoint-weighted first-order tangents, for every network autograd can follow.

    h_k = f'ᵀ (∇²_f L) f' + sum over nonlinear operations n of <delta_n, D²phi_n[z_k, z_k]>

z_k are the tangents along D_k = u_k v_k^T at the operation's inputs, delta_n the loss's adjoint at its output. One
forward and one backward pass per micro-batch give every adjoint for all weights and all k; a sweep per weight then
pushes its k tangents through what lies downstream. Fused attention kernels are measured straight through, as only
one first-order backward pass is needed. References: MEASUREMENT section 5c, SECOND_ORDER.
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
    Progress,
    Target,
    UnsupportedOperationError,
    target_slopes,
)
from spectrascope.curvature.microbatches import Schedule, is_out_of_memory
from spectrascope.curvature.tangent.plan import Plan, make_plan, record_loss
from spectrascope.curvature.tangent.values import RankOne, Stacked, Tangent
from spectrascope.errors import UnsupportedModelError
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = ["Tangents"]


@dataclass(frozen=True)
class Tangents(CurvatureEngine):
    """Measure by first-order tangents, weight by weight: exact on every tail.

    Args:
        micro_batch: samples per recording; ``None`` chooses within ``memory`` and by timing.
        directions: tangents swept together; ``None`` takes all of a weight's, fewer only where one sample
            would not fit otherwise.
        memory: bytes to stay within; ``None`` is 1 GiB on a CPU and half of what is free on a device.
    """

    directions: int | None = None
    memory: int | None = None
    name: ClassVar = EngineName.TANGENT
    exact: ClassVar = True
    next: ClassVar = EngineName.DOUBLE_BACKPROP
    reference: ClassVar = (EngineName.DOUBLE_BACKPROP, EngineName.FINITE_DIFFERENCE)

    @classmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        """A recording with its adjoints and constants, and 1.2 forward-equivalents per tangent through all of it."""
        return 4.0 + sum(1.2 * w.share * w.k for w in weights) if weights else 0.0

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: int = 16, progress: Progress | None = None
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
        self, workload: Workload, targets: Sequence[Target], *, groups: int = 16, progress: Progress | None = None
    ) -> list[Curvature | str]:
        """Curvature of each target over the whole batch, or why it cannot be followed.

        Cost: about four forward-equivalents, and per (weight, k) one first-order pass through what lies downstream
        of the weight. Memory: one micro-batch's activations and adjoints, and its k tangents at a few
        operations; independent of the number of weights, and by the choice of micro-batch nearly so of k.
        """
        if not targets:
            return []
        n = workload.source.n
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        sweeps = _Sweeps(workload, targets)
        failed: dict[int, str] = {}
        limit, together = self._limits(sweeps)

        def work(start: int, stop: int) -> None:
            found: dict[int, tuple[Tensor, Tensor]] = {}
            try:
                plan = sweeps.plan(start, stop)
            except UnsupportedOperationError as error:
                failed.update({i: str(error) for i in range(len(targets)) if i not in failed})
                return
            for i in range(len(targets)):
                if i not in failed:
                    try:
                        found[i] = sweeps.sweep(plan, i, together, sums[i].dtype)
                    except UnsupportedOperationError as error:
                        failed[i] = str(error)
                if progress is not None:
                    progress(start + (stop - start) * (i + 1) / len(targets), n)
            for i, (slope, matrix) in found.items():
                sums[i].add(sums[i].group_of(start), slope, matrix, stop - start)

        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size <= limit]
        Schedule(n, self.micro_batch, sums[0].borders, candidates=sizes, device=workload.device).run(work, progress)
        return [failed[i] if i in failed else s.finish(self.name, exact=True) for i, s in enumerate(sums)]

    def _limits(self, sweeps: _Sweeps) -> tuple[int, int]:
        """Samples per micro-batch, and directions per sweep, that stay within memory."""
        budget = self.memory or _free_memory(sweeps.workload.device)
        try:
            need = sweeps.plan(0, 1, prepared=False).footprint
        except UnsupportedOperationError:
            return 1, self.directions or sweeps.k
        together = self.directions or sweeps.k
        if self.directions is None and need.of(together) > budget:
            room = max(budget - need.fixed, need.fixed // 2)  # what one sample takes anyway may be half as much again
            together = max(1, min(together, int(room // max(need.per_direction, 1))))
        limit = _TANGENTS.get(sweeps.workload.device.type, _TANGENTS_DEVICE) // together
        return max(1, min(limit, int(budget // max(need.of(together), 1)))), together


_TANGENTS = {"cpu": 80}
_TANGENTS_DEVICE = 640
"""Samples × directions swept together: enough to be efficient, and what keeps memory flat in the directions.

On a device, 64 samples of up to 10 directions: four times as many directions are then at most twice the tangents.
"""


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) // 2
    return 1 << 30


class _Sweeps:
    """The weights of a measurement, their directions as tangents, and the plan of one micro-batch."""

    def __init__(self, workload: Workload, targets: Sequence[Target]) -> None:
        self.workload = workload
        self.targets = targets
        self.weights = list({id(t.layer.parameter): t.layer.parameter for t in targets}.values())
        bits = {id(p): i for i, p in enumerate(self.weights)}
        self.bits = [bits[id(t.layer.parameter)] for t in targets]
        self.k = max(t.directions.k for t in targets)

    def plan(self, start: int, stop: int, *, prepared: bool = True) -> Plan:
        """Record one micro-batch; ``prepared`` for all the sweeps, which may take as long as several of them."""
        inputs, labels = self.workload.fetch(start, stop)
        directions = sum(t.directions.k for t in self.targets) if prepared else 0
        try:
            recording, loss = record_loss(self.weights, lambda: self.workload.loss(inputs, labels))
            return make_plan(recording, self.weights, loss, directions)
        except RuntimeError as error:
            if is_out_of_memory(error) or isinstance(error, UnsupportedOperationError):
                raise
            raise UnsupportedOperationError((str(error).splitlines() or [type(error).__name__])[0]) from error

    def sweep(self, plan: Plan, i: int, together: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Slopes (K,) and M (K, K) of the micro-batch's mean loss for one target."""
        target, bit = self.targets[i], self.bits[i]
        gradient = plan.gradients[bit]
        k = target.directions.k
        if gradient is None:  # an expert that none of these few samples reaches; some sample of the batch does
            zeros = torch.zeros(k, k, dtype=dtype, device=self.workload.device)
            return zeros[0], zeros
        with torch.no_grad():
            if together >= k:
                matrix = plan.sweep(bit, self._seed(target, range(k)))
            else:
                matrix = self._in_pairs(plan, target, bit, max(1, together // 2))
        return target_slopes(target, gradient, dtype), matrix

    def _in_pairs(self, plan: Plan, target: Target, bit: int, size: int) -> Tensor:
        """M block by block: two runs of directions at a time, so that every pair of directions meets once."""
        k = target.directions.k
        runs = [range(start, min(start + size, k)) for start in range(0, k, size)]
        blocks = []
        for first, second in itertools.combinations(runs, 2):
            picks = [*first, *second]
            blocks.append((picks, plan.sweep(bit, self._seed(target, picks))))
        matrix = blocks[0][1].new_zeros(k, k)
        for picks, block in blocks:
            index = torch.tensor(picks, device=block.device)
            matrix[index[:, None], index[None, :]] = block
        return matrix

    def _seed(self, target: Target, picks: Sequence[int]) -> Tangent:
        """Directions as tangents of the stored weight, factored where its layout allows."""
        layer, d = target.layer, target.directions.pick(picks)
        device, dtype = self.workload.device, self.workload.dtype
        if layer.layout == "conv_transpose":
            dense = [layer.tensor(torch.outer(d.left[:, k], d.right[:, k])) for k in range(d.k)]
            return torch.stack(dense).to(device, dtype)
        left = layer.embed_left(d.left).to(device, dtype)
        right = d.right.to(device, dtype)
        stored = tuple(layer.parameter.shape)
        inner = stored if layer.expert is None else stored[1:]
        one = RankOne(right, left, inner) if layer.layout == "transposed" else RankOne(left, right, inner)
        return one if layer.expert is None else Stacked(layer.expert, one, stored)
