"""Random inputs and targets, for trying a network out; the report says that they are noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrascope.errors import DataError
from spectrascope.loading.data.sampling import Batch, describe
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.data.text import Masking, masking
from spectrascope.loading.data.tokens import block_length
from spectrascope.loading.loaded import TextInput
from spectrascope.records.values import ALL_SAMPLES, LossName, Missing
from spectrascope.workload import SampleSource

__all__ = ["SYNTHETIC"]

_NAME = "synthetic (random noise)"
_ON_DEMAND = Missing("noise is drawn on demand")


def _synthetic(spec: str, request: DataRequest) -> LoadedData:
    """Noise of the kind the network reads: images or tokens, with targets of the kind its loss takes.

    Raises:
        DataError: the network does not say how large its inputs or outputs are.
    """
    if request.num_samples >= ALL_SAMPLES:
        raise DataError("synthetic has no end, so there is no all of it: give a number, as --num-samples 2048")
    if request.balanced:
        raise DataError("balanced: random labels are balanced on average already; leave --balanced out")
    request.require_no_image_options("synthetic", "is noise of the network's own scale", but="--image-size")
    text = request.loaded.text
    if text is not None and request.models_language:
        return _language(request, text)
    inputs, preprocessing = _images(request) if text is None else _tokens(request, text)
    targets, order = _targets(request)
    return describe(
        request,
        _NAME,
        Batch(_Noise(request.num_samples, inputs, targets), _ON_DEMAND, preprocessing),
        n_classes=request.loaded.num_classes or Missing("the network does not say"),
        label_order=order,
        synthetic=True,
    )


Draw = Callable[[int], NDArray[np.generic]]
"""Sample number -> its values, the same every time."""


@dataclass(frozen=True)
class _Noise(SampleSource):
    """Values drawn per sample, so that any range can be drawn on demand."""

    size: int
    inputs: Draw
    targets: Draw

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.size

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Draw samples ``start … stop−1``."""
        numbers = range(start, min(stop, self.size))
        inputs = np.stack([self.inputs(i) for i in numbers])
        targets = np.stack([self.targets(i) for i in numbers])
        return torch.from_numpy(inputs), torch.from_numpy(targets)


def _images(request: DataRequest) -> tuple[Draw, str]:
    shape, seed = request.preprocessing.input_shape, request.seed
    if shape is None:
        raise DataError(f"synthetic: {request.network} does not say which image size it takes; give --image-size")

    def draw(i: int) -> NDArray[np.generic]:
        return np.random.default_rng([seed, 0, i]).standard_normal(shape, dtype=np.float32)

    return draw, "independent standard normal values, not images"


def _tokens(request: DataRequest, text: TextInput) -> tuple[Draw, str]:
    length, seed = block_length(request, text), request.seed
    if text.vocab_size < 1:
        raise DataError(f"synthetic: {request.network} does not say how large its vocabulary is; pass text:FILE")

    def draw(i: int) -> NDArray[np.generic]:
        return np.random.default_rng([seed, 0, i]).integers(0, text.vocab_size, length)

    return draw, f"{length} independent tokens, uniform over the vocabulary of {text.vocab_size}, not text"


def _targets(request: DataRequest) -> tuple[Draw, str]:
    count, seed, loss = request.loaded.num_classes, request.seed, request.usual_loss
    if count is None:
        raise DataError(f"synthetic: {request.network} does not say how many classes it has; give --num-classes")
    if loss is LossName.BCE:
        return (
            lambda i: np.random.default_rng([seed, 2, i]).integers(0, 2, count).astype(np.float32),
            "random 0/1 targets, independent of the inputs",
        )
    if loss is LossName.MSE:
        return (
            lambda i: np.random.default_rng([seed, 2, i]).standard_normal(count, dtype=np.float32),
            "random standard normal targets, independent of the inputs",
        )
    labels = np.random.default_rng([seed, 1]).integers(0, count, request.num_samples)
    return lambda i: labels[i], "random labels, independent of the inputs"


def _language(request: DataRequest, text: TextInput) -> LoadedData:
    if request.usual_loss not in (LossName.CAUSAL_LM, LossName.MASKED_LM):
        raise DataError(
            f"synthetic: {request.network} is a language model, whose outputs loss {request.usual_loss.value} does not "
            f"take; expected --loss auto"
        )
    draw, preprocessing = _tokens(request, text)
    mask = None
    order = "targets are the next token"
    if request.usual_loss is LossName.MASKED_LM:
        # Among random tokens one is as good as another for hiding the rest, so a missing tokenizer does not matter.
        usable = text.mask_id is not None and text.mask_id < text.vocab_size
        mask = masking(request, text if usable else replace(text, mask_id=0), block_length(request, text))
        order = f"targets are the {mask.count} masked tokens of each sample"
        order += "" if usable else ", hidden by token 0 (no mask token is known)"
    return describe(
        request,
        _NAME,
        Batch(_LanguageNoise(request.num_samples, draw, mask), _ON_DEMAND, preprocessing),
        n_classes=Missing("a language model's classes are its vocabulary"),
        label_order=order,
        synthetic=True,
    )


@dataclass(frozen=True)
class _LanguageNoise(SampleSource):
    """Random tokens that are their own targets, some of them hidden for a masked model."""

    size: int
    draw: Draw
    mask: Masking | None

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.size

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Draw samples ``start … stop−1``."""
        numbers = tuple(range(start, min(stop, self.size)))
        tokens = torch.from_numpy(np.stack([self.draw(i) for i in numbers]))
        return (tokens, tokens) if self.mask is None else self.mask.apply(tokens, numbers)


SYNTHETIC = DataSource(("synthetic",), _synthetic)
