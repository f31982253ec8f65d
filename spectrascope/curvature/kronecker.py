"""Measure Kronecker factors: in the sweep of Gauss–Newton where that runs anyway, else by passes of their own.

The column sweep passes every input and cotangent by anyway, so there the factors cost no further backward pass. Of
other weights the uses are captured while the network runs, and one ordinary backward pass per column is taken: only
first derivatives, so every architecture and every fused attention kernel will do. Reference: MEASUREMENT section 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.columns import Columns
from spectrascope.curvature.engine import Curvature, CurvatureSums, Progress, Target, UnsupportedOperationError
from spectrascope.curvature.factor_slice import FactorSlice, Keeper, OpenUse, Summing, finish_factors, run_restarting
from spectrascope.curvature.gauss_newton import ColumnSweep, columns_together
from spectrascope.curvature.loss_root import (
    LossColumns,
    curvature_columns,
    gradient_column,
    make_columns,
    softmax_slopes,
)
from spectrascope.curvature.microbatches import Groups, MicroBatch
from spectrascope.curvature.recorder import Tape, WeightUse
from spectrascope.curvature.sweep import sweep_back
from spectrascope.curvature.uses import CapturedUse, Layout, capture_uses, find_layouts
from spectrascope.errors import UnsupportedModelError
from spectrascope.records.decomposition import DecomposeOptions, Factors, FisherType
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import Workload

__all__ = ["FactorSweep", "measure_with_curvature", "measure_without_curvature"]


# -- in the sweep of Gauss–Newton ---------------------------------------------------------------------------------


def _state(sums: FactorSlice, shape: LossColumns, generator: torch.Generator) -> dict[str, Any]:
    """What was summed, and what the columns of any micro-batch say of all."""
    told = [len(shape.columns), shape.terms, shape.draws, shape.exact]
    return {"sums": sums.state(), "shape": told, "generator": generator.get_state()}


def _restore(kept: Mapping[str, Any], sums: FactorSlice, generator: torch.Generator) -> LossColumns:
    sums.restore(kept["sums"])
    generator.set_state(kept["generator"].cpu())
    columns, *told = kept["shape"]
    return LossColumns(torch.empty(columns, 0), *told)


class FactorSweep(ColumnSweep):
    """Sweep columns back for curvature, and sum the factors of the inputs and cotangents that pass by."""

    def __init__(
        self, workload: Workload, targets: Sequence[Target], options: DecomposeOptions, groups: Groups
    ) -> None:
        super().__init__(workload, targets, None)
        self.measured = targets
        self.options = options
        self.sums = FactorSlice(workload, targets, options, groups)
        self.generator = torch.Generator().manual_seed(0)
        self.shape: LossColumns | None = None
        self._open: dict[int, OpenUse] = {}

    def state(self) -> dict[str, Any]:
        """What was summed so far, to go on from with :meth:`restore`."""
        assert self.shape is not None  # at least one micro-batch was run
        return _state(self.sums, self.shape, self.generator)

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what was kept of the same targets."""
        self.shape = _restore(kept, self.sums, self.generator)

    def _project_input(self, use: WeightUse) -> Tensor:
        parameter = self.parameters[use.weight]
        key = (id(parameter), None)
        if use.kind == "conv":
            opened = self.sums.open_conv(key, use.inputs, parameter.shape, use.conv, lambda rows: rows)
        else:
            opened = self.sums.open_linear(key, use.inputs[:, None, None, :])
        self._open[id(use)] = opened
        return use.inputs.new_empty(0)  # the projections are kept with the open use

    def run(self, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per target: slope (b, K), curvature (b, K), sum of M (K, K); the factors are summed on the way."""
        self._open = {}
        self.sums.begin(start)
        tape, number, output, labels = self.record(start, stop)
        root, signs = curvature_columns(output, labels, self.workload.loss_fn)
        fisher = make_columns(output, labels, self.workload.loss_fn, self.options, self.generator)
        ggn = self.options.fisher is FisherType.GGN and fisher.exact
        self.shape = fisher
        s_root = self._pull(tape, number, root, factor=ggn)
        s_fisher = s_root if ggn else self._pull(tape, number, fisher.columns, factor=True)
        slopes = self._slopes(tape, number, output, labels, s_root)
        for use in self._open.values():
            use.close(start)
        found = []
        for i in range(self.n_targets):
            s = s_root[i].to(self.sum_dtype)
            signed = s if signs is None else s * signs[:, :, None].to(s.dtype)
            self.sums.targets[i].gn.append(s_fisher[i].square().sum(0))
            flat = s.flatten(0, 1)
            found.append((slopes[i].to(self.sum_dtype), (s * signed).sum(0), flat.T @ signed.flatten(0, 1)))
        return found

    def _slopes(self, tape: Tape, number: int, output: Tensor, labels: Tensor, s: list[Tensor]) -> list[Tensor]:
        """Per target, the slope of every sample's loss (b, K)."""
        loss_fn = self.workload.loss_fn
        found = [softmax_slopes(output, labels, loss_fn, one.to(self.sum_dtype)) for one in s]
        ready = [slope for slope in found if slope is not None]
        if len(ready) == len(found):
            return ready
        column = gradient_column(output, labels, loss_fn)[None]
        return [one[0] for one in self._pull(tape, number, column, factor=False)]

    def _pull(self, tape: Tape, number: int, columns: Tensor, *, factor: bool) -> list[Tensor]:
        """Sweep columns back; per target (c, b, K)."""
        total, batch = columns.shape[:2]
        step = columns_together(total, batch, self.workload.device)
        found: list[Tensor] = [None] * self.n_targets  # type: ignore[list-item]
        for first in range(0, total, step):
            part = columns[first : first + step]
            rows = slice(first, first + len(part))

            def add(use: WeightUse, grad: Columns, rows: slice = rows) -> None:
                opened = self._open[id(use)]
                delta = _positions_last(use, grad.tensor)
                for i, s in zip(opened.members, opened.add(delta, grad.scale, factor=factor), strict=True):
                    if found[i] is None:
                        found[i] = s.new_zeros(total, *s.shape[1:])
                    found[i][rows] += s

            sweep_back(tape, number, part.clone(), add)
        if any(s is None for s in found):
            raise UnsupportedOperationError("a weight does not reach the output")
        return [s.to(self.workload.device) for s in found]


def _positions_last(use: WeightUse, delta: Tensor) -> Tensor:
    """Cotangents (c, b, m, …) of one use's output as (c, b, t, g, w)."""
    if use.kind == "linear":
        if delta.dim() != 3:
            raise UnsupportedOperationError("a linear layer is applied to more than one row per sample")
        return delta[:, :, None, None, :]
    by_group: Tensor = delta.flatten(3).transpose(2, 3).unflatten(3, (int(use.conv[-1]), -1))
    return by_group


def measure_with_curvature(
    workload: Workload,
    targets: Sequence[Target],
    options: DecomposeOptions,
    *,
    groups: Groups = 16,
    micro_batch: MicroBatch = None,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> tuple[list[Curvature], list[Factors]]:
    """Measure curvature and factors of weights whose tail is piecewise linear, in one sweep.

    Args:
        workload: the model, held still.
        targets: weights that :func:`spectrascope.curvature.choose.choose_engines` gives to Gauss–Newton.
        options: which factors.
        groups: sample groups of the jackknife.
        micro_batch: samples per pass; ``None`` tunes it.
        progress: called with (samples done, samples in all).
        keeper: where the sums are kept as they grow.

    Raises:
        UnsupportedOperationError: the network did something while measuring that it did not do when analysed.
        UnsupportedModelError: the loss's curvature has no square root.

    Cost: that of the curvature alone, and one more column, the patches' Gram matrix and projections. Memory: twice
    m² + n² per weight, as the halves of the samples are summed apart.
    """
    n = workload.source.n
    state: list[tuple[FactorSweep, list[CurvatureSums]]] = []

    def begin() -> Summing:
        sweep = FactorSweep(workload, targets, options, groups)
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        state[:] = [(sweep, sums)]

        def summed() -> dict[str, Any]:
            return {**sweep.state(), "curvature": [s.state() for s in sums]}

        def restore(kept: Mapping[str, Any]) -> None:
            sweep.restore(kept)
            for s, one in zip(sums, kept["curvature"], strict=True):
                s.restore(one)

        def work(start: int, stop: int) -> None:
            for target, (slope, h, matrix) in zip(sums, sweep.run(start, stop), strict=True):
                target.add_samples(start, slope, h, matrix)

        return Summing(work, summed, restore)

    with torch.no_grad():
        run_restarting(workload, n, micro_batch, groups, begin, progress, keeper)
    sweep, sums = state[0]
    curvatures = [s.finish(EngineName.GAUSS_NEWTON, exact=True) for s in sums]
    return curvatures, finish_factors(sweep.sums, sweep.shape, n)


# -- with backward passes of their own ----------------------------------------------------------------------------


def measure_without_curvature(
    workload: Workload,
    targets: Sequence[Target],
    options: DecomposeOptions,
    *,
    groups: Groups = 16,
    micro_batch: MicroBatch = None,
    seed: int = 0,
    progress: Progress | None = None,
    keeper: Keeper | None = None,
) -> list[Factors | Missing]:
    """Measure factors of any weights applied by linear layers or convolutions; their curvature is measured elsewhere.

    Args:
        workload: the model, held still.
        targets: weights and directions.
        options: which factors.
        groups: sample groups of the jackknife.
        micro_batch: samples per pass; ``None`` tunes it.
        seed: of random columns.
        progress: called with (samples done, samples in all).
        keeper: where the sums are kept as they grow.

    Returns:
        Factors per target, or why a weight has none (a look-up table, a transposed convolution, a weight transformed
        before it is used).

    Cost: one forward and one backward pass per column. Memory: a micro-batch's graph and cotangents, and twice
    m² + n² per weight, as the halves of the samples are summed apart.
    """
    n = workload.source.n
    layouts = find_layouts(workload, targets)
    usable = [t for t, found in zip(targets, layouts, strict=True) if not isinstance(found, Missing)]
    if not usable:
        return [found if isinstance(found, Missing) else Missing("") for found in layouts]
    by_use = {key: found for found in layouts if not isinstance(found, Missing) for key in [found.key]}
    state: list[tuple[FactorSlice, list[LossColumns]]] = []

    def begin() -> Summing:
        sums = FactorSlice(workload, usable, options, groups)
        shapes: list[LossColumns] = []
        generator = torch.Generator().manual_seed(seed)
        state[:] = [(sums, shapes)]

        def summed() -> dict[str, Any]:
            return _state(sums, shapes[0], generator)

        def restore(kept: Mapping[str, Any]) -> None:
            shapes[:] = [_restore(kept, sums, generator)]

        def work(start: int, stop: int) -> None:
            sums.begin(start)
            inputs, labels = workload.fetch(start, stop)
            with torch.enable_grad():
                uses, scores = capture_uses(workload, inputs, [t.layer for t in usable])
                if not isinstance(scores, Tensor):
                    raise UnsupportedModelError("factors start from scores: this loss takes the network's output whole")
                columns = make_columns(scores, labels, workload.loss_fn, options, generator)
            shapes[:] = [columns]
            opened = [_open(sums, use, by_use[use.key], stop - start) for use in uses]
            s: dict[int, Tensor] = {}
            for number, column in enumerate(columns.columns):
                keep = number + 1 < len(columns.columns)
                deltas: Any = torch.autograd.grad(
                    scores, [use.edge for use in uses], column, retain_graph=keep, allow_unused=True
                )
                here: dict[int, Tensor] = {}
                for use, open_use, delta in zip(uses, opened, deltas, strict=True):
                    if delta is None:
                        continue
                    rows = by_use[use.key].outputs(use, delta, stop - start)
                    for i, value in zip(open_use.members, open_use.add(rows[None], None), strict=True):
                        here[i] = here[i] + value[0] if i in here else value[0]
                for i, value in here.items():
                    s[i] = s[i] + value.square() if i in s else value.square()
            for open_use in opened:
                open_use.close(start)
            for i, target in enumerate(sums.targets):
                k = target.target.directions.k
                target.gn.append(s[i].to(scores.device) if i in s else scores.new_zeros(stop - start, k))

        return Summing(work, summed, restore)

    run_restarting(workload, n, micro_batch, groups, begin, progress, keeper)
    sums, shapes = state[0]
    found = iter(finish_factors(sums, shapes[0], n))
    return [layout if isinstance(layout, Missing) else next(found) for layout in layouts]


def _open(sums: FactorSlice, use: CapturedUse, layout: Layout, batch: int) -> OpenUse:
    if use.kind == "linear":
        return sums.open_linear(use.key, layout.split(use.inputs, batch)[:, :, None, :])

    def split(rows: Tensor) -> Tensor:
        by_sample: Tensor = layout.split(rows, batch).flatten(1, 2)
        return by_sample

    return sums.open_conv(use.key, use.inputs, use.weight_shape, use.conv, split)
