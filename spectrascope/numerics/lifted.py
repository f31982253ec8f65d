"""Precision that a network chooses in its own forward pass: seen, and lifted to the one that was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Lifted", "PrecisionsSeen", "is_half"]


def is_half(dtype: torch.dtype) -> bool:
    """Whether a floating format has fewer digits than float32.

    >>> is_half(torch.bfloat16), is_half(torch.float32), is_half(torch.int8)
    (True, False, False)
    """
    return dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(torch.float32).eps


class PrecisionsSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, note the floating formats of all results, in ``dtypes``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping means importing the compiler (seconds)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor) and item.is_floating_point():
                self.dtypes.add(item.dtype)
        return out


class Lifted(TorchFunctionMode):
    """While active, whatever asks for half precision (``x.half()``, ``x.to(torch.bfloat16)``) gets another format."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.half, Tensor.bfloat16):
            return args[0].to(self._dtype)
        return func(*map(self._lift, args), **{name: self._lift(value) for name, value in kwargs.items()})

    def _lift(self, value: Any) -> Any:
        return self._dtype if isinstance(value, torch.dtype) and is_half(value) else value
