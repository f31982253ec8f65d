"""A measurement with its decomposition: that of ``probe``, and every weight's Kronecker factors. Silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from spectrascope.errors import OptionError
from spectrascope.measure.factor_stage import FactorStage
from spectrascope.measure.run import run_probe
from spectrascope.measure.stages import OnProgress, silent
from spectrascope.numerics.alignment import align
from spectrascope.records.decomposition import DecomposeOptions, Decomposition, Factors
from spectrascope.records.report import DataInfo, LayerReport, LayerRow, ModelInfo, ProbeOptions, Report
from spectrascope.records.values import Missing
from spectrascope.workload import LossFunction, SampleSource

__all__ = ["run_decompose"]


def run_decompose(
    model: nn.Module,
    source: SampleSource,
    loss_fn: LossFunction | None = None,
    *,
    options: ProbeOptions,
    decompose: DecomposeOptions,
    model_info: ModelInfo,
    data_info: DataInfo,
    command: str = "",
    seconds: dict[str, float] | None = None,
    notes: Sequence[str] = (),
    on_progress: OnProgress = silent,
) -> Report:
    """Measure every weight and say why its beta is what it is.

    Args:
        model: any module; left exactly as found.
        source: the fixed samples.
        loss_fn: (output, targets) -> mean loss.
        options: as for a probe.
        decompose: which Fisher matrix, and what sharing a weight between positions means.
        model_info: provenance of the model.
        data_info: provenance of the samples.
        command: the command line, for the record.
        seconds: wall time already spent on earlier stages.
        notes: what the reader must know.
        on_progress: called with (stage, done, total).

    Returns:
        A report whose measured layers hold a :class:`spectrascope.records.decomposition.Decomposition`, or why not.

    Raises:
        SpectrascopeError: one of its kinds; among them a beta that is not the sum of its parts.
    """
    if decompose.draws < 1:
        raise OptionError(f"--draws {decompose.draws}: must be at least 1")
    stage = FactorStage(decompose)
    report = run_probe(
        model,
        source,
        loss_fn,
        options=options,
        model_info=model_info,
        data_info=data_info,
        command=command,
        seconds=seconds,
        notes=notes,
        on_progress=on_progress,
        measure=stage,
    )
    return replace(report, layers=tuple(_decomposed(row, stage.factors) for row in report.layers))


def _decomposed(row: LayerRow, factors: dict[str, Factors | Missing]) -> LayerRow:
    if not isinstance(row, LayerReport):
        return row
    found = factors.get(row.info.name, Missing("its factors were not measured"))
    if isinstance(found, Missing):
        return replace(row, decomposition=found)
    return replace(row, decomposition=Decomposition(found, align(row.measurement, found, row.analysis.window)))
