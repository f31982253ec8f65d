"""An estimate of the Gauss–Newton part for networks where exact curvature is out of reach.

With xi random, E[xi xi^T] = 1 and independent from loss term to loss term, c = S xi at the outputs (S S^T the loss's
Hessian there) gives s_k = <D_k, J^T c> with E[s_k s_j] = D_k^T J^T S S^T J D_j: one backward pass serves every weight
and every k, whatever the network and however many loss terms. Unbiased for the Gauss–Newton part; where the tail is
smooth the Hessian has a second part, which this leaves out. Reference: MEASUREMENT section 5b.
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
from spectrascope.curvature.loss_root import random_column
from spectrascope.curvature.microbatches import Groups, MicroBatch, Schedule
from spectrascope.errors import UnsupportedModelError
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = ["GaussNewtonSketch"]


@dataclass(frozen=True)
class GaussNewtonSketch(CurvatureEngine):
    """Estimate the Gauss–Newton part of all weights at once, from random cotangents at the outputs.

    Args:
        micro_batch: samples per pass; ``None`` tunes it. Smaller ones make more, more independent estimates.
        probes: random backward passes per micro-batch.
        seed: of the random vectors.
    """

    probes: int = 16
    seed: int = 0
    name: ClassVar = EngineName.GAUSS_NEWTON_SKETCH
    exact: ClassVar = False

    @classmethod
    def make(cls, micro_batch: MicroBatch, seed: int, memory: int | None) -> GaussNewtonSketch:
        """An engine that draws its cotangents from ``seed``."""
        return cls(micro_batch, seed=seed)

    @classmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        """A gradient, and one backward pass per probe for all weights and all k."""
        return GRADIENT_COST + 2.0 * cls.probes if weights else 0.0

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature]:
        """Estimated curvature of each target over the whole batch, with its standard error per direction.

        Cost: about two forward-equivalents per probe, for all weights and all k.

        Raises:
            UnsupportedModelError: the loss is not one whose Hessian has a known square root.
        """
        n = workload.source.n
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        spreads = [torch.zeros_like(s.group_h[0]) for s in sums]
        parameters = list({id(t.layer.parameter): t.layer.parameter for t in targets}.values())
        place = {id(p): i for i, p in enumerate(parameters)}

        def work(start: int, stop: int) -> None:
            inputs, labels = workload.fetch(start, stop)
            generator = torch.Generator(device="cpu").manual_seed(self.seed * 1_000_003 + start)
            size = stop - start
            with torch.enable_grad():
                output = workload.forward(inputs)
                loss = workload.loss_fn(output, labels)
                first = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
                if not isinstance(output, Tensor):
                    raise UnsupportedModelError(
                        "gauss-newton-sketch starts from scores: this loss takes the network's output whole"
                    )
                scores = output
                samples: list[list[Tensor]] = [[] for _ in targets]
                for _ in range(self.probes):
                    cotangent = random_column(workload.loss_fn, scores.detach(), labels, generator)
                    back = torch.autograd.grad(scores, parameters, cotangent, retain_graph=True, allow_unused=True)
                    for i, target in enumerate(targets):
                        gradient = back[place[id(target.layer.parameter)]]
                        if gradient is None:
                            raise UnsupportedModelError(f"weight {target.layer.name!r} does not reach the output")
                        samples[i].append(target_slopes(target, gradient, sums[i].dtype))
            group = sums[0].group_of(start)
            for i, target in enumerate(targets):
                s = torch.stack(samples[i])  # (probes, K)
                slope = first[place[id(target.layer.parameter)]]
                assert slope is not None
                sums[i].add(group, target_slopes(target, slope, sums[i].dtype), s.T @ s / len(s), size)
                if len(s) > 1:
                    spreads[i] += s.square().var(0).to(spreads[i]) / len(s) * size**2
            if progress is not None:
                progress(stop, n)

        Schedule(n, self.micro_batch, sums[0].borders, candidates=(4, 8, 16, 32), device=workload.device).run(work)
        return [
            s.finish(self.name, exact=False, stderr=(spread.sqrt() / n).cpu().double())
            for s, spread in zip(sums, spreads, strict=True)
        ]
