"""Measure Kronecker factors of any weights, with ordinary backward passes: one per column.

Uses of a weight are captured while the network runs, and only first derivatives are taken, so every architecture and
every fused attention kernel will do. Reference: MEASUREMENT section 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.engine import Progress, Target
from spectrascope.curvature.factor_slice import FactorSlice, OpenUse, Work, finish_factors, run_restarting
from spectrascope.curvature.loss_root import LossColumns, make_columns
from spectrascope.curvature.uses import CapturedUse, Layout, capture_uses, find_layouts
from spectrascope.losses import scores_of
from spectrascope.records.decomposition import DecomposeOptions, Factors
from spectrascope.records.values import Missing
from spectrascope.workload import Workload

__all__ = ["measure_without_curvature"]


def measure_without_curvature(
    workload: Workload,
    targets: Sequence[Target],
    options: DecomposeOptions,
    *,
    groups: int = 16,
    micro_batch: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
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

    Returns:
        Factors per target, or why a weight has none (a look-up table, a transposed convolution, a weight transformed
        before it is used).

    Cost: one forward and one backward pass per column. Memory: a micro-batch's graph and cotangents, and m² + n² per
    weight.
    """
    n = workload.source.n
    layouts = find_layouts(workload, targets)
    usable = [t for t, found in zip(targets, layouts, strict=True) if not isinstance(found, Missing)]
    if not usable:
        return [found if isinstance(found, Missing) else Missing("") for found in layouts]
    by_use = {key: found for found in layouts if not isinstance(found, Missing) for key in [found.key]}
    state: list[tuple[FactorSlice, list[LossColumns]]] = []

    def begin() -> Work:
        sums = FactorSlice(workload, usable, options, groups)
        shapes: list[LossColumns] = []
        generator = torch.Generator().manual_seed(seed)
        state[:] = [(sums, shapes)]

        def work(start: int, stop: int) -> None:
            inputs, labels = workload.fetch(start, stop)
            with torch.enable_grad():
                uses, output = capture_uses(workload, inputs, [t.layer for t in usable])
                scores = scores_of(output)
                columns = make_columns(scores, labels, workload.loss_fn, options, generator)
            shapes[:] = [columns]
            opened = [_open(sums, use, by_use[use.key], stop - start, start == 0) for use in uses]
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
                target.gn.append(s[i] if i in s else scores.new_zeros(stop - start, k))

        return work

    run_restarting(workload, n, micro_batch, begin, progress)
    sums, shapes = state[0]
    found = iter(finish_factors(sums, shapes[0], n))
    return [layout if isinstance(layout, Missing) else next(found) for layout in layouts]


def _open(sums: FactorSlice, use: CapturedUse, layout: Layout, batch: int, first: bool) -> OpenUse:
    if use.kind == "linear":
        return sums.open_linear(use.key, layout.split(use.inputs, batch)[:, :, None, :], first)

    def split(rows: Tensor) -> Tensor:
        by_sample: Tensor = layout.split(rows, batch).flatten(1, 2)
        return by_sample

    return sums.open_conv(use.key, use.inputs, use.weight_shape, use.conv, first, split)
