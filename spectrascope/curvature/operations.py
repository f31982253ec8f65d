"""What both tapes need to know of a dispatched operation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "are_disjoint",
    "describe",
    "functional",
    "is_custom",
    "same_elements",
    "storage_of",
    "tensors_of",
    "with_tensors",
]


@functools.cache
def describe(func: Any) -> tuple[str, bool]:
    """Operation name without overload (``aten.add_``) and whether it writes to an argument."""
    return str(func._schema.name).replace("::", ".", 1), bool(func._schema.is_mutable)


def same_elements(tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> bool:
    """Whether ``as_strided_`` only rewrites the strides of axes of length one (convolutions do, on 1 × 1 maps)."""
    same = all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), stride, strict=True))
    return tuple(tensor.shape) == tuple(size) and same and offset in (None, tensor.storage_offset())


def is_custom(tensor: Tensor) -> bool:
    """Whether a Python ``autograd.Function`` made the tensor."""
    return isinstance(tensor.grad_fn, torch.autograd.function.BackwardCFunction)


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensor arguments in order, one level of list deep (``cat``, ``stack``, ``index``)."""
    found: list[Tensor] = []
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(a for a in arg if isinstance(a, Tensor))
    return found


def storage_of(tensor: Tensor) -> int:
    """Which memory a tensor lies in: equal for its views."""
    return int(tensor.untyped_storage()._cdata)


def are_disjoint(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage surely share no element; ``False`` where that is not plain.

    >>> rows = torch.zeros(3, 8)
    >>> are_disjoint(rows[:, :4], rows[:, 4:]), are_disjoint(rows[:, :4], rows[:, 3:7])
    (True, False)
    """
    first, second = (a, b) if a.storage_offset() <= b.storage_offset() else (b, a)
    gap = second.storage_offset() - first.storage_offset()
    if gap > sum((n - 1) * s for n, s in zip(first.shape, first.stride(), strict=True)):
        return True
    if a.shape != b.shape or a.stride() != b.stride():
        return False
    for n, step in zip(a.shape, a.stride(), strict=True):
        larger = min((s for s in a.stride() if s > step), default=None)
        if step and gap % step == 0 and gap // step >= n and (larger is None or (gap // step + n) * step <= larger):
            return True
    return False


def with_tensors(args: tuple[Any, ...], kwargs: dict[str, Any], new: dict[int, Any]) -> tuple[Any, Any]:
    """Arguments with the tensors at some positions replaced; positions as :func:`tensors_of` counts them."""
    # A function of its own, not one that calls itself from here: such a cycle would keep the tensors until the
    # next search for garbage.
    at = itertools.count()
    return tuple(_replaced(a, new, at) for a in args), {key: _replaced(value, new, at) for key, value in kwargs.items()}


def _replaced(item: Any, new: dict[int, Any], at: Iterator[int]) -> Any:
    if isinstance(item, Tensor):
        return new.get(next(at), item)
    if isinstance(item, (list, tuple)) and any(isinstance(i, Tensor) for i in item):
        return type(item)(_replaced(i, new, at) for i in item)
    return item


def functional(name: str) -> Any:
    """The operation of that name (``aten.relu_``), out of place."""
    namespace, _, local = name.partition(".")
    packets = getattr(torch.ops, namespace)
    bare = local.removesuffix("_")
    return getattr(packets, bare if hasattr(packets, bare) else local)
