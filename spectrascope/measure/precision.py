"""A network measured in a narrow format, and a few of its weights again in float32: by how much numbers are off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import nn

from spectrascope.curvature.microbatches import available_bytes, is_out_of_memory
from spectrascope.measure.stages import FoundTargets
from spectrascope.network.effective import copy_of, parametrized_weights, unwrapped, with_effective_weights
from spectrascope.network.guards import held_still
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.lifted import is_below
from spectrascope.numerics.summary import summarise
from spectrascope.records.report import LayerReport, LayerRow, PrecisionError
from spectrascope.records.values import Missing, PowerFit
from spectrascope.workload import Run, Workload

__all__ = ["NoRoomError", "compare_precision", "in_float32", "is_narrow", "some_in_float32"]

_WEIGHTS = 3
"""Weights measured again: the first and the last that the network meets, and one between them."""


class NoRoomError(Exception):
    """There is no room for the network in float32."""


def is_narrow(workload: Workload) -> bool:
    """Whether the network is measured in fewer digits than its loss and sums."""
    return is_below(workload.dtype, workload.wide)


@contextmanager
def in_float32(
    run: Run, workload: Workload, layers: Sequence[WeightLayer]
) -> Iterator[tuple[Workload, list[WeightLayer]]]:
    """A copy of the network in float32 on the same samples, and the same weights of it, until the block ends.

    Made from the weights as they were given: what storing them in the narrow format has cost is part of the error.

    Raises:
        NoRoomError: memory does not hold the copy.
    """
    if workload.places:
        raise NoRoomError(f"the network lies on {workload.places}")
    model = unwrapped(run.model)
    room, needed = available_bytes(workload.device), 4 * sum(p.numel() for p in model.parameters())
    if not isinstance(room, Missing) and needed > room:
        raise NoRoomError(f"the network in float32 takes {needed / 2**30:.1f} GiB, and {room / 2**30:.1f} are free")
    try:
        wide = _copied(model).to(workload.device, workload.wide)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NoRoomError("memory does not hold the network in float32") from error
    moved = [replace(at, parameter=wide.get_parameter(at.name.partition("[")[0])) for at in layers]
    copied = replace(workload, model=wide, dtype=workload.wide, owned=True).without_casts()
    with held_still(copied, [at.parameter for at in moved]):
        yield copied, moved


def _copied(model: nn.Module) -> nn.Module:
    return with_effective_weights(model) if parametrized_weights(model) else copy_of(model)


@contextmanager
def some_in_float32(found: FoundTargets, run: Run) -> Iterator[FoundTargets]:
    """The first weight, the last and one drawn between them, along the same directions, in float32.

    Raises:
        NoRoomError: memory does not hold the network in float32.
    """
    places = range(len(found.targets))
    if len(places) > _WEIGHTS:
        between = int(np.random.default_rng(run.options.seed).integers(1, len(places) - 1))
        targets = [found.targets[i] for i in (0, between, len(places) - 1)]
    else:
        targets = [found.targets[i] for i in places]
    with in_float32(run, found.workload, [target.layer for target in targets]) as (workload, layers):
        again = [replace(target, layer=at, nulls=()) for target, at in zip(targets, layers, strict=True)]
        yield replace(found, workload=workload, targets=again, failed={})


def compare_precision(narrow: Sequence[LayerRow], wide: Sequence[LayerReport]) -> PrecisionError | Missing:
    """How far the numbers of some weights are from those of float32 along the same directions, on the same samples.

    Args:
        narrow: all rows of the report.
        wide: the same weights measured in float32, those of which that was done.
    """
    by_name = {row.info.name: row for row in narrow if isinstance(row, LayerReport)}
    pairs = [(by_name[row.info.name], row) for row in wide if row.info.name in by_name]
    if not pairs:
        return Missing("none of the weights that were measured in float32 too has numbers in both formats")
    truths = [np.abs(b.measurement.h) for _, b in pairs]
    gaps = [np.abs(np.subtract(a.measurement.h, b.measurement.h)) for a, b in pairs]
    gap, truth = np.concatenate(gaps), np.concatenate(truths)
    if not truth.any():
        return Missing("every curvature that was measured in float32 too is zero")
    betas = [
        abs(a.analysis.beta.value - b.analysis.beta.value)
        for a, b in pairs
        if isinstance(a.analysis.beta, PowerFit) and isinstance(b.analysis.beta, PowerFit)
    ]
    return PrecisionError(
        n_weights=len(pairs),
        n_pairs=len(truth),
        h_median=float(np.median(gap[truth > 0] / truth[truth > 0])),
        h_largest=max(float(g.max() / t.max()) for g, t in zip(gaps, truths, strict=True) if t.any()),
        beta=max(betas) if betas else Missing("β has no value for these weights in both formats"),
        step_exponent=_step_exponents([a for a, _ in pairs], [b for _, b in pairs]),
    )


def _step_exponents(narrow: Sequence[LayerRow], wide: Sequence[LayerRow]) -> float | Missing:
    """Difference of the step exponent that these weights alone give together."""
    signals = [summarise(tuple(rows)).signal for rows in (narrow, wide)]
    found = [s if isinstance(s, Missing) else s.step_exponent for s in signals]
    values = []
    for exponent in found:
        if isinstance(exponent, Missing):
            return exponent
        if not exponent.determined:
            return Missing(f"the step exponent of these weights is undetermined: {exponent.reason}")
        values.append(exponent.value)
    return abs(values[0] - values[1])
