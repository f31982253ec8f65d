"""Measure a network, in order: prepare, gradient, directions, curvature, self-check, fits; run in, report out."""

from __future__ import annotations

import itertools
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import torch
from torch import nn

from spectrascope.curvature.choose import EngineChoice
from spectrascope.curvature.engine import Curvature, Target
from spectrascope.curvature.selfcheck import CheckedPairs
from spectrascope.errors import UnsupportedModelError
from spectrascope.losses import loss_label
from spectrascope.measure.across import measure_across, refuse_across
from spectrascope.measure.checked import Stages, measure_and_check
from spectrascope.measure.curvatures import measure_share, measure_targets
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.precision import compare_precision
from spectrascope.measure.prepare import Ready, prepare
from spectrascope.measure.stages import Measured
from spectrascope.network.effective import parametrized_weights, unwrapped
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.analysis import analyse
from spectrascope.numerics.participation import effective_rank, participation_ratio
from spectrascope.numerics.signal import read_signal
from spectrascope.numerics.summary import summarise
from spectrascope.records.report import (
    LayerReport,
    LayerRow,
    Measurement,
    PrecisionError,
    ProbeOptions,
    Provenance,
    Report,
    SkippedLayer,
)
from spectrascope.records.values import LayerStatus, Missing
from spectrascope.workload import Run, Workload


def run_probe(run: Run, division: Division = WHOLE) -> Report:
    """Measure every weight of a network on a fixed batch.

    Args:
        run: what to measure.
        division: with which other processes, and where parts are kept.

    Returns:
        The report, the same on all ranks; every candidate weight has a row.

    Raises:
        SpectrascopeError: one of its kinds; see :mod:`spectrascope.errors`.
    """
    rounds = itertools.count(1)

    def stages(
        workload: Workload, layers: Sequence[WeightLayer], choices: Sequence[EngineChoice], run: Run
    ) -> Measured:
        return measure_targets(workload, layers, choices, run, division=division.of_round(next(rounds)))

    return measure_by(run, stages, division)[0]


def run_share(run: Run, division: Division) -> list[int]:
    """Measure what falls to a shard, and leave it in the run's folder.

    Returns:
        The sample groups whose parts are still missing there, by number from 0.

    Raises:
        SpectrascopeError: one of its kinds.
    """
    refuse_across(run.options, {run.options.engine}, division)
    with prepare(run, division) as ready:
        missing = measure_share(ready.workload, ready.layers, ready.choices, run, division=division)
    return [piece.group for piece in missing]


def measure_by(run: Run, stages: Stages, division: Division = WHOLE) -> tuple[Report, Measured]:
    """Measure by the stages given, and hand back the report together with what they found.

    Args:
        run: what to measure.
        stages: gradient, directions and curvature of all weights, as :func:`measure_targets`.
        division: with which other processes.

    Raises:
        SpectrascopeError: one of its kinds.
    """
    refuse_across(run.options, {run.options.engine}, division)
    with prepare(run, division) as ready:
        found, checked = measure_and_check(ready, stages, run, division.ranks)
        across = measure_across(ready, found, run, division)

    def finish() -> Report:
        with run.clock.stage("fits"):
            rows = _rows(ready.candidates, found, checked, run.options)
        precision = _precision(ready.candidates, rows, found, run.options)
        provenance = _provenance(run, ready, found, checked, precision, division.ranks.count)
        return Report(provenance, run.options, rows, replace(summarise(rows), across=across))

    return division.ranks.first(finish), found


def _notes_on(model: nn.Module) -> list[str]:
    names = parametrized_weights(model)
    if not names:
        return []
    which = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"{len(names)} parametrized weights ({which}) measured as the effective weight they evaluate to"]


def _rows(
    candidates: Sequence[WeightLayer | SkippedLayer],
    found: Measured,
    checked: CheckedPairs,
    options: ProbeOptions,
) -> tuple[LayerRow, ...]:
    measured = {t.layer.name: (t, c) for t, c in zip(found.targets, found.curvatures, strict=True)}
    rows: list[LayerRow] = []
    for candidate in candidates:
        if isinstance(candidate, SkippedLayer):
            rows.append(candidate)
            continue
        name = candidate.name
        if name not in measured:
            rows.append(SkippedLayer(candidate.info, LayerStatus.FAILED, found.failed[name]))
            continue
        rows.append(_row(candidate, *measured[name], found, checked, options))
    if not any(isinstance(r, LayerReport) for r in rows):
        first = next(iter(found.failed.values()))
        raise UnsupportedModelError(f"no weight could be measured ({len(found.failed)} failed): {first}")
    return tuple(rows)


