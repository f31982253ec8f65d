"""Text: contiguous blocks of tokens for language models, and texts with a class each for sequence classifiers."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectrascope.errors import DataError
from spectrascope.loading.data.sampling import Batch, choose, choose_readable, describe, shown
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.data.tokens import (
    Tokeniser,
    block_length,
    byte_tokeniser,
    own_tokeniser,
    require_in_vocabulary,
    require_known,
    text_input,
)
from spectrascope.loading.loaded import TextInput
from spectrascope.losses import IGNORED
from spectrascope.records.values import LossName, Missing, Task
from spectrascope.workload import SampleSource

__all__ = [
    "MAX_BYTES",
    "TEXT",
    "Masking",
    "Texts",
    "file_texts",
    "masking",
    "read_texts",
    "text_blocks",
]

_PIECE = 2**20  # bytes that are tokenised at once: a list of Python's integers takes ten times their tokens

_LARGEST = 2**20  # bytes of one text with a class that are looked at; no classifier reads as much

# More text than any measurement reads, and tokens of all of it are held in memory.
MAX_BYTES = 64 * 2**20

_MASKED_SHARE = 0.15


def _text_file(spec: str, request: DataRequest) -> LoadedData:
    """``text:FILE``: blocks of the tokens of one file.

    Raises:
        DataError: no such file, not text, too short, or a network that does not read text this way.
    """
    path = Path(spec.partition(":")[2]).expanduser()
    name = f"text:{shown(path)}"
    request.require_no_image_options(name, "is text")
    text_input(request, name)
    if not path.is_file():
        raise DataError(f"{name}: no such file; expected a plain text file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # as much as is read is set aside, however little there is
            content = file.read(min(size, MAX_BYTES) + 1)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); expected a plain text file") from None
    notes: tuple[str, ...] = ()
    if len(content) > MAX_BYTES:
        content = content[: _whole_characters(content[:MAX_BYTES])]
        notes = (f"only the first {MAX_BYTES // 2**20} MiB of {shown(path)} were used",)
    return text_blocks(name, content, request, notes)


def text_blocks(name: str, content: bytes, request: DataRequest, notes: tuple[str, ...] = ()) -> LoadedData:
    """Cut text into blocks without overlap, and choose among them.

    Raises:
        DataError: bytes that are not text, too few of them, or a network that does not read text this way.
    """
    text = text_input(request, name)
    loss = _require_language_loss(name, request)
    length = block_length(request, text)
    mask = masking(request, text, length) if loss is LossName.MASKED_LM else None
    tokens, how = _tokens(name, content, text, request)
    n_blocks = len(tokens) // length
    if n_blocks == 0:
        raise DataError(
            f"{name}: {len(tokens)} tokens are less than one block of {length}; expected a longer text, or give a "
            f"smaller --block-size"
        )
    chosen = choose(request, n_blocks, None)
    blocks = torch.from_numpy(tokens[: n_blocks * length].reshape(n_blocks, length))
    targets = "the next token" if mask is None else f"the {mask.count} masked tokens of each block"
    how = f"{how}; blocks of {length} without overlap, no special tokens added"
    batch = Batch(_Blocks(blocks, tuple(chosen.indices), mask), n_blocks, how, chosen.notes)
    return describe(
        request,
        name,
        batch,
        n_classes=Missing("a language model's classes are its vocabulary"),
        label_order=f"targets are {targets}, numbered as tokens",
        notes=notes,
    )


def _require_language_loss(name: str, request: DataRequest) -> LossName:
    if request.loaded.info.task is Task.SEQUENCE_CLASSIFICATION:
        raise DataError(
            f"{name} has no classes, but {request.network} classifies texts; expected folder:PATH with one "
            f"sub-folder of .txt files per class"
        )
    loss = request.usual_loss
    if loss not in (LossName.CAUSAL_LM, LossName.MASKED_LM):
        raise DataError(
            f"{name} has tokens as targets, which loss {loss.value} does not take; expected --loss causal-lm or "
            f"masked-lm (a language model's usual one is chosen by auto)"
        )
    return loss


def _whole_characters(content: bytes) -> int:
    """Length of the bytes up to the last whole UTF-8 character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(content[-8:])
    return len(content) - len(decoder.getstate()[0])


def _tokens(name: str, content: bytes, text: TextInput, request: DataRequest) -> tuple[NDArray[np.int32], str]:
    """Tokenise piece by piece, so that beside the text only its tokens are held, four bytes each."""
    tokeniser = own_tokeniser(text) or byte_tokeniser(text)
    pieces = _pieces(content)
    begin = 0
    try:
        if tokeniser is None:
            alphabet: set[str] = set()
            for begin, end in pieces:
                alphabet.update(content[begin:end].decode("utf-8-sig"))
            tokeniser = _characters(name, sorted(alphabet), text, request)
        parts = []
        for begin, end in pieces:
            tokens = tokeniser.encode(content[begin:end])
            require_in_vocabulary(tokens, text, name, request.network)
            parts.append(tokens.astype(np.int32))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: not UTF-8 text (byte {begin + error.start} is 0x{error.object[error.start]:02x}); expected a "
            f"plain text file, convert it to UTF-8"
        ) from None
    how = (
        f"{tokeniser.description}, {len(pieces)} pieces cut at line ends" if len(pieces) > 1 else tokeniser.description
    )
    whole = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    require_known(whole, text, name, request.network)
    return whole, how


