"""The order of work of one measurement: workload in, report out. Silent; progress goes through a callback."""

from __future__ import annotations

import copy
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import spectrascope
from spectrascope.errors import (
    DataError,
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
from spectrascope.measure.guards import held_still, require_deterministic, require_finite_weights
from spectrascope.measure.layers import WeightLayer, find_layers
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
    "device_name",
    "fastest_format",
    "measure_targets",
    "prepare_workload",
    "require_matching_labels",
    "run_probe",
    "versions",
]

OnProgress = Callable[[str, int, int], None]
"""(stage, done, total); stages: check, gradient, directions, curvature, self-check."""


def _silent(stage: str, done: int, total: int) -> None:
    return None


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
    on_progress: OnProgress = _silent,
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
            last = fastest_format(workload)
            choices = choose_engines(workload, layers, options.engine)
            on_progress("check", 1, 1)
        found = measure_targets(workload, layers, choices, options, last, clock, on_progress)
        checked = CheckedPairs({}, Missing("switched off"))
        if options.self_check and found.targets:
            with clock.stage("self-check"):
                on_progress("self-check", 0, 1)
                checked = check_engines(workload, found.targets, [c.engine for c in found.curvatures], options.seed)
                on_progress("self-check", 1, 1)
            _require_agreement(checked)
    with clock.stage("fits"):
        rows = _rows(candidates, found, checked, options)
    return _report(workload, rows, found, checked, options, model_info, data_info, command, clock, last)


def prepare_workload(
    model: nn.Module, source: SampleSource, loss_fn: LossFunction | None, options: ProbeOptions
) -> Workload:
    """Resolve device and dtype; copy the model only if it has to move.

    Raises:
        OptionError: the device does not exist, or the dtype does not exist on it.
        DataError: there are no samples.
    """
    first = next(model.parameters(), None)
    device = _device(options.device, first)
    if options.dtype not in ("float32", "float64"):
        raise OptionError(f"--dtype {options.dtype!r}: expected float32 or float64")
    dtype = torch.float64 if options.dtype == "float64" else torch.float32
    if device.type == "mps" and dtype == torch.float64:
        raise OptionError("--dtype float64 does not exist on mps: use float32, or --device cpu")
    if source.n < 1:
        raise DataError("the dataset holds no samples")
    tensors = [*model.parameters(), *model.buffers()]
    moves = any(t.device != device or (t.is_floating_point() and t.dtype != dtype) for t in tensors)
    if moves:
        model = copy.deepcopy(model).to(device, dtype)
    compiled = getattr(model, "_orig_mod", None)  # torch.compile has no double backward, and hides operations
    if isinstance(compiled, nn.Module):
        model = compiled
    return Workload(model, source, loss_fn or functional.cross_entropy, device, dtype)


def _device(name: str, parameter: torch.Tensor | None) -> torch.device:
    if name == "auto":
        if parameter is not None and parameter.device.type != "cpu":
            return parameter.device
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise OptionError(f"--device {name}: no usable CUDA device on this machine; use --device cpu")
        if device.index is not None and device.index >= count:
            raise OptionError(f"--device {name}: this machine has {count} CUDA device(s), numbered from 0")
        return torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("--device mps: not available on this machine; use --device cpu")
    if device.type not in ("cpu", "mps"):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def require_matching_labels(workload: Workload) -> Workload:
    """Check shapes on a few samples before any long work, and labels as they are read."""
    inputs, targets = workload.fetch(0, min(2, workload.source.n))
    try:
        with torch.no_grad():
            output = workload.model(inputs)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise DataError(
            f"the model does not accept inputs of shape {tuple(inputs.shape)} {inputs.dtype}: {_first_line(error)}"
        ) from error
    if (
        isinstance(output, torch.Tensor)
        and output.dim() == 2
        and targets.dim() == 1
        and not targets.is_floating_point()
    ):
        workload = replace(workload, n_classes=output.shape[1])
        workload.fetch(0, min(2, workload.source.n))
    try:
        with torch.no_grad():
            loss = workload.loss_fn(output, targets)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"the loss does not accept the model's output and targets of shape {tuple(targets.shape)}: "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
        raise DataError("the loss function must return a scalar tensor: the mean over the samples it is given")
    return workload


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def fastest_format(workload: Workload) -> bool:
    """Whether image inputs go through the network faster in channels-last order, by trying both."""
    inputs, _ = workload.fetch(0, min(32, workload.source.n))
    if inputs.dim() != 4:
        return False
    times: dict[bool, float] = {}
    for _ in range(3):  # the first round warms both up
        for last in (False, True):
            x = inputs.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            x = x.detach().requires_grad_()
            began = time.perf_counter()
            # Input gradients are what the sweeps are made of, and some layouts are slow only there.
            torch.autograd.grad(workload.model(x).sum(), x)
            if workload.device.type == "cuda":
                torch.cuda.synchronize()
            times[last] = min(times.get(last, float("inf")), time.perf_counter() - began)
    return times[True] < times[False]


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
    on_progress: OnProgress = _silent,
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
    name = max(checked.residuals, key=lambda n: checked.residuals[n])
    raise SelfCheckError(
        f"self-check failed: weight {name!r} differs from the reference by {checked.residuals[name]:.2g} of its "
        f"largest curvature (tolerance {checked.summary.tolerance:g}); try --dtype float64, or --engine "
        "double-backprop, and report this network"
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
        residual=checked.residuals.get(name, Missing("not among the pairs compared")),
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


def device_name(device: torch.device) -> str:
    """The device as a reader would name it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()})"


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
