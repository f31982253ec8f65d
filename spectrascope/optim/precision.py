"""Float32 products that are float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["full_float32", "is_full_float32"]


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """No TF32 or BF16 inside float32 products, whatever the process had set."""
    holders = _precision_switches()
    with float32_precision_kept():
        for holder, name, full in holders:
            setattr(holder, name, full)
        yield


@contextlib.contextmanager
def float32_precision_kept() -> Iterator[None]:
    """Restore at the end what the process had set for float32 products, whoever changed it by which switch."""
    word, wide = _matmul_word(), _wider_switches()
    holders = [*wide, *((holder, name) for holder, name, _ in _precision_switches())]
    before = [getattr(holder, name) for holder, name in holders]
    try:
        yield
    finally:
        if word is not None and _matmul_word() != word:
            torch.set_float32_matmul_precision(word)  # first: it moves some of the others
        for (holder, name), value in zip(holders, before, strict=True):
            if getattr(holder, name) != value or (holder, name) not in wide:  # a wide one moves those inside it
                setattr(holder, name, value)


def is_full_float32() -> bool:
    """Whether float32 products are computed in float32 now."""
    inherited = any(getattr(holder, name) in _LESS for holder, name in _wider_switches())
    values = [(getattr(holder, name), full) for holder, name, full in _precision_switches()]
    return all(value == full or (value == "none" and not inherited) for value, full in values)


_LESS = ("tf32", "bf16")


def _matmul_word() -> str | None:
    """What ``set_float32_matmul_precision`` was given; ``None`` where torch says that other switches contradict it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _wider_switches() -> list[tuple[Any, str]]:
    """Switches of several operations at once, the widest first; none before torch 2.9."""
    backends: Any = torch.backends
    places = (backends, backends.cudnn, backends.mkldnn)
    return [(place, "fp32_precision") for place in places if hasattr(place, "fp32_precision")]


def _precision_switches() -> list[tuple[Any, str, Any]]:
    """(holder, attribute, value for full precision); torch 2.9 renamed them and forbids mixing old and new."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    places = [backends.cuda.matmul]
    for parent in (backends.cudnn, backends.mkldnn):
        places += [getattr(parent, op) for op in ("conv", "rnn", "matmul") if hasattr(parent, op)]
    return [(place, "fp32_precision", "ieee") for place in places if hasattr(place, "fp32_precision")]
