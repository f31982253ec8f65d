"""How text becomes the numbers a network reads, with its own tokenizer or without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectrascope.errors import DataError
from spectrascope.loading.data.sampling import shown
from spectrascope.loading.data.source import DataRequest
from spectrascope.loading.loaded import TextInput

__all__ = [
    "Tokeniser",
    "block_length",
    "byte_tokeniser",
    "own_tokeniser",
    "require_in_vocabulary",
    "require_known",
    "text_input",
]

_USUAL_BLOCK = 128


@dataclass(frozen=True)
class Tokeniser:
    """Bytes of text to token numbers, and how in words.

    ``encode`` raises ``UnicodeDecodeError`` where the bytes are not text.
    """

    encode: Callable[[bytes], NDArray[np.int64]]
    description: str


def text_input(request: DataRequest, name: str) -> TextInput:
    """What the network says about the text it reads.

    Raises:
        DataError: it reads none.
    """
    text = request.loaded.text
    if text is None:
        raise DataError(
            f"{name} is text, but {request.network} reads images or plain numbers; expected a language model or a "
            f"text classifier, or another --dataset"
        )
    return text


def block_length(request: DataRequest, text: TextInput) -> int:
    """Tokens per sample: as asked, else 128 or what the network takes.

    Raises:
        DataError: fewer than 2, or more than the network takes.
    """
    asked = request.block_size
    if asked is None:
        asked = min(text.max_length or _USUAL_BLOCK, _USUAL_BLOCK)
    if asked < 2:
        raise DataError(f"--block-size {asked}: expected at least 2 tokens")
    if text.max_length is not None and asked > text.max_length:
        raise DataError(
            f"--block-size {asked}: {request.network} takes at most {text.max_length} tokens; give that or less"
        )
    return asked


def own_tokeniser(text: TextInput) -> Tokeniser | None:
    """The tokenizer that came with the network, ``None`` where none did."""
    encode = text.encode
    if encode is None:
        return None

    def run(content: bytes) -> NDArray[np.int64]:
        string = content.decode("utf-8-sig")
        try:
            return np.array(encode(string), dtype=np.int64)
        except Exception as error:  # tokenizers are other people's code
            detail = shown(" ".join(str(error).split())[:100])
            raise DataError(f"the tokenizer {text.tokenizer} failed on the text ({detail}); use another one") from None

    return Tokeniser(run, f"tokens of {text.tokenizer}")


def byte_tokeniser(text: TextInput) -> Tokeniser | None:
    """Bytes as tokens 0 … 255, ``None`` where the vocabulary is smaller."""
    if text.vocab_size < 256:
        return None
    return Tokeniser(
        lambda content: np.frombuffer(content, dtype=np.uint8).astype(np.int64),
        f"bytes as tokens 0 … 255, a guess (tokenizer: {text.tokenizer})",
    )


def require_in_vocabulary(tokens: NDArray[np.int64], text: TextInput, name: str, network: str) -> None:
    """Refuse tokens the network has no embedding for; a vocabulary of unknown size (0) is not checked.

    Raises:
        DataError: there are some.
    """
    if not tokens.size or not text.vocab_size:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= text.vocab_size:
        raise DataError(
            f"{name}: token {low if low < 0 else high} does not fit {network} with its vocabulary of "
            f"{text.vocab_size}; expected 0 … {text.vocab_size - 1}, from the tokenizer the network was trained with"
        )


_MOST_UNKNOWN = 0.5


def require_known(tokens: NDArray[np.int32], text: TextInput, name: str, network: str) -> None:
    """Refuse a text of which most tokens are the one for unknown words: it is another network's tokenizer.

    Raises:
        DataError: says how many there are.
    """
    if text.unknown_id is None or not tokens.size:
        return
    count = int((tokens == text.unknown_id).sum())
    if count > _MOST_UNKNOWN * tokens.size:
        raise DataError(
            f"{name}: {count:,} of {tokens.size:,} tokens are unknown to the tokenizer ({text.tokenizer}), which does "
            f"not fit the text, or {network} with its vocabulary of {text.vocab_size}; expected the tokenizer it was "
            "trained with"
        )
