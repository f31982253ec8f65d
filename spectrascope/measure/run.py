"""The order of work of one measurement: workload in, report out. Silent; progress goes through a callback."""

from __future__ import annotations

import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version

import torch
from torch import nn

from spectrascope.curvature.choose import EngineChoice, choose_engines
from spectrascope.curvature.engine import Curvature, Target
from spectrascope.curvature.selfcheck import CheckedPairs, check_engines
from spectrascope.errors import (
    OptionError,
    SelfCheckError,
    UnsupportedModelError,
)
from spectrascope.losses import loss_label
from spectrascope.measure.prepare import device_name, prepare_workload, require_matching_labels, with_fastest_format
from spectrascope.measure.stages import Measured, OnProgress, StageClock, measure_targets, silent
from spectrascope.network.effective import parametrized_weights, unwrapped
from spectrascope.network.guards import held_still, require_deterministic, require_finite_weights, require_mean_loss
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.numerics.analysis import analyse
from spectrascope.numerics.participation import effective_rank, participation_ratio
from spectrascope.numerics.summary import summarise
from spectrascope.records.report import (
    DataInfo,
    LayerInfo,
    LayerReport,
    LayerRow,
    Measurement,
    ModelInfo,
    ProbeOptions,
    Provenance,
    Report,
    SkippedLayer,
)
from spectrascope.records.values import LayerStatus, Missing
from spectrascope.workload import LossFunction, SampleSource, Workload

__all__ = ["run_probe", "versions"]

MeasureTargets = Callable[
    [Workload, Sequence[WeightLayer], Sequence[EngineChoice], ProbeOptions, StageClock, OnProgress], Measured
]


def run_probe(
    model: nn.Module,
    source: SampleSource,
    loss_fn: LossFunction | None = None,
    *,
    options: ProbeOptions,
    model_info: ModelInfo,
    data_info: DataInfo,
    command: str = "",
    seconds: dict[str, float] | None = None,
    notes: Sequence[str] = (),
    on_progress: OnProgress = silent,
    measure: MeasureTargets = measure_targets,
) -> Report:
    """Measure every weight of a model on a fixed batch.

    Args:
        model: any module; left exactly as found. It is copied first if it must move to another device or dtype.
        source: the fixed samples; all of them are used.
        loss_fn: (output, targets) -> mean loss; softmax cross-entropy when ``None``.
        options: what to measure and how.
        model_info: provenance of the model.
        data_info: provenance of the samples.
        command: the command line, for the record.
        seconds: wall time already spent on earlier stages, for the record.
        notes: what the reader of the report must know of the model and the data.
        on_progress: called with (stage, done, total).
        measure: gradient, directions and curvature of all weights.

    Returns:
        The report; every candidate weight has a row.

    Raises:
        SpectrascopeError: one of its kinds; see :mod:`spectrascope.errors`.
    """
    clock = StageClock(dict(seconds or {}))
    workload = prepare_workload(model, source, loss_fn, options)
    require_finite_weights(workload.model)
    notes = (*notes, *_notes_on(unwrapped(model)))
    candidates = _with_parametrized_marked(
        find_layers(workload.model, options.layers, options.exclude, split_fused=options.split_fused),
        parametrized_weights(unwrapped(model)),
    )
    layers = [c for c in candidates if isinstance(c, WeightLayer)]
    if not layers:
        raise OptionError("every weight is left out: nothing to measure; see --layers and --exclude")
    with held_still(workload.model, [layer.parameter for layer in layers], workload.device):
        with clock.stage("check"):
            on_progress("check", 0, 1)
            workload = require_matching_labels(workload)
            require_deterministic(workload)
            require_mean_loss(workload)
            workload = with_fastest_format(workload)
            choices = choose_engines(workload, layers, options.engine, options.top_k)
            on_progress("check", 1, 1)
        found = measure(workload, layers, choices, options, clock, on_progress)
        _require_same_slopes(found, workload.dtype)
        checked = CheckedPairs({}, Missing("switched off"))
        if options.self_check and found.targets:
            with clock.stage("self-check"):
                on_progress("self-check", 0, 1)
                checked = check_engines(workload, found.targets, [c.engine for c in found.curvatures], options.seed)
                on_progress("self-check", 1, 1)
            _require_agreement(checked)
    with clock.stage("fits"):
        rows = _rows(candidates, found, checked, options)
    return _report(workload, rows, found, checked, options, model_info, data_info, command, clock, notes)


