"""Count floating-point operations as they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

__all__ = ["FlopCount"]


class FlopCount(TorchDispatchMode):
    """Adds up the floating-point operations of products and convolutions made inside, of every entry and exit.

    Unlike torch's own counter it can be read while it runs, costs next to nothing, and adds no hooks.

    Args:
        more: operations that torch does not know, and how to count them from shapes.

    >>> import torch
    >>> count = FlopCount()
    >>> with count:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> count.total
    48
    """

    def __init__(self, more: Mapping[Any, Callable[..., int]] | None = None) -> None:
        super().__init__()
        self.total = 0
        self._more = {packet: shape_wrapper(formula) for packet, formula in (more or {}).items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        found = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        formula = self._more.get(packet) or flop_registry.get(packet)
        if formula is not None:
            flops = int(formula(*args, **(kwargs or {}), out_val=found))
            self.total += flops
            self.note(packet, args, flops)
        return found

    def note(self, packet: Any, args: tuple[Any, ...], flops: int) -> None:
        """Take note of an operation that was counted."""
