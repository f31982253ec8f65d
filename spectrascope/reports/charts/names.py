"""Layer names where there is little room, and without what could harm a drawing."""

from __future__ import annotations

from collections.abc import Sequence

from spectrascope.text import printable

__all__ = ["short_name", "short_names"]


def short_name(name: str, width: int) -> str:
    """A parameter's name without ``.weight``, its middle left out beyond ``width`` characters.

    >>> short_name("layer1.0.conv1.weight", 20)
    'layer1.0.conv1'
    >>> short_name("transformer.h.11.attn.c_attn.weight[q]", 20)
    'transfo…tn.c_attn[q]'
    """
    text = _without_weight(name)
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return text[: width - 1 - tail] + "…" + text[len(text) - tail :]


def _without_weight(name: str) -> str:
    return printable(name).replace(".weight", "", 1) if name.count(".weight") == 1 else printable(name)


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Names without the dotted parts that all of them begin and end with, each within ``width`` characters.

    Of what is still too long, words are cut to their first letters, from the left: numbers and the last word tell
    layers apart.

    >>> short_names(["net.h.0.proj.weight", "net.h.1.proj.weight", "net.h.1.up.weight"], 20)
    ['0.proj', '1.proj', '1.up']
    >>> short_names(["blocks.0.attn.c_attn.weight[q]", "blocks.2.attn.c_attn.weight[q]", "lm_head.weight"], 20)
    ['b.0.attn.c_attn[q]', 'b.2.attn.c_attn[q]', 'lm_head']
    >>> short_names(["fc.weight"], 20)
    ['fc']
    """
    parts = [name.split(".") for name in names]
    if len(set(names)) < 2:
        return [short_name(name, width) for name in names]
    shortest = min(len(part) for part in parts)
    start = _n_common(parts, shortest - 1)
    end = _n_common([part[::-1] for part in parts], shortest - 1 - start)
    return [_initials(".".join(part[start : len(part) - end]), width) for part in parts]


def _initials(name: str, width: int) -> str:
    parts = _without_weight(name).split(".")
    for place, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        if not part.isdigit():
            parts[place] = part[:1]
    return short_name(".".join(parts), width)


def _n_common(parts: Sequence[Sequence[str]], most: int) -> int:
    n = 0
    while n < most and len({part[n] for part in parts}) == 1:
        n += 1
    return n