def _with_parametrized_marked(
    candidates: Sequence[WeightLayer | SkippedLayer], names: Sequence[str]
) -> list[WeightLayer | SkippedLayer]:
    """Layers were found in a copy with plain weights, where nothing tells them apart."""

    def is_parametrized(info: LayerInfo) -> bool:
        return any(name.partition("[")[0] in names for name in (info.name, *info.tied_names))

    return [replace(c, info=replace(c.info, parametrized=True)) if is_parametrized(c.info) else c for c in candidates]


def _notes_on(model: nn.Module) -> list[str]:
    names = parametrized_weights(model)
    if not names:
        return []
    which = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"{len(names)} parametrized weights ({which}) measured as the effective weight they evaluate to"]


def _require_agreement(checked: CheckedPairs) -> None:
    if isinstance(checked.summary, Missing) or checked.summary.residual <= checked.summary.tolerance:
        return
    name, residual = checked.worst()
    raise SelfCheckError(
        f"self-check failed: weight {name!r} differs from the reference by {residual:.2g} of its "
        f"largest curvature (tolerance {checked.summary.tolerance:g}); try --dtype float64, or --engine "
        "double-backprop, and report this network"
    )


def _require_same_slopes(found: Measured, dtype: torch.dtype) -> None:
    """The curvature pass sees every sample's slope along D_k again; their mean must be sigma_k.

    Two passes and two ways of differentiating agree on the whole batch, or one of them is wrong (or the data
    changed in between).
    """
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    largest = max((float(t.directions.sigma[0]) for t in found.targets), default=0.0)
    noise: list[str] = []
    for target, curvature in zip(found.targets, found.curvatures, strict=True):
        sizes = torch.tensor(curvature.group_sizes, dtype=torch.float64)
        slopes = sizes @ curvature.group_sigma / sizes.sum()
        sigma = target.directions.sigma
        gap = float((slopes - sigma).abs().max() / sigma[0])
        if not gap <= tolerance and float(sigma[0]) <= 100 * torch.finfo(dtype).eps * largest:
            # Zero in exact arithmetic (the gate of a mixture that picks one expert): nothing to measure, nothing wrong.
            noise.append(target.layer.name)
        elif not gap <= tolerance:
            raise SelfCheckError(
                f"self-check failed: weight {target.layer.name!r} has different slopes in the gradient and the "
                f"curvature pass ({gap:.2g} of sigma_1, tolerance {tolerance:g}): is the data the same on every read? "
                "Otherwise report this network"
            )
    for name in noise:
        found.drop(name, "the gradient is zero but for rounding: two passes over the batch disagree on it")


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
        target, curvature = measured[name]
        measurement = _measurement(target, curvature, found, checked)
        analysis = analyse(measurement, top_k=options.top_k, min_rank=options.min_rank)
        rows.append(LayerReport(candidate.info, measurement, analysis))
    if not any(isinstance(r, LayerReport) for r in rows):
        first = next(iter(found.failed.values()))
        raise UnsupportedModelError(f"no weight could be measured ({len(found.failed)} failed): {first}")
    return tuple(rows)


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


def _report(
    workload: Workload,
    rows: tuple[LayerRow, ...],
    found: Measured,
    checked: CheckedPairs,
    options: ProbeOptions,
    model_info: ModelInfo,
    data_info: DataInfo,
    command: str,
    clock: StageClock,
    notes: tuple[str, ...],
) -> Report:
    accuracy = found.gradient.accuracy
    provenance = Provenance(
        versions=versions(),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=model_info,
        data=data_info,
        loss_name=loss_label(workload.loss_fn),
        loss=found.gradient.loss,
        accuracy=Missing("outputs are not class scores") if accuracy is None else accuracy,
        device=device_name(workload.device),
        dtype=str(workload.dtype).removeprefix("torch."),
        seed=options.seed,
        micro_batch=found.micro_batch,
        memory_format="channels_last" if workload.channels_last else "contiguous",
        threads=torch.get_num_threads(),
        seconds=clock.seconds,
        engines=dict(Counter(c.engine.value for c in found.curvatures)),
        self_check=checked.summary,
        notes=notes,
    )
    return Report(provenance, options, rows, summarise(rows))


def versions() -> dict[str, str]:
    """Versions of what computed the numbers; of the packages that bring networks, those that were loaded."""
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
