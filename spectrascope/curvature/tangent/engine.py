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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from spectrascope.curvature.microbatches import Groups, Schedule, is_out_of_memory
from spectrascope.curvature.recorder import Recording
from spectrascope.curvature.tangent.plan import Footprint, Plan, make_plan, record_loss
from spectrascope.curvature.tangent.samples import (
    MixedSamplesError,
    SampleOrder,
    find_sample_order,
    is_sum_over_samples,
)
from spectrascope.curvature.tangent.sweep import Forms, Seed, sweep
from spectrascope.curvature.tangent.values import RankOne, Stacked, Tangent
from spectrascope.errors import UnsupportedModelError
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import Directions
from spectrascope.records.values import EngineName
from spectrascope.text import first_line
from spectrascope.workload import Inputs, Workload

__all__ = ["Tangents"]


@dataclass(frozen=True)
class Tangents(CurvatureEngine):
    """Measure by first-order tangents, those of many weights in one sweep: exact on every tail.

    Args:
        micro_batch: samples per recording; ``None`` chooses within ``memory`` and by timing.
        directions: tangents swept together; ``None`` takes all of a weight's, fewer only where one sample
            would not fit otherwise.
        memory: bytes to stay within; ``None`` is 1 GiB on a CPU and half of what is free on a device.
        stacked: samples × tangents, of however many weights, swept together; ``None`` goes by the device.
    """

    directions: int | None = None
    memory: int | None = None
    stacked: int | None = None
    name: ClassVar = EngineName.TANGENT
    exact: ClassVar = True
    next: ClassVar = EngineName.DOUBLE_BACKPROP
    reference: ClassVar = (EngineName.DOUBLE_BACKPROP, EngineName.FINITE_DIFFERENCE)

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
        sweeps = _Sweeps(workload, targets)
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
            for chunk in sweeps.chunks(plan, alive, limits.tangents(stop - start)):
                for i, result in sweeps.sweep(plan, chunk, limits.directions, sums[0].dtype).items():
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

    def _limits(self, sweeps: _Sweeps) -> _Limits:
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


_STACKED = 1 << 15
"""Samples × tangents swept together at most: more rows than that no device needs to be busy."""

