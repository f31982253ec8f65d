"""Run the stages of a measurement that cost time: gradient, directions, curvature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from spectrascope.curvature.choose import ENGINES, EngineChoice, make_engine
from spectrascope.curvature.engine import Curvature, Progress, Target
from spectrascope.errors import NonFiniteError, UnsupportedModelError
from spectrascope.measure.gradients import GradientPass, measure_gradients
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import spectral_norm, top_directions
from spectrascope.records.decomposition import Factors
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import OnProgress, Run, Workload


@dataclass
class Measured:
    """What the measuring stages found, weight by weight; ``factors`` where a decomposition was asked for."""

    gradient: GradientPass
    targets: list[Target]
    curvatures: list[Curvature]
    reasons: dict[str, str]
    failed: dict[str, str]
    noise: dict[str, float]
    factors: dict[str, Factors | Missing] = field(default_factory=dict)

    def drop(self, name: str, reason: str) -> None:
        """Take back the measurement of a weight: its row says ``reason`` instead."""
        keep = [i for i, target in enumerate(self.targets) if target.layer.name != name]
        self.targets = [self.targets[i] for i in keep]
        self.curvatures = [self.curvatures[i] for i in keep]
        self.failed[name] = reason


@dataclass(frozen=True)
class FoundTargets:
    """Directions of every weight that has any, why the others have none, and the noise of each gradient."""

    gradient: GradientPass
    targets: list[Target]
    failed: dict[str, str]
    noise: dict[str, float]


def forced_micro_batch(options: ProbeOptions) -> int | None:
    """Return the samples per micro-batch asked for, ``None`` where they are to be tuned."""
    return None if options.micro_batch == "auto" else int(options.micro_batch)


def find_targets(workload: Workload, layers: Sequence[WeightLayer], run: Run) -> FoundTargets:
    """Measure the gradients of all weights, and find the directions along which each is to be measured."""
    with run.clock.stage("gradient"):
        gradient = measure_gradients(
            workload,
            layers,
            micro_batch=forced_micro_batch(run.options),
            progress=lambda done, total: run.on_progress("gradient", done, total),
        )
    failed = dict(gradient.missing)
    targets: list[Target] = []
    noise: dict[str, float] = {}
    with run.clock.stage("directions"):
        for i, layer in enumerate(layers):
            run.on_progress("directions", i, len(layers))
            if layer.name in failed:
                continue
            try:
                directions = top_directions(gradient.gradients[layer.name], run.options.top_k, workload.dtype)
            except NonFiniteError as error:
                failed[layer.name] = str(error)
                continue
            if directions.rank == 0:
                failed[layer.name] = "the gradient is exactly zero: the loss does not see this weight on this batch"
                continue
            if gradient.half_difference is not None:
                noise[layer.name] = spectral_norm(gradient.half_difference[layer.name])
            targets.append(Target(layer, directions))
        run.on_progress("directions", len(layers), len(layers))
    return FoundTargets(gradient, targets, failed, noise)


def measure_targets(
    workload: Workload, layers: Sequence[WeightLayer], choices: Sequence[EngineChoice], run: Run
) -> Measured:
    """Measure gradient, directions and curvature: the work that costs time. The model is already held still."""
    found = find_targets(workload, layers, run)
    choice_of = {layer.name: choice for layer, choice in zip(layers, choices, strict=True)}
    engines = [choice_of[t.layer.name] for t in found.targets]
    with run.clock.stage("curvature"):
        micro_batch = forced_micro_batch(run.options)
        curvatures = _Curvatures(workload, found.targets, run.options, micro_batch, run.on_progress)
        curvatures.measure(engines)
    keep = [(t, c) for t, c in zip(found.targets, curvatures.curvatures, strict=True) if c is not None]
    return Measured(
        found.gradient,
        [t for t, _ in keep],
        [c for _, c in keep],
        {t.layer.name: c.reason for t, c in zip(found.targets, engines, strict=True)} | curvatures.reasons,
        found.failed | curvatures.failed,
        found.noise,
    )


class _Curvatures:
    """Curvature of every target, each by its engine; what one engine gives up goes to the next, with the reason."""

    def __init__(
        self,
        workload: Workload,
        targets: Sequence[Target],
        options: ProbeOptions,
        micro_batch: int | None,
        on_progress: OnProgress,
    ) -> None:
        self.workload = workload
        self.targets = targets
        self.options = options
        self.micro_batch = micro_batch
        self.on_progress = on_progress
        self.curvatures: list[Curvature | None] = [None] * len(targets)
        self.reasons: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    def measure(self, choices: Sequence[EngineChoice]) -> None:
        """Run the engines in order, cheapest first."""
        queues = {engine.name: [i for i, c in enumerate(choices) if c.engine is engine.name] for engine in ENGINES}
        done = 0
        for place, engine in enumerate(ENGINES):
            indices = sorted(queues[engine.name])
            if not indices:
                continue
            runs = 1 + sum(bool(queues[later.name]) for later in ENGINES[place + 1 :])
            results = make_engine(engine.name, self.micro_batch, self.options.seed).measure_each(
                self.workload,
                [self.targets[i] for i in indices],
                groups=self.options.groups,
                progress=self._from(done, done + runs * self.workload.source.n),
            )
            done += self.workload.source.n
            for i, result in zip(indices, results, strict=True):
                if not isinstance(result, str):
                    self._keep(i, result)
                elif engine.name is EngineName.GAUSS_NEWTON is self.options.engine:
                    raise UnsupportedModelError(f"gauss-newton cannot follow this network: {result}")
                elif engine.next is not None:
                    queues[engine.next].append(i)
                    self.reasons[self.targets[i].layer.name] = f"{engine.name.value} gave up: {result}"
                else:
                    self.failed[self.targets[i].layer.name] = result + engine.hint

    def _from(self, start: int, total: int) -> Progress:
        """Progress of one engine among several."""
        return lambda done, _: self.on_progress("curvature", start + done, total)

    def _keep(self, i: int, curvature: Curvature) -> None:
        if bool(torch.isfinite(curvature.matrix).all()):
            self.curvatures[i] = curvature
        else:
            self.failed[self.targets[i].layer.name] = "the curvature holds NaN or infinity"
