"""A network moved to a device and a floating-point format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.network.effective import copy_of
from spectrascope.numerics.lifted import format_of, is_below, wide

__all__ = ["apart_from_weights", "in_format", "is_spread", "replace_tensors"]


def is_spread(model: nn.Module) -> bool:
    """Whether the weights lie on more than one device."""
    return len({p.device for p in model.parameters()}) > 1


def in_format(
    model: nn.Module,
    device: torch.device | None,
    dtype: torch.dtype,
    *,
    all_buffers: bool = False,
    in_place: bool = False,
) -> nn.Module:
    """The network with its numbers in ``dtype``: itself where they are or ``in_place``, else a copy.

    On ``device``, or each weight where it lies for ``None``. Neither holds more than the network, what it becomes where
    that is another, and one weight: weights are moved one after the other, and a copy never holds them as they were.

    In a format narrower than float32, buffers of modules without weights keep float32: rotary frequencies and position
    tables are made to be read in it, and 8 bits would move them by whole radians at later positions. Those of
    normalisations follow their weights. ``all_buffers`` narrows everything, for a network that does not run otherwise.
    """
    narrow = is_below(dtype, torch.float32) and not all_buffers
    apart = {id(b): wide(dtype) for _, _, b in apart_from_weights(model)} if narrow else {}
    numbers = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() or t.is_complex()]
    there = device is None or all(t.device == device for t in (*model.parameters(), *model.buffers()))
    if there and all(t.dtype == format_of(t, apart.get(id(t), dtype)) for t in numbers):
        return model
    moved = model if in_place else copy_of(model, _moved_weights(model, device, dtype))
    kept = [(at, name, b.to(device, wide(dtype))) for at, name, b in apart_from_weights(moved)] if narrow else []
    moved._apply(lambda t: t.to(device, format_of(t, dtype)))
    for at, name, buffer in kept:
        at._buffers[name] = buffer
    return moved


def _moved_weights(model: nn.Module, device: torch.device | None, dtype: torch.dtype) -> dict[int, nn.Parameter]:
    """What plain parameters become, by the id of each; those that stay as they are left to be copied."""
    return {
        id(p): nn.Parameter(p.detach().to(device, dtype), requires_grad=p.requires_grad)
        for p in model.parameters()
        if type(p) is nn.Parameter and p.is_floating_point() and (p.device, p.dtype) != (device or p.device, dtype)
    }


def replace_tensors(model: nn.Module, by_id: dict[int, Tensor]) -> None:
    """Put other numbers in place of parameters and buffers, by the id of each; what is tied stays so."""
    new: dict[int, Tensor] = {}
    for module in model.modules():
        own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in own:
            for name, old in held.items():
                if id(old) in by_id and id(old) not in new:
                    there = by_id[id(old)]
                    new[id(old)] = nn.Parameter(there, old.requires_grad) if isinstance(old, nn.Parameter) else there
                held[name] = new.get(id(old), old)


def apart_from_weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Floating-point buffers of modules that hold no weight of their own."""
    for module in model.modules():
        if any(p is not None for p in module._parameters.values()):
            continue
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                yield module, name, buffer
