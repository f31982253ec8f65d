"""Exact curvature for piecewise-linear tails: one backward sweep per logit column serves every weight and every k.

If everything after a weight is piecewise linear, the outputs are linear in the weight near where it stands, so its
Hessian block is J^T (d²loss/df²) J. Along D_k = u_k v_k^T the derivative of output c is

    s_ck = sum_t (u_k · delta_ct) (v_k · a_t)

with a_t the weight's input at position t and delta_ct the cotangent of output c at the weight's output. The first
factor needs one backward sweep per column, shared by all weights; the second is a k-filter convolution, done while
the forward pass runs, so no activation is kept for it. Reference: MEASUREMENT section 5b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectrascope.curvature.columns import Columns
from spectrascope.curvature.engine import (
    Curvature,
    CurvatureEngine,
    CurvatureSums,
    Downstream,
    JointForm,
    Progress,
    Target,
    UnsupportedOperationError,
    mean_form,
)
from spectrascope.curvature.loss_root import OutputModel, output_model
from spectrascope.curvature.microbatches import Groups, Schedule
from spectrascope.curvature.patches import filter_patches
from spectrascope.curvature.recorder import Tape, WeightUse
from spectrascope.curvature.sweep import sweep_back
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = ["ColumnSweep", "GaussNewton", "columns_together"]


@dataclass(frozen=True)
class GaussNewton(CurvatureEngine):
    """Measure by a backward sweep per output: exact for weights that ``choose.choose_engines`` admits, no others.

    Args:
        micro_batch: samples per forward pass; ``None`` tunes it.
        column_batch: columns swept together; ``None`` chooses by the number of outputs.
    """

    column_batch: int | None = None
    name: ClassVar = EngineName.GAUSS_NEWTON
    exact: ClassVar = True
    next: ClassVar = EngineName.TANGENT
    reference: ClassVar = (EngineName.DOUBLE_BACKPROP,)
    joint: ClassVar = JointForm.GAUSS_NEWTON

    @classmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        """A forward pass, and one sweep per output back to the earliest weight, for all weights and all k."""
        return 1.0 + n_outputs * max(w.share for w in weights) if weights else 0.0

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature]:
        """Curvature of each target over the whole batch.

        Cost: one forward pass, C − 1 input-gradient passes (C outputs), and projections that grow with k.
        Memory: one micro-batch's piecewise-linear masks and its columns; independent of the number of samples.

        Raises:
            UnsupportedOperationError: the network did something while measuring that it did not do when analysed.
        """
        n = workload.source.n
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        schedule = Schedule(n, self.micro_batch, device=workload.device)
        sweep = ColumnSweep(workload, targets, self.column_batch)

        def work(start: int, stop: int) -> None:
            for target, (slope, h, matrix) in zip(sums, sweep.run(start, stop), strict=True):
                target.add_samples(start, slope, h, matrix)

        with torch.no_grad():
            schedule.run(work, progress)
        return [s.finish(self.name, exact=True) for s in sums]

    def measure_joint(
        self, workload: Workload, targets: Sequence[Target], *, progress: Progress | None = None
    ) -> Tensor:
        """The Gauss-Newton form on all directions of all targets: the Hessian's within each weight.

        Across weights the Hessian has more: the outputs are piecewise linear in each weight, and a product in two.

        Cost: as of :meth:`measure`, and one more Gram matrix of the same projections.
        """
        sweep = ColumnSweep(workload, targets, self.column_batch)
        size = sum(target.directions.k for target in targets)
        total = torch.zeros(size, size, dtype=sweep.sum_dtype, device=workload.device)

        def work(start: int, stop: int) -> None:
            loss, projections = sweep.project(start, stop)
            total.add_(loss.contract(torch.cat(projections, 2))[2])

        with torch.no_grad():
            Schedule(workload.source.n, self.micro_batch, device=workload.device).run(work, progress)
        return mean_form(total, workload.source.n)


class ColumnSweep:
    """Forward and backward over one slice of samples."""

    def __init__(self, workload: Workload, targets: Sequence[Target], column_batch: int | None) -> None:
        self.workload = workload
        self.column_batch = column_batch
        self.sum_dtype = sum_dtype(workload.device)
        self.parameters: list[torch.nn.Parameter] = []
        self.targets: list[list[int]] = []  # parameter -> its targets (q, k and v share one)
        index = {}
        for i, target in enumerate(targets):
            key = id(target.layer.parameter)
            if key not in index:
                index[key] = len(self.parameters)
                self.parameters.append(target.layer.parameter)
                self.targets.append([])
            self.targets[index[key]].append(i)
        self.left: list[Tensor] = []  # per parameter (m, K total)
        self.right: list[Tensor] = []  # per parameter (n, K total)
        self.slices: dict[int, slice] = {}
        for numbers in self.targets:
            lefts, rights, at = [], [], 0
            for i in numbers:
                d = targets[i].directions
                lefts.append(targets[i].layer.embed_left(d.left))
                rights.append(d.right)
                self.slices[i] = slice(at, at + d.k)
                at += d.k
            there = targets[numbers[0]].layer.parameter.device
            self.left.append(torch.cat(lefts, 1).to(there, workload.dtype))
            self.right.append(torch.cat(rights, 1).to(there, workload.dtype))
        self.n_targets = len(targets)

    def record(self, start: int, stop: int) -> tuple[Tape, int, Tensor, Tensor]:
        """Run forward over a slice: the tape, the output's number on it, the output (b, C) and the labels.

        Raises:
            UnsupportedOperationError: the output is not one row of scores per sample.
        """
        inputs, labels = self.workload.fetch(start, stop)
        tape = Tape(self.parameters, on_use=self._project_input)
        with tape:
            output = self.workload.forward(inputs)
        number = tape.number_of(output)
        if number is None or output.dim() != 2 or output.shape[0] != stop - start:
            raise UnsupportedOperationError("the output is not one row of scores per sample")
        return tape, number, output, labels

    def run(self, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per target: slope (b, K), curvature (b, K), sum of M (K, K)."""
        loss, projections = self.project(start, stop)
        return [loss.contract(s) for s in projections]

    def project(self, start: int, stop: int) -> tuple[OutputModel, list[Tensor]]:
        """The loss of a slice as a function of the outputs, and s (c, b, K) of every target.

        Raises:
            UnsupportedOperationError: a weight does not reach the output.
        """
        tape, number, output, labels = self.record(start, stop)
        loss = output_model(output, labels, self.workload.loss_fn)
        columns = loss.columns()
        c_total = len(columns)
        step = self.column_batch or columns_together(c_total, stop - start, self.workload.device)
        s: list[Tensor | None] = [None] * len(self.parameters)
        for first in range(0, c_total, step):
            part = columns[first : first + step]
            rows = slice(first, first + len(part))

            def add(use: WeightUse, grad: Columns, rows: slice = rows) -> None:
                projected = self._project_output(use, grad)
                whole = s[use.weight]
                if whole is None:
                    whole = s[use.weight] = projected.new_zeros(c_total, *projected.shape[1:])
                whole[rows] += projected

            sweep_back(tape, number, part, add)
        found: list[Tensor | None] = [None] * self.n_targets
        for p, numbers in enumerate(self.targets):
            projected = s[p]
            if projected is None:
                raise UnsupportedOperationError("a weight does not reach the output")
            for i in numbers:
                found[i] = projected[:, :, self.slices[i]].to(self.workload.device, self.sum_dtype)
        return loss, [f for f in found if f is not None]

    # -- the weight's input: v_k · a --------------------------------------------------------------------------

    def _project_input(self, use: WeightUse) -> Tensor:
        right = self.right[use.weight]
        if use.kind == "linear":
            return use.inputs @ right
        q = filter_patches(use.inputs, right, self.parameters[use.weight].shape, use.conv)
        return q.transpose(1, 2)  # (b·groups, T, K)

    # -- the weight's output: u_k · delta ---------------------------------------------------------------------

    def _project_output(self, use: WeightUse, grad: Columns) -> Tensor:
        """S (c, b, K) of one use: sum over positions of (u · delta)(v · a)."""
        left = self.left[use.weight]
        if grad.scale is not None:
            left = (left * grad.scale[:, None]).to(left.dtype)
        delta, q = grad.tensor, use.inputs
        if use.kind == "linear":
            if q.dim() != 2 or delta.dim() != 3:
                raise UnsupportedOperationError("a linear layer is applied to more than one row per sample")
            return (delta @ left) * q
        groups = use.conv[-1]
        columns, batch = delta.shape[:2]
        delta = delta.flatten(3).transpose(2, 3)  # (c, b, T, m)
        width, k = delta.shape[3] // groups, q.shape[2]
        mixed = delta.new_empty(columns, batch * groups, k, width)
        for c in range(columns):
            part = delta[c]
            if groups > 1:
                part = part.unflatten(2, (groups, width)).transpose(1, 2).flatten(0, 1)
            torch.bmm(q.transpose(1, 2), part, out=mixed[c])
        mixed = mixed.view(columns, batch, groups, k, width)
        return (mixed * left.reshape(groups, width, k).transpose(1, 2)).sum((2, 4))


def columns_together(columns: int, batch: int, device: torch.device) -> int:
    """How many columns to sweep together: enough images per kernel to be efficient, few enough to stay in cache."""
    images = 128 if device.type == "cpu" else 4096
    return max(1, min(columns, images // max(batch, 1)))
