"""Measure, check, and hand the weights that an engine got wrong to the next engine in line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch

from spectrascope.curvature.choose import EngineChoice, engine_named
from spectrascope.curvature.selfcheck import CheckedPairs, Suspect, check_engines
from spectrascope.errors import DataError, SelfCheckError
from spectrascope.measure.gradients import measure_gradients
from spectrascope.measure.precision import NoRoomError, in_float32, is_narrow
from spectrascope.measure.prepare import Ready
from spectrascope.measure.ranks import ALONE, Ranks
from spectrascope.measure.stages import Measured, join_measured
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.lifted import is_below
from spectrascope.records.signal import GradientSource
from spectrascope.records.values import CheckScope, EngineName, Missing
from spectrascope.workload import Run, Workload

__all__ = ["Stages", "measure_and_check"]

Stages: TypeAlias = Callable[[Workload, Sequence[WeightLayer], Sequence[EngineChoice], Run], Measured]


def measure_and_check(ready: Ready, stages: Stages, run: Run, ranks: Ranks = ALONE) -> tuple[Measured, CheckedPairs]:
    """Measure all weights, each by its engine, and hold the engines to their references.

    Ranks measure together, the first of them checks: what is returned to the others is not checked.

    Args:
        ready: the network, held still, and the engine of every weight.
        stages: gradient, directions and curvature of the weights it is given.
        run: what was asked for.
        ranks: the processes that measure together.

    Raises:
        SelfCheckError: an engine is wrong on some weight, there is none after it, and the other weights are not known
            to be right.
        DataError: the samples differ from one reading to the next.
    """
    layers, choices = ready.layers, ready.choices
    parts: list[Measured] = []
    checked = CheckedPairs(why_not="switched off (--self-check off)")

    def check(found: Measured) -> dict[str, EngineChoice]:
        nonlocal checked
        _drop_rounding(found, ready.workload, run)
        wrong = _wrong_slopes(found, ready.workload)
        if run.options.self_check is not CheckScope.OFF and found.targets:
            with run.clock.stage("self-check"):
                run.on_progress("self-check", 0, 1)
                part = _check(found, ready.workload, run, wrong)
                run.on_progress("self-check", 1, 1)
            wrong |= {
                name: f"differs from the reference by {off:.2g} of its largest curvature (tolerance {part.tolerance:g})"
                for name, off in part.faults.items()
            }
            wrong |= {
                name: _differing_slopes(off, ready.workload.wide)
                for name, off in part.slopes.items()
                if not off <= _slope_tolerance(ready.workload.wide) and name not in wrong
            }
            part = part.without(wrong)
            checked = checked.joined(part) if parts else part
        if wrong and _is_certain(found, ready.workload):
            for name in wrong:
                found.drop(name, _CERTAIN)
            wrong = {}
        if wrong:
            _require_same_data(found, ready.workload, wrong)
        return _hand_on(found, wrong, checked, run)

    while layers:
        found = stages(ready.workload, layers, choices, run)
        handed = ranks.first(functools.partial(check, found))
        layers = [layer for layer in layers if layer.name in handed]
        choices = [handed[layer.name] for layer in layers]
        parts.append(found)
    return join_measured(ready.layers, parts), checked


def _check(found: Measured, workload: Workload, run: Run, wrong: dict[str, str]) -> CheckedPairs:
    suspects = []
    for target, curvature in zip(found.targets, found.curvatures, strict=True):
        held_out = found.held_out[target.layer.name]
        h = [*curvature.h.tolist(), *(() if isinstance(held_out, Missing) else held_out.h)]
        if target.layer.name not in wrong:
            suspects.append(Suspect(target, curvature.engine, max(map(abs, h), default=0.0)))
    if is_narrow(workload):  # an engine's rules are told from rounding in float32, whatever it measured in
        try:
            with in_float32(run, workload, [s.target.layer for s in suspects]) as (wide, layers):
                again = [
                    replace(s, target=replace(s.target, layer=layer)) for s, layer in zip(suspects, layers, strict=True)
                ]
                checked = check_engines(wide, again, run.options.seed, run.options.self_check)
        except NoRoomError as error:
            return CheckedPairs(why_not=str(error))
    else:
        checked = check_engines(workload, suspects, run.options.seed, run.options.self_check)
    for name, why in checked.rounding.items():
        found.drop(name, why)
    return checked.without(checked.rounding)


def _hand_on(found: Measured, wrong: dict[str, str], checked: CheckedPairs, run: Run) -> dict[str, EngineChoice]:
    """Take back what was measured wrong, and choose the next engine for it; where there is none, its row says why.

    Raises:
        SelfCheckError: there is none, and nothing speaks for the other weights.
    """
    handed: dict[str, EngineChoice] = {}
    hopeless: dict[str, str] = {}
    for target, curvature in zip(found.targets, found.curvatures, strict=True):
        name = target.layer.name
        if name not in wrong:
            continue
        engine = curvature.engine
        following = engine_named(engine).next
        if following is None or engine is EngineName.GAUSS_NEWTON is run.options.engine:
            why = f"{wrong[name]}, measured by {engine.value}{_advice(engine)}"
            if not _others_agree(found, wrong, checked):
                raise SelfCheckError(f"self-check failed: weight {name!r} {why}")
            hopeless[name] = f"self-check failed: the weight {why}"
            continue
        handed[name] = EngineChoice(following, f"{engine.value} failed the self-check: the weight {wrong[name]}")
    found.take_back(wrong)
    found.failed |= hopeless
    return handed


def _others_agree(found: Measured, wrong: Container[str], checked: CheckedPairs) -> bool:
    """Whether some weight was compared with its reference and is right, and none that was measured now was not."""
    others = [t.layer.name for t in found.targets if t.layer.name not in wrong]
    right = [name for name, off in checked.residuals.items() if not isinstance(off, Missing) and name not in wrong]
    return bool(right) and all(name in right for name in others)


def _advice(engine: EngineName) -> str:
    if engine is EngineName.GAUSS_NEWTON:
        return "; try --engine auto, and report this network"
    if not engine_named(engine).exact:
        return "; report this network"
    return (
        ", and no exact engine is left: the network's backward pass is not the derivative of its forward pass (a "
        "rounding passed straight through, a detach or no_grad in forward, an autograd.Function whose backward is "
        "wrong or builds no graph); --engine finite-difference estimates the curvature, --exclude leaves the weight out"
    )


_CERTAIN = (
    "the network is certain of every label: loss and curvature are below what this precision tells from zero, and what "
    "is left of them is rounding; measure an earlier checkpoint, or other samples"
)


def _is_certain(found: Measured, workload: Workload) -> bool:
    """Whether all labels are predicted with a probability that is 1 but for rounding."""
    return found.gradient.accuracy == 1.0 and abs(found.gradient.loss) <= torch.finfo(workload.wide).eps


_ROUNDING = "the gradient is zero but for rounding: two passes over the batch disagree on it"


def _drop_rounding(found: Measured, workload: Workload, run: Run) -> None:
    """Take back weights whose gradient is zero but for rounding, as that of a gate which always picks one expert.

    Their gradient is next to nothing beside the largest, and comes out different when the batch is cut another way.
    """
    largest = max((float(t.directions.sigma[0]) for t in found.targets), default=0.0)
    least = _rounding(workload.dtype) * largest
    tiny = [t for t in found.targets if float(t.directions.sigma[0]) <= least]
    if not tiny or run.options.gradient is not GradientSource.BATCH:
        return
    size = max(2, 2 * found.gradient.micro_batch)
    again = measure_gradients(workload, [t.layer for t in tiny], micro_batch=size).gradients
    for target in tiny:
        sigma, gradient = target.directions.sigma, again.get(target.layer.name)
        if gradient is None:
            continue
        if not float((target.directions.forms(gradient) - sigma).abs().max()) <= 0.1 * float(sigma[0]):
            found.drop(target.layer.name, _ROUNDING)


def _wrong_slopes(found: Measured, workload: Workload) -> dict[str, str]:
    """Weights whose slopes differ between the gradient pass and the curvature pass, which sees every sample's again.

    Two passes and two ways of differentiating agree on the whole batch, or one of them is wrong. Where curvature sees a
    part of the batch, the self-check compares them on its own samples alone.
    """
    tolerance = _slope_tolerance(workload.dtype)
    largest = max((float(t.directions.sigma[0]) for t in found.targets), default=0.0)
    noise: list[str] = []
    wrong: dict[str, str] = {}
    for target, curvature in zip(found.targets, found.curvatures, strict=True):
        sizes = torch.tensor(curvature.group_sizes, dtype=torch.float64)
        slopes = sizes @ curvature.group_sigma / sizes.sum()
        sigma = target.directions.sigma
        gap = float((slopes - sigma).abs().max() / sigma[0])
        if not gap <= tolerance and float(sigma[0]) <= _rounding(workload.dtype) * largest:
            # Zero in exact arithmetic (the gate of a mixture that picks one expert): nothing to measure, nothing wrong.
            noise.append(target.layer.name)
        elif not gap <= tolerance:
            wrong[target.layer.name] = _differing_slopes(gap, workload.dtype)
    for name in noise:
        found.drop(name, _ROUNDING)
    return wrong


def _rounding(dtype: torch.dtype) -> float:
    """Share of the largest gradient below which one may be nothing but rounding."""
    eps = float(torch.finfo(dtype).eps)
    return 4 * eps if is_below(dtype, torch.float32) else 100 * eps


def _slope_tolerance(dtype: torch.dtype) -> float:
    if is_below(dtype, torch.float32):
        return 0.1  # as far as rounding of sums over positions and samples goes
    return 1e-8 if dtype == torch.float64 else 1e-3


def _differing_slopes(gap: float, dtype: torch.dtype) -> str:
    return (
        f"has different slopes in the gradient and the curvature pass ({gap:.2g} of sigma_1, tolerance "
        f"{_slope_tolerance(dtype):g})"
    )


def _require_same_data(found: Measured, workload: Workload, names: Container[str]) -> None:
    """Measure the gradients of some weights twice, the batch cut the same way: before an engine is blamed.

    Raises:
        DataError: they differ.
    """
    layers = [t.layer for t in found.targets if t.layer.name in names]
    size = found.gradient.micro_batch
    first, second = (measure_gradients(workload, layers, micro_batch=size).gradients for _ in range(2))
    for layer in layers:
        change = float((first[layer.name] - second[layer.name]).norm() / first[layer.name].norm())
        if not change <= 1e-4:
            raise DataError(
                f"the samples differ from one reading to the next: two gradients of weight {layer.name!r} differ by "
                f"{change:.2g} of their size; read them without augmentation, shuffling or other chance"
            )
