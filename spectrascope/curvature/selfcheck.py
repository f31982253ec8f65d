"""Compare what the exact engines say with an independent reference, on a few pairs, in every run.

Every exact engine is held to its ``reference`` on the same samples and precision: Gauss–Newton and tangents to double
backprop, or where that does not exist to what double backprop itself is held to, central differences of the gradient
on a float64 copy of the model, which share none of its second-order machinery. Estimates carry an error of their own
and are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spectrascope.curvature.choose import ENGINES, make_engine
from spectrascope.curvature.double_backprop import hessian_products, loss_gradients
from spectrascope.curvature.engine import CurvatureEngine, Target
from spectrascope.curvature.microbatches import is_out_of_memory
from spectrascope.errors import UnsupportedModelError
from spectrascope.network.effective import copy_of
from spectrascope.records.report import SelfCheck
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import FirstSamples, Workload

__all__ = ["CheckedPairs", "check_engines", "tolerance_of"]

_SAMPLES = 16
_SCORES = 1 << 20  # output scores, over all samples compared
_LAYERS = 4  # per engine: the earliest, the last and two drawn by seed


@dataclass(frozen=True)
class CheckedPairs:
    """Residual per weight name (or why its reference failed), and the run's summary.

    ``summary`` is ``Missing`` if no pair could be compared.
    """

    residuals: dict[str, float | Missing]
    summary: SelfCheck | Missing

    def residual_of(self, name: str) -> float | Missing:
        """The residual of one weight, or why there is none."""
        return self.residuals.get(name, Missing("not among the pairs compared"))

    def worst(self) -> tuple[str, float]:
        """The weight that differs most from its reference, and by how much."""
        found = {name: value for name, value in self.residuals.items() if not isinstance(value, Missing)}
        name = max(found, key=lambda n: found[n])
        return name, found[name]


def tolerance_of(dtype: torch.dtype) -> float:
    """Largest residual accepted: 1e-3 in float32, 1e-6 in float64, of the layer's largest curvature.

    Rounding alone gives about 1e-6 and 1e-14 on trained networks; a wrong rule gives 0.01 to 10.
    """
    return 1e-6 if dtype == torch.float64 else 1e-3


def check_engines(
    workload: Workload, targets: Sequence[Target], engines: Sequence[EngineName], seed: int
) -> CheckedPairs:
    """Compare a few (weight, k) pairs on the first samples of the batch.

    Args:
        workload: as measured.
        targets: all measured weights, in network order.
        engines: the engine that measured each.
        seed: draws the weights and directions compared, besides the earliest and last of each engine.

    Returns:
        Residuals max |h − h_reference| / max |h_reference| per weight compared.
    """
    head = replace(workload, source=FirstSamples(workload.source, _sample_count(workload)))
    rng = np.random.default_rng(seed)
    checked = CheckedPairs({}, Missing("no pair could be compared"))
    n_pairs = 0
    for engine in ENGINES:
        group = [t for t, e in zip(targets, engines, strict=True) if e is engine.name and t.directions.k]
        if not engine.reference:
            continue
        for target in _draw(group, rng):
            k = target.directions.k
            picks = sorted({0, int(rng.integers(k))})
            try:
                found = _engine_values(make_engine(engine.name, head.source.n), head, target, picks)
                truth = _reference_values(engine.reference[0], head, target, picks)
                agree = _residual(found, truth, target, head.dtype) <= tolerance_of(head.dtype)
                # Always of the earliest weight, whose directions cross every operation downstream.
                if len(engine.reference) > 1 and (target is group[0] or not agree):
                    truth = _third_opinion(head, target, picks, truth)
            except (UnsupportedModelError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                why = (str(error).splitlines() or [type(error).__name__])[0]
                checked.residuals[target.layer.name] = Missing(f"no reference: {why}")
                continue
            checked.residuals[target.layer.name] = _residual(found, truth, target, head.dtype)
            n_pairs += len(picks)
    if not n_pairs:
        return checked
    residual = checked.worst()[1]
    return replace(checked, summary=SelfCheck(residual, tolerance_of(workload.dtype), n_pairs, head.source.n))


def _sample_count(workload: Workload) -> int:
    """As many samples as keep double backprop's graph small: a language model's has scores at every token."""
    inputs, _ = workload.fetch(0, 1)
    with torch.no_grad():
        output = workload.forward(inputs)
    scores = getattr(output, "logits", output)
    size = scores.numel() if isinstance(scores, Tensor) else 1
    return max(1, min(_SAMPLES, workload.source.n, _SCORES // max(size, 1)))


def _residual(found: Tensor, truth: Tensor, target: Target, dtype: torch.dtype) -> float:
    # Where predictions are certain curvature vanishes beside squared slopes, and only rounding is left to compare.
    rounding = 1e4 * torch.finfo(dtype).eps * float(target.directions.sigma[0]) ** 2
    size = max(float(truth.abs().max()), rounding, float(torch.finfo(torch.float32).tiny))
    return float((found - truth).abs().max()) / size


def _draw(group: list[Target], rng: np.random.Generator) -> list[Target]:
    if len(group) <= _LAYERS:
        return group
    # Always an early weight: its directions cross every operation downstream.
    middle = rng.choice(np.arange(1, len(group) - 1), size=_LAYERS - 2, replace=False)
    return [group[i] for i in sorted({0, len(group) - 1, *middle.tolist()})]


def _engine_values(engine: CurvatureEngine, head: Workload, target: Target, picks: list[int]) -> Tensor:
    (curvature,) = engine.measure(head, [replace(target, directions=target.directions.pick(picks))], groups=1)
    return curvature.h


def _reference_values(reference: EngineName, head: Workload, target: Target, picks: list[int]) -> Tensor:
    if reference is EngineName.DOUBLE_BACKPROP:
        with suppress(UnsupportedModelError):
            return _double_backprop_values(head, target, picks)
    return _difference_values(head, target, picks)


def _third_opinion(head: Workload, target: Target, picks: list[int], reference: Tensor) -> Tensor:
    """Differences of the gradient where they settle, else the reference: autograd itself can be wrong (weight norm)."""
    try:
        return _difference_values(head, target, picks)
    except UnsupportedModelError:  # a kink in between, or no float64: differences prove nothing
        return reference


def _double_backprop_values(head: Workload, target: Target, picks: list[int]) -> Tensor:
    inputs, labels = head.fetch(0, head.source.n)
    (gradient,) = loss_gradients(head, [target], inputs, labels)
    d = target.directions
    return torch.stack(
        [
            _form(target.layer.matrix(product), d.left[:, k], d.right[:, k])
            for k, product in zip(picks, hessian_products(target, gradient, picks), strict=True)
        ]
    )


def _form(matrix: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left @ matrix.detach().cpu().double() @ right


def _difference_values(head: Workload, target: Target, picks: list[int]) -> Tensor:
    """Central differences of ``.backward()`` gradients in float64, on a copy of the model.

    Taken at two steps: where they disagree, a kink lies in between or cancellation wins, and differences prove
    nothing.

    Raises:
        UnsupportedModelError: the two steps disagree, or no gradient arrives.
    """
    if head.device.type == "mps":
        raise UnsupportedModelError("central differences need float64, which this device lacks")
    model = copy_of(head.model).double()
    weight = model.get_parameter(target.layer.info.name.split("[", maxsplit=1)[0])
    layer = replace(target.layer, parameter=weight)
    inputs, labels = replace(head, dtype=torch.float64).fetch(0, head.source.n)
    start = weight.detach().clone()
    step = 1e-5 * max(float(start.norm()) / max(start.numel(), 1) ** 0.5, 1e-3)

    def gradient(shift: Tensor) -> Tensor:
        with torch.no_grad():
            weight.copy_(start + shift)
        model.zero_grad(set_to_none=True)
        with torch.enable_grad():
            head.loss(inputs, labels, model).backward()
        if weight.grad is None:
            raise UnsupportedModelError(f"weight {target.layer.name!r} gets no gradient from backward()")
        return layer.matrix(weight.grad.detach())

    d = target.directions
    columns = []
    for size in (step, step / 8):
        values = []
        for k in picks:
            direction = layer.tensor(torch.outer(d.left[:, k], d.right[:, k])).to(weight) * size
            difference = (gradient(direction) - gradient(-direction)) / (2 * size)
            values.append(_form(difference, d.left[:, k], d.right[:, k]))
        columns.append(torch.stack(values))
    coarse, fine = columns
    if float((coarse - fine).abs().max()) > 0.1 * tolerance_of(head.dtype) * float(fine.abs().max()):
        raise UnsupportedModelError("central differences do not settle here (a kink or cancellation)")
    return fine
