"""What a Hugging Face folder says about the text its network reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from spectrascope.loading.loaded import TextInput
from spectrascope.loading.quiet import brief, quietly

__all__ = ["text_input"]

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
    "spm.model", "merges.txt", "tokenizer_config.json",
)  # fmt: skip
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
# Their position embeddings begin after the padding token's number, so that many of them are never used.
_OFFSET = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "longformer", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip


def text_input(folder: Path, config: Any, *, trust_remote_code: bool, headers_only: bool) -> TextInput:
    """Vocabulary, longest sequence and tokenizer of a language model.

    A tokenizer that cannot be read is said to be so; the network can still be measured on tokens.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary, longest = int(getattr(text, "vocab_size", 0) or 0), _longest(text)
    pad = _token(getattr(text, "pad_token_id", None))
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return TextInput(vocabulary, longest, f"none in {folder}", pad_id=pad)
    if headers_only:
        return TextInput(vocabulary, longest, f"in {folder}, not read", pad_id=pad)
    try:
        with quietly():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
            name = type(tokenizer).__name__
            encode = _encoder(tokenizer)
            if not isinstance(encode("a"), list):
                raise TypeError("no token ids")
    except Exception as error:  # damaged files, a tokenizer library that is not installed, code that may not run
        return TextInput(vocabulary, longest, f"unreadable in {folder} ({brief(error, 80)})", pad_id=pad)
    own_pad = _token(tokenizer.pad_token_id)
    mask = _token(getattr(tokenizer, "mask_token_id", None))
    unknown, pad = _token(getattr(tokenizer, "unk_token_id", None)), pad if own_pad is None else own_pad
    return TextInput(vocabulary, longest, f"{name} in {folder}", encode, mask, pad, unknown)


def _encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        with quietly():  # else it warns about texts longer than the network takes, which are cut into blocks later
            return [int(token) for token in tokenizer.encode(text, add_special_tokens=False, truncation=False)]

    return encode


def _longest(config: Any) -> int | None:
    for name in _LENGTHS:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            if getattr(config, "model_type", "") in _OFFSET:
                value -= (_token(getattr(config, "pad_token_id", None)) or 0) + 1
            return max(value, 1)
    return None


def _token(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
