"""A workload: a model, a fixed set of samples and a loss, on one device and dtype.

The samples are fetched by index range, twice per measurement, so a source must return the same tensors every
time; nothing here shuffles or augments.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.errors import DataError

__all__ = ["LossFunction", "SampleSource", "TensorSource", "Workload", "source_from_batches"]

LossFunction = Callable[[Any, Tensor], Tensor]
"""(model output, targets) -> scalar, the MEAN over the loss terms (samples) it is given."""


class SampleSource(ABC):
    """Samples by index, on the CPU: a fixed, ordered, finite batch that need not fit in memory at once."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of samples."""

    @abstractmethod
    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return samples ``start … stop−1``: inputs (b, …) in floating point and targets (b, …).

        The same range must give the same tensors every time.
        """

    def digest(self, chunk: int = 256) -> str:
        """Sha256 over inputs and targets in order, as hex."""
        sha = hashlib.sha256()
        for start in range(0, self.n, chunk):
            for tensor in self.fetch(start, min(start + chunk, self.n)):
                sha.update(str((tensor.dtype, tuple(tensor.shape[1:]))).encode())
                sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class TensorSource(SampleSource):
    """Samples held in two tensors of equal length."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise DataError(f"inputs and targets differ in length: {len(self.inputs)} and {len(self.targets)}")

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.inputs)

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return views of the two tensors."""
        return self.inputs[start:stop], self.targets[start:stop]


@dataclass(frozen=True)
class Workload:
    """What is measured. ``loss_fn`` is a mean over samples; the model is in whatever mode its owner left it.

    ``n_classes`` is the number of class scores the model gives, where labels must lie below it.
    """

    model: nn.Module
    source: SampleSource
    loss_fn: LossFunction
    device: torch.device
    dtype: torch.dtype
    n_classes: int | None = None

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Samples ``start … stop−1`` on the workload's device, floating-point inputs in its dtype.

        Raises:
            DataError: a label is outside the model's classes.
        """
        inputs, targets = self.source.fetch(start, stop)
        if self.n_classes is not None and len(targets):
            low, high = int(targets.min()), int(targets.max())
            # −100 is PyTorch's mark for "no label here"
            if high >= self.n_classes or (low < 0 and low != -100):
                wrong = high if high >= self.n_classes else low
                raise DataError(
                    f"label {wrong} does not fit a model with {self.n_classes} outputs (0 … {self.n_classes - 1}): "
                    "the dataset and the model have different classes"
                )
        inputs = inputs.to(self.device, self.dtype if inputs.is_floating_point() else None, non_blocking=True)
        targets = targets.to(self.device, self.dtype if targets.is_floating_point() else None, non_blocking=True)
        return inputs, targets

    def batches(self, size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (start, inputs, targets) over all samples in order."""
        for start in range(0, self.source.n, size):
            inputs, targets = self.fetch(start, min(start + size, self.source.n))
            yield start, inputs, targets


def source_from_batches(batches: object, num_samples: int | None = None) -> SampleSource:
    """Make a fixed source from whatever holds a user's data.

    Args:
        batches: a ``SampleSource``, an ``(inputs, targets)`` pair of tensors, or an iterable (a ``DataLoader``)
            of such pairs. An iterable is read once, in its own order, and kept in memory.
        num_samples: stop after this many samples; all of them when ``None``.

    Raises:
        DataError: nothing was found, or the items are not pairs of tensors.
    """
    if isinstance(batches, SampleSource):
        return batches
    if isinstance(batches, (tuple, list)) and len(batches) == 2 and all(isinstance(t, Tensor) for t in batches):
        pairs: Iterable[Any] = [batches]
    elif isinstance(batches, Iterable):
        pairs = batches
    else:
        raise DataError(
            f"batches: expected tensors (inputs, targets) or an iterable of them, got {type(batches).__name__}"
        )
    inputs, targets, n = [], [], 0
    for pair in pairs:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)):
            raise DataError(
                f"batches: each item must be a pair of tensors (inputs, targets), got {type(pair).__name__}"
            )
        x, y = pair
        if num_samples is not None:
            x, y = x[: num_samples - n], y[: num_samples - n]
        inputs.append(x.detach().cpu())
        targets.append(y.detach().cpu())
        n += len(x)
        if num_samples is not None and n >= num_samples:
            break
    if n == 0:
        raise DataError("batches: no samples found; pass at least one (inputs, targets) pair")
    return TensorSource(torch.cat(inputs), torch.cat(targets))
