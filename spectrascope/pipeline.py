"""The order of work of one measurement: workload in, report out. Silent; progress goes through a callback."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn

import spectrascope
from spectrascope.errors import (
    NonFiniteError,
    OptionError,
    SelfCheckError,
    UnsupportedModelError,
)
from spectrascope.measure.curvature.choice import EngineChoice, choose_engines
from spectrascope.measure.curvature.double_backprop import DoubleBackprop, hessian_products, loss_gradients
from spectrascope.measure.curvature.engine import Curvature, Target
from spectrascope.measure.curvature.gauss_newton import GaussNewton
from spectrascope.measure.gradients import GradientPass, measure_gradients
from spectrascope.measure.guards import held_still, require_deterministic, require_finite_weights, require_mean_loss
from spectrascope.measure.layers import WeightLayer, find_layers
from spectrascope.measure.preparation import device_name, fastest_format, prepare_workload, require_matching_labels
from spectrascope.measure.selfcheck import CheckedPairs, check_engines
from spectrascope.measure.tape import UnsupportedOperationError
from spectrascope.numerics.analysis import analyse
from spectrascope.numerics.directions import spectral_norm, top_directions
from spectrascope.numerics.participation import effective_rank, participation_ratio
from spectrascope.numerics.summary import summarise
from spectrascope.records import (
    DataInfo,
    EngineName,
    LayerReport,
    LayerRow,
    LayerStatus,
    Measurement,
    Missing,
    ModelInfo,
    ProbeOptions,
    Provenance,
    Report,
    SkippedLayer,
)
from spectrascope.workload import LossFunction, SampleSource, Workload

__all__ = [
    "Measured",
    "OnProgress",
    "StageClock",
    "measure_targets",
    "run_probe",
    "silent",
    "versions",
]

OnProgress = Callable[[str, int, int], None]
"""(stage, done, total); stages: check, gradient, directions, curvature, self-check."""


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass
class StageClock:
    """Wall seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to stage ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


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
    on_progress: OnProgress = silent,
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
        on_progress: called with (stage, done, total).

    Returns:
        The report; every candidate weight has a row.

    Raises:
        SpectrascopeError: one of its kinds; see :mod:`spectrascope.errors`.
    """
    clock = StageClock(dict(seconds or {}))
    workload = prepare_workload(model, source, loss_fn, options)
    require_finite_weights(workload.model)
    candidates = find_layers(workload.model, options.layers, options.exclude)
    layers = [c for c in candidates if isinstance(c, WeightLayer)]
    if not layers:
        raise OptionError("every weight is left out: nothing to measure; see --layers and --exclude")
    with held_still(workload.model, [layer.parameter for layer in layers], workload.device):
        with clock.stage("check"):
            on_progress("check", 0, 1)
            workload = require_matching_labels(workload)
            require_deterministic(workload)
            require_mean_loss(workload)
            last = fastest_format(workload)
            choices = choose_engines(workload, layers, options.engine, options.top_k)
            on_progress("check", 1, 1)
        found = measure_targets(workload, layers, choices, options, last, clock, on_progress)
        checked = CheckedPairs({}, Missing("switched off"))
        if options.self_check and found.targets:
            with clock.stage("self-check"):
                on_progress("self-check", 0, 1)
                checked = check_engines(workload, found.targets, [c.engine for c in found.curvatures], options.seed)
                on_progress("self-check", 1, 1)
            _require_agreement(checked)
        _require_same_slopes(found, workload.dtype)
    with clock.stage("fits"):
        rows = _rows(candidates, found, checked, options)
    return _report(workload, rows, found, checked, options, model_info, data_info, command, clock, last)


@dataclass
class Measured:
    """What the measuring stages found, weight by weight."""

    gradient: GradientPass
    targets: list[Target]
    curvatures: list[Curvature]
    reasons: dict[str, str]
    failed: dict[str, str]
    noise: dict[str, float]
    micro_batch: int


def measure_targets(
    workload: Workload,
    layers: Sequence[WeightLayer],
    choices: Sequence[EngineChoice],
    options: ProbeOptions,
    channels_last: bool,
    clock: StageClock,
    on_progress: OnProgress = silent,
) -> Measured:
    """Gradient, directions, curvature: the work that costs time. The model is already held still."""
    size = None if options.micro_batch == "auto" else int(options.micro_batch)
    with clock.stage("gradient"):
        gradient = measure_gradients(
            workload,
            layers,
            micro_batch=size,
            channels_last=channels_last,
            progress=lambda done, total: on_progress("gradient", done, total),
        )
    failed = dict(gradient.missing)
    targets: list[Target] = []
    engines: list[EngineChoice] = []
    noise: dict[str, float] = {}
    with clock.stage("directions"):
        for i, (layer, choice) in enumerate(zip(layers, choices, strict=True)):
            on_progress("directions", i, len(layers))
            if layer.name in failed:
                continue
            try:
                directions = top_directions(gradient.gradients[layer.name], options.top_k, workload.dtype)
            except NonFiniteError as error:
                failed[layer.name] = str(error)
                continue
            if directions.rank == 0:
                failed[layer.name] = "the gradient is exactly zero: the loss does not see this weight on this batch"
                continue
            if gradient.half_difference is not None:
                noise[layer.name] = spectral_norm(gradient.half_difference[layer.name])
            targets.append(Target(layer, directions))
            engines.append(choice)
        on_progress("directions", len(layers), len(layers))
    with clock.stage("curvature"):
        found = _measure_curvature(workload, targets, engines, failed, options, size, channels_last, on_progress)
    reasons = {t.layer.name: c.reason for t, c in zip(targets, engines, strict=True)} | found.reasons
    keep = [(t, c) for t, c in zip(targets, found.curvatures, strict=True) if c is not None]
    return Measured(gradient, [t for t, _ in keep], [c for _, c in keep], reasons, failed, noise, gradient.micro_batch)


@dataclass
class _Curvatures:
    curvatures: list[Curvature | None]
    reasons: dict[str, str]


def _measure_curvature(
    workload: Workload,
    targets: Sequence[Target],
    choices: Sequence[EngineChoice],
    failed: dict[str, str],
    options: ProbeOptions,
    size: int | None,
    channels_last: bool,
    on_progress: OnProgress,
) -> _Curvatures:
    found = _Curvatures([None] * len(targets), {})
    fast = [i for i, c in enumerate(choices) if c.engine is EngineName.GAUSS_NEWTON]
    slow = [i for i, c in enumerate(choices) if c.engine is EngineName.DOUBLE_BACKPROP]
    total = workload.source.n * (bool(fast) + bool(slow))
    if fast:
        engine = GaussNewton(micro_batch=size, channels_last=channels_last)
        try:
            results = engine.measure(
                workload,
                [targets[i] for i in fast],
                groups=options.groups,
                progress=lambda done, _: on_progress("curvature", done, total),
            )
        except UnsupportedOperationError as error:
            if options.engine is EngineName.GAUSS_NEWTON:
                raise UnsupportedModelError(f"gauss-newton cannot follow this network: {error}") from error
            found.reasons.update({targets[i].layer.name: f"gauss-newton gave up: {error}" for i in fast})
            slow = sorted(slow + fast)
        else:
            for i, result in zip(fast, results, strict=True):
                found.curvatures[i] = result
    slow = [i for i in slow if not _fails_double_backprop(workload, targets[i], failed)]
    if slow:
        done_before = total - workload.source.n
        results = DoubleBackprop(micro_batch=size).measure(
            workload,
            [targets[i] for i in slow],
            groups=options.groups,
            progress=lambda done, _: on_progress("curvature", done_before + done, total),
        )
        for i, result in zip(slow, results, strict=True):
            found.curvatures[i] = result
    for i, curvature in enumerate(found.curvatures):
        if curvature is not None and not bool(torch.isfinite(curvature.matrix).all()):
            failed[targets[i].layer.name] = "the curvature holds NaN or infinity"
            found.curvatures[i] = None
    return found


def _fails_double_backprop(workload: Workload, target: Target, failed: dict[str, str]) -> bool:
    """Try one product on two samples, so that a weight without second derivatives fails alone and early."""
    inputs, labels = workload.fetch(0, min(2, workload.source.n))
    try:
        (gradient,) = loss_gradients(workload, [target], inputs, labels)
        hessian_products(target, gradient, [0])
    except UnsupportedModelError as error:
        failed[target.layer.name] = str(error)
        return True
    return False


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
    for target, curvature in zip(found.targets, found.curvatures, strict=True):
        sizes = torch.tensor(curvature.group_sizes, dtype=torch.float64)
        slopes = sizes @ curvature.group_sigma / sizes.sum()
        sigma = target.directions.sigma
        gap = float((slopes - sigma).abs().max() / sigma[0])
        if not gap <= tolerance:
            raise SelfCheckError(
                f"self-check failed: weight {target.layer.name!r} has different slopes in the gradient and the "
                f"curvature pass ({gap:.2g} of sigma_1, tolerance {tolerance:g}): is the data the same on every read? "
                "Otherwise report this network"
            )


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
    channels_last: bool,
) -> Report:
    accuracy = found.gradient.accuracy
    provenance = Provenance(
        versions=versions(),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=model_info,
        data=data_info,
        loss_name=_name_of(workload.loss_fn),
        loss=found.gradient.loss,
        accuracy=Missing("outputs are not class scores") if accuracy is None else accuracy,
        device=device_name(workload.device),
        dtype=str(workload.dtype).removeprefix("torch."),
        seed=options.seed,
        micro_batch=found.micro_batch,
        memory_format="channels_last" if channels_last else "contiguous",
        threads=torch.get_num_threads(),
        seconds=clock.seconds,
        engines=dict(Counter(c.engine.value for c in found.curvatures)),
        self_check=checked.summary,
    )
    return Report(provenance, options, rows, summarise(rows))


def _name_of(loss_fn: Any) -> str:
    return str(getattr(loss_fn, "__name__", type(loss_fn).__name__))


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    import numpy
    import scipy

    return {
        "spectrascope": spectrascope.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
    }
