"""Second derivatives across weights: one walk along the plan, in which all tangents are those of one joint step.

Where a step is curved, the tangents of every weight that has arrived are put on one axis, with zeros at the inputs they
do not reach; the step's form then holds every pair of directions, of one weight or of two. A product of one weight's
activations with another's weight is curved too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from spectrascope.curvature.engine import Progress, Target, UnsupportedOperationError, mean_form
from spectrascope.curvature.microbatches import MicroBatch, Schedule
from spectrascope.curvature.tangent.plan import Plan, Planned
from spectrascope.curvature.tangent.sweep import Block, Pattern, Seed, Sweep
from spectrascope.curvature.tangent.sweeps import Sweeps
from spectrascope.curvature.tangent.values import RankOne, Tangent, dense
from spectrascope.curvature.tangent.within import Within
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.workload import Workload

__all__ = ["measure_joint"]


def measure_joint(
    workload: Workload, targets: Sequence[Target], micro_batch: MicroBatch, memory: int, progress: Progress | None
) -> Tensor:
    """The Hessian's form M (S, S) on all directions of all targets.

    Args:
        workload: the network and its samples.
        targets: the weights and their directions.
        micro_batch: samples per recording; ``None`` takes as many as memory allows.
        memory: bytes to stay within.
        progress: told how many samples are done.

    Raises:
        UnsupportedOperationError: some target cannot be followed.
    """
    sweeps = Sweeps(workload, targets)
    order = sorted(range(len(targets)), key=lambda i: sweeps.bits[i])
    items = [(i, k) for i in order for k in range(targets[i].directions.k)]
    starts = [*itertools.accumulate((t.directions.k for t in targets), initial=0)]
    need = sweeps.plan([0, 1], prepared=False, joint=True).footprint
    each = max(2 * need.per_direction, 1)  # beside the tangents themselves, those put on one axis with the others
    # What one sample takes anyway may be half as much again.
    together = max(2, int(max(memory - need.fixed, need.fixed // 2) // each))
    runs = [items] if len(items) <= together else _cut(items, together // 2)
    samples = max(1, min(64, int(memory // max(need.fixed + min(len(items), together) * each, 1))))
    total = torch.zeros(len(items), len(items), dtype=sum_dtype(workload.device), device=workload.device)

    def work(start: int, stop: int) -> None:
        plan = sweeps.plan([start, stop], joint=True)
        found = torch.zeros_like(total)
        for pair in itertools.combinations(runs, 2) if len(runs) > 1 else [(items,)]:
            chosen = sorted(item for run in pair for item in run)
            chosen.sort(key=lambda item: sweeps.bits[item[0]])
            seeds = [
                sweeps.seed(i, [k for _, k in members]) for i, members in itertools.groupby(chosen, key=lambda c: c[0])
            ]
            places = torch.tensor([starts[i] + k for i, k in chosen], device=total.device)
            found[places[:, None], places[None, :]] = _form(plan, seeds).to(total)
        total.add_(found, alpha=stop - start)

    size = micro_batch if isinstance(micro_batch, int) else samples
    with torch.no_grad():
        Schedule(workload.source.n, min(size, samples), device=workload.device).run(work, progress)
    return mean_form(total, workload.source.n)


def _cut(items: list[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _form(plan: Plan, seeds: Sequence[Seed]) -> Tensor:
    """Second derivatives (S, S) of the micro-batch's mean loss along all seeds' tangents."""
    swept = _JointSweep(plan, seeds)
    swept.walk()
    if swept.failed:
        raise UnsupportedOperationError(next(iter(swept.failed.values())))
    return swept.matrix()


class _JointSweep(Sweep):
    """A walk in which all tangents belong together."""

    def patterns_at(self, planned: Planned) -> list[Pattern]:
        """One pattern where the step is curved: every weight that arrives, at every input where one does."""
        patterns = super().patterns_at(planned)
        if not any(pattern.curved for pattern in patterns):
            return patterns
        weights = tuple(sorted(w for pattern in patterns for w in pattern.weights))
        blocks = [
            self._whole([b for b in self.found.get(n, ()) if {*b.weights} & {*weights}], weights)
            for n in planned.inputs
        ]
        return [Pattern(weights, tuple(blocks), True, any(pattern.wanted for pattern in patterns))]

    def within(self, weights: tuple[int, ...]) -> Within:
        """Between all of them."""
        return Within((sum(self.seeds[w].k for w in weights),), self.plan.borders)

    def matrix(self) -> Tensor:
        """The form of all seeds' tangents, of which only the symmetric part means something."""
        every = tuple(range(len(self.seeds)))
        size = sum(seed.k for seed in self.seeds)
        some = next(g for g in self.plan.gradients if g is not None)
        total = torch.zeros(size, size, dtype=sum_dtype(some.device), device=some.device)
        for weights, part in self.parts:
            rows = torch.tensor([row for w in weights for row in self.rows(every, w)], device=total.device)
            total[rows[:, None], rows[None, :]] += part[0, 0].to(total)
        return total

    def _whole(self, blocks: Sequence[Block], weights: tuple[int, ...]) -> Block | None:
        """Tangents of all these weights at one input, zero for those that do not reach it."""
        if not blocks:
            return None
        if len(blocks) == 1 and blocks[0].weights == weights:
            return blocks[0]
        size = sum(self.seeds[w].k for w in weights)
        parts: list[tuple[list[int], Tangent]] = []
        for block in blocks:
            own = tuple(w for w in block.weights if w in weights)
            parts.append(([row for w in own for row in self.rows(weights, w)], self.pick(block, own)))
        rows, some = parts[0]
        if len(parts) == 1 and isinstance(some, RankOne):
            left, right = some.left.new_zeros(len(some.left), size), some.right.new_zeros(len(some.right), size)
            left[:, rows], right[:, rows] = some.left, some.right
            return Block(weights, RankOne(left, right, some.shape))
        first = dense(some)
        whole = first.new_zeros(size, *first.shape[1:])
        for rows, tangent in parts:
            whole[rows] = dense(tangent)
        return Block(weights, whole)
