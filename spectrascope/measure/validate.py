"""Take the suggested steps for real: directions and curvature from half of the batch, the loss from the other half."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrascope.advice.advise import advise
from spectrascope.errors import DataError
from spectrascope.measure.asked import require_wide
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.gradients import measure_gradients
from spectrascope.measure.prepare import with_fastest_format
from spectrascope.measure.run import run_probe
from spectrascope.measure.workloads import prepare_workload
from spectrascope.network.guards import held_still
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.numerics.directions import Directions, top_directions
from spectrascope.numerics.transfer import QuadraticModel, StepOutcome, make_quadratic_model, transfer
from spectrascope.numerics.vectors import too_few
from spectrascope.records.advice import Advice, LayerAdvice, ValidatedStep, ValidateOn, Validation
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing
from spectrascope.workload import Inputs, Run, SampleSource, Workload

MAX_HELD_OUT = 512
"""Samples of the other half whose loss is followed: line searches take some 25 forward passes over them per weight."""

_MICRO_BATCH = 128
_EXPONENTS = ("0", "1", "2", "recommended")
_AGREEMENT = 0.95


def advise_and_validate(
    run: Run,
    *,
    train_batch: int | None = None,
    momentum: float = 0.0,
    on: ValidateOn = ValidateOn.HELD_OUT,
    division: Division = WHOLE,
) -> Advice:
    """Measure on the first half of the samples, advise, and take every step, by default on the other half.

    Each measured weight is moved along -U diag(T) Vᵀ for b = 0, 1, 2, the recommended exponent where there is one, and
    along the published model's best combination M⁻¹ sigma, everything else left as it was;
    a line search finds the length that lowers the loss most.
    Weights are put back bit by bit.

    Args:
        run: what to measure; its samples are halved as they come, so they should be in random order.
        train_batch: see :func:`spectrascope.advice.advise.advise`.
        momentum: likewise.
        on: whose loss is followed: of the other half, or of the measured half itself.
        division: where the measurement is kept; the steps are taken by one process, anew each time.

    Returns:
        The advice from the first half, with its validation.

    Raises:
        DataError: fewer than four samples.
        OptionError: ``--dtype bfloat16``.
        SpectrascopeError: as :func:`spectrascope.measure.run.run_probe`.

    Cost: a measurement of half the samples and about 25 forward passes per weight over
        at most 512 samples of the other half, or the measured half.
    Reference: MEASUREMENT section 8.
    """
    require_wide(run.options, "the small differences of the loss that --validate takes")
    source = run.source
    half = source.n // 2
    if half < 2:
        raise DataError(f"{source.n} samples cannot be halved for --validate: at least 4 are needed")
    first = _Part(source, 0, half)
    about = f"{run.data_info.id}, first half of {source.n:,} samples"
    measured = replace(run, source=first, data_info=replace(run.data_info, id=about, n=half, digest=first.digest()))
    report = run_probe(measured, division)
    advice = advise(report, train_batch=train_batch, momentum=momentum)
    checked = _Part(source, half, min(half, MAX_HELD_OUT)) if on is ValidateOn.HELD_OUT else first
    found = _validate(measured, checked, report, advice)
    return replace(advice, validation=replace(found, on=on) if isinstance(found, Validation) else found)


@dataclass(frozen=True)
class _Part(SampleSource):
    """A run of samples of a source."""

    source: SampleSource
    first: int
    size: int

    @property
    def n(self) -> int:
        return self.size

    def fetch(self, start: int, stop: int) -> tuple[Inputs, Tensor]:
        return self.source.fetch(self.first + start, self.first + stop)


def _validate(run: Run, checked: SampleSource, report: Report, advice: Advice) -> Validation | Missing:
    workload, options = prepare_workload(run), run.options
    rows = {row.info.name: row for row in report.layers if isinstance(row, LayerReport)}
    candidates = find_layers(workload.model, options.layers, options.exclude, split_fused=options.split_fused)
    layers = [layer for layer in candidates if isinstance(layer, WeightLayer) and layer.name in rows]
    advised = {layer.info.name: layer for layer in advice.layers}
    steps: list[ValidatedStep] = []
    weights = [layer.parameter for layer in layers]
    with workload.with_weights(), held_still(workload, weights):
        workload = with_fastest_format(workload)
        gradients = measure_gradients(workload, layers).gradients
        loss = _Loss(replace(workload, source=checked))
        before = loss()
        for done, layer in enumerate(layers):
            run.on_progress("validate", done, len(layers))
            row = rows[layer.name]
            sigma, matrix = _window(row)
            quadratic = make_quadratic_model(sigma, matrix)
            if isinstance(quadratic, Missing):
                continue
            directions = top_directions(gradients[layer.name], options.top_k, workload.dtype)
            steps += _take_steps(layer, row, advised[layer.name], quadratic, directions, loss, before)
        run.on_progress("validate", len(layers), len(layers))
    if not steps:
        return Missing("no weight has positive curvature along its first direction")
    return _summarise(steps, run.source.n, checked.n, before)


def _window(row: LayerReport) -> tuple[tuple[float, ...], list[tuple[float, ...]]]:
    first, last = row.analysis.window
    window = slice(first - 1, last)
    return row.measurement.sigma[window], [line[window] for line in row.measurement.curvature_matrix[window]]


class _Loss:
    """The mean loss over the samples that are followed, which are read once."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        n = workload.source.n
        ends = [(start, min(start + _MICRO_BATCH, n)) for start in range(0, n, _MICRO_BATCH)]
        self.batches = [(*workload.fetch(start, stop), stop - start) for start, stop in ends]

    def __call__(self) -> float:
        with torch.no_grad():
            total = sum(float(self.workload.loss(x, y)) * size for x, y, size in self.batches)
        return total / self.workload.source.n


