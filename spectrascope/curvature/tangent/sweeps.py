"""The weights of a measurement, their directions as tangents, and what sweeps over one micro-batch give."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from spectrascope.curvature.engine import Target, UnsupportedOperationError, target_slopes
from spectrascope.curvature.microbatches import is_out_of_memory
from spectrascope.curvature.recorder import Recording
from spectrascope.curvature.tangent.plan import Plan, make_plan, record_loss
from spectrascope.curvature.tangent.samples import (
    MixedSamplesError,
    SampleOrder,
    find_sample_order,
    is_sum_over_samples,
)
from spectrascope.curvature.tangent.sweep import Forms, Seed, sweep
from spectrascope.curvature.tangent.values import RankOne, Stacked, Tangent
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import Directions
from spectrascope.text import first_line
from spectrascope.workload import Inputs, Workload

__all__ = ["Sweeps"]


class Sweeps:
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

    def plan(self, borders: Sequence[int], *, prepared: bool = True, joint: bool = False) -> Plan:
        """Record the samples between borders; ``prepared`` for all sweeps, which may take as long as several of them.

        ``joint``: for second-order terms across weights too.

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
            return make_plan(recording, self.weights, loss, directions, borders=within, order=order, joint=joint)

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
                results = sweep(plan, [self.seed(i) for i in reached])
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
            (found,) = sweep(plan, [self.seed(i, picks)])
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

    def seed(self, i: int, picks: Sequence[int] | None = None) -> Seed:
        """Directions as tangents of the stored weight, factored where its layout allows."""
        layer, d = self.targets[i].layer, self.targets[i].directions
        d = d if picks is None else d.pick(picks)
        return Seed(self.bits[i], self._tangent(layer, d), d.k)

    def _tangent(self, layer: WeightLayer, d: Directions) -> Tangent:
        device, dtype = layer.parameter.device, self.workload.dtype
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
