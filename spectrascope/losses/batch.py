"""Losses that weigh their terms, as means over samples: what they divide by is known from the whole batch.

torch divides by the weights of the labels it is handed, so that losses of micro-batches do not average to that of the
batch, Σ w_t ℓ_t / Σ w_t over the loss terms t (samples, or labelled tokens). Divided by the *whole* batch's mean weight
per sample instead, every sample has a loss of its own whose plain mean is the loss that the user passed; all engines,
held-out slopes and sample groups measure that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrascope.errors import DataError
from spectrascope.losses.named import IGNORED, CausalLM, CrossEntropy, Loss, MaskedLM

__all__ = [
    "BatchLoss",
    "Weighing",
    "aligned",
    "curvature_weights",
    "ignored_by",
    "loss_label",
    "takes_scores",
    "terms_per_sample",
    "weighing_of",
    "with_whole_batch",
]


@dataclass(frozen=True)
class Weighing:
    """How a loss of class numbers weighs its terms.

    ``weight`` (C,) are class weights, ``logs`` whether scores are log-probabilities already.
    """

    weight: Tensor | None = None
    ignore_index: int = IGNORED
    label_smoothing: float = 0.0
    reduction: str = "mean"
    logs: bool = False

    def of_terms(self, labels: Tensor) -> Tensor:
        """Weight of each label (labels' shape), by which the loss divides: 0 where it counts for none."""
        counts = labels != self.ignore_index
        if self.weight is None:
            return counts.double() if labels.device.type != "mps" else counts.float()
        weight = self.weight.detach().to(labels.device)
        return torch.where(counts, weight[torch.where(counts, labels, 0)], 0.0)

    def of_curvature(self, labels: Tensor) -> Tensor:
        """Factor of diag(p) − p pᵀ in each label's second derivative: the weights of all its target's classes."""
        weights = self.of_terms(labels)
        if self.weight is None or not self.label_smoothing:
            return weights
        spread = float(self.weight.detach().double().mean()) * self.label_smoothing
        mixed = weights * (1 - self.label_smoothing) + spread
        return torch.where(labels != self.ignore_index, mixed, 0.0)


def weighing_of(loss_fn: Any) -> Weighing | None:
    """How a loss known here weighs class numbers: softmax cross-entropy and NLL, ours and torch's; ``None`` for others.

    ``functools.partial`` of torch's functions is known too, where it binds nothing but these options.
    """
    if isinstance(loss_fn, BatchLoss):
        return loss_fn.weighing
    if isinstance(loss_fn, (CrossEntropy, CausalLM, MaskedLM)):
        return Weighing(label_smoothing=getattr(loss_fn, "label_smoothing", 0.0))
    for kind in (nn.CrossEntropyLoss, nn.NLLLoss):
        if isinstance(loss_fn, kind) and type(loss_fn).forward is kind.forward:
            smoothing = getattr(loss_fn, "label_smoothing", 0.0)
            return Weighing(loss_fn.weight, loss_fn.ignore_index, smoothing, loss_fn.reduction, kind is nn.NLLLoss)
    function, options = _unbound(loss_fn)
    if function in (functional.cross_entropy, functional.nll_loss):
        known = {"weight", "ignore_index", "label_smoothing", "reduction"}
        return Weighing(**options, logs=function is functional.nll_loss) if options.keys() <= known else None
    return None


def _unbound(loss_fn: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(loss_fn, functools.partial) and not loss_fn.args:
        return loss_fn.func, dict(loss_fn.keywords)
    return loss_fn, {}


def ignored_by(loss_fn: Any) -> int:
    """The label that stands for none."""
    weighing = weighing_of(loss_fn)
    return IGNORED if weighing is None else weighing.ignore_index


@dataclass(frozen=True)
class BatchLoss:
    """A user's loss as a mean over samples, by what it divides by over the whole batch.

    Sample i counts as Σ_t w_t ℓ_t / w̄, t its own terms and w̄ = Σ w / N of the whole batch. A sample group's loss,
    slopes and curvature are the plain mean of that over its samples: groups count by their number of samples, and
    within one a sample counts by its weight. The share of weight that falls to a group is part of what varies from
    group to group, as it is part of what the next batch would change.
    """

    loss: Any
    weighing: Weighing | None
    """``None`` for a sum of torch's that is no loss of class numbers."""
    mean_weight: float
    """w̄: Σ w / N over all N samples."""
    factor: float = 1.0
    """What the mean is multiplied by: Σ w for ``reduction="sum"``."""

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over the samples given, a scalar."""
        return self._total(scores, targets) * (self.factor / (len(targets) * self.mean_weight))

    def _total(self, scores: Tensor, targets: Tensor) -> Tensor:
        w = self.weighing
        if w is None:
            total: Tensor = self.loss(scores, targets)
            return total
        scores, targets = self.labelled(scores, targets)
        if isinstance(self.loss, Loss) and scores.dim() > 2 and scores.shape[:-1] == targets.shape:
            scores, targets = scores.flatten(0, -2), targets.flatten()
        weight = None if w.weight is None else w.weight.to(scores)
        if w.logs:
            return functional.nll_loss(scores, targets, weight, ignore_index=w.ignore_index, reduction="sum")
        return functional.cross_entropy(
            scores, targets, weight, ignore_index=w.ignore_index, label_smoothing=w.label_smoothing, reduction="sum"
        )

    def labelled(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and the labels they are compared with, aligned."""
        return aligned(scores, targets, self.loss)

    @property
    def label(self) -> str:
        """What the report calls it."""
        name = loss_label(self.loss)
        w = self.weighing
        if w is not None and w.weight is not None:
            name += " (class weights)"
        if _is_sum(self.loss):
            return name + " (sum over the batch)"
        return name if w is None or w.weight is not None else name + " (mean over the batch's labels)"


def aligned(scores: Tensor, labels: Tensor, loss_fn: Any) -> tuple[Tensor, Tensor]:
    """Scores and the labels they are compared with, next to each other; views."""
    return loss_fn.labelled(scores, labels) if isinstance(loss_fn, (Loss, BatchLoss)) else (scores, labels)


def curvature_weights(labels: Tensor, loss_fn: Any) -> Tensor:
    """Factor of diag(p) − p pᵀ of each aligned label (labels' shape) in the sum that a cross-entropy divides."""
    weighing = weighing_of(loss_fn)
    assert weighing is not None  # it is softmax cross-entropy
    return weighing.of_curvature(labels) * (loss_fn.factor if isinstance(loss_fn, BatchLoss) else 1.0)


def terms_per_sample(labels: Tensor, loss_fn: Any) -> float:
    """What a cross-entropy divides by for one sample: of the whole batch where samples differ, else of these labels."""
    if isinstance(loss_fn, BatchLoss):
        return loss_fn.mean_weight
    return float(curvature_weights(aligned(labels, labels, loss_fn)[1], loss_fn).sum()) / len(labels)


def _is_sum(loss_fn: Any) -> bool:
    """Whether a loss of torch adds up its terms."""
    function, options = _unbound(loss_fn)
    return takes_scores(function) and options.get("reduction", getattr(function, "reduction", "")) == "sum"


def with_whole_batch(loss_fn: Any, n: int, targets: Callable[[], Iterable[tuple[int, Tensor]]]) -> Any:
    """A loss of torch or of ours as a mean over samples; as it is where it is one already, or is not known.

    Args:
        loss_fn: the user's loss.
        n: samples in the batch.
        targets: reads the targets of all of them, in parts, each with the number of its first sample.

    Raises:
        DataError: no label of the batch counts.
    """
    weighing, total = weighing_of(loss_fn), _is_sum(loss_fn)
    if weighing is None:
        return BatchLoss(loss_fn, None, 1.0, float(n)) if total else loss_fn
    mean, counts = 0.0, set()
    for _, labels in targets():
        if labels.is_floating_point():  # of class probabilities it is a plain mean
            return BatchLoss(loss_fn, None, 1.0, float(n)) if total else loss_fn
        compared = labels[:, 1:] if isinstance(loss_fn, CausalLM) else labels
        by_sample = weighing.of_terms(compared.cpu()).reshape(len(labels), -1)
        counts.update((by_sample.sum(1) if weighing.weight is None else by_sample.new_zeros(1)).tolist())
        mean += float(by_sample.double().sum()) / n
    uneven = len(counts) > 1 or weighing.weight is not None
    if not mean > 0:
        why = "all labels" if weighing.weight is None else "the class weights of all labels"
        what = f"are {weighing.ignore_index}, which the loss ignores" if weighing.weight is None else "are zero"
        raise DataError(f"{why} of the batch {what}: the loss is not defined")
    return BatchLoss(loss_fn, weighing, mean, mean * n if total else 1.0) if uneven or total else loss_fn


def takes_scores(loss_fn: Any) -> bool:
    """Whether a loss wants scores rather than the model's raw output: ours do, and torch's own."""
    function, _ = _unbound(loss_fn)
    return isinstance(function, (Loss, BatchLoss)) or getattr(function, "__module__", "").startswith("torch.nn")


def loss_label(loss_fn: Any) -> str:
    """A loss in words: its name and settings, or the name of the user's function."""
    if isinstance(loss_fn, (Loss, BatchLoss)):
        return loss_fn.label
    function, _ = _unbound(loss_fn)
    return str(getattr(function, "__name__", type(function).__name__))