def _take_steps(
    layer: WeightLayer,
    row: LayerReport,
    advice: LayerAdvice,
    quadratic: QuadraticModel,
    directions: Directions,
    loss: _Loss,
    before: float,
) -> list[ValidatedStep]:
    first = row.analysis.window[0] - 1
    span = slice(first, first + quadratic.sigma.size)
    left, right = directions.left[:, span], directions.right[:, span]
    parameter, original = layer.parameter, layer.parameter.detach().clone()
    exponents, damping = {"0": 0.0, "1": 1.0, "2": 2.0}, advice.damping
    weights = {name: transfer(quadratic.sigma, b) for name, b in exponents.items()}
    if not isinstance(advice.beta, Missing) and not isinstance(damping, Missing):
        exponents["recommended"] = advice.beta
        weights["recommended"] = transfer(quadratic.sigma, advice.beta, damping)
    weights["best"] = quadratic.best
    found = []
    for name, values in weights.items():
        predicted = quadratic.step(values)
        if isinstance(predicted, Missing):
            continue
        matrix = -(left * torch.from_numpy(values)) @ right.T
        direction = layer.tensor(matrix.to(parameter.device, parameter.dtype))

        def loss_at(length: float, direction: Tensor = direction) -> float:
            with torch.no_grad():
                parameter.copy_(original + length * direction)
            return loss()

        try:
            length, lowest = search_line(loss_at, predicted.length)
        finally:
            with torch.no_grad():
                parameter.copy_(original)
        found.append(
            _step(
                layer.name,
                name,
                exponents.get(name, 0.0),
                predicted,
                _predict(row, span, values),
                before - lowest,
                length,
            )
        )
    return [replace(step, measured_efficiency=step.measured / quadratic.best_decrease) for step in found]


def _predict(row: LayerReport, span: slice, weights: NDArray[np.float64]) -> float | Missing:
    """By how much the loss falls along Σ T_k D_k, from slopes and curvature that are held out."""
    held = row.held_out
    if isinstance(held, Missing):
        return held
    if len(held.slopes) < span.stop:
        return Missing("fewer held-out directions than the step has")
    slope = float(weights @ np.asarray(held.slopes)[span])
    curvature = float(weights @ np.asarray(held.curvature_matrix)[span, span] @ weights)
    if not (slope > 0 and curvature > 0):
        return Missing("on samples held out the loss does not fall along this step")
    return slope**2 / (2 * curvature)


def _step(
    layer: str,
    name: str,
    exponent: float,
    predicted: StepOutcome,
    held_out: float | Missing,
    measured: float,
    length: float,
) -> ValidatedStep:
    return ValidatedStep(
        layer=layer,
        name=name,
        exponent=exponent,
        predicted=predicted.decrease,
        predicted_held_out=held_out,
        measured=measured,
        predicted_efficiency=predicted.efficiency,
        measured_efficiency=0.0,
        predicted_length=predicted.length,
        measured_length=length,
    )


