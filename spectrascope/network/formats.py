"""A network moved to a device and a floating-point format."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spectrascope.network.effective import copy_of
from spectrascope.numerics.lifted import is_below, wide

__all__ = ["apart_from_weights", "in_format"]


def in_format(model: nn.Module, device: torch.device, dtype: torch.dtype, *, all_buffers: bool = False) -> nn.Module:
    """The network with its numbers in ``dtype``: itself where they are, else a copy.

    In a format narrower than float32, buffers of modules without weights keep float32: rotary frequencies and position
    tables are made to be read in it, and 8 bits would move them by whole radians at later positions. Those of
    normalisations follow their weights. ``all_buffers`` narrows everything, for a network that does not run otherwise.
    """
    narrow = is_below(dtype, torch.float32) and not all_buffers
    apart = {id(b): wide(dtype) for _, _, b in apart_from_weights(model)} if narrow else {}
    numbers = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    there = all(t.device == device for t in (*model.parameters(), *model.buffers()))
    if there and all(t.dtype == apart.get(id(t), dtype) for t in numbers):
        return model
    copied = copy_of(model)
    kept = [(at, name, b.to(device, wide(dtype))) for at, name, b in apart_from_weights(copied)] if narrow else []
    copied.to(device, dtype)
    for at, name, buffer in kept:
        at._buffers[name] = buffer
    return copied


def apart_from_weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Floating-point buffers of modules that hold no weight of their own."""
    for module in model.modules():
        if any(p is not None for p in module._parameters.values()):
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                yield module, name, buffer
