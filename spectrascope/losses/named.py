"""The losses a measurement knows by name, each a mean over equally weighted samples.

A named loss takes a network's raw output: a tensor of scores, or a Hugging Face output whose ``logits`` they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrascope.errors import DataError, OptionError
from spectrascope.records.values import LossName, Task

__all__ = [
    "IGNORED",
    "BinaryCrossEntropy",
    "CausalLM",
    "CrossEntropy",
    "Loss",
    "MaskedLM",
    "MeanSquaredError",
    "is_per_sample",
    "make_loss",
    "per_sample_words",
    "problem_loss",
    "require_labels_below",
    "scores_of",
    "task_of",
    "usual_loss",
]

IGNORED = -100
"""PyTorch's mark for "no label here"."""


def scores_of(output: Any, name: str | None = None) -> Tensor:
    """The tensor of scores in a network's output: the one named, ``logits``, or the only tensor there is.

    Args:
        output: a tensor, a dict, an output of Hugging Face, a dataclass, or a tuple, whose items are named by number.
        name: which of several to take; ``None`` where there is no doubt.

    Raises:
        DataError: there is none, several may be meant, or none of that name.
    """
    if isinstance(output, Tensor):
        if name is None:
            return output
        raise DataError(f"scores {name!r}: the model returns one tensor, of shape {tuple(output.shape)}")
    parts = _outputs_of(output)
    if name is None:
        name = "logits" if "logits" in parts else next(iter(parts), "") if len(parts) == 1 else None
    if name is not None and name in parts:
        return parts[name]
    if is_per_sample(output):
        raise DataError(per_sample_words(output))
    if not parts:
        raise DataError(
            f"the model returns {type(output).__name__}; expected a tensor of scores or an output with logits: pass a "
            "loss function of your own that takes it, through the Python API"
        )
    listed = ", ".join(f"{key} {tuple(part.shape)}" for key, part in parts.items())
    asked = "no name says which holds the scores" if name is None else f"none is called {name!r}"
    raise DataError(
        f"the model returns {len(parts)} tensors ({listed}), and {asked}: name it with --scores {next(iter(parts))} "
        "(scores= in Python), or pass a loss function of your own that takes them all"
    )


def _outputs_of(output: Any) -> dict[str, Tensor]:
    """The tensors at the top of an output, by name, or by number in a tuple."""
    items: Any = ()
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, (tuple, list)):
        items = zip(getattr(output, "_fields", range(len(output))), output, strict=True)
    elif hasattr(output, "__dict__") or hasattr(output, "__slots__"):
        names = [f.name for f in fields(output)] if is_dataclass(output) else list(vars(output))
        items = ((key, getattr(output, key)) for key in names)
    return {str(key): value for key, value in items if isinstance(value, Tensor) and value.dim()}


def is_per_sample(output: Any) -> bool:
    """Whether a network answers with a record of each sample: boxes and the like, as detection networks do."""
    return isinstance(output, (list, tuple)) and bool(output) and all(isinstance(item, Mapping) for item in output)


def per_sample_words(output: Any) -> str:
    """What to do about an output of :func:`is_per_sample`."""
    keys = ", ".join(map(str, output[0])) or "nothing"
    return (
        f"in eval mode, in which everything is measured, the model returns {keys} of each sample and no loss "
        "(detection networks give their losses in training mode alone): wrap it in a module that returns its losses "
        "in eval mode too, and pass a loss function that adds them up"
    )


