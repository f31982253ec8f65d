"""How the rows of a fused query–key–value weight are stacked, for the attention classes whose code is known.

Two layouts are common: three blocks one after the other, or q, k, v side by side for each head. Nothing in the
weight tells them apart, so the class of the attention module decides; one that is not listed here is left whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["Blocks", "fused_blocks"]

Blocks = Mapping[str, tuple[slice, ...]]
"""Name of each block (``q``, ``k``, ``v``) to the runs of rows it holds, in order."""

_LETTERS = ("q", "k", "v")


def fused_blocks(attention: nn.Module, local: str, rows: int, columns: int) -> Blocks | None:
    """Blocks of the fused weight ``local`` of an attention module.

    Args:
        attention: the module that holds the linear layer.
        local: the linear layer's name in it, such as ``c_attn`` or ``qkv``.
        rows: outputs of the linear layer.
        columns: its inputs.

    Returns:
        The blocks, which cover all rows exactly once; ``None`` where the layout is not known.
    """
    cls = type(attention)
    package = cls.__module__.partition(".")[0]
    find = _BY_CLASS.get((package, cls.__name__, local)) or _BY_CLASS.get(("", cls.__name__, local))
    if find is None and local in ("qkv", "to_qkv") and package in ("transformers", "timm", "torchvision"):
        # All three write this attribute as three equal blocks, with these exceptions.
        find = None if _EXCEPTIONS.search(f"{cls.__module__}.{cls.__name__}") else _thirds
    if find is None:
        return None
    try:
        sizes = find(attention, rows, columns)
    except (AttributeError, TypeError, ZeroDivisionError):
        return None
    return _cover(sizes, rows)


_EXCEPTIONS = re.compile(
    r"exaone|timm\.models\.(efficientformer|tiny_vit|gcvit|csatv2)\.|timm\.models\.maxxvit\.AttentionCl$"
)

Runs = Iterable[tuple[str, int]]
"""Letter and number of rows of each run, from the first row on."""


def _cover(runs: Runs, rows: int) -> Blocks | None:
    blocks: dict[str, tuple[slice, ...]] = {}
    at = 0
    for letter, size in runs:
        if size <= 0:
            return None
        blocks[letter] = (*blocks.get(letter, ()), slice(at, at + size))
        at += size
    return {letter: blocks[letter] for letter in sorted(blocks, key=_LETTERS.index)} if at == rows else None


def _thirds(_: Any, rows: int, __: int) -> Runs:
    return [(letter, rows // 3) for letter in _LETTERS]


def _thirds_or_key_value(_: Any, rows: int, columns: int) -> Runs:
    """Cross-attention takes its query elsewhere and fuses only k and v."""
    letters = _LETTERS if rows != 2 * columns else _LETTERS[1:]
    return [(letter, rows // len(letters)) for letter in letters]


def _per_head(attention: Any, rows: int, _: int) -> Runs:
    heads = _heads(attention)
    return [(letter, rows // (3 * heads)) for _ in range(heads) for letter in _LETTERS]


def _heads(attention: Any) -> int:
    found = _count_named(attention, "num_attention_heads", "num_heads", "n_heads", "n_head")
    if found is None:
        raise AttributeError("the attention module does not say how many heads it has")
    return found


def _grouped(attention: Any, rows: int, _: int) -> Runs:
    """All query heads, then the fewer key heads, then the value heads."""
    heads, shared = _heads(attention), _shared_heads(attention)
    width = rows // (heads + 2 * shared)
    return [("q", heads * width), ("k", shared * width), ("v", shared * width)]


def _shared_heads(attention: Any) -> int:
    found = _count_named(attention, "num_key_value_heads", "num_kv_heads", "kv_heads", "n_kv_heads")
    return _heads(attention) if found is None else found


def _count_named(attention: Any, *names: str) -> int | None:
    """The first whole number that the module, or its config, has under one of these names."""
    for name in names:
        for holder in (attention, getattr(attention, "config", None)):
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return None


def _bigcode(attention: Any, rows: int, columns: int) -> Runs:
    if attention.is_cross_attention:
        return [("k", rows // 2), ("v", rows // 2)]
    if attention.multi_query:
        return [("q", attention.embed_dim), ("k", attention.kv_dim), ("v", attention.kv_dim)]
    return _per_head(attention, rows, columns)


def _falcon(attention: Any, rows: int, columns: int) -> Runs:
    width = attention.head_dim
    if attention.new_decoder_architecture:
        groups = attention.num_kv_heads
        queries = attention.num_heads // groups
        return [run for _ in range(groups) for run in (("q", queries * width), ("k", width), ("v", width))]
    if attention.multi_query:
        return [("q", attention.num_heads * width), ("k", width), ("v", width)]
    return _per_head(attention, rows, columns)


def _codegen(_: Any, rows: int, __: int) -> Runs:
    """Four parts, as it was trained on four devices, each holding q, v, k in this order."""
    return [(letter, rows // 12) for _ in range(4) for letter in ("q", "v", "k")]


_BY_CLASS: dict[tuple[str, str, str], Callable[[Any, int, int], Runs]] = {
    # Of any package: minGPT, nanoGPT, llm.c and their many copies.
    ("", "CausalSelfAttention", "c_attn"): _thirds,
    ("transformers", "GPT2Attention", "c_attn"): _thirds_or_key_value,
    ("transformers", "DecisionTransformerGPT2Attention", "c_attn"): _thirds_or_key_value,
    ("transformers", "ImageGPTAttention", "c_attn"): _thirds_or_key_value,
    ("transformers", "Attention", "c_attn"): _thirds,
    ("transformers", "GPTBigCodeAttention", "c_attn"): _bigcode,
    ("transformers", "GPTNeoXAttention", "query_key_value"): _per_head,
    ("transformers", "GPTNeoXJapaneseAttention", "query_key_value"): _per_head,
    ("transformers", "BloomAttention", "query_key_value"): _per_head,
    ("transformers", "PersimmonAttention", "query_key_value"): _per_head,
    ("transformers", "FalconAttention", "query_key_value"): _falcon,
    ("transformers", "FalconFlashAttention2", "query_key_value"): _falcon,
    ("transformers", "MptAttention", "Wqkv"): _thirds,
    ("transformers", "ModernBertAttention", "Wqkv"): _thirds,
    ("transformers", "DbrxAttention", "Wqkv"): _grouped,
    ("transformers", "Phi3Attention", "qkv_proj"): _grouped,
    ("transformers", "Phi4MultimodalAttention", "qkv_proj"): _grouped,
    ("transformers", "CodeGenAttention", "qkv_proj"): _codegen,
    ("transformers", "MiniMaxLightningAttention", "qkv_proj"): _per_head,
    ("transformers", "DisentangledSelfAttention", "in_proj"): _per_head,
    ("transformers", "BarkSelfAttention", "att_proj"): _thirds,
    ("transformers", "LayoutLMv2SelfAttention", "qkv_linear"): _thirds,
    ("torchvision", "RelativePositionalMultiHeadAttention", "to_qkv"): _thirds,
}
