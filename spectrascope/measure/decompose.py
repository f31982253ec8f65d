"""Measure as ``probe`` does, with every weight's Kronecker factors on the way, and decompose beta."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from spectrascope.curvature.choose import EngineChoice
from spectrascope.curvature.engine import Target, UnsupportedOperationError
from spectrascope.curvature.kronecker import measure_with_curvature, measure_without_curvature
from spectrascope.curvature.microbatches import MicroBatch
from spectrascope.errors import OptionError, UnsupportedModelError
from spectrascope.measure.asked import require_wide
from spectrascope.measure.curvatures import join_curvatures, measure_curvature
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.run import measure_by
from spectrascope.measure.stages import FoundTargets, Measured, find_targets, forced_micro_batch, join_measured
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.alignment import align
from spectrascope.numerics.rank_models import count_rank_wins
from spectrascope.records.decomposition import DecomposeOptions, Decomposition, Factors
from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.signal import GradientSource
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import Run, Workload


def run_decompose(run: Run, decompose: DecomposeOptions, division: Division = WHOLE) -> Report:
    """Measure every weight and say why its beta is what it is.

    Args:
        run: as for a probe.
        decompose: which Fisher matrix, and what sharing a weight between positions means.
        division: where parts are kept: directions, curvature, and the sums that factors are made of.

    Returns:
        A report whose measured layers hold a :class:`spectrascope.records.decomposition.Decomposition`, or why not.

    Raises:
        SpectrascopeError: one of its kinds; among them a beta that is not the sum of its parts.
    """
    if decompose.draws < 1:
        raise OptionError(f"--draws {decompose.draws}: must be at least 1")
    require_wide(run.options, "the eigenvalues of its factors")
    division = replace(division, factors=f"{decompose.fisher.value} {decompose.sharing.value} {decompose.draws}")
    rounds = itertools.count(1)

    def stages(
        workload: Workload, layers: Sequence[WeightLayer], choices: Sequence[EngineChoice], run: Run
    ) -> Measured:
        last = 2 * next(rounds)  # weights of the sweep, then the others, each in files of their own
        divisions = division.of_round(last - 1), division.of_round(last)
        return _measure_with_factors(workload, layers, choices, run, decompose, divisions)

    report, found = measure_by(run, stages, division)
    return replace(report, layers=tuple(_decomposed(row, found) for row in report.layers))


def _decomposed(row: LayerRow, measured: Measured) -> LayerRow:
    if not isinstance(row, LayerReport):
        return row
    name, window = row.info.name, row.analysis.window
    row = replace(row, rank_resamples=count_rank_wins(measured.resamples[name], window))
    factors = measured.factors.get(name, Missing("its factors were not measured"))
    if isinstance(factors, Missing):
        return replace(row, decomposition=factors)
    return replace(row, decomposition=Decomposition(factors, align(row.measurement, factors, window)))


def _measure_with_factors(
    workload: Workload,
    layers: Sequence[WeightLayer],
    choices: Sequence[EngineChoice],
    run: Run,
    decompose: DecomposeOptions,
    divisions: tuple[Division, Division],
) -> Measured:
    """Measure gradient, directions, curvature and factors.

    Samples are dealt, and gradients measured, once for all weights, as for a probe. Where Gauss–Newton measures the
    curvature, its sweep sums the factors too, and what is held out is measured after it; other weights get backward
    passes of their own after their curvature is known.
    """
    found = find_targets(workload, layers, choices, run, resample=True, division=divisions[0])
    choice_of = {layer.name: choice for layer, choice in zip(layers, choices, strict=True)}
    swept = {name for name, choice in choice_of.items() if choice.engine is EngineName.GAUSS_NEWTON}
    parts: list[Measured] = []
    if any(target.layer.name in swept for target in found.targets):
        # Where the sweep could not follow, or the loss has no root, everything is measured the usual way.
        first = _sweep(found.only(swept), choice_of, run, decompose, divisions[0])
        parts, swept = ([], set()) if first is None else ([first], swept)
    rest = found.only(choice_of.keys() - swept)
    if rest.targets or not parts:
        chosen = [choice_of[target.layer.name] for target in rest.targets]
        second = measure_curvature(rest, chosen, run, published=True, division=divisions[1])
        with run.clock.stage("factors"):
            second.factors = _pass(rest, second.targets, run, decompose, divisions[1])
        parts.append(second)
    return join_measured(layers, parts)


def _micro_batch(run: Run, division: Division) -> MicroBatch:
    """As asked for, else by the clock; where parts are kept, not by the clock, as several sittings must agree."""
    return forced_micro_batch(run.options) if division.folder is None else division.micro_batch(run.options)


def _for_curvature(found: FoundTargets) -> Workload:
    """The samples on which curvature and factors are measured."""
    return replace(found.workload, source=found.deal.source.pick(found.deal.places))


def _sweep(
    found: FoundTargets,
    choice_of: dict[str, EngineChoice],
    run: Run,
    decompose: DecomposeOptions,
    division: Division,
) -> Measured | None:
    """Measure curvature and factors in one sweep; ``None`` where it cannot follow the network."""
    published = [Target(target.layer, target.directions) for target in found.targets]
    with run.clock.stage("curvature"):
        try:
            curvatures, factors = measure_with_curvature(
                _for_curvature(found),
                published,
                decompose,
                groups=found.deal.curvature_sizes,
                micro_batch=_micro_batch(run, division),
                progress=lambda done, total: run.on_progress("curvature", done, total),
                keeper=division.keeper(found.workload.device),
            )
        except (UnsupportedOperationError, UnsupportedModelError):
            return None
    choices = [choice_of[target.layer.name] for target in found.targets]
    if run.options.gradient is GradientSource.MOMENTUM:  # nothing chose the directions: this is all there is
        reasons = {t.layer.name: choice.reason for t, choice in zip(published, choices, strict=True)}
        measured = join_curvatures(found, [[c] for c in curvatures], reasons, dict(found.failed), published=True)
    else:
        measured = measure_curvature(found, choices, run, published=False, division=division)
        along = {t.layer.name: c for t, c in zip(published, curvatures, strict=True)}
        # Slopes of the gradient pass are those of all samples; the sweep's are of the samples for curvature.
        measured.curvatures = [
            replace(c, matrix=own.matrix, group_h=own.group_h, engine=own.engine, exact=own.exact)
            for t, c in zip(measured.targets, measured.curvatures, strict=True)
            for own in [along[t.layer.name]]
        ]
    measured.factors = _by_name(published, factors)
    return measured


def _pass(
    found: FoundTargets, targets: Sequence[Target], run: Run, decompose: DecomposeOptions, division: Division
) -> dict[str, Factors | Missing]:
    """Measure factors by backward passes of their own, on the samples and in the groups of the curvature."""
    factors: Sequence[Factors | Missing]
    try:
        factors = measure_without_curvature(
            _for_curvature(found),
            targets,
            decompose,
            groups=found.deal.curvature_sizes,
            micro_batch=_micro_batch(run, division),
            seed=run.options.seed,
            progress=lambda done, total: run.on_progress("factors", done, total),
            keeper=division.keeper(found.workload.device),
        )
    except UnsupportedModelError as error:
        factors = [Missing(str(error)) for _ in targets]
    return _by_name(targets, factors)


def _by_name(targets: Sequence[Target], factors: Sequence[Factors | Missing]) -> dict[str, Factors | Missing]:
    return {target.layer.name: found for target, found in zip(targets, factors, strict=True)}
