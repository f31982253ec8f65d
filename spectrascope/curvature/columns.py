"""Cotangents in columns, and the shape of the rule that pulls them back through an operation.

Cotangents carry a leading column axis: ``(c, *value.shape)``. A :class:`Columns` may also carry a per-channel
factor that has not been multiplied in yet: eval-mode BatchNorm only scales channels, ReLU commutes with that,
and the convolution before it absorbs the factor into its filters, so the scaling costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["BackwardRule", "Columns", "Grads", "Saved", "only"]


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
        return (self.tensor * self.scale.view(shape)).to(self.tensor.dtype)

    def plus(self, other: Columns) -> Columns:
        """Sum of two contributions to the same value."""
        if self.scale is None and other.scale is None:
            if self.owned:
                return Columns(self.tensor.add_(other.tensor))
            if other.owned:
                return Columns(other.tensor.add_(self.tensor))
        return Columns(self.plain() + other.plain())


Grads = Sequence["Columns | None"]


Saved = tuple[Any, ...]
"""What a rule keeps of a call. The recorder copies tensors in it before the network overwrites them."""


@dataclass(frozen=True, slots=True)
class BackwardRule:
    """How cotangents go back through one operation that ``claims.py`` claims to be straight, or a product.

    ``save(args, kwargs, outs, positions)`` picks what the sweep needs; ``positions`` are the tensor arguments that
    depend on the weights. ``vjp(saved, grads, positions)`` maps cotangents of the outputs to cotangents of those
    arguments. ``reads_target``: where the operation is in place, ``args[0]`` is a copy of what it overwrote, else what
    it wrote. ``refuse`` returns a reason when the rule does not cover this call.
    """

    save: Callable[[tuple[Any, ...], dict[str, Any], tuple[Tensor, ...], tuple[int, ...]], Saved]
    vjp: Callable[[Saved, Grads, tuple[int, ...]], list[Columns | None]]
    reads_target: bool = False
    refuse: Callable[[tuple[Any, ...], dict[str, Any], tuple[int, ...]], str | None] = lambda a, k, p: None


def only(grads: Grads) -> Columns:
    """The cotangents of an operation's first output."""
    grad = grads[0]
    assert grad is not None
    return grad
