"""Cotangents in columns, what a recorded operation keeps, and the shape of a rule.

Cotangents carry a leading column axis: ``(c, *value.shape)``. A :class:`Columns` may also carry a per-channel
factor that has not been multiplied in yet: eval-mode BatchNorm only scales channels, ReLU commutes with that,
and the convolution before it absorbs the factor into its filters, so the scaling costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["BackwardRule", "Columns", "Grads", "Saved", "copy_target", "only"]


@dataclass(slots=True)
class Columns:
    """Cotangents of one value: ``tensor`` (c, *shape), times ``scale`` (channels) along the value's axis 1.

    ``owned`` says nobody else holds the tensor, so it may be added into.
    """

    tensor: Tensor
    scale: Tensor | None = None
    owned: bool = True

    def plain(self) -> Tensor:
        """The cotangents with the scale multiplied in."""
        if self.scale is None:
            return self.tensor
        shape = [1] * self.tensor.dim()
        shape[2] = -1
        return self.tensor * self.scale.view(shape)

    def plus(self, other: Columns) -> Columns:
        """Sum of two contributions to the same value."""
        if self.scale is None and other.scale is None:
            if self.owned:
                return Columns(self.tensor.add_(other.tensor))
            if other.owned:
                return Columns(other.tensor.add_(self.tensor))
        return Columns(self.plain() + other.plain())


class Saved:
    """What a node keeps for the backward sweep; activations in it survive later in-place writes by copying."""

    __slots__ = ("items",)

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items

    def activations(self) -> Iterator[Tensor]:
        """Tensors that an in-place operation of the network could overwrite."""
        for item in self.items:
            if isinstance(item, Tensor):
                yield item
            elif isinstance(item, (tuple, list)):
                yield from (i for i in item if isinstance(i, Tensor))

    def copy(self) -> None:
        """Clone every activation kept."""

        def fresh(item: Any) -> Any:
            if isinstance(item, Tensor):
                return item.clone()
            return type(item)(fresh(i) for i in item) if isinstance(item, (tuple, list)) else item

        self.items = tuple(fresh(item) for item in self.items)


Grads = Sequence["Columns | None"]


@dataclass(frozen=True, slots=True)
class BackwardRule:
    """How one operation behaves.

    ``save(args, kwargs, out, before, positions)`` picks what the sweep needs; ``positions`` are the tensor
    arguments that depend on the weights. ``vjp(saved, grads, positions)`` maps cotangents of the outputs to
    cotangents of those arguments. ``refuse`` returns a reason when this call is not piecewise linear after all.
    """

    save: Callable[[tuple[Any, ...], dict[str, Any], Any, Any, tuple[int, ...]], tuple[Any, ...]]
    vjp: Callable[[Saved, Grads, tuple[int, ...]], list[Columns | None]]
    joint: bool = True
    before: Callable[[tuple[Any, ...]], Any] = lambda args: None
    refuse: Callable[[tuple[Any, ...], dict[str, Any], list[int]], str | None] = lambda a, k, p: None


def only(grads: Grads) -> Columns:
    """The cotangents of an operation's first output."""
    grad = grads[0]
    assert grad is not None
    return grad


def copy_target(args: tuple[Any, ...]) -> Any:
    """Keep what an in-place operation is about to overwrite."""
    return args[0].clone()
