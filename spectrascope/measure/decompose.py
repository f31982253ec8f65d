"""Measure as ``probe`` does, with every weight's Kronecker factors on the way, and decompose beta."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from spectrascope.curvature.choose import EngineChoice
from spectrascope.curvature.engine import Target, UnsupportedOperationError
from spectrascope.curvature.kronecker import measure_with_curvature, measure_without_curvature
from spectrascope.errors import OptionError, UnsupportedModelError
from spectrascope.measure.run import measure_by
from spectrascope.measure.stages import Measured, find_targets, forced_micro_batch, measure_curvature, measure_targets
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.alignment import align
from spectrascope.records.decomposition import DecomposeOptions, Decomposition, Factors
from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import Run, Workload


def run_decompose(run: Run, decompose: DecomposeOptions) -> Report:
    """Measure every weight and say why its beta is what it is.

    Args:
        run: as for a probe.
        decompose: which Fisher matrix, and what sharing a weight between positions means.

    Returns:
        A report whose measured layers hold a :class:`spectrascope.records.decomposition.Decomposition`, or why not.

    Raises:
        SpectrascopeError: one of its kinds; among them a beta that is not the sum of its parts.
    """
    if decompose.draws < 1:
        raise OptionError(f"--draws {decompose.draws}: must be at least 1")
    report, found = measure_by(run, functools.partial(_measure_with_factors, decompose=decompose))
    return replace(report, layers=tuple(_decomposed(row, found.factors) for row in report.layers))


def _decomposed(row: LayerRow, factors: dict[str, Factors | Missing]) -> LayerRow:
    if not isinstance(row, LayerReport):
        return row
    found = factors.get(row.info.name, Missing("its factors were not measured"))
    if isinstance(found, Missing):
        return replace(row, decomposition=found)
    return replace(row, decomposition=Decomposition(found, align(row.measurement, found, row.analysis.window)))


def _measure_with_factors(
    workload: Workload,
    layers: Sequence[WeightLayer],
    choices: Sequence[EngineChoice],
    run: Run,
    *,
    decompose: DecomposeOptions,
) -> Measured:
    """Measure gradient, directions, curvature and factors.

    Where Gauss–Newton measures the curvature, its sweep sums the factors too; other weights get backward passes of
    their own after their curvature is known.
    """
    pairs = list(zip(layers, choices, strict=True))
    swept = [pair for pair in pairs if pair[1].engine is EngineName.GAUSS_NEWTON]
    found = _sweep(workload, swept, run, decompose) if swept else None
    # Where the sweep could not follow, or the loss has no root, everything is measured the usual way.
    others = pairs if found is None else [pair for pair in pairs if pair[1].engine is not EngineName.GAUSS_NEWTON]
    if found is not None and not others:
        return found
    rest = measure_targets(workload, [layer for layer, _ in others], [choice for _, choice in others], run)
    with run.clock.stage("factors"):
        rest.factors = _pass(workload, rest.targets, run, decompose)
    return rest if found is None else _join(layers, found, rest)


def _sweep(
    workload: Workload,
    items: Sequence[tuple[WeightLayer, EngineChoice]],
    run: Run,
    decompose: DecomposeOptions,
) -> Measured | None:
    """Measure curvature and factors in one sweep; ``None`` where it cannot follow the network."""
    found = find_targets(workload, [layer for layer, _ in items], [choice for _, choice in items], run)
    published = [Target(target.layer, target.directions) for target in found.targets]
    with run.clock.stage("curvature"):
        try:
            curvatures, factors = (
                measure_with_curvature(
                    replace(found.workload, source=found.deal.source.pick(found.deal.places)),
                    published,
                    decompose,
                    groups=found.deal.curvature_sizes,
                    micro_batch=forced_micro_batch(run.options),
                    progress=lambda done, total: run.on_progress("curvature", done, total),
                )
                if published
                else ([], [])
            )
        except (UnsupportedOperationError, UnsupportedModelError):
            return None
    choice_of = {layer.name: choice for layer, choice in items}
    measured = measure_curvature(found, [choice_of[t.layer.name] for t in found.targets], run, published=False)
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
    workload: Workload, targets: Sequence[Target], run: Run, decompose: DecomposeOptions
) -> dict[str, Factors | Missing]:
    """Measure factors by backward passes of their own."""
    try:
        found = measure_without_curvature(
            workload,
            targets,
            decompose,
            groups=run.options.groups,
            micro_batch=forced_micro_batch(run.options),
            seed=run.options.seed,
            progress=lambda done, total: run.on_progress("factors", done, total),
        )
    except UnsupportedModelError as error:
        found = [Missing(str(error)) for _ in targets]
    return _by_name(targets, found)


def _by_name(targets: Sequence[Target], factors: Sequence[Factors | Missing]) -> dict[str, Factors | Missing]:
    return {target.layer.name: found for target, found in zip(targets, factors, strict=True)}


def _join(layers: Sequence[WeightLayer], first: Measured, second: Measured) -> Measured:
    """Put both parts together, in network order."""
    pairs = {
        t.layer.name: (t, c) for part in (first, second) for t, c in zip(part.targets, part.curvatures, strict=True)
    }
    ordered = [pairs[layer.name] for layer in layers if layer.name in pairs]
    return Measured(
        first.gradient,
        [t for t, _ in ordered],
        [c for _, c in ordered],
        first.reasons | second.reasons,
        first.failed | second.failed,
        first.noise | second.noise,
        first.held_out | second.held_out,
        first.null | second.null,
        first.factors | second.factors,
    )
