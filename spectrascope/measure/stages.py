"""Run the stages of a measurement that cost time: gradient, directions, curvature."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

import torch

from spectrascope.curvature.choose import ENGINES, EngineChoice, make_engine
from spectrascope.curvature.engine import Curvature, Progress, Target
from spectrascope.curvature.microbatches import Groups
from spectrascope.errors import NonFiniteError, UnsupportedModelError
from spectrascope.measure.demand import curvature_samples, holds_out, null_draws, published
from spectrascope.measure.gradients import GradientPass, blocks_within, gradient_memory, measure_gradients
from spectrascope.measure.signal import (
    Deal,
    SignalTarget,
    deal_samples,
    find_momentum_target,
    find_signal_target,
    join_folds,
    no_curvature,
    resample_ranks,
)
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import spectral_norm
from spectrascope.records.decomposition import Factors
from spectrascope.records.report import ProbeOptions
from spectrascope.records.signal import GradientSource, HeldOut, NullDraws, RankResamples
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
    held_out: dict[str, HeldOut | Missing] = field(default_factory=dict)
    null: dict[str, NullDraws | Missing] = field(default_factory=dict)
    factors: dict[str, Factors | Missing] = field(default_factory=dict)
    resamples: dict[str, RankResamples | Missing] = field(default_factory=dict)

    def take_back(self, names: Container[str]) -> None:
        """Forget the measurements of some weights."""
        keep = [i for i, target in enumerate(self.targets) if target.layer.name not in names]
        self.targets = [self.targets[i] for i in keep]
        self.curvatures = [self.curvatures[i] for i in keep]

    def drop(self, name: str, reason: str) -> None:
        """Take back the measurement of a weight: its row says ``reason`` instead."""
        self.take_back((name,))
        self.failed[name] = reason


def join_measured(layers: Sequence[WeightLayer], parts: Sequence[Measured]) -> Measured:
    """Put the measurements of several lots of weights together, in network order; the later has the last word."""
    first = parts[0]
    pairs = {t.layer.name: (t, c) for part in parts for t, c in zip(part.targets, part.curvatures, strict=True)}
    joined = Measured(first.gradient, [], [], {}, {}, {})
    for layer in layers:
        if layer.name in pairs:
            target, curvature = pairs[layer.name]
            joined.targets.append(target)
            joined.curvatures.append(curvature)
    for part in parts:
        for name in ("reasons", "failed", "noise", "held_out", "null", "factors", "resamples"):
            getattr(joined, name).update(getattr(part, name))
    return joined


@dataclass(frozen=True)
class FoundTargets:
    """Directions of every weight that has any, why the others have none, and the noise of each gradient.

    ``workload`` holds the samples as they were dealt to the groups of ``deal``; ``resamples`` what was drawn of each
    gradient by sample group, where that was asked for.
    """

    workload: Workload
    deal: Deal
    gradient: GradientPass
    targets: list[SignalTarget]
    failed: dict[str, str]
    noise: dict[str, float]
    resamples: dict[str, RankResamples | Missing] = field(default_factory=dict)

    def only(self, names: Container[str]) -> FoundTargets:
        """The same, with these targets alone."""
        return replace(self, targets=[target for target in self.targets if target.layer.name in names])


def forced_micro_batch(options: ProbeOptions) -> int | None:
    """Return the samples per micro-batch asked for, ``None`` where they are to be tuned."""
    return None if options.micro_batch == "auto" else int(options.micro_batch)


def find_targets(
    workload: Workload,
    layers: Sequence[WeightLayer],
    choices: Sequence[EngineChoice],
    run: Run,
    *,
    resample: bool = False,
) -> FoundTargets:
    """Measure the gradients of all weights, and find the directions along which each is to be measured.

    Where the gradients of all sample groups would not fit in memory, weights are taken in blocks, each with a gradient
    pass of its own. With ``resample`` the gradients are drawn again from the sample groups, for the rank models.
    """
    options = run.options
    deal = _deal(workload, choices, options)
    workload = replace(workload, source=deal.source)
    engine_of = {layer.name: choice.engine for layer, choice in zip(layers, choices, strict=True)}
    gradient: GradientPass | None = None
    failed: dict[str, str] = {}
    targets: list[SignalTarget] = []
    noise: dict[str, float] = {}
    resamples: dict[str, RankResamples | Missing] = {}
    blocks = blocks_within(layers, deal.n_groups, gradient_memory(workload.device))
    for number, block in enumerate(blocks):
        with run.clock.stage("gradient"):
            found = measure_gradients(
                workload,
                block,
                micro_batch=forced_micro_batch(options),
                borders=deal.borders,
                progress=_of_block(run.on_progress, number, len(blocks)),
            )
        gradient = found.without_gradients() if gradient is None else gradient
        failed |= found.missing
        with run.clock.stage("directions"):
            for i, layer in enumerate(block):
                if layer.name in failed:
                    continue
                run.on_progress("directions", i, len(block))
                try:
                    target = _target(layer, found, deal, workload, engine_of[layer.name], run)
                except (NonFiniteError, UnsupportedModelError) as error:
                    failed[layer.name] = str(error)
                    continue
                if found.half_difference is not None and not target.is_momentum:
                    noise[layer.name] = spectral_norm(found.half_difference[layer.name])
                if resample and target.is_momentum:
                    resamples[layer.name] = Missing("the directions are the momentum's, which has no sample groups")
                elif resample:
                    by_group = found.by_group[layer.name]
                    resamples[layer.name] = resample_ranks(by_group, deal, top_k=options.top_k, seed=options.seed)
                targets.append(target)
            run.on_progress("directions", len(block), len(block))
    assert gradient is not None  # there is at least one weight
    return FoundTargets(workload, deal, gradient, targets, failed, noise, resamples)


def _target(
    layer: WeightLayer, found: GradientPass, deal: Deal, workload: Workload, engine: EngineName, run: Run
) -> SignalTarget:
    """Find the directions of one weight.

    Raises:
        NonFiniteError: its gradient, or momentum, holds NaN or infinity.
        UnsupportedModelError: it has no directions.
    """
    options, by_group = run.options, found.by_group[layer.name]
    if options.gradient is GradientSource.MOMENTUM:
        names = (layer.name.partition("[")[0], *layer.info.tied_names)
        momentum = next((run.momentum[name] for name in names if run.momentum and name in run.momentum), None)
        if momentum is None:
            raise UnsupportedModelError("the optimizer holds no momentum of this weight")
        momentum = momentum.to(workload.device)
        target = find_momentum_target(layer, momentum, by_group, deal, top_k=options.top_k, dtype=workload.dtype)
        zero = "the optimizer's momentum of this weight is zero"
    else:
        target = find_signal_target(
            layer,
            found.gradients[layer.name],
            by_group,
            deal,
            top_k=options.top_k,
            dtype=workload.dtype,
            folds=holds_out(options),
            nulls=null_draws(engine, options),
            seed=options.seed,
        )
        zero = "the gradient is exactly zero: the loss does not see this weight on this batch"
    if target.directions.rank == 0:
        raise UnsupportedModelError(zero)
    return target


def _of_block(on_progress: OnProgress, number: int, blocks: int) -> Progress:
    return lambda done, n: on_progress("gradient", number * n + done, blocks * n)


def _deal(workload: Workload, choices: Sequence[EngineChoice], options: ProbeOptions) -> Deal:
    return deal_samples(
        workload.source,
        groups=options.groups,
        folds=options.folds if holds_out(options) else 1,
        curvature_samples=curvature_samples([choice.engine for choice in choices], options, workload.source.n),
        seed=options.seed,
    )


def measure_targets(
    workload: Workload, layers: Sequence[WeightLayer], choices: Sequence[EngineChoice], run: Run
) -> Measured:
    """Measure gradient, directions, curvature: the work that costs time. The model is already held still."""
    found = find_targets(workload, layers, choices, run)
    choice_of = {layer.name: choice for layer, choice in zip(layers, choices, strict=True)}
    chosen = [choice_of[t.layer.name] for t in found.targets]
    return measure_curvature(found, chosen, run, published=published(run.options))


def measure_curvature(found: FoundTargets, choices: Sequence[EngineChoice], run: Run, *, published: bool) -> Measured:
    """Measure curvature along every direction found, fold by fold, and put each weight's numbers together.

    Args:
        found: the weights and their directions.
        choices: the engine of each.
        run: what was asked for.
        published: whether the directions of the whole batch are measured, or those held out alone.
    """
    deal, options = found.deal, run.options
    engines = list(choices)
    reasons, failed = {t.layer.name: c.reason for t, c in zip(found.targets, engines, strict=True)}, dict(found.failed)
    parts: list[list[Curvature]] = [[] for _ in found.targets]
    n, before = len(deal.places), 0
    with run.clock.stage("curvature"):
        for number, part in enumerate(deal.parts):
            if not part.places:
                continue
            if not (published or any(target.folds or target.nulls for target in found.targets)):
                for i, target in enumerate(found.targets):
                    parts[i].append(no_curvature(target, part, engines[i].engine))
                continue
            alive = [i for i, target in enumerate(found.targets) if target.layer.name not in failed]
            curvatures = _Curvatures(
                replace(found.workload, source=deal.source.pick(part.places)),
                [found.targets[i].target(number, published=published) for i in alive],
                options,
                part.group_sizes,
                options.seed + number,  # random vectors are not those of the other folds: errors must average out
                _share_of(run.on_progress, before, len(part.places), n),
            )
            curvatures.measure([engines[i] for i in alive])
            before += len(part.places)
            failed |= curvatures.failed
            reasons |= curvatures.reasons
            for i, curvature in zip(alive, curvatures.curvatures, strict=True):
                if curvature is not None:
                    parts[i].append(curvature)
                    engines[i] = replace(engines[i], engine=curvature.engine)  # what gave up once is not tried again
    return join_curvatures(found, parts, reasons, failed, published=published)


def join_curvatures(
    found: FoundTargets,
    parts: Sequence[Sequence[Curvature]],
    reasons: dict[str, str],
    failed: dict[str, str],
    *,
    published: bool,
) -> Measured:
    """Put every weight's numbers together from the curvature on each fold."""
    kept = [i for i, target in enumerate(found.targets) if target.layer.name not in failed]
    whole = [join_folds(found.targets[i], found.deal, parts[i], published=published) for i in kept]
    names = [found.targets[i].layer.name for i in kept]
    return Measured(
        found.gradient,
        [Target(found.targets[i].layer, found.targets[i].directions) for i in kept],
        [w.published for w in whole],
        reasons,
        failed,
        found.noise,
        held_out=dict(zip(names, [w.held_out for w in whole], strict=True)),
        null=dict(zip(names, [w.null for w in whole], strict=True)),
        resamples=found.resamples,
    )


def _share_of(on_progress: OnProgress, before: int, size: int, n: int) -> OnProgress:
    """Progress of one fold as a share of the whole."""
    return lambda stage, done, total: on_progress(stage, before + size * done / max(total, 1), n)


class _Curvatures:
    """Curvature of every target, each by its engine; what one engine gives up goes to the next, with the reason."""

    def __init__(
        self,
        workload: Workload,
        targets: Sequence[Target],
        options: ProbeOptions,
        groups: Groups,
        seed: int,
        on_progress: OnProgress,
    ) -> None:
        self.workload = workload
        self.targets = targets
        self.options = options
        self.groups = groups
        self.seed = seed
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
            results = make_engine(engine.name, forced_micro_batch(self.options), self.seed).measure_each(
                self.workload,
                [self.targets[i] for i in indices],
                groups=self.groups,
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