_CACHE = 8 << 20
"""Bytes of the tangents at one step that a CPU works on at a time: more than its caches hold is slower."""


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
        self.order: SampleOrder | None = None
        self.spans_groups = False

    def look_for_order(self) -> bool:
        """Find where samples lie, so that a micro-batch may hold several sample groups; whether that shows."""
        if self.workload.source.n < 3:
            return False
        try:
            with _as_unsupported():
                self.order = find_sample_order(lambda *batch: self._record(*batch)[0], *self.workload.fetch(0, 3))
        except UnsupportedOperationError:
            return False
        return self.order is not None

    def plan(self, borders: Sequence[int], *, prepared: bool = True) -> Plan:
        """Record the samples between borders; ``prepared`` for all sweeps, which may take as long as several of them.

        Raises:
            MixedSamplesError: it spans groups that cannot be told apart.
        """
        inputs, labels = self.workload.fetch(borders[0], borders[-1])
        directions = sum(t.directions.k for t in self.targets) if prepared else 0
        within = tuple(border - borders[0] for border in borders)
        recording, loss, output = self._record(inputs, labels)
        order = self.order if len(within) > 2 else None
        with torch.no_grad():
            if order and not is_sum_over_samples(self.workload.loss_fn, output, labels, loss, within):
                raise MixedSamplesError("the loss is no mean over samples")
        with _as_unsupported():
            return make_plan(recording, self.weights, loss, directions, borders=within, order=order)

    def _record(self, inputs: Inputs, labels: Tensor) -> tuple[Recording, Tensor, object]:
        output: list[object] = []

        def loss_of() -> Tensor:
            output.append(self.workload.forward(inputs))
            return self.workload.loss_fn(output[0], labels)

        with _as_unsupported():
            recording, loss = record_loss(self.weights, loss_of)
        (scores,) = output
        return recording, loss, scores.detach() if isinstance(scores, Tensor) else scores

    def chunks(self, plan: Plan, alive: Sequence[int], room: int) -> Iterator[list[int]]:
        """Weights to sweep together: in the order in which the network meets them, those in front first."""
        chunk: list[int] = []
        for i in sorted(alive, key=lambda i: (plan.met(self.bits[i]), self.bits[i])):
            if chunk and sum(self.targets[j].directions.k for j in (*chunk, i)) > room:
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def sweep(
        self, plan: Plan, chunk: Sequence[int], directions: int, dtype: torch.dtype
    ) -> dict[int, tuple[Tensor, Tensor] | str]:
        """Slopes (G, K) and M (G, K, K) of each target, parts of the micro-batch's mean loss, or why there are none."""
        found: dict[int, tuple[Tensor, Tensor] | str] = {}
        groups = len(plan.borders) - 1
        reached = []
        for i in chunk:
            if (
                plan.gradients[self.bits[i]] is None
            ):  # an expert that none of these few samples reaches; some other does
                k = self.targets[i].directions.k
                zeros = torch.zeros(groups, k, k, dtype=dtype, device=self.workload.device)
                found[i] = zeros[:, 0], zeros
            else:
                reached.append(i)
        with torch.no_grad():
            if any(directions < self.targets[i].directions.k for i in reached):
                results = [self._in_pairs(plan, i, max(1, directions // 2)) for i in reached]
            elif reached:
                results = sweep(plan, [self._seed(i) for i in reached])
            else:
                results = []
            for i, result in zip(reached, results, strict=True):
                found[i] = result if isinstance(result, str) else self._with_slopes(plan, i, result, dtype)
        return found

    def _with_slopes(self, plan: Plan, i: int, forms: Forms, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if forms.slopes is not None:
            return forms.slopes, forms.matrix
        gradient = plan.gradients[self.bits[i]]
        assert gradient is not None
        return target_slopes(self.targets[i], gradient, dtype)[None], forms.matrix

    def _in_pairs(self, plan: Plan, i: int, size: int) -> Forms | str:
        """M block by block: two runs of directions at a time, so that every pair of directions meets once."""
        k = self.targets[i].directions.k
        runs = [range(start, min(start + size, k)) for start in range(0, k, size)]
        matrix: Tensor | None = None
        slopes: Tensor | None = None
        for first, second in itertools.combinations(runs, 2) if len(runs) > 1 else [(range(k), range(0))]:
            picks = [*first, *second]
            (found,) = sweep(plan, [self._seed(i, picks)])
            if isinstance(found, str):
                return found
            if matrix is None:
                matrix = found.matrix.new_zeros(found.matrix.shape[0], k, k)
                slopes = None if found.slopes is None else matrix[:, 0].clone()
            index = torch.tensor(picks, device=matrix.device)
            matrix[:, index[:, None], index[None, :]] = found.matrix
            if slopes is not None and found.slopes is not None:
                slopes[:, index] = found.slopes
        assert matrix is not None
        return Forms(matrix, slopes)

    def _seed(self, i: int, picks: Sequence[int] | None = None) -> Seed:
        """Directions as tangents of the stored weight, factored where its layout allows."""
        layer, d = self.targets[i].layer, self.targets[i].directions
        d = d if picks is None else d.pick(picks)
        return Seed(self.bits[i], self._tangent(layer, d), d.k)

    def _tangent(self, layer: WeightLayer, d: Directions) -> Tangent:
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


@contextmanager
def _as_unsupported() -> Iterator[None]:
    """Errors of what is recorded, other than of memory, as those of an operation that cannot be followed."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error) or isinstance(error, UnsupportedOperationError):
            raise
        raise UnsupportedOperationError(first_line(error)) from error
