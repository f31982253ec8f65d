"""The first stages of a measurement that cost time: gradient and directions; and what all of them found."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from spectrascope.curvature.choose import EngineChoice
from spectrascope.curvature.engine import Curvature, Progress, Target
from spectrascope.errors import NonFiniteError, UnsupportedModelError
from spectrascope.measure.demand import curvature_samples, holds_out, null_draws
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.gradients import GradientPass, blocks_within, gradient_memory, measure_gradients
from spectrascope.measure.run_folder import KeptTargets
from spectrascope.measure.signal import (
    Deal,
    SignalTarget,
    deal_samples,
    find_momentum_target,
    find_signal_target,
    resample_ranks,
)
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import spectral_norm
from spectrascope.records.decomposition import Factors
from spectrascope.records.report import NOT_NARROW, ProbeOptions
from spectrascope.records.signal import GradientSource, HeldOut, NullDraws, RankResamples
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import OnProgress, Run, Workload


@dataclass
class Measured:
    """What the measuring stages found, weight by weight; ``factors`` where a decomposition was asked for.

    ``precise`` holds a few of the weights again, in float32, where the network is measured in fewer digits.
    """

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
    precise: Measured | Missing = NOT_NARROW

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
    joined = Measured(first.gradient, [], [], {}, {}, {}, precise=first.precise)
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
    division: Division = WHOLE,
) -> FoundTargets:
    """Measure the gradients of all weights, and find the directions along which each is to be measured.

    Where the gradients of all sample groups would not fit in memory, weights are taken in blocks, each with a gradient
    pass of its own. With ``resample`` the gradients are drawn again from the sample groups, for the rank models. Ranks
    share the samples, then the weights; what a folder keeps is not measured again.
    """
    options = run.options
    deal = deal_batch(workload, choices, options)
    workload = replace(workload, source=deal.source)
    folder, by_name = division.folder, {layer.name: layer for layer in layers}
    if folder is not None and division.ranks.first(lambda: folder.has_targets):
        kept = folder.read_targets(by_name)
        return FoundTargets(workload, deal, kept.gradient, kept.targets, kept.failed, kept.noise, kept.resamples)
    engine_of = {layer.name: choice.engine for layer, choice in zip(layers, choices, strict=True)}
    gradient: GradientPass | None = None
    found = _Found()
    memory = min(division.ranks.each(lambda: gradient_memory(workload.device, options)))
    blocks = blocks_within(layers, deal.n_groups, memory)
    for number, block in enumerate(blocks):
        with run.clock.stage("gradient"):
            passed = measure_gradients(
                workload,
                block,
                micro_batch=division.micro_batch(options),
                borders=deal.borders,
                progress=_of_block(run.on_progress, number, len(blocks)),
                ranks=division.ranks,
            )
        gradient = passed.without_gradients() if gradient is None else gradient
        found.failed |= passed.missing

        def directions(passed: GradientPass = passed) -> _Found:
            return _directions(passed, deal, workload, by_name, engine_of, run, resample=resample)

        with run.clock.stage("directions"):
            for part in division.ranks.each(directions):
                found.add(part)
    assert gradient is not None  # there is at least one weight
    order = [name for name in by_name if name in found.targets]
    targets = [SignalTarget(layer=by_name[name], **found.targets[name]) for name in order]
    failed = {name: found.failed[name] for name in by_name if name in found.failed}
    if folder is not None:
        kept = KeptTargets(gradient, targets, failed, found.noise, found.resamples)
        division.ranks.first(lambda: folder.write_targets(kept))
    return FoundTargets(workload, deal, gradient, targets, failed, found.noise, found.resamples)


@dataclass
class _Found:
    """What one rank found, by weight: its directions, or why it has none, and its noise."""

    targets: dict[str, dict[str, Any]] = field(default_factory=dict)  # a weight itself is not sent to other ranks
    failed: dict[str, str] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)
    resamples: dict[str, RankResamples | Missing] = field(default_factory=dict)

    def add(self, other: _Found) -> None:
        """Add what another rank found."""
        self.targets |= other.targets
        self.failed |= other.failed
        self.noise |= other.noise
        self.resamples |= other.resamples


def _directions(
    passed: GradientPass,
    deal: Deal,
    workload: Workload,
    by_name: Mapping[str, WeightLayer],
    engine_of: Mapping[str, EngineName],
    run: Run,
    *,
    resample: bool,
) -> _Found:
    """Find the directions of every weight whose gradient is here."""
    found, options = _Found(), run.options
    for i, name in enumerate(passed.gradients):
        run.on_progress("directions", i, len(passed.gradients))
        try:
            target = _target(by_name[name], passed, deal, workload, engine_of[name], run)
        except (NonFiniteError, UnsupportedModelError) as error:
            found.failed[name] = str(error)
            continue
        if passed.half_difference is not None and not target.is_momentum:
            found.noise[name] = spectral_norm(passed.half_difference[name])
        if resample and target.is_momentum:
            found.resamples[name] = Missing("the directions are the momentum's, which has no sample groups")
        elif resample:
            by_group = passed.by_group[name]
            found.resamples[name] = resample_ranks(by_group, deal, top_k=options.top_k, seed=options.seed)
        found.targets[name] = {item.name: getattr(target, item.name) for item in fields(target) if item.name != "layer"}
    run.on_progress("directions", len(passed.gradients), len(passed.gradients))
    return found


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
        zero = (
            "the gradient is exactly zero on this batch: either nothing reaches this weight (dead units, zeros before "
            "it), or nothing that follows passes it on"
        )
    if target.directions.rank == 0:
        raise UnsupportedModelError(zero)
    return target


def _of_block(on_progress: OnProgress, number: int, blocks: int) -> Progress:
    return lambda done, n: on_progress("gradient", number * n + done, blocks * n)


def deal_batch(workload: Workload, choices: Sequence[EngineChoice], options: ProbeOptions) -> Deal:
    """Deal the batch to sample groups, folds, and the samples on which curvature is measured."""
    return deal_samples(
        workload.source,
        groups=options.groups,
        folds=options.folds if holds_out(options) else 1,
        curvature_samples=curvature_samples([choice.engine for choice in choices], options, workload.source.n),
        seed=options.seed,
    )