def _pieces(content: bytes) -> list[tuple[int, int]]:
    """Where to cut text into pieces: after the last line end of each, else between two characters."""
    pieces, begin = [], 0
    while begin < len(content):
        end = min(begin + _PIECE, len(content))
        if end < len(content):
            line_end = content.rfind(b"\n", begin, end) + 1
            end = line_end if line_end > begin else begin + _whole_characters(content[begin:end])
        pieces.append((begin, end))
        begin = end
    return pieces


def _characters(name: str, alphabet: list[str], text: TextInput, request: DataRequest) -> Tokeniser:
    """Number the text's own characters in sorted order, as character-level models usually do."""
    if not text.vocab_size:
        raise DataError(
            f"{name}: {request.network} came without a tokenizer ({text.tokenizer}) and does not say how large its "
            f"vocabulary is; put the tokenizer's files beside its weights, or pass tokens as npz:PATH"
        )
    if len(alphabet) > text.vocab_size:
        raise DataError(
            f"{name}: {len(alphabet)} different characters, but {request.network} has a vocabulary of "
            f"{text.vocab_size} and came without a tokenizer ({text.tokenizer}); put the tokenizer's files beside its "
            f"weights, or pass tokens as npz:PATH"
        )
    code_points = np.array([ord(c) for c in alphabet], dtype=np.uint32)

    def encode(content: bytes) -> NDArray[np.int64]:
        points = np.frombuffer(content.decode("utf-8-sig").encode("utf-32-le"), dtype="<u4")
        return np.searchsorted(code_points, points).astype(np.int64)

    how = f"the text's {len(alphabet)} characters numbered in sorted order, a guess (tokenizer: {text.tokenizer})"
    return Tokeniser(encode, how)


@dataclass(frozen=True)
class Masking:
    """Which positions of a block are hidden from a masked language model: ``count`` of them, fixed by the seed."""

    token: int
    count: int
    seed: int

    def positions(self, block: int, length: int) -> NDArray[np.int64]:
        """The hidden positions of a block, by its number."""
        rng = np.random.default_rng([self.seed, 3, block])
        return np.sort(rng.permutation(length)[: self.count])

    def apply(self, tokens: Tensor, blocks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Inputs with hidden tokens replaced, and targets that are −100 everywhere else."""
        inputs, targets = tokens.clone(), torch.full_like(tokens, IGNORED)
        for row, block in enumerate(blocks):
            hidden = torch.from_numpy(self.positions(block, tokens.shape[1]))
            targets[row, hidden] = tokens[row, hidden]
            inputs[row, hidden] = self.token
        return inputs, targets


def masking(request: DataRequest, text: TextInput, length: int) -> Masking:
    """Hide 15 % of each block, at least one token.

    Raises:
        DataError: the network does not say which token hides another.
    """
    if text.mask_id is None or (text.vocab_size and text.mask_id >= text.vocab_size):
        raise DataError(
            f"{request.network} is a masked language model, but names no mask token within its vocabulary "
            f"(tokenizer: {text.tokenizer}); put the tokenizer's files beside its weights, or pass masked inputs and "
            f"targets as npz:PATH"
        )
    return Masking(text.mask_id, max(1, round(_MASKED_SHARE * length)), request.seed)


@dataclass(frozen=True)
class _Blocks(SampleSource):
    """Chosen blocks of tokens; a causal model's targets are the tokens themselves, shifted by its loss."""

    blocks: Tensor
    indices: tuple[int, ...]
    mask: Masking | None

    @property
    def n(self) -> int:
        """Number of blocks chosen."""
        return len(self.indices)

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets of blocks ``start … stop−1``."""
        chosen = self.indices[start:stop]
        tokens = self.blocks[list(chosen)].to(torch.int64)
        return (tokens, tokens) if self.mask is None else self.mask.apply(tokens, chosen)


@dataclass(frozen=True)
class Texts:
    """``n`` texts by number, wherever they are: what each is called in messages, and how its UTF-8 is read."""

    n: int
    name: Callable[[int], str]
    read: Callable[[int], bytes]


def file_texts(paths: Sequence[Path]) -> Texts:
    """Texts in files, of very long ones the beginning."""

    def read(index: int) -> bytes:
        with paths[index].open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:  # whole characters only
            content = content[:_LARGEST].decode("utf-8", errors="ignore").encode()
        return content

    return Texts(len(paths), lambda i: str(paths[i]), read)


def read_texts(request: DataRequest, texts: Texts, labels: NDArray[np.int64], what: str) -> Batch:
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

    chosen = choose_readable(request, texts.n, labels, read, texts.name, what)
    if chosen.indices:
        require_known(np.concatenate([rows[index] for index in chosen.indices]), text, what, request.network)
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
    return Batch(
        source,
        texts.n,
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


TEXT = DataSource(("text:FILE",), _text_file)
