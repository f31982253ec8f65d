"""Texts with a class each, for sequence classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrascope.errors import DataError
from spectrascope.loading.data.sampling import DataRequest, choose_readable
from spectrascope.loading.data.tokens import (
    Tokeniser,
    block_length,
    byte_tokeniser,
    own_tokeniser,
    require_in_vocabulary,
    text_input,
)
from spectrascope.loading.loaded import TextInput
from spectrascope.workload import SampleSource

__all__ = ["FileTexts", "TextBatch", "Texts", "read_texts"]

_LARGEST = 2**20  # bytes of one text that are looked at; no classifier reads as much


class Texts(Protocol):
    """Texts by number, wherever they are."""

    def __len__(self) -> int:
        """How many there are."""

    def name(self, index: int) -> str:
        """What one is called in messages."""

    def read(self, index: int) -> bytes:
        """One text in UTF-8."""


@dataclass(frozen=True)
class FileTexts:
    """Texts in files."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        """Read the file, the beginning of a very long one."""
        with self.paths[index].open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:  # whole characters only
            content = content[:_LARGEST].decode("utf-8", errors="ignore").encode()
        return content


@dataclass(frozen=True)
class TextBatch:
    """The texts chosen, how they were tokenised, and notes on those left out."""

    source: SampleSource
    preprocessing: str
    notes: tuple[str, ...]


def read_texts(request: DataRequest, texts: Texts, labels: NDArray[np.int64], what: str) -> TextBatch:
    """Choose texts and tokenise every one of them, cut or padded to one length.

    Raises:
        DataError: texts that cannot be read, or a network that says too little about the text it reads.
    """
    text = text_input(request, what)
    length = block_length(request, text)
    tokeniser = _tokeniser(request, text)
    rows: dict[int, NDArray[np.int32]] = {}

    def read(indices: list[int]) -> list[int]:
        failed = []
        for index in indices:
            try:
                tokens = tokeniser.encode(texts.read(index))[:length]
            except (OSError, ValueError):  # among them bytes that are not UTF-8
                tokens = np.empty(0, dtype=np.int64)
            require_in_vocabulary(tokens, text, texts.name(index), request.network)
            if tokens.size:
                rows[index] = tokens.astype(np.int32)
            else:  # an empty text has nothing a network could look at
                failed.append(index)
        return failed

    chosen = choose_readable(request, len(texts), labels, read, texts.name, what)
    lengths = {len(rows[index]) for index in chosen.indices}
    padding = text.pad_id is not None and (text.pad_id < text.vocab_size or not text.vocab_size)
    if not padding and lengths != {length}:
        raise DataError(
            f"{what} differ in length and {request.network} names no padding token within its vocabulary "
            f"(tokenizer: {text.tokenizer}); expected pad_token_id in its config, "
            f"or texts of at least --block-size {length} tokens"
        )
    padded = np.full((len(chosen.indices), length), text.pad_id or 0, dtype=np.int32)
    sizes = np.empty(len(chosen.indices), dtype=np.int64)
    for row, index in enumerate(chosen.indices):
        sizes[row] = len(rows[index])
        padded[row, : sizes[row]] = rows[index]
    targets = torch.from_numpy(labels[np.array(chosen.indices)].astype(np.int64))
    source = _Padded(torch.from_numpy(padded), torch.from_numpy(sizes), targets)
    return TextBatch(
        source,
        f"{tokeniser.description}; cut or padded to {length} tokens, no special tokens added",
        chosen.notes,
    )


def _tokeniser(request: DataRequest, text: TextInput) -> Tokeniser:
    tokeniser = own_tokeniser(text) or byte_tokeniser(text)
    if tokeniser is None:
        raise DataError(
            f"{request.network} came without a tokenizer ({text.tokenizer}) and its vocabulary of {text.vocab_size} is "
            f"too small for bytes; put the tokenizer's files beside its weights, or pass tokens as npz:PATH"
        )
    return tokeniser


@dataclass(frozen=True)
class _Padded(SampleSource):
    """Token rows of one length, padding hidden by the attention mask."""

    tokens: Tensor
    sizes: Tensor
    targets: Tensor

    @property
    def n(self) -> int:
        """Number of texts."""
        return len(self.targets)

    def fetch(self, start: int, stop: int) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens, attention mask and classes of texts ``start … stop−1``."""
        tokens = self.tokens[start:stop].to(torch.int64)
        mask = (torch.arange(tokens.shape[1]) < self.sizes[start:stop, None]).to(torch.int64)
        return {"input_ids": tokens, "attention_mask": mask}, self.targets[start:stop]
