"""Whether a loss is a mean over samples, as everything measured here is: asked of samples all over the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from spectrascope.errors import DataError, UnsupportedModelError
from spectrascope.losses import Loss, loss_label, takes_scores
from spectrascope.workload import Inputs, Workload

__all__ = ["require_mean_loss"]


def require_mean_loss(workload: Workload, n_samples: int = 32) -> None:
    """Compare losses of samples together with the mean of their losses apart.

    Of any loss: some samples all over the batch, and the first, in two halves. Of one that is not known: all samples,
    dealt to pairs at random, as samples of one class, or of one length, lie together and are alike to a loss that
    weighs them.

    Raises:
        DataError: the loss compares every sample with every other's target.
        UnsupportedModelError: they differ: the loss is a sum, weighs samples, or a sample changes another's output.

    Cost: a forward pass over the whole batch for a loss that is not known.
    """
    n = workload.source.n
    size = min(n_samples, n) // 2 * 2
    if not size:
        return
    inputs, targets = workload.fetch(0, size)
    torchs = takes_scores(workload.loss_fn) and not isinstance(workload.loss_fn, Loss)  # ours give both one shape
    if torchs and targets.is_floating_point():  # of numbers, which torch's only warn of
        with torch.no_grad():
            if crossed := _crossed(workload.forward(inputs), targets):
                raise DataError(f"{loss_label(workload.loss_fn)} does not compare sample by sample: {crossed}")
    _require_mean_over(workload, inputs, targets)
    spread = [round(i * (n - 1) / (size - 1)) for i in range(size)]
    shuffled: list[list[int]] = []
    if not takes_scores(workload.loss_fn):
        order = torch.randperm(n, generator=torch.Generator().manual_seed(n)).tolist()
        shuffled = [order[i : i + size] for i in range(0, n - 1, size)]
    for places in ([] if n <= size else [spread]) + shuffled:
        found = _picked(workload, places)
        if found is None:  # samples of different sizes, which go together only as the source has them
            return
        _require_mean_over(workload, *found, pairs=places is not spread)


def _crossed(output: Any, targets: Tensor) -> str | None:
    """What is wrong with outputs and targets that broadcasting spreads over one another: (b, 1) and (b,) to (b, b)."""
    if not isinstance(output, Tensor) or output.shape == targets.shape:
        return None
    try:
        both = torch.broadcast_shapes(output.shape, targets.shape)
    except RuntimeError:
        return None
    if both in (output.shape, targets.shape):
        return None
    shapes = f"outputs {tuple(output.shape)} and targets {tuple(targets.shape)}"
    return f"{shapes} are broadcast to {tuple(both)}, each output beside every target; give both one shape"


def _picked(workload: Workload, places: Sequence[int]) -> tuple[Inputs, Tensor] | None:
    parts = [workload.fetch(i, i + 1) for i in places]
    try:
        return joined([x for x, _ in parts]), torch.cat([y for _, y in parts])
    except RuntimeError:
        return None


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Put samples after one another."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}  # type: ignore[index]


def _part(inputs: Inputs, rows: slice) -> Inputs:
    return inputs[rows] if isinstance(inputs, Tensor) else {name: tensor[rows] for name, tensor in inputs.items()}


def _rows(output: Any, n: int, rows: slice) -> Any:
    """The part of an output that belongs to some of its n samples; ``None`` where it does not come apart by samples."""
    leaves, spec = tree_flatten(output)
    if not all(isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == n for leaf in leaves):
        return None
    return tree_unflatten([leaf[rows] for leaf in leaves], spec)


def _require_mean_over(workload: Workload, inputs: Inputs, targets: Tensor, *, pairs: bool = False) -> None:
    n = len(targets) // 2 * 2
    with torch.no_grad():
        output = workload.forward(_part(inputs, slice(0, n)))
        if pairs and _rows(output, n, slice(0, n)) is not None:
            for i in range(0, n, 2):
                _compare(
                    workload,
                    [_rows(output, n, slice(*r)) for r in ((i, i + 2), (i, i + 1), (i + 1, i + 2))],
                    [targets[i : i + 2], targets[i : i + 1], targets[i + 1 : i + 2]],
                )
            return
        halves = [workload.forward(_part(inputs, r)) for r in (slice(0, n // 2), slice(n // 2, n))]
    _compare(workload, [output, *halves], [targets[:n], targets[: n // 2], targets[n // 2 : n]])


def _compare(workload: Workload, outputs: Sequence[Any], targets: Sequence[Tensor]) -> None:
    """Hold the loss of samples to the mean over their two halves."""
    with torch.no_grad():
        whole, *halves = (float(workload.loss_fn(o, t).detach()) for o, t in zip(outputs, targets, strict=True))
    mean = sum(halves) / 2
    tolerance = {torch.float64: 1e-7, torch.float32: 1e-3}.get(workload.dtype, 3e-2)
    if not math.isfinite(whole) or abs(whole - mean) <= tolerance * (max(abs(whole), abs(mean)) + 1e-3):
        return  # NaN is the gradient pass's to report, which sees every sample
    if all(isinstance(o, Tensor) for o in outputs) and not torch.allclose(
        outputs[0], torch.cat(list(outputs[1:])), rtol=1e-3, atol=1e-5
    ):
        cause = "a sample changes another's output (statistics across the batch)"
    elif crossed := _crossed(outputs[0], targets[0]):
        cause = crossed
    elif abs(whole - 2 * mean) <= tolerance * (abs(whole) + 1e-3):
        cause = "it is a sum: pass the same loss with reduction='mean', or torch's own with reduction='sum'"
    else:
        cause = (
            "it weighs samples by what else is in the batch (class weights, samples with more or fewer labels): pass "
            "torch.nn.CrossEntropyLoss or NLLLoss, whose weights are known, or a plain mean of weighted terms"
        )
    n = len(targets[0])
    apart = "each alone" if n == 2 else "their halves"
    raise UnsupportedModelError(
        f"the loss of {n} samples is {whole:.6g}, but the mean over {apart} is {mean:.6g}: it must be a mean over "
        f"independent samples, and {cause}"
    )
