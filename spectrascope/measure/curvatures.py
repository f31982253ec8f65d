"""Curvature along every direction found, sample group by sample group, and every weight's numbers put together.

The group is the unit of work: of a rank, of a shard, of a sitting. Nothing is added across groups before all are known,
and then in their order, so it does not matter who measured which. Where nobody else could, those of a fold go together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch

from spectrascope.curvature.choose import ENGINES, EngineChoice, make_engine
from spectrascope.curvature.engine import Curvature, Progress, Target
from spectrascope.curvature.microbatches import MicroBatch, Tuning
from spectrascope.errors import UnsupportedModelError
from spectrascope.measure.asked import memory_asked_for
from spectrascope.measure.demand import published
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.precision import NoRoomError, is_narrow, some_in_float32
from spectrascope.measure.run_folder import PieceCurvature
from spectrascope.measure.signal import Piece, join_folds, no_curvature
from spectrascope.measure.stages import FoundTargets, Measured, find_targets
from spectrascope.network.layers import WeightLayer
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import OnProgress, Run, Workload, silent


def measure_targets(
    workload: Workload,
    layers: Sequence[WeightLayer],
    choices: Sequence[EngineChoice],
    run: Run,
    *,
    division: Division = WHOLE,
) -> Measured:
    """Measure gradient, directions, curvature: the work that costs time. The model is already held still."""
    found = find_targets(workload, layers, choices, run, division=division)
    chosen = _choices_of(found, layers, choices)
    measured = measure_curvature(found, chosen, run, published=published(run.options), division=division)
    if is_narrow(workload):
        measured.precise = division.ranks.first(lambda: _in_float32(found, chosen, run))
    return measured


def _in_float32(found: FoundTargets, choices: Sequence[EngineChoice], run: Run) -> Measured | Missing:
    """Measure a few of the weights again, along the same directions and on the same samples, in float32."""
    engine_of = {target.layer.name: choice for target, choice in zip(found.targets, choices, strict=True)}
    try:
        with some_in_float32(found, run) as few:
            chosen = [engine_of[target.layer.name] for target in few.targets]
            quiet = replace(run, on_progress=silent)
            return measure_curvature(few, chosen, quiet, published=published(run.options))
    except NoRoomError as error:
        return Missing(str(error))


def measure_share(
    workload: Workload,
    layers: Sequence[WeightLayer],
    choices: Sequence[EngineChoice],
    run: Run,
    *,
    division: Division,
) -> list[Piece]:
    """Do what falls to a shard, and leave it in the run's folder; the sample groups whose parts are missing still."""
    found = find_targets(workload, layers, choices, run, division=division)
    chosen = _choices_of(found, layers, choices)
    measure_pieces(found, chosen, run, published=published(run.options), division=division)
    folder = division.folder
    assert folder is not None  # a shard without one would leave nothing
    return [piece for piece in found.deal.pieces if not folder.part(piece.group).exists()]


def _choices_of(
    found: FoundTargets, layers: Sequence[WeightLayer], choices: Sequence[EngineChoice]
) -> list[EngineChoice]:
    choice_of = {layer.name: choice for layer, choice in zip(layers, choices, strict=True)}
    return [choice_of[target.layer.name] for target in found.targets]


def measure_curvature(
    found: FoundTargets, choices: Sequence[EngineChoice], run: Run, *, published: bool, division: Division = WHOLE
) -> Measured:
    """Measure curvature along every direction found, and put each weight's numbers together.

    Args:
        found: the weights and their directions.
        choices: the engine of each.
        run: what was asked for.
        published: whether the directions of the whole batch are measured, or those held out alone.
        division: who measures what.
    """
    pieces = measure_pieces(found, choices, run, published=published, division=division)
    reasons = {target.layer.name: choice.reason for target, choice in zip(found.targets, choices, strict=True)}
    failed = dict(found.failed)
    for piece in reversed(pieces):  # of several reasons the first group's counts
        reasons |= piece.reasons
        failed |= piece.failed
    parts = [[p.curvatures[t.layer.name] for p in pieces if t.layer.name in p.curvatures] for t in found.targets]
    return join_curvatures(found, parts, reasons, failed, published=published)


