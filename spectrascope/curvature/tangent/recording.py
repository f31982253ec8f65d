"""The tensor operations of one differentiable forward pass: values by number, with gradient edges to read adjoints at.

Recording sits below autograd with autograd on, so the tensors it sees are the ones autograd differentiates: one
ordinary backward pass gives the adjoint of every value, whatever kernels ran and whatever Python chose them.
What autograd treats as constant (``detach``, ``no_grad``) is a constant here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spectrascope.curvature.operations import are_disjoint, describe, is_custom, same_elements, tensors_of

__all__ = ["Node", "Recording", "Value"]


@dataclass(slots=True)
class Value:
    """A tensor that depends on the weights of interest.

    ``dep`` has bit l set where it depends on weight l. ``edge`` is where autograd holds its adjoint, taken just
    before the tensor is overwritten in place, or when first asked for. ``view``: it shares memory with an earlier
    value; ``of_weight``: that is a weight's own.
    """

    number: int
    dep: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: Tensor | None
    edge: Any = None
    view: bool = False
    of_weight: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers, wherever they lie."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def gradient_edge(self) -> Any:
        """Where autograd holds the adjoint; ``None`` for a weight itself, or a value it treats as constant."""
        if self.edge is None and self.tensor is not None and self.tensor.grad_fn is not None:
            self.edge = torch.autograd.graph.get_gradient_edge(self.tensor)
        return self.edge


@dataclass(slots=True)
class Node:
    """One operation, as if it were functional: in-place operations hold a copy of what they overwrote.

    ``inputs`` maps the position of a tensor among the tensor arguments to a value number; ``outputs`` gives a value
    number, or ``None``, per tensor returned.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[Tensor, ...]
    inputs: dict[int, int]
    outputs: tuple[int | None, ...]

    def tensors(self) -> list[Tensor]:
        """The tensor arguments, by position."""
        return tensors_of(self.args, self.kwargs)


@dataclass
class _Aliases:
    """What is held of one storage."""

    values: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


class Recording(TorchDispatchMode):
    """Record while active. Bit l of every mask stands for ``weights[l]``.

    ``unsupported`` maps a bit to the reason why that weight's tangents cannot be followed exactly.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.values: list[Value] = []
        self.unsupported: dict[int, str] = {}
        self._current = WeakIdKeyDictionary()
        self._aliases: dict[int, _Aliases] = {}
        self._stale: set[int] = set()
        self._n_weights = len(weights)
        for index, weight in enumerate(weights):
            self._new_value(weight, 1 << index)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping means importing the compiler (seconds); nothing is compiled while recording.
        return False

    def number_of(self, tensor: Tensor) -> int | None:
        """Value number of a tensor, ``None`` where it does not depend on the weights."""
        return self._lookup(tensor)

    def refuse(self, mask: int, reason: str) -> None:
        """Note that the weights in ``mask`` cannot be followed."""
        for bit in range(mask.bit_length()):
            if mask >> bit & 1:
                self.unsupported.setdefault(bit, reason)

    def release(self) -> None:
        """Let go of every tensor that only recording needed."""
        self._current = WeakIdKeyDictionary()
        self._aliases = {}
        for value in self.values:
            value.tensor = value.edge = None

    # -- recording ----------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, mutates = describe(func)
        if name == "aten.detach":
            return func(*args, **kwargs)
        tensors = tensors_of(args, kwargs)
        inputs = {i: n for i, t in enumerate(tensors) if (n := self._lookup(t)) is not None}
        target = args[0] if mutates and args and isinstance(args[0], Tensor) else None
        if name == "aten.as_strided_" and same_elements(*args[:4]):
            return func(*args, **kwargs)
        kept = args
        if target is not None:
            self._before_overwriting(target)
            if inputs:
                kept = (target.detach().clone(), *args[1:])
                if target._base is not None and target._base.numel() != target.numel():
                    self.refuse(self._mask(inputs), f"{name.removeprefix('aten.')} writes into a view in place")
        out = func(*args, **kwargs)
        if not inputs:
            if target is not None:
                self._current.pop(target, None)  # a constant now
            return out
        self._record(name, func, kept, kwargs, inputs, out, target)
        return out

    def _mask(self, inputs: dict[int, int]) -> int:
        mask = 0
        for number in inputs.values():
            mask |= self.values[number].dep
        return mask

    def _record(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: dict[int, int],
        out: Any,
        target: Tensor | None,
    ) -> None:
        outs = tuple(o for o in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(o, Tensor))
        if not any(o.is_floating_point() or o.is_complex() for o in outs):
            return  # comparisons, argmax, shapes: derivative zero almost everywhere
        mask = self._mask(inputs)
        if any(o.is_complex() for o in outs):
            self.refuse(mask, f"{name.removeprefix('aten.')} gives complex numbers")
        outputs = tuple(self._new_value(o, mask) if o.is_floating_point() else None for o in outs)
        node = Node(name, func, args, kwargs, outs, inputs, outputs)
        self.nodes.append(node)
        overwritten = None if target is None else _storage(target)
        for tensor in (*tensors_of(args, kwargs), *outs):
            if _storage(tensor) != overwritten or tensor is target:
                self._aliases.setdefault(_storage(tensor), _Aliases()).nodes.append(node)

    def _lookup(self, tensor: Tensor) -> int | None:
        number: int | None = self._current.get(tensor)
        if is_custom(tensor):
            # Made by a Python autograd.Function, whose backward need not match the operations seen inside it.
            self.refuse(self._everything(), "a Python autograd.Function is used")
        if number is None:
            return None
        value = self.values[number]
        if not (tensor.requires_grad and tensor.is_floating_point()):
            return None  # cut off by detach or no_grad
        if number in self._stale:
            self.refuse(value.dep, "an alias of an activation is changed in place")
        value.gradient_edge()
        return number

    def _everything(self) -> int:
        mask = 0
        for value in self.values:
            mask |= value.dep
        return mask

    def _new_value(self, tensor: Tensor, dep: int) -> int:
        number = len(self.values)
        storage = _storage(tensor)
        held = self._aliases.get(storage)
        view = held is not None and bool(held.values)
        value = Value(number, dep, tuple(tensor.shape), tensor.dtype, tensor, view=view)
        value.of_weight = number < self._n_weights or (
            held is not None and view and self.values[held.values[0]].of_weight
        )
        self.values.append(value)
        self._current[tensor] = number
        self._aliases.setdefault(_storage(tensor), _Aliases()).values.append(number)
        return number

    def _before_overwriting(self, target: Tensor) -> None:
        """Save what is about to be lost: the values earlier nodes hold, and where autograd keeps their adjoints."""
        held = self._aliases.pop(_storage(target), None)
        if held is None:
            return
        kept: list[int] = []
        for number in held.values:
            value = self.values[number]
            if value.tensor is not None and value.tensor is not target and are_disjoint(value.tensor, target):
                kept.append(number)  # another part of the same memory
                continue
            value.gradient_edge()
            value.tensor = None
            self._stale.add(number)
        storage = _storage(target)
        if kept:
            self._aliases[storage] = _Aliases(values=kept)
        for node in held.nodes:
            node.args = _with_copies(node.args, storage)
            node.kwargs = _with_copies(node.kwargs, storage)
            node.outs = _with_copies(node.outs, storage)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _with_copies(item: Any, storage: int) -> Any:
    if isinstance(item, Tensor):
        return item.detach().clone() if _storage(item) == storage else item
    if isinstance(item, dict):
        return {key: _with_copies(value, storage) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return type(item)(_with_copies(value, storage) for value in item)
    return item
