"""Count floating-point operations as they are made."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["FlopCount"]


class FlopCount(TorchDispatchMode):
    """Adds up the floating-point operations of products and convolutions made inside, of every entry and exit.

    Unlike torch's own counter it can be read while it runs, costs next to nothing, and adds no hooks.

    >>> import torch
    >>> count = FlopCount()
    >>> with count:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> count.total
    48
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=found))
        return found