def measure_pieces(
    found: FoundTargets, choices: Sequence[EngineChoice], run: Run, *, published: bool, division: Division = WHOLE
) -> list[PieceCurvature]:
    """Measure curvature sample group by sample group, as :func:`measure_curvature`; those that fall to a shard only.

    Returns:
        The groups' curvature, of one or of several of a fold together, in their order, each rank's and what was kept
        included.
    """
    deal = found.deal
    if not (published or any(target.folds or target.nulls for target in found.targets)):
        names = [(target, choice.engine) for target, choice in zip(found.targets, choices, strict=True)]
        return [
            PieceCurvature({target.layer.name: no_curvature(target, piece, engine) for target, engine in names})
            for piece in deal.pieces
        ]
    kept = division.ranks.first(lambda: division.kept(deal.pieces))
    mine = division.own(deal.pieces, kept)
    n, sizes = sum(len(piece.places) for piece in mine), division.micro_batch(run.options)

    def work() -> dict[int, PieceCurvature]:
        done: dict[int, PieceCurvature] = {}
        before = 0
        for pieces in _measured_together(mine, sizes):
            first, places = pieces[0], [place for piece in pieces for place in piece.places]
            curvatures = _Curvatures(
                replace(found.workload, source=deal.source.pick(places)),
                [target.target(first.fold, published=published) for target in found.targets],
                tuple(len(piece.places) for piece in pieces),
                run.options,
                sizes,
                run.options.seed + first.group,  # no group's random vectors are another's: errors must average out
                _share_of(run.on_progress, before, len(places), n),
            )
            curvatures.measure(choices)
            done[first.group] = curvatures.result()
            if division.folder is not None:
                division.folder.write_part(first.group, done[first.group])
            before += len(places)
        return done

    with run.clock.stage("curvature"):
        measured = {group: part for found in division.ranks.each(work) for group, part in found.items()}
    measured |= kept
    return [measured[group] for group in sorted(measured)]


def _measured_together(pieces: Sequence[Piece], sizes: MicroBatch) -> list[list[Piece]]:
    """Groups that need not be told from those of another run bit for bit: a fold's are measured at once.

    What an engine prepares, and the launches on a device, are then as many as for one group. Where micro-batches go by
    the clock no two runs agree to the last bit anyway; where they do not, another process may do some of the groups.
    """
    by_clock = isinstance(sizes, Tuning) and sizes.timed
    runs = itertools.groupby(pieces, key=lambda piece: piece.fold if by_clock else piece.group)
    return [[*run] for _, run in runs]


def join_curvatures(
    found: FoundTargets,
    parts: Sequence[Sequence[Curvature]],
    reasons: dict[str, str],
    failed: dict[str, str],
    *,
    published: bool,
) -> Measured:
    """Put every weight's numbers together from its curvature on each sample group."""
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
    """Progress of one sample group as a share of the whole."""
    return lambda stage, done, total: on_progress(stage, before + size * done / max(total, 1), n)


class _Curvatures:
    """Curvature of every target, each by its engine; what one engine gives up goes to the next, with the reason."""

    def __init__(
        self,
        workload: Workload,
        targets: Sequence[Target],
        groups: tuple[int, ...],
        options: ProbeOptions,
        micro_batch: MicroBatch,
        seed: int,
        on_progress: OnProgress,
    ) -> None:
        self.workload = workload
        self.targets = targets
        self.groups = groups
        self.options = options
        self.micro_batch = micro_batch
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
            memory = memory_asked_for(self.options)
            results = make_engine(engine.name, self.micro_batch, self.seed, memory).measure_each(
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

    def result(self) -> PieceCurvature:
        """What was found, by weight."""
        pairs = zip(self.targets, self.curvatures, strict=True)
        return PieceCurvature({t.layer.name: c for t, c in pairs if c is not None}, self.reasons, self.failed)
