"""What loading a model yields: the network and what is known about its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.records.report import ModelInfo
from spectrascope.workload import Workload

__all__ = ["LoadedModel", "TextInput"]


@dataclass(frozen=True, slots=True)
class TextInput:
    """How text becomes the tokens a language model reads.

    ``encode`` turns text into token ids without special tokens, ``None`` where the model came without a
    tokenizer; ``tokenizer`` says in words which one it is. ``max_length`` is the longest sequence the network
    takes, ``None`` where it does not say. ``mask_id`` is the token that hides another in a masked language model,
    ``pad_id`` the one that fills up short sequences, ``unknown_id`` the one for words the tokenizer lacks.
    """

    vocab_size: int
    max_length: int | None
    tokenizer: str
    encode: Callable[[str], list[int]] | None = None
    mask_id: int | None = None
    pad_id: int | None = None
    unknown_id: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode and float32 on the CPU, with what is known about it.

    ``info.task`` says what it is for. ``class_names`` says what the outputs stand for, in order;
    ``num_classes`` how many there are, ``None`` for a user's factory that does not say and for language models;
    ``default_dataset`` is measured where none is named. ``text`` is set for networks that read tokens.
    ``workload`` is set where a user's factory returned the loss and the data along with the network. ``notes`` are
    what the reader should know besides.

    Where only headers were read (``inspect``), the network's parameters are on the meta device.
    """

    model: nn.Module
    info: ModelInfo
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    default_dataset: str | None
    num_classes: int | None
    text: TextInput | None = None
    workload: Workload | None = None
    notes: tuple[str, ...] = ()

    @property
    def owned(self) -> bool:
        """Whether nobody else can hold the network: a user's factory or plug-in may keep what it returns."""
        return self.info.source in ("built-in", "checkpoint", "torchvision", "timm", "huggingface")
