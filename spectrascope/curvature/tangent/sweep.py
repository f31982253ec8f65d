"""One walk along a plan, front to back, with the tangents of many weights: a step is taken once for all that arrived.

Where a weight is met its tangents join the leading axis. At a step with several inputs weights fall into few patterns
(a tangent in the first input only, in both, …): one push per pattern. Second-order terms are summed within each weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectrascope.curvature.microbatches import is_out_of_memory
from spectrascope.curvature.operations import storage_of
from spectrascope.curvature.tangent.head import HeadStep
from spectrascope.curvature.tangent.plan import Plan, Planned
from spectrascope.curvature.tangent.pointwise import PointwiseStep
from spectrascope.curvature.tangent.products import MatrixProduct
from spectrascope.curvature.tangent.values import Tangent, Zero, joined, picked
from spectrascope.curvature.tangent.within import Within
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.text import first_line

__all__ = ["Block", "Forms", "Pattern", "Seed", "Sweep", "sweep"]


@dataclass(frozen=True, slots=True)
class Seed:
    """``k`` tangents of the stored weight ``bit``."""

    bit: int
    tangent: Tangent
    k: int


@dataclass(frozen=True, slots=True)
class Forms:
    """What one weight's tangents gave, per sample group of the micro-batch: parts of its mean loss.

    ``matrix`` (G, K, K) holds second derivatives, of which only the symmetric part means something; ``slopes`` (G, K)
    first ones, where there is more than one group.
    """

    matrix: Tensor
    slopes: Tensor | None


@dataclass(frozen=True, slots=True)
class Block:
    """Tangents of some weights, by their places among the seeds, one weight after another."""

    weights: tuple[int, ...]
    tangent: Tangent


@dataclass(frozen=True, slots=True)
class Pattern:
    """Weights whose tangents arrive at the same inputs; ``blocks`` has one per input, ``None`` where there is none."""

    weights: tuple[int, ...]
    blocks: tuple[Block | None, ...]
    curved: bool
    wanted: bool


def sweep(plan: Plan, seeds: Sequence[Seed]) -> list[Forms | str]:
    """Second derivatives of the micro-batch's mean loss along every seed's tangents, or why one cannot be followed.

    Memory: the tangents of all seeds at a few operations.
    """
    swept = Sweep(plan, seeds)
    swept.walk()
    return swept.results()


class Sweep:
    """One walk along a plan, and the tangents it has met so far, by value."""

    def __init__(self, plan: Plan, seeds: Sequence[Seed]) -> None:
        self.plan = plan
        self.seeds = seeds
        self.failed = {w: plan.unsupported[s.bit] for w, s in enumerate(seeds) if s.bit in plan.unsupported}
        self.found: dict[int, list[Block]] = {}
        self.last: dict[int, int] = {}  # the step that reads a value last
        self.parts: list[tuple[tuple[int, ...], Tensor]] = []
        self.slopes: list[tuple[tuple[int, ...], Tensor]] = []
        for bit, group in itertools.groupby(range(len(seeds)), key=lambda w: seeds[w].bit):
            weights = [w for w in group if w not in self.failed]
            if weights:
                self.found.setdefault(bit, []).extend(_merged([Block((w,), seeds[w].tangent) for w in weights]))

    def walk(self) -> None:
        """Take every step that matters."""
        mask = 0
        for w, seed in enumerate(self.seeds):
            if w not in self.failed:
                mask |= 1 << seed.bit
        steps = [s for s in self.plan.steps if s.weights & mask]
        self.last = {n: i for i, s in enumerate(steps) for n in s.inputs}
        for i, planned in enumerate(steps):
            patterns = self.patterns_at(planned)
            ending = {n for n in planned.inputs if self.last[n] == i}
            outs: list[list[Block]] | None = self._add(planned, patterns, ending)
            if outs is None:
                outs = [[] for _ in planned.outputs]
                for pattern in patterns:
                    self._push(planned, pattern, outs)
            for n in ending:
                self.found.pop(n, None)
            for out, made in zip(planned.outputs, outs, strict=True):
                if out is not None and out in self.last and made:
                    self.found[out] = _merged(made)

    def patterns_at(self, planned: Planned) -> list[Pattern]:
        """Weights whose tangents arrive at a step, by the inputs at which they do."""
        where: dict[int, list[Block | None]] = {}
        for place, n in enumerate(planned.inputs):
            for block in self.found.get(n, ()):
                for w in block.weights:
                    where.setdefault(w, [None] * len(planned.inputs))[place] = block
        patterns: dict[tuple[int | bool, ...], list[int]] = {}
        for w in sorted(where):
            bit = self.seeds[w].bit
            curved, wanted = bool(planned.curved >> bit & 1), bool(planned.wanted >> bit & 1)
            if w not in self.failed and (planned.weights >> bit & 1):
                patterns.setdefault((curved, wanted, *(id(b) for b in where[w])), []).append(w)
        return [
            Pattern(tuple(weights), tuple(where[weights[0]]), bool(key[0]), bool(key[1]))
            for key, weights in patterns.items()
        ]

    def _push(self, planned: Planned, pattern: Pattern, outs: list[list[Block]]) -> None:
        z = [None if block is None else self.pick(block, pattern.weights) for block in pattern.blocks]
        within = replace(self.within(pattern.weights), rounds=planned.rounds)
        try:
            pushed, bent = planned.step.push(z, outputs=pattern.wanted, within=within if pattern.curved else None)
            missing = pattern.wanted and any(
                n is not None and n in self.last and out is None
                for n, out in itertools.zip_longest(planned.outputs, pushed)
            )
            if missing:
                raise NotImplementedError("gives no tangent of one of its outputs")
            if planned.entries and len(self.plan.borders) > 2:
                self._slope(planned, pattern, z, pushed, within)
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            self.failed.update(dict.fromkeys(pattern.weights, f"{planned.name}: {first_line(error)}"))
            return
        if bent is not None:
            self.parts.append((pattern.weights, bent))
        for blocks, out, dtype in itertools.zip_longest(outs, pushed, planned.dtypes):
            if out is not None and not isinstance(out, Zero):
                blocks.append(Block(pattern.weights, out.to(dtype) if isinstance(out, Tensor) else out))

    def within(self, weights: tuple[int, ...]) -> Within:
        """Between which of the weights' tangents second-order terms are wanted."""
        return Within(tuple(self.seeds[w].k for w in weights), self.plan.borders)

    def pick(self, block: Block, weights: tuple[int, ...]) -> Tangent:
        """The tangents of some of a block's weights; a view where they lie together."""
        if block.weights == weights:
            return block.tangent
        rows = [row for w in weights for row in self.rows(block.weights, w)]
        if rows == [*range(rows[0], rows[-1] + 1)]:
            return picked(block.tangent, slice(rows[0], rows[-1] + 1))
        return picked(block.tangent, rows)

    def _add(self, planned: Planned, patterns: Sequence[Pattern], ending: set[int]) -> list[list[Block]] | None:
        """A plain sum of inputs, one of which all weights reach: the others are added to its rows, in place if it ends.

        A residual branch brings new weights; those of before have tangents in both inputs.
        """
        step = planned.step
        if not (isinstance(step, PointwiseStep) and step.adds) or len(planned.inputs) < 2:
            return None
        blocks = [self.found.get(n, []) for n in planned.inputs]
        if any(len(b) != 1 or not isinstance(b[0].tangent, Tensor) for b in blocks):
            return None
        base = max(range(len(blocks)), key=lambda j: len(blocks[j][0].weights))
        weights, total = blocks[base][0].weights, blocks[base][0].tangent
        assert isinstance(total, Tensor)
        alike = all(p.wanted and not p.curved and p.blocks[base] is not None for p in patterns)
        if not alike or total.shape[1:] != step.shape or {w for p in patterns for w in p.weights} != set(weights):
            return None
        others = []
        for j, (block,) in enumerate(blocks):
            rows = [row for w in block.weights for row in self.rows(weights, w)]
            if rows != [*range(rows[0], rows[-1] + 1)]:
                return None
            if j != base and isinstance(block.tangent, Tensor):
                others.append((slice(rows[0], rows[-1] + 1), block.tangent))
        if not (planned.inputs[base] in ending and self._is_alone(planned.inputs[base], total)):
            total = total.clone()
        for span, more in others:
            total[span].add_(more)
        return [[Block(weights, total)]]

    def rows(self, weights: tuple[int, ...], w: int) -> range:
        """Where a weight's tangents lie among those of several."""
        start = sum(self.seeds[other].k for other in weights[: weights.index(w)])
        return range(start, start + self.seeds[w].k)

    def _is_alone(self, number: int, tensor: Tensor) -> bool:
        """Whether nothing else that will be read lies in the same memory."""
        storage = storage_of(tensor)
        others = [b.tangent for n, blocks in self.found.items() if n != number for b in blocks]
        shared = any(isinstance(t, Tensor) and storage_of(t) == storage for t in others)
        return tensor.is_contiguous() and not shared

    def _slope(
        self, planned: Planned, pattern: Pattern, z: Sequence[Tangent | None], pushed: Sequence[object], within: Within
    ) -> None:
        """Slopes by group, where tangents of weights alone meet what depends on samples."""
        entering = [t if entry else None for t, entry in zip(z, planned.entries, strict=True)]
        if all(t is None for t in entering):
            return
        step = planned.step.product if isinstance(planned.step, HeadStep) else planned.step
        short = step.slopes(entering, within) if isinstance(step, MatrixProduct) else None
        if short is not None:
            self.slopes.append((pattern.weights, short))
            return
        if (
            isinstance(planned.step, HeadStep)
            or not pattern.wanted
            or any(a is not b for a, b in zip(entering, z, strict=True))
        ):
            pushed, _ = step.push(entering, outputs=True, within=None)
        for out, pull in zip(pushed, planned.pulls, strict=False):
            if isinstance(out, Tensor) and pull is not None:
                flat, entries = within.in_order(out.flatten(1), 1), within.in_order(pull.flatten(), 0)
                parts = [flat[:, part] @ entries[part] for part in within.parts(len(entries))]
                self.slopes.append((pattern.weights, torch.stack(parts)))

    def results(self) -> list[Forms | str]:
        """What each weight's tangents gave, or why they cannot be followed."""
        groups, k = len(self.plan.borders) - 1, max(seed.k for seed in self.seeds)
        some = next(g for g in self.plan.gradients if g is not None)
        zero = torch.zeros((), dtype=sum_dtype(some.device), device=some.device)
        matrix = zero.new_zeros(groups, len(self.seeds), k, k)
        for weights, part in self.parts:
            matrix[:, _span(weights), : part.shape[2], : part.shape[3]] += part.to(matrix.device)
        slopes = zero.new_zeros(groups, len(self.seeds), k)
        for weights, part in self.slopes:
            for w in weights:
                rows = self.rows(weights, w)
                slopes[:, w, : len(rows)] += part[:, rows.start : rows.stop].to(slopes.device)
        return [
            self.failed[w]
            if w in self.failed
            else Forms(matrix[:, w, : s.k, : s.k], slopes[:, w, : s.k] if groups > 1 else None)
            for w, s in enumerate(self.seeds)
        ]


def _span(weights: tuple[int, ...]) -> slice | list[int]:
    """Places of weights, as a slice where they follow one another."""
    whole = [*range(weights[0], weights[-1] + 1)]
    return slice(weights[0], weights[-1] + 1) if whole == [*weights] else [*weights]


def _merged(blocks: list[Block]) -> list[Block]:
    """The blocks as one, where their tangents are of one kind."""
    whole = joined([block.tangent for block in blocks])
    return blocks if whole is None else [Block(tuple(w for block in blocks for w in block.weights), whole)]
