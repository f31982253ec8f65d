"""The measuring stages of ``decompose``: those of ``probe``, with Kronecker factors on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from spectrascope.curvature.choose import EngineChoice
from spectrascope.curvature.engine import Curvature, Target, UnsupportedOperationError
from spectrascope.curvature.kronecker import measure_with_curvature, measure_without_curvature
from spectrascope.errors import UnsupportedModelError
from spectrascope.measure.stages import (
    Measured,
    OnProgress,
    StageClock,
    find_targets,
    forced_micro_batch,
    measure_targets,
    silent,
)
from spectrascope.network.layers import WeightLayer
from spectrascope.records.decomposition import DecomposeOptions, Factors
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import Workload

__all__ = ["FactorStage"]


@dataclass
class FactorStage:
    """Measures as :func:`spectrascope.measure.stages.measure_targets` does and keeps every weight's factors.

    Where Gauss–Newton measures the curvature, its sweep sums the factors too; other weights get backward passes of
    their own after their curvature is known.

    Args:
        decompose: which factors.
    """

    decompose: DecomposeOptions
    factors: dict[str, Factors | Missing] = field(default_factory=dict)

    def __call__(
        self,
        workload: Workload,
        layers: Sequence[WeightLayer],
        choices: Sequence[EngineChoice],
        options: ProbeOptions,
        clock: StageClock,
        on_progress: OnProgress = silent,
    ) -> Measured:
        """Gradient, directions, curvature and factors."""
        swept = [(la, c) for la, c in zip(layers, choices, strict=True) if c.engine is EngineName.GAUSS_NEWTON]
        others = [(la, c) for la, c in zip(layers, choices, strict=True) if c.engine is not EngineName.GAUSS_NEWTON]
        found = self._sweep(workload, swept, options, clock, on_progress) if swept else None
        if swept and found is None:  # the sweep could not follow, or the loss has no root: everything the usual way
            others = list(zip(layers, choices, strict=True))
        if others:
            rest = measure_targets(
                workload, [la for la, _ in others], [c for _, c in others], options, clock, on_progress
            )
            with clock.stage("factors"):
                self._pass(workload, rest.targets, options, on_progress)
            found = rest if found is None else _join(layers, found, rest)
        assert found is not None
        return found

    def _sweep(
        self,
        workload: Workload,
        items: Sequence[tuple[WeightLayer, EngineChoice]],
        options: ProbeOptions,
        clock: StageClock,
        on_progress: OnProgress,
    ) -> Measured | None:
        found = find_targets(workload, [layer for layer, _ in items], options, clock, on_progress)
        curvatures: list[Curvature] = []
        with clock.stage("curvature"):
            if found.targets:
                try:
                    curvatures, factors = measure_with_curvature(
                        workload,
                        found.targets,
                        self.decompose,
                        groups=options.groups,
                        micro_batch=forced_micro_batch(options),
                        progress=lambda done, total: on_progress("curvature", done, total),
                    )
                except (UnsupportedOperationError, UnsupportedModelError):
                    return None
                self.factors |= {t.layer.name: f for t, f in zip(found.targets, factors, strict=True)}
        reasons = {layer.name: choice.reason for layer, choice in items}
        return Measured(
            found.gradient, found.targets, curvatures, reasons, found.failed, found.noise, found.gradient.micro_batch
        )

    def _pass(
        self, workload: Workload, targets: Sequence[Target], options: ProbeOptions, on_progress: OnProgress
    ) -> None:
        try:
            found = measure_without_curvature(
                workload,
                targets,
                self.decompose,
                groups=options.groups,
                micro_batch=forced_micro_batch(options),
                seed=options.seed,
                progress=lambda done, total: on_progress("factors", done, total),
            )
        except UnsupportedModelError as error:
            found = [Missing(str(error)) for _ in targets]
        self.factors |= {t.layer.name: f for t, f in zip(targets, found, strict=True)}


def _join(layers: Sequence[WeightLayer], first: Measured, second: Measured) -> Measured:
    """Both parts, in network order."""
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
        first.micro_batch,
    )
