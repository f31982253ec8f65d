"""The stages of a measurement that cost time: gradient, directions, curvature. Silent; progress by callback."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from spectrascope.errors import NonFiniteError, UnsupportedModelError
from spectrascope.measure.curvature.choice import EngineChoice
from spectrascope.measure.curvature.double_backprop import DoubleBackprop, hessian_products, loss_gradients
from spectrascope.measure.curvature.engine import Curvature, Target
from spectrascope.measure.curvature.gauss_newton import GaussNewton
from spectrascope.measure.gradients import GradientPass, measure_gradients
from spectrascope.measure.layers import WeightLayer
from spectrascope.measure.tape import UnsupportedOperationError
from spectrascope.numerics.directions import spectral_norm, top_directions
from spectrascope.records import EngineName, ProbeOptions
from spectrascope.workload import Workload

__all__ = ["Measured", "OnProgress", "StageClock", "measure_targets", "silent"]

OnProgress = Callable[[str, int, int], None]
"""(stage, done, total); stages: check, gradient, directions, curvature, self-check."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass
class StageClock:
    """Wall seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to stage ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass
class Measured:
    """What the measuring stages found, weight by weight."""

    gradient: GradientPass
    targets: list[Target]
    curvatures: list[Curvature]
    reasons: dict[str, str]
    failed: dict[str, str]
    noise: dict[str, float]
    micro_batch: int

    def drop(self, name: str, reason: str) -> None:
        """Take back the measurement of a weight: its row says ``reason`` instead."""
        keep = [i for i, target in enumerate(self.targets) if target.layer.name != name]
        self.targets = [self.targets[i] for i in keep]
        self.curvatures = [self.curvatures[i] for i in keep]
        self.failed[name] = reason


def measure_targets(
    workload: Workload,
    layers: Sequence[WeightLayer],
    choices: Sequence[EngineChoice],
    options: ProbeOptions,
    clock: StageClock,
    on_progress: OnProgress = silent,
) -> Measured:
    """Gradient, directions, curvature: the work that costs time. The model is already held still."""
    size = None if options.micro_batch == "auto" else int(options.micro_batch)
    with clock.stage("gradient"):
        gradient = measure_gradients(
            workload,
            layers,
            micro_batch=size,
            progress=lambda done, total: on_progress("gradient", done, total),
        )
    failed = dict(gradient.missing)
    targets: list[Target] = []
    engines: list[EngineChoice] = []
    noise: dict[str, float] = {}
    with clock.stage("directions"):
        for i, (layer, choice) in enumerate(zip(layers, choices, strict=True)):
            on_progress("directions", i, len(layers))
            if layer.name in failed:
                continue
            try:
                directions = top_directions(gradient.gradients[layer.name], options.top_k, workload.dtype)
            except NonFiniteError as error:
                failed[layer.name] = str(error)
                continue
            if directions.rank == 0:
                failed[layer.name] = "the gradient is exactly zero: the loss does not see this weight on this batch"
                continue
            if gradient.half_difference is not None:
                noise[layer.name] = spectral_norm(gradient.half_difference[layer.name])
            targets.append(Target(layer, directions))
            engines.append(choice)
        on_progress("directions", len(layers), len(layers))
    with clock.stage("curvature"):
        found = _measure_curvature(workload, targets, engines, failed, options, size, on_progress)
    reasons = {t.layer.name: c.reason for t, c in zip(targets, engines, strict=True)} | found.reasons
    keep = [(t, c) for t, c in zip(targets, found.curvatures, strict=True) if c is not None]
    return Measured(gradient, [t for t, _ in keep], [c for _, c in keep], reasons, failed, noise, gradient.micro_batch)


@dataclass
class _Curvatures:
    curvatures: list[Curvature | None]
    reasons: dict[str, str]


def _measure_curvature(
    workload: Workload,
    targets: Sequence[Target],
    choices: Sequence[EngineChoice],
    failed: dict[str, str],
    options: ProbeOptions,
    size: int | None,
    on_progress: OnProgress,
) -> _Curvatures:
    found = _Curvatures([None] * len(targets), {})
    fast = [i for i, c in enumerate(choices) if c.engine is EngineName.GAUSS_NEWTON]
    slow = [i for i, c in enumerate(choices) if c.engine is EngineName.DOUBLE_BACKPROP]
    total = workload.source.n * (bool(fast) + bool(slow))
    if fast:
        engine = GaussNewton(micro_batch=size)
        try:
            results = engine.measure(
                workload,
                [targets[i] for i in fast],
                groups=options.groups,
                progress=lambda done, _: on_progress("curvature", done, total),
            )
        except UnsupportedOperationError as error:
            if options.engine is EngineName.GAUSS_NEWTON:
                raise UnsupportedModelError(f"gauss-newton cannot follow this network: {error}") from error
            found.reasons.update({targets[i].layer.name: f"gauss-newton gave up: {error}" for i in fast})
            slow = sorted(slow + fast)
        else:
            for i, result in zip(fast, results, strict=True):
                found.curvatures[i] = result
    slow = [i for i in slow if not _fails_double_backprop(workload, targets[i], failed)]
    if slow:
        done_before = total - workload.source.n
        results = DoubleBackprop(micro_batch=size).measure(
            workload,
            [targets[i] for i in slow],
            groups=options.groups,
            progress=lambda done, _: on_progress("curvature", done_before + done, total),
        )
        for i, result in zip(slow, results, strict=True):
            found.curvatures[i] = result
    for i, curvature in enumerate(found.curvatures):
        if curvature is not None and not bool(torch.isfinite(curvature.matrix).all()):
            failed[targets[i].layer.name] = "the curvature holds NaN or infinity"
            found.curvatures[i] = None
    return found


def _fails_double_backprop(workload: Workload, target: Target, failed: dict[str, str]) -> bool:
    """Try one product on two samples, so that a weight without second derivatives fails alone and early."""
    inputs, labels = workload.fetch(0, min(2, workload.source.n))
    try:
        (gradient,) = loss_gradients(workload, [target], inputs, labels)
        hessian_products(target, gradient, [0])
    except UnsupportedModelError as error:
        failed[target.layer.name] = str(error)
        return True
    return False
