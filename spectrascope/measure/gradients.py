"""The mean gradient of every measured weight over the fixed batch, in micro-batches and in two halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.errors import DataError, NonFiniteError, UnsupportedModelError
from spectrascope.measure.layers import WeightLayer
from spectrascope.measure.schedule import Schedule, is_out_of_memory
from spectrascope.workload import Workload

__all__ = ["GradientPass", "measure_gradients"]


@dataclass(frozen=True)
class GradientPass:
    """Mean gradients and what the same pass tells about the batch.

    ``gradients[name]`` is the m × n mean gradient; ``half_difference[name]`` is (G_1 − G_2)/2 of the two
    half-batches, whose spectral norm estimates the sampling noise of the singular values. ``missing`` maps a
    weight without a gradient to the reason. ``accuracy`` is top-1, ``None`` where outputs are not class scores.
    """

    gradients: dict[str, Tensor]
    half_difference: dict[str, Tensor] | None
    missing: dict[str, str]
    loss: float
    accuracy: float | None
    micro_batch: int


def measure_gradients(
    workload: Workload,
    layers: Sequence[WeightLayer],
    *,
    micro_batch: int | None = None,
    channels_last: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> GradientPass:
    """One forward and one backward pass over the batch.

    Args:
        workload: the model is expected in eval mode with only the layers' weights requiring gradients.
        layers: the weights.
        micro_batch: samples per pass; ``None`` tunes it.
        channels_last: memory format of image inputs.
        progress: called with (samples done, samples in all).

    Returns:
        Mean gradients in float64 (float32 on devices without it), on the workload's device.

    Raises:
        DataError: the loss ignores some samples.
        NonFiniteError: loss or gradient is NaN or infinite.
        UnsupportedModelError: no weight reaches the loss, or autograd fails on the network.

    Cost: about three forward-equivalents.
    """
    n = workload.source.n
    half = n // 2
    parameters = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    dtype = torch.float32 if workload.device.type == "mps" else torch.float64
    sums = [[torch.zeros(p.shape, dtype=dtype, device=workload.device) for p in parameters] for _ in range(2)]
    seen = [False] * len(parameters)
    totals = torch.zeros(3, dtype=dtype, device=workload.device)
    classes = [True]
    ignore = getattr(workload.loss_fn, "ignore_index", -100)
    candidates = (16, 32, 64, 128) if workload.device.type == "cpu" else (64, 128, 256, 512, 1024)
    schedule = Schedule(n, micro_batch, [half] if half else [], candidates=candidates)

    def work(start: int, stop: int) -> None:
        inputs, targets = workload.fetch(start, stop)
        if channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.enable_grad():
            output = workload.model(inputs)
            loss = workload.loss_fn(output, targets)
            found = _differentiate(loss, parameters)
        side = sums[int(start >= half)]
        for i, gradient in enumerate(found):
            if gradient is not None:
                seen[i] = True
                side[i].add_(gradient, alpha=stop - start)
        correct = _n_correct(output, targets)
        if correct is None:
            classes[0] = False
        else:
            totals[1:] += torch.stack([correct, (targets == ignore).sum()])
        totals[0] += loss.detach() * (stop - start)

    schedule.run(work, progress)
    loss, accuracy, ignored = (totals / n).tolist()
    if ignored:
        raise DataError(
            f"{round(ignored * n)} of {n} samples have the label {ignore}, which the loss ignores: leave them out, "
            "so that the loss is a mean over all samples"
        )
    if not torch.isfinite(totals[0]):
        raise NonFiniteError(f"the mean loss over {n} samples is {loss}: check the preprocessing and the labels")
    index = {id(p): i for i, p in enumerate(parameters)}
    gradients: dict[str, Tensor] = {}
    difference: dict[str, Tensor] = {}
    missing: dict[str, str] = {}
    for layer in layers:
        i = index[id(layer.parameter)]
        if not seen[i]:
            missing[layer.name] = "the weight does not reach the loss (unused, or cut off by detach)"
            continue
        first, second = (layer.matrix(side[i]) for side in sums)
        gradients[layer.name] = (first + second) / n
        if half:
            difference[layer.name] = (first / half - second / (n - half)) / 2
    return GradientPass(
        gradients,
        difference if half else None,
        missing,
        loss,
        accuracy if classes[0] else None,
        schedule.chosen,
    )


def _differentiate(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        raise UnsupportedModelError(
            "the loss does not depend on any measured weight through autograd: the model detaches its "
            "output or runs under no_grad or inference_mode"
        )
    try:
        return torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:  # reentrant checkpoints, activations overwritten while still needed
        if is_out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"autograd cannot differentiate this network: {str(error).splitlines()[0]}"
        ) from error


def _n_correct(output: object, targets: Tensor) -> Tensor | None:
    if not isinstance(output, Tensor) or output.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        return None
    if output.shape[1] == 1:
        return None  # one score is not one score per class
    return (output.detach().argmax(1) == targets).sum()
