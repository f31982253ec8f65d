"""An estimate for what autograd cannot differentiate twice: central differences of the gradient along D_k.

H D_k ≈ (G(W + e D_k) − G(W − e D_k)) / 2e, at two steps, extrapolated to e = 0. What is left of the difference between
the two is the error given beside it. References: MEASUREMENT section 5, SECOND_ORDER section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectrascope.curvature.engine import (
    GRADIENT_COST,
    Curvature,
    CurvatureEngine,
    CurvatureSums,
    Downstream,
    Progress,
    Target,
    target_slopes,
)
from spectrascope.curvature.microbatches import Groups, Schedule, candidate_sizes
from spectrascope.errors import UnsupportedModelError
from spectrascope.records.values import EngineName
from spectrascope.workload import Inputs, Workload

__all__ = ["FiniteDifference"]


@dataclass(frozen=True)
class FiniteDifference(CurvatureEngine):
    """Estimate by differences of first derivatives: for networks that autograd cannot differentiate twice.

    Args:
        micro_batch: samples per gradient; ``None`` tunes it.
        step: of the larger of the two steps, relative to the weight's root-mean-square row norm; ``None`` takes the
            fourth root of the precision.
    """

    step: float | None = None
    name: ClassVar = EngineName.FINITE_DIFFERENCE
    exact: ClassVar = False

    @classmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        """Four gradients per (weight, k), wherever in the network the weight is."""
        return sum(4 * GRADIENT_COST * w.k for w in weights)

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature]:
        """Curvature of each target over the whole batch, with an error per direction.

        Cost: four gradients, about twelve forward-equivalents, per (weight, k). Memory: one micro-batch's graph.

        Raises:
            UnsupportedModelError: a weight does not reach the loss.
        """
        n = workload.source.n
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        gaps = [torch.zeros_like(s.group_h[0]) for s in sums]

        def work(start: int, stop: int) -> None:
            inputs, labels = workload.fetch(start, stop)
            found = []
            for i, target in enumerate(targets):
                found.append(self._one(workload, target, inputs, labels, sums[i].dtype))
                if progress is not None:
                    progress(start + (stop - start) * (i + 1) / len(targets), n)
            for i, (slope, matrix, error) in enumerate(found):
                sums[i].add(sums[i].group_of(start), slope, matrix, stop - start)
                gaps[i] += error.to(gaps[i]) * (stop - start)

        Schedule(
            n,
            self.micro_batch,
            sums[0].borders,
            candidates=candidate_sizes(workload.device, 64),
            device=workload.device,
        ).run(work, progress)
        return [
            s.finish(self.name, exact=False, stderr=(gap / n).abs().cpu().double())
            for s, gap in zip(sums, gaps, strict=True)
        ]

    def _one(
        self, workload: Workload, target: Target, inputs: Inputs, labels: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = target.layer.parameter
        kept = weight.detach().clone()
        relative = self.step or torch.finfo(weight.dtype).eps ** 0.25
        size = relative * max(float(kept.norm()) / min(target.layer.info.shape) ** 0.5, 1e-3)

        def slopes_at(shift: Tensor | None) -> Tensor:
            with torch.no_grad():
                weight.copy_(kept if shift is None else kept + shift)
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(workload.loss(inputs, labels), weight, allow_unused=True)
            if gradient is None:
                raise UnsupportedModelError(f"weight {target.layer.name!r} does not reach the loss")
            return target_slopes(target, gradient, dtype)

        d = target.directions
        try:
            rows, gaps = [], []
            for k in range(d.k):
                direction = target.direction(k).to(weight)
                wide, narrow = (
                    (slopes_at(direction * e) - slopes_at(direction * -e)) / (2 * e) for e in (size, size / 2)
                )
                rows.append((4 * narrow - wide) / 3)
                gaps.append((narrow - wide)[k] / 3)
            slope = slopes_at(None)
        finally:
            with torch.no_grad():
                weight.copy_(kept)
        return slope, torch.stack(rows), torch.stack(gaps)