@dataclass(frozen=True)
class Loss(ABC):
    """A mean loss by name."""

    name: ClassVar[LossName]

    def __call__(self, output: Any, targets: Tensor) -> Tensor:
        """Mean loss, a scalar."""
        return self.mean(scores_of(output), targets)

    @abstractmethod
    def mean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of scores, a scalar."""

    def labelled(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and the labels they are compared with, aligned; the same tensors unless the loss shifts them."""
        return scores, targets

    @property
    def label(self) -> str:
        """Name and settings, for the report."""
        return self.name.value


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy: scores (b, C, …) and class numbers (b, …) or class probabilities (b, C, …).

    Scores (b, t, C) with class numbers (b, t), as token classifiers give them, are understood too.
    """

    name: ClassVar[LossName] = LossName.CROSS_ENTROPY
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise OptionError(f"--label-smoothing {self.label_smoothing:g}: expected a number from 0 up to 1")

    def mean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over all labelled positions."""
        if scores.dim() == 3 and targets.shape == scores.shape[:2] and not targets.is_floating_point():
            scores, targets = scores.flatten(0, 1), targets.flatten()
        return functional.cross_entropy(scores, targets, label_smoothing=self.label_smoothing)

    @property
    def label(self) -> str:
        """Name and smoothing."""
        smoothed = f" (label smoothing {self.label_smoothing:g})" if self.label_smoothing else ""
        return self.name.value + smoothed


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Sigmoid cross-entropy of several labels: scores (b, C) and 0/1 targets (b, C), mean over both axes."""

    name: ClassVar[LossName] = LossName.BCE

    def mean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over samples and labels."""
        if scores.dim() == 2 and scores.shape[1] == 1 and targets.dim() == 1:
            targets = targets[:, None]
        return functional.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype))


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """Mean squared error over every entry of the output."""

    name: ClassVar[LossName] = LossName.MSE

    def mean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over all entries."""
        if scores.dim() == 2 and scores.shape[1] == 1 and targets.dim() == 1:
            targets = targets[:, None]  # left alone, (b, 1) against (b,) would be broadcast to (b, b)
        if scores.shape != targets.shape:
            raise ValueError(f"scores {tuple(scores.shape)} and targets {tuple(targets.shape)} differ in shape")
        return functional.mse_loss(scores, targets.to(scores.dtype))


@dataclass(frozen=True)
class CausalLM(Loss):
    """Next-token cross-entropy: scores (b, t, V) and the tokens (b, t) themselves, which are shifted here.

    Positions t = 1 … T−1 predict the next token; labels −100 are left out.
    """

    name: ClassVar[LossName] = LossName.CAUSAL_LM

    def mean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over all labelled tokens."""
        scores, targets = self.labelled(scores, targets)
        return functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def labelled(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of positions 1 … T−1 and the tokens after them."""
        return scores[:, :-1], targets[:, 1:]


@dataclass(frozen=True)
class MaskedLM(Loss):
    """Cross-entropy at masked tokens: scores (b, t, V), targets (b, t) that are −100 where nothing is masked."""

    name: ClassVar[LossName] = LossName.MASKED_LM

    def mean(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean over the masked tokens."""
        return functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


_USUAL = {
    Task.IMAGE_CLASSIFICATION: LossName.CROSS_ENTROPY,
    Task.SEQUENCE_CLASSIFICATION: LossName.CROSS_ENTROPY,
    Task.CAUSAL_LM: LossName.CAUSAL_LM,
    Task.MASKED_LM: LossName.MASKED_LM,
    Task.UNKNOWN: LossName.CROSS_ENTROPY,
}
_LOSSES: dict[LossName, type[Loss]] = {
    kind.name: kind for kind in (CrossEntropy, BinaryCrossEntropy, MeanSquaredError, CausalLM, MaskedLM)
}


def make_loss(name: LossName | str, *, task: Task = Task.UNKNOWN, label_smoothing: float = 0.0) -> Loss:
    """Make a loss by name; ``auto`` is the usual one of ``task``.

    Raises:
        OptionError: no such loss, or label smoothing of a loss that has none.
    """
    try:
        chosen = LossName(name)
    except ValueError:
        names = ", ".join(n.value for n in LossName)
        raise OptionError(f"loss {str(name)!r}: expected one of {names}, or a function of your own") from None
    if chosen is LossName.AUTO:
        chosen = _USUAL[task]
    if chosen is LossName.CROSS_ENTROPY:
        return CrossEntropy(label_smoothing)
    if label_smoothing:
        raise OptionError(f"--label-smoothing goes with cross-entropy, not with {chosen.value}")
    return _LOSSES[chosen]()


def _base(model: nn.Module) -> nn.Module:
    inside = getattr(model, "get_base_model", None)  # PEFT's wrapper may not say in its own name
    found: nn.Module = inside() if callable(inside) else model
    return found


def task_of(model: nn.Module) -> Task:
    """The task a Hugging Face class name states (also of a PEFT wrapper); ``UNKNOWN`` for any other module."""
    name = type(_base(model)).__name__
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return Task.CAUSAL_LM
    if name.endswith("ForMaskedLM"):
        return Task.MASKED_LM
    if name.endswith("ForSequenceClassification"):
        return Task.SEQUENCE_CLASSIFICATION
    return Task.IMAGE_CLASSIFICATION if name.endswith("ForImageClassification") else Task.UNKNOWN


def problem_loss(model: nn.Module, targets: Tensor | None = None) -> LossName:
    """The loss that a Hugging Face classifier takes of its own, by ``problem_type``; ``auto`` where there is none.

    Where the configuration leaves it open the model decides by the number of labels and, where ``targets`` are given,
    by their dtype; so does this.
    """
    if task_of(model) not in (Task.SEQUENCE_CLASSIFICATION, Task.IMAGE_CLASSIFICATION):
        return LossName.AUTO
    config = getattr(_base(model), "config", None)
    kind = getattr(config, "problem_type", None)
    if kind is None and getattr(config, "num_labels", None) == 1:
        kind = "regression"
    elif kind is None and targets is not None and targets.is_floating_point():
        kind = "multi_label_classification"
    known = {"regression": LossName.MSE, "multi_label_classification": LossName.BCE}
    return known.get(kind or "", LossName.AUTO)


def usual_loss(model: nn.Module, targets: Tensor | None = None) -> Loss:
    """The loss measured where none is named: a Hugging Face network's own, cross-entropy for others."""
    return make_loss(problem_loss(model, targets), task=task_of(model))


def require_labels_below(targets: Tensor, n_classes: int, ignored: int | None = IGNORED) -> None:
    """Refuse labels outside 0 … n_classes − 1, ``ignored`` ("no label") aside.

    Raises:
        DataError: the first such label.
    """
    if not targets.numel():
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if high >= n_classes or low < 0:
        labels = targets if ignored is None else targets[targets != ignored]
        if not labels.numel():
            return
        low, high = (int(value) for value in torch.aminmax(labels))
        if low >= 0 and high < n_classes:
            return
        raise DataError(
            f"label {high if high >= n_classes else low} does not fit a model with {n_classes} outputs "
            f"(0 … {n_classes - 1}): {_why_labels_do_not_fit(low, high, n_classes, ignored)}"
        )


def _why_labels_do_not_fit(low: int, high: int, n_classes: int, ignored: int | None) -> str:
    if low == 1 and high == n_classes:
        return "labels are counted from 0; if these are counted from 1, subtract 1"
    if low == -1 and high < n_classes and ignored is not None:
        return f"labels are counted from 0, and what has no label is {ignored}"
    return "the dataset and the model have different classes"