def _row(
    layer: WeightLayer,
    target: Target,
    curvature: Curvature,
    found: Measured,
    checked: CheckedPairs,
    options: ProbeOptions,
) -> LayerReport:
    measurement = _measurement(target, curvature, found, checked)
    analysis = analyse(measurement, top_k=options.top_k, min_rank=options.min_rank)
    held_out, null, analysis = read_signal(measurement, found.held_out[layer.name], found.null[layer.name], analysis)
    return LayerReport(layer.info, measurement, analysis, held_out=held_out, null=null)


def _measurement(target: Target, curvature: Curvature, found: Measured, checked: CheckedPairs) -> Measurement:
    name, d = target.layer.name, target.directions
    too_large = Missing("the full spectrum is not computed for a matrix this large")
    spectrum = d.spectrum
    return Measurement(
        sigma=tuple(d.sigma.tolist()),
        h=tuple(curvature.h.tolist()),
        curvature_matrix=tuple(tuple(row) for row in curvature.matrix.tolist()),
        group_sizes=curvature.group_sizes,
        group_sigma=tuple(tuple(row) for row in curvature.group_sigma.tolist()),
        group_h=tuple(tuple(row) for row in curvature.group_h.tolist()),
        rank=d.rank,
        full_rank=min(target.layer.info.shape),
        pr_g=too_large if spectrum is None else participation_ratio(spectrum.numpy()),
        effective_rank_g=too_large if spectrum is None else effective_rank(spectrum.numpy()),
        noise_floor=found.noise.get(name, Missing("needs at least two samples")),
        engine=curvature.engine,
        engine_reason=found.reasons[name],
        exact=curvature.exact,
        residual=checked.residual_of(name),
        h_stderr=Missing("the engine is exact") if curvature.stderr is None else tuple(curvature.stderr.tolist()),
    )


def _precision(
    candidates: Sequence[WeightLayer | SkippedLayer], rows: Sequence[LayerRow], found: Measured, options: ProbeOptions
) -> PrecisionError | Missing:
    """How far the numbers are from float32's, where they were measured in fewer digits."""
    precise = found.precise
    if isinstance(precise, Missing):
        return precise
    measured = {t.layer.name: (t, c) for t, c in zip(precise.targets, precise.curvatures, strict=True)}
    wide = [
        _row(c, *measured[c.name], precise, CheckedPairs(), options)
        for c in candidates
        if isinstance(c, WeightLayer) and c.name in measured
    ]
    return compare_precision(rows, wide)


def _provenance(
    run: Run,
    ready: Ready,
    found: Measured,
    checked: CheckedPairs,
    precision: PrecisionError | Missing,
    ranks: int,
) -> Provenance:
    workload, settled = ready.workload, ready.settled
    accuracy = found.gradient.accuracy
    return Provenance(
        versions=versions(),
        command=settled["command"],
        created=settled["created"],
        model=run.model_info,
        data=run.data_info,
        loss_name=loss_label(workload.loss_fn) + (f" of output {run.scores}" if run.scores is not None else ""),
        loss=found.gradient.loss,
        accuracy=Missing("outputs are no class scores, or targets no class numbers") if accuracy is None else accuracy,
        device=settled["device"],
        dtype=str(workload.dtype).removeprefix("torch."),
        seed=run.options.seed,
        micro_batch=found.gradient.micro_batch,
        memory_format="channels_last" if workload.channels_last else "contiguous",
        threads=torch.get_num_threads(),
        seconds=dict(run.clock.seconds),
        engines=dict(Counter(c.engine.value for c in found.curvatures)),
        self_check=checked.summary,
        notes=(*run.notes, *ready.notes, *_notes_on(unwrapped(run.model))),
        ranks=ranks,
        precision=precision,
    )


def versions() -> dict[str, str]:
    """List the versions of what computed the numbers; of the packages that bring networks, those that are loaded."""
    import numpy
    import scipy

    brought = [name for name in ("torchvision", "transformers", "timm", "peft") if name in sys.modules]
    return {
        "spectrascope": version("spectrascope"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        **{name: str(sys.modules[name].__version__) for name in brought},
    }
