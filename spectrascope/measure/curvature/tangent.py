"""Exact curvature of smooth networks: adjoint-weighted first-order tangents, for every network autograd can follow.

    h_k = f'ᵀ (∇²_f L) f' + sum over nonlinear operations n of <delta_n, D²phi_n[z_k, z_k]>

z_k are the tangents along D_k = u_k v_k^T at the operation's inputs, delta_n the loss's adjoint at its output. One
forward and one backward pass per micro-batch give every adjoint for all weights and all k; a sweep per weight then
pushes its k tangents through what lies downstream. Fused attention kernels are measured straight through, as only
one first-order backward pass is needed. References: MEASUREMENT section 5c, SECOND_ORDER.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrascope.errors import UnsupportedModelError
from spectrascope.measure.curvature.engine import Curvature, CurvatureSums, Progress, Target
from spectrascope.measure.schedule import Schedule
from spectrascope.measure.tangents.plan import Plan, make_plan, record_loss
from spectrascope.measure.tangents.tangent import RankOne, Stacked, Tangent
from spectrascope.measure.tape import UnsupportedOperationError
from spectrascope.records import EngineName
from spectrascope.workload import Workload

__all__ = ["Tangents"]


@dataclass(frozen=True)
class Tangents:
    """The engine.

    Args:
        micro_batch: samples per recording; ``None`` chooses within memory and by timing.
    """

    micro_batch: int | None = None
    name: EngineName = EngineName.TANGENT

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
        operations; independent of the number of weights.
        """
        n = workload.source.n
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        if not sums:
            return []
        weights = list({id(t.layer.parameter): t.layer.parameter for t in targets}.values())
        bits = {id(p): i for i, p in enumerate(weights)}
        seeds = [_seed(t, workload) for t in targets]
        borders = sums[0].borders
        failed: dict[int, str] = {}
        schedule = Schedule(n, self.micro_batch, borders, candidates=(1, 2, 4, 8, 16, 32, 64))

        def work(start: int, stop: int) -> None:
            weight = stop - start
            group = next(g for g, border in enumerate(borders[1:]) if start < border)
            plan = self._plan(workload, weights, start, stop, sum(t.directions.k for t in targets))
            found: list[tuple[Tensor, Tensor] | None] = []
            for i, target in enumerate(targets):
                bit = bits[id(target.layer.parameter)]
                found.append(None)
                if i in failed:
                    continue
                try:
                    with torch.no_grad():
                        matrix = plan.sweep(bit, seeds[i])
                    found[i] = _slopes(target, plan.gradients[bit], sums[i].dtype), matrix.to(sums[i].matrix)
                except UnsupportedOperationError as error:
                    failed[i] = str(error)
                if progress is not None:
                    progress(start + weight * (i + 1) // len(targets), n)
            for total, pair in zip(sums, found, strict=True):
                if pair is not None:
                    slope, matrix = pair
                    matrix = (matrix + matrix.T) / 2
                    total.matrix += matrix * weight
                    total.group_h[group] += matrix.diagonal() * weight
                    total.group_sigma[group] += slope * weight

        schedule.run(work, progress)
        return [failed[i] if i in failed else s.finish(self.name, exact=True) for i, s in enumerate(sums)]

    @staticmethod
    def _plan(
        workload: Workload, weights: Sequence[nn.Parameter], start: int, stop: int, directions: int
    ) -> Plan:
        inputs, labels = workload.fetch(start, stop)
        recording, loss = record_loss(weights, lambda: workload.loss(inputs, labels))
        return make_plan(recording, weights, loss, directions)


def _slopes(target: Target, gradient: Tensor | None, dtype: torch.dtype) -> Tensor:
    if gradient is None:
        raise UnsupportedOperationError("the weight does not reach the loss")
    d = target.directions
    left, right = (side.to(gradient.device, dtype) for side in (d.left, d.right))
    return torch.einsum("mk,mn,nk->k", left, target.layer.matrix(gradient).to(dtype), right)


def _seed(target: Target, workload: Workload) -> Tangent:
    """The directions as tangents of the stored weight, factored where its layout allows."""
    layer, d = target.layer, target.directions
    left = layer.embed_left(d.left).to(workload.device, workload.dtype)
    right = d.right.to(workload.device, workload.dtype)
    shape = tuple(layer.parameter.shape)
    if layer.layout == "conv_transpose":
        return torch.stack(
            [layer.tensor(torch.outer(d.left[:, k], d.right[:, k])) for k in range(d.k)]
        ).to(workload.device, workload.dtype)
    inner = shape if layer.expert is None else shape[1:]
    one = RankOne(right, left, inner) if layer.layout == "transposed" else RankOne(left, right, inner)
    return one if layer.expert is None else Stacked(layer.expert, one, shape)
