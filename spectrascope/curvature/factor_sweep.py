"""Measure Kronecker factors in the column sweep of Gauss–Newton, which passes every input and cotangent by anyway."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spectrascope.curvature.columns import Columns
from spectrascope.curvature.engine import Curvature, CurvatureSums, Progress, Target, UnsupportedOperationError
from spectrascope.curvature.factor_slice import FactorSlice, OpenUse, Work, finish_factors, run_restarting
from spectrascope.curvature.gauss_newton import ColumnSweep, columns_together
from spectrascope.curvature.loss_root import (
    LossColumns,
    curvature_columns,
    gradient_column,
    make_columns,
    softmax_slopes,
)
from spectrascope.curvature.recorder import Tape, WeightUse
from spectrascope.curvature.sweep import sweep_back
from spectrascope.records.decomposition import DecomposeOptions, Factors, FisherType
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = ["measure_with_curvature"]


class FactorSweep(ColumnSweep):
    """Sweep columns back for curvature, and sum the factors of the inputs and cotangents that pass by."""

    def __init__(self, workload: Workload, targets: Sequence[Target], options: DecomposeOptions, groups: int) -> None:
        super().__init__(workload, targets, None)
        self.measured = targets
        self.options = options
        self.sums = FactorSlice(workload, targets, options, groups)
        self.generator = torch.Generator().manual_seed(0)
        self.shape: LossColumns | None = None
        self._open: dict[int, OpenUse] = {}
        self._first = False

    def _project_input(self, use: WeightUse) -> Tensor:
        parameter = self.parameters[use.weight]
        key = (id(parameter), None)
        if use.kind == "conv":
            opened = self.sums.open_conv(key, use.inputs, parameter.shape, use.conv, self._first, lambda rows: rows)
        else:
            opened = self.sums.open_linear(key, use.inputs[:, None, None, :], self._first)
        self._open[id(use)] = opened
        return use.inputs.new_empty(0)  # the projections are kept with the open use

    def run(self, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per target: slope (b, K), curvature (b, K), sum of M (K, K); the factors are summed on the way."""
        self._open, self._first = {}, start == 0
        inputs, labels = self.workload.fetch(start, stop)
        tape = Tape(self.parameters, on_use=self._project_input)
        with tape:
            output = self.workload.forward(inputs)
        number = tape.number_of(output)
        if number is None or output.dim() != 2 or output.shape[0] != stop - start:
            raise UnsupportedOperationError("the output is not one row of scores per sample")
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
        return found


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
    groups: int = 16,
    micro_batch: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Curvature], list[Factors]]:
    """Measure curvature and factors of weights whose tail is piecewise linear, in one sweep.

    Args:
        workload: the model, held still.
        targets: weights that :func:`spectrascope.curvature.choose.choose_engines` gives to Gauss–Newton.
        options: which factors.
        groups: sample groups of the jackknife.
        micro_batch: samples per pass; ``None`` tunes it.
        progress: called with (samples done, samples in all).

    Raises:
        UnsupportedOperationError: the network did something while measuring that it did not do when analysed.
        UnsupportedModelError: the loss's curvature has no square root.

    Cost: that of the curvature alone, and one more column, the patches' Gram matrix and projections.
    """
    n = workload.source.n
    state: list[tuple[FactorSweep, list[CurvatureSums]]] = []

    def begin() -> Work:
        sweep = FactorSweep(workload, targets, options, groups)
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        state[:] = [(sweep, sums)]

        def work(start: int, stop: int) -> None:
            for target, (slope, h, matrix) in zip(sums, sweep.run(start, stop), strict=True):
                target.add_samples(start, slope, h, matrix)

        return work

    with torch.no_grad():
        run_restarting(workload, n, micro_batch, begin, progress)
    sweep, sums = state[0]
    curvatures = [s.finish(EngineName.GAUSS_NEWTON, exact=True) for s in sums]
    return curvatures, finish_factors(sweep.sums, sweep.shape, n)
