"""Input that can be measured but says little, and outputs that a loss takes for something else."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrascope.errors import DataError
from spectrascope.losses import BinaryCrossEntropy, aligned, ignored_by, loss_label, weighing_of
from spectrascope.workload import Workload

__all__ = ["look_for_degenerate"]

_SAMPLES = 32


def look_for_degenerate(workload: Workload) -> tuple[str, ...]:
    """Look at samples spread over the batch, and at all class labels.

    Returns:
        What the reader of the report must know: inputs, outputs or labels that are all the same, a sigmoid before a
        softmax, and outputs that are no log-probabilities for a loss that takes them for such.

    Raises:
        DataError: the outputs are probabilities, and the loss takes scores.
    """
    n = workload.source.n
    places = list(dict.fromkeys(round(i * (n - 1) / (_SAMPLES - 1)) for i in range(_SAMPLES)))
    first: tuple[list[Tensor], Tensor] | None = None
    same_inputs = same_outputs = n > 1
    probable, unbounded = True, False
    weighing = weighing_of(workload.loss_fn)
    for place in places:  # two at a time: a language model's scores of all of them would not fit
        inputs, targets = workload.fetch(max(0, min(place, n - 2)), min(max(place, 0) + 2, n))
        with torch.set_grad_enabled(first is None):
            scores = workload.forward(inputs)
        if not isinstance(scores, Tensor):
            return _one_class(workload)
        tensors = [inputs] if isinstance(inputs, Tensor) else [inputs[name] for name in sorted(inputs)]
        if first is None:
            sigmoid, first = _is_sigmoid(scores), (tensors, scores.detach())
        same_inputs &= all(map(_same, first[0], tensors))
        same_outputs &= _same(first[1], scores)
        rows, targets = aligned(scores, targets, workload.loss_fn)
        probable &= _sums_to_one(rows, targets)
        unbounded |= weighing is not None and weighing.logs and not _sums_to_one(rows.detach().exp(), targets)
        if not (same_inputs or same_outputs or probable):
            break
    _require_scores(workload.loss_fn, probable, sigmoid)
    notes = []
    if same_inputs:
        notes.append("all samples looked at have the same inputs: what is measured is one sample's")
    elif same_outputs:
        notes.append("the network's outputs are the same for all samples looked at, whatever the inputs")
    if sigmoid and weighing is not None and not weighing.logs:
        notes.append(
            f"the network's last operation is a sigmoid, and {loss_label(workload.loss_fn)} takes the softmax of what "
            "it gives: scores within [0, 1] cannot say a class for sure; if it was not trained so, leave it out"
        )
    if unbounded:
        notes.append(
            f"{loss_label(workload.loss_fn)} takes log-probabilities, and the network's outputs are none (their "
            "exponentials do not sum to 1): a loss that falls without bound is measured; torch.nn.CrossEntropyLoss() "
            "takes scores"
        )
    return (*notes, *_one_class(workload))


def _same(first: Tensor, samples: Tensor) -> bool:
    """Whether all samples are the first one."""
    one = first[:1]
    return one.shape[1:] == samples.shape[1:] and torch.equal(one.expand_as(samples), samples)


def _one_class(workload: Workload) -> tuple[str, ...]:
    if workload.n_classes is None or workload.source.n < 2:
        return ()
    found: set[int] = set()
    for _, labels in workload.source.all_targets():
        if labels.dim() > 1:
            return ()
        found.update(labels.tolist())
        if len(found - {ignored_by(workload.loss_fn)}) > 1:
            return ()
    label = min(found - {ignored_by(workload.loss_fn)}, default=None)
    return () if label is None else (f"all samples have one label, {label}: the loss falls where all say only that",)


def _require_scores(loss_fn: Any, probable: bool, sigmoid: bool) -> None:
    """Refuse outputs whose rows are probabilities, or that come out of a sigmoid, where the loss makes its own of them.

    Raises:
        DataError: names the loss that takes probabilities.
    """
    weighing = weighing_of(loss_fn)
    escape = "; if it was trained so, pass the same loss as a function of your own"
    if weighing is not None and probable:
        does = "expects their logarithms" if weighing.logs else "takes their softmax again"
        raise DataError(
            f"the network's outputs are probabilities already (rows within [0, 1] that sum to 1), and "
            f"{loss_label(loss_fn)} {does}: pass lambda p, y: torch.nn.functional.nll_loss(p.log(), y), or a network "
            "without its last softmax" + escape
        )
    if sigmoid and _takes_logits(loss_fn):
        raise DataError(
            f"the network's outputs are probabilities already (its last operation is a sigmoid), and "
            f"{loss_label(loss_fn)} takes their sigmoid again: pass torch.nn.BCELoss(), or a network without its last "
            "sigmoid" + escape
        )


def _sums_to_one(scores: Tensor, targets: Tensor) -> bool:
    axis = -1 if scores.shape[:-1] == targets.shape else 1
    p = scores.detach()
    if p.dim() < 2 or p.shape[axis] < 2:
        return False
    sums = p.sum(axis)
    return bool((p >= 0).all() and ((sums - 1).abs() <= 1e-3).all())


def _takes_logits(loss_fn: Any) -> bool:
    loss_fn = loss_fn.func if isinstance(loss_fn, functools.partial) else loss_fn
    kinds = (BinaryCrossEntropy, nn.BCEWithLogitsLoss)
    return isinstance(loss_fn, kinds) or loss_fn is functional.binary_cross_entropy_with_logits


def _is_sigmoid(scores: Tensor) -> bool:
    """Whether the last operation that changed a number was a sigmoid."""
    node: Any = scores.grad_fn
    while node is not None and type(node).__name__.startswith(("View", "Unsafe", "Squeeze", "Unsqueeze", "Reshape")):
        node = node.next_functions[0][0]
    return type(node).__name__ == "SigmoidBackward0"
