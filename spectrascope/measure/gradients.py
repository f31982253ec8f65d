"""Measure the mean gradient of every weight over the fixed batch, in micro-batches and in two halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.curvature.microbatches import Schedule, is_out_of_memory
from spectrascope.errors import DataError, NonFiniteError, UnsupportedModelError
from spectrascope.losses import IGNORED, Loss
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.text import first_line
from spectrascope.workload import Workload


@dataclass(frozen=True)
class GradientPass:
    """Mean gradients and what the same pass tells about the batch.

    ``gradients[name]`` is the m × n mean gradient; ``half_difference[name]`` is (G_1 − G_2)/2 of the two
    half-batches, whose spectral norm estimates the sampling noise of the singular values. ``missing`` maps a
    weight without a gradient to the reason. ``accuracy`` is top-1 over all labels (tokens, for a
    language model), ``None`` where outputs are not class scores.
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
    progress: Callable[[float, int], None] | None = None,
) -> GradientPass:
    """Run one forward and one backward pass over the batch.

    Args:
        workload: the model is expected in eval mode with only the layers' weights requiring gradients.
        layers: the weights.
        micro_batch: samples per pass; ``None`` tunes it.
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
    dtype = sum_dtype(workload.device)
    sums = [[torch.zeros(p.shape, dtype=dtype, device=workload.device) for p in parameters] for _ in range(2)]
    seen = [False] * len(parameters)
    totals = torch.zeros(4, dtype=dtype, device=workload.device)
    per_sample: set[int] = set()
    classes = [True]
    schedule = Schedule(n, micro_batch, [half] if half else [], device=workload.device)

    def work(start: int, stop: int) -> None:
        inputs, targets = workload.fetch(start, stop)
        with torch.enable_grad():
            output = workload.forward(inputs)
            loss = workload.loss_fn(output, targets)
            found = _differentiate(loss, parameters)
        side = sums[int(start >= half)]
        for i, gradient in enumerate(found):
            if gradient is not None:
                seen[i] = True
                side[i].add_(gradient, alpha=stop - start)
        counts = _count_labels(workload.loss_fn, output, targets)
        if counts is None:
            classes[0] = False
        else:
            totals[1:] += counts[:3]
            per_sample.update(counts[3:].tolist())
        totals[0] += loss.detach() * (stop - start)

    schedule.run(work, progress)
    loss, n_correct, n_labels, n_without = totals.tolist()
    loss /= n
    if n_without:
        raise DataError(
            f"{round(n_without)} of {n} samples have only labels {_ignored_by(workload.loss_fn)}, which the loss "
            "ignores: leave them out, so that the loss is a mean over all samples"
        )
    if len(per_sample) > 1:
        raise DataError(
            f"samples have from {min(per_sample)} to {max(per_sample)} labels that count: the mean over labels is then "
            "no mean over samples; give every sample as many (blocks of text without padding, as many masked tokens)"
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
        n_correct / n_labels if classes[0] and n_labels else None,
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
        raise UnsupportedModelError(f"autograd cannot differentiate this network: {first_line(error)}") from error


def _ignored_by(loss_fn: object) -> int:
    return int(getattr(loss_fn, "ignore_index", IGNORED))


def _count_labels(loss_fn: object, output: object, targets: Tensor) -> Tensor | None:
    """Count labels: predicted, in all, samples without any, then each number that a sample has; else ``None``."""
    if not isinstance(output, Tensor) or targets.is_floating_point():
        return None
    if isinstance(loss_fn, Loss):
        output, targets = loss_fn.labelled(output, targets)
    if output.dim() == targets.dim() + 1 and output.shape[:-1] == targets.shape:
        best = output.detach().argmax(-1) if output.shape[-1] > 1 else None
    elif output.dim() == targets.dim() + 1 and output.shape[:1] + output.shape[2:] == targets.shape:
        best = output.detach().argmax(1) if output.shape[1] > 1 else None  # class scores per pixel
    else:
        return None
    if best is None:  # one score is not one score per class
        return None
    labelled = targets != _ignored_by(loss_fn)
    counts = labelled.reshape(len(targets), -1).sum(1)
    sums = torch.stack([(best == targets).logical_and(labelled).sum(), labelled.sum(), (counts == 0).sum()])
    return torch.cat([sums, counts.unique()])
