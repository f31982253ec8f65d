"""Precision that a network or a loss chooses itself: seen, and lifted to the one that was asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CastsSeen", "Lifted", "format_of", "is_below", "wide"]

_BY_NAME = {
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.float: torch.float32,
    Tensor.chalf: torch.complex32,
    Tensor.cfloat: torch.complex64,  # type: ignore[attr-defined]
}


def is_below(dtype: torch.dtype, asked: torch.dtype) -> bool:
    """Whether a floating or complex format has fewer digits than another.

    >>> is_below(torch.bfloat16, torch.float32), is_below(torch.half, torch.half), is_below(torch.int8, torch.float16)
    (True, False, False)
    """
    return _has_digits(dtype) and torch.finfo(dtype).eps > torch.finfo(asked).eps


def wide(dtype: torch.dtype) -> torch.dtype:
    """The format of losses, statistics and sums of numbers in ``dtype``: float32 at least.

    >>> wide(torch.bfloat16), wide(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float32 if is_below(dtype, torch.float32) else dtype


def format_of(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The format of a network's tensor where its floating-point numbers are in ``dtype``.

    Complex numbers stay complex, of the same digits or of float32's; ``Module.to`` would drop their imaginary parts.
    Whole numbers stay as they are.
    """
    if tensor.is_complex():
        return wide(dtype).to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype


def _has_digits(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


class CastsSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, note in ``dtypes`` the formats below ``asked`` of results that are made from numbers not below it.

    What begins in a lower format, such as a constant of the default one, loses nothing on the way.
    """

    def __init__(self, asked: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked = asked
        self.dtypes: set[torch.dtype] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping means importing the compiler (seconds)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        below = {dtype for dtype in _formats(out) if is_below(dtype, self.asked)}
        if below and any(not is_below(dtype, self.asked) for dtype in _formats((args, kwargs))):
            self.dtypes |= below
        return out

    @property
    def names(self) -> list[str]:
        """The formats in words."""
        return sorted(str(dtype).removeprefix("torch.") for dtype in self.dtypes)


def _formats(values: Any) -> set[torch.dtype]:
    return {item.dtype for item in tree_leaves(values) if isinstance(item, Tensor) and _has_digits(item.dtype)}


class Lifted(TorchFunctionMode):
    """While active, whatever asks for fewer digits than a format has (``x.half()``, ``x.to(torch.float32)``) gets it.

    Tensors made without naming a format are of it too.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._usual: list[torch.dtype] = []

    def __enter__(self) -> Lifted:
        self._usual.append(torch.get_default_dtype())
        torch.set_default_dtype(self._dtype)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._usual.pop())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_below(_BY_NAME.get(func, self._dtype), self._dtype):
            return args[0].to(self._lift(_BY_NAME[func]))
        return func(*map(self._lift, args), **{name: self._lift(value) for name, value in kwargs.items()})

    def _lift(self, value: Any) -> Any:
        if not isinstance(value, torch.dtype) or not is_below(value, self._dtype):
            return value
        return self._dtype.to_complex() if value.is_complex else self._dtype