def search_line(loss_at: Callable[[float], float], length: float, *, most: int = 12) -> tuple[float, float]:
    """Return a step length and the loss there, the lowest found along a line.

    The length given and its half and double are tried, then on by factors of two while the lowest lies at an end, and
    at last the vertex of the parabola through the three lengths around the lowest.

    Args:
        loss_at: the loss after a step of some length; NaN counts as infinitely high.
        length: where to begin, above 0.
        most: how often at most to go on beyond an end.

    >>> length, loss = search_line(lambda x: (x - 5.0) ** 2, 1.0)
    >>> round(length, 12), round(loss, 12)
    (5.0, 0.0)
    """
    losses: dict[float, float] = {}

    def look(at: float) -> None:
        value = loss_at(at)
        losses[at] = math.inf if math.isnan(value) else value

    for factor in (0.5, 1.0, 2.0):
        look(factor * length)
    for _ in range(most):
        tried = sorted(losses)
        lowest = min(tried, key=lambda at: losses[at])
        if lowest == tried[-1]:
            look(2 * lowest)
        elif lowest == tried[0]:
            look(lowest / 2)
        else:
            break
    tried = sorted(losses)
    place = tried.index(min(tried, key=lambda at: losses[at]))
    if 0 < place < len(tried) - 1:
        around = tried[place - 1 : place + 2]
        heights = [losses[at] for at in around]
        if all(math.isfinite(height) for height in heights):
            vertex = _vertex(around, heights)
            if vertex is not None and around[0] < vertex < around[2]:
                look(vertex)
    best = min(losses, key=lambda at: losses[at])
    return best, losses[best]


def _vertex(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Where the parabola through three points is lowest; ``None`` if it has no lowest point."""
    first, second = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bend = (second - first) / (x[2] - x[0])
    return None if bend <= 0 else (x[0] + x[1]) / 2 - first / (2 * bend)


def _summarise(steps: Sequence[ValidatedStep], n_measured: int, n_checked: int, before: float) -> Validation:
    ranked = [step for step in steps if step.name in _EXPONENTS]
    layers = list(dict.fromkeys(step.layer for step in ranked))
    agrees = 0
    for layer in layers:
        own = [step for step in ranked if step.layer == layer]
        chosen = max(own, key=lambda step: 0.0 if isinstance(p := step.predicted_held_out, Missing) else p)
        agrees += not isinstance(chosen.predicted_held_out, Missing) and chosen.measured >= _AGREEMENT * max(
            step.measured for step in own
        )
    names = [name for name in _EXPONENTS if any(step.name == name for step in ranked)]
    return Validation(
        on=ValidateOn.HELD_OUT,
        n_measured=n_measured,
        n_checked=n_checked,
        loss=before,
        n_layers=len(layers),
        correlation=_correlate_gains(ranked, lambda step: step.predicted),
        correlation_held_out=_correlate_gains(ranked, lambda step: step.predicted_held_out),
        ratio={name: _ratio([s for s in ranked if s.name == name], lambda step: step.predicted) for name in names},
        ratio_held_out={
            name: _ratio([s for s in ranked if s.name == name], lambda step: step.predicted_held_out) for name in names
        },
        best_agrees=agrees,
        steps=tuple(steps),
    )


_Prediction: TypeAlias = "Callable[[ValidatedStep], float | Missing]"


def _correlate_gains(steps: Sequence[ValidatedStep], prediction: _Prediction) -> float | Missing:
    """Correlate log(predicted gain over b = 0) with the measured one, over weights and steps that lower the loss."""
    plain = {step.layer: step for step in steps if step.name == "0"}
    x, y = [], []
    for step in steps:
        first = plain.get(step.layer)
        if first is None or step is first:
            continue
        told, base = prediction(step), prediction(first)
        if not isinstance(told, Missing) and not isinstance(base, Missing) and step.measured > 0 < first.measured:
            x.append(math.log(told / base))
            y.append(math.log(step.measured / first.measured))
    return correlate(x, y)


def _ratio(steps: Sequence[ValidatedStep], prediction: _Prediction) -> float | Missing:
    told = [(prediction(step), step.measured) for step in steps if step.measured > 0]
    found = [value / measured for value, measured in told if not isinstance(value, Missing)]
    return float(np.median(found)) if found else Missing("no such step lowered the loss as predicted")


def correlate(x: Sequence[float], y: Sequence[float]) -> float | Missing:
    """Return Pearson's correlation coefficient.

    >>> correlate([1.0, 2.0, 4.0], [3.0, 5.0, 9.0])
    1.0
    >>> correlate([1.0, 2.0], [3.0, 5.0])
    Missing(reason='2 points, a correlation needs at least 3')
    """
    if len(x) < 3:
        return too_few(len(x), "point", "a correlation", 3)
    a, b = np.asarray(x) - np.mean(x), np.asarray(y) - np.mean(y)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return Missing("all values are equal") if scale == 0 else round(float(a @ b) / scale, 12)
