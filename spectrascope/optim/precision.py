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
    before = [getattr(holder, name) for holder, name, _ in holders]
    try:
        for holder, name, full in holders:
            setattr(holder, name, full)
        yield
    finally:
        for (holder, name, _), value in zip(holders, before, strict=True):
            setattr(holder, name, value)


def is_full_float32() -> bool:
    """Whether float32 products are computed in float32 now."""
    return all(getattr(holder, name) == full for holder, name, full in _precision_switches())


def _precision_switches() -> list[tuple[Any, str, Any]]:
    """(holder, attribute, value for full precision); torch 2.9 renamed them and forbids mixing old and new."""
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    places = [backends.cuda.matmul]
    for parent in (backends.cudnn, backends.mkldnn):
        places += [getattr(parent, op) for op in ("conv", "rnn", "matmul") if hasattr(parent, op)]
    return [(place, "fp32_precision", "ieee") for place in places if hasattr(place, "fp32_precision")]
