"""The tensor operations that a network really ran, seen from a chosen set of weights.

Recording sits below autograd (``TorchDispatchMode``), so it needs no tracing, no knowledge of module classes and no
particular coding style: whatever Python the model runs, the record holds the operations that depend on the weights of
interest, in order, with concrete values. What may be overwritten in place is copied before it is.

Two views differ in what they keep. A :class:`Tape` runs without autograd and keeps what backward rules need, nothing
more: Gauss–Newton's memory is that of masks and shapes. A :class:`Recording` runs with autograd on and keeps every
operation with its arguments: the tensors it sees are the ones autograd differentiates, so one ordinary backward pass
gives the adjoint of every value, whatever kernels ran.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spectrascope.curvature.claims import Kind, read_claim
from spectrascope.curvature.columns import BackwardRule
from spectrascope.curvature.engine import UnsupportedOperationError
from spectrascope.curvature.operations import are_disjoint, describe, is_custom, same_elements, storage_of, tensors_of
from spectrascope.curvature.rules import find_rule

__all__ = ["Node", "Recorder", "Recording", "Tape", "Value", "WeightUse"]


@dataclass(slots=True)
class Value:
    """A tensor that depends on the weights of interest.

    ``dep`` has bit l set where it depends on weight l. ``view``: it shares memory with an earlier value; ``of_weight``:
    that is a weight's own. ``weight``: it IS that weight, seen through an odd number of transposes if ``transposed``.
    ``edge`` is where autograd holds its adjoint, taken just before the tensor is overwritten in place, or when first
    asked for; a tape holds no ``tensor`` and has no edges.
    """

    number: int
    dep: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: Tensor | None = None
    edge: Any = None
    view: bool = False
    of_weight: bool = False
    weight: int | None = None
    transposed: bool = False

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
class WeightUse:
    """One operation that applies a weight of interest to an activation.

    ``kind`` is ``conv`` or ``linear``; ``transposed`` says the stored matrix is (in, out).
    """

    weight: int
    kind: str
    transposed: bool
    inputs: Tensor
    conv: tuple[Any, ...] = ()


@dataclass(slots=True)
class Node:
    """One operation, as if it were functional: in-place operations hold a copy of what they overwrote.

    ``inputs`` maps the position of a tensor among the tensor arguments to a value number; ``outputs`` gives a value
    number, or ``None``, per tensor returned. A tape keeps ``rule``, what it ``saved`` and the ``use`` of a weight
    instead of the arguments and results.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[Tensor, ...]
    inputs: dict[int, int]
    outputs: tuple[int | None, ...]
    rule: BackwardRule | None = None
    saved: tuple[Any, ...] = ()
    use: WeightUse | None = None

    def tensors(self) -> list[Tensor]:
        """The tensor arguments, by position."""
        return tensors_of(self.args, self.kwargs)

    def copy_from(self, storage: int) -> None:
        """Clone what is kept of a storage that is about to be overwritten."""
        self.args, self.kwargs = _with_copies(self.args, storage), _with_copies(self.kwargs, storage)
        self.outs, self.saved = _with_copies(self.outs, storage), _with_copies(self.saved, storage)


@dataclass
class _Held:
    """What is held of one storage."""

    values: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """Record while active. Bit l of every mask stands for ``weights[l]``.

    ``refused`` maps a bit to the reason why that weight cannot be followed exactly. With ``with_autograd`` branches
    that autograd treats as constant (``detach``, ``no_grad``, custom Functions) are looked for.
    """

    _refuse_views = False  # in-place writes even into views of a whole tensor

    def __init__(self, weights: Sequence[Tensor], *, with_autograd: bool) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.values: list[Value] = []
        self.refused: dict[int, str] = {}
        self._with_autograd = with_autograd
        self._current = WeakIdKeyDictionary()
        self._leaves = {id(weight): 1 << index for index, weight in enumerate(weights)}
        self._reached: dict[Any, int] = {}
        self._held: dict[int, _Held] = {}
        self._stale: set[int] = set()
        self._n_weights = len(weights)
        for index, weight in enumerate(weights):
            self._new_value(weight, 1 << index).weight = index

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
                self.refused.setdefault(bit, reason)

    # -- what a view decides ------------------------------------------------------------------------------

    @abstractmethod
    def _detached(self, before: Tensor, after: Tensor) -> None:
        """A tensor was detached."""

    @abstractmethod
    def _follow_constant(self, value: Value) -> bool:
        """Whether to follow a value that autograd treats as constant."""

    @abstractmethod
    def _reads_target(self, name: str) -> bool:
        """Whether an in-place operation will be asked what it overwrote."""

    @abstractmethod
    def _keep(self, node: Node, mask: int, target: Tensor | None) -> None:
        """Keep an operation, whose outputs are yet to be numbered."""

    # -- recording ----------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, mutates = describe(func)
        if name == "aten.detach":
            out = func(*args, **kwargs)
            self._detached(args[0], out)
            return out
        tensors = tensors_of(args, kwargs)
        inputs = {i: n for i, t in enumerate(tensors) if (n := self._lookup(t)) is not None}
        target = args[0] if mutates and args and isinstance(args[0], Tensor) else None
        if name == "aten.as_strided_" and same_elements(*args[:4]):
            return func(*args, **kwargs)
        kept = args
        if target is not None:
            self._before_overwriting(target)
            if inputs:
                if self._reads_target(name):
                    kept = (target.detach().clone(), *args[1:])
                if target._base is not None and (self._refuse_views or target._base.numel() != target.numel()):
                    self.refuse(
                        self._mask(inputs.values()), f"{name.removeprefix('aten.')} writes into a view in place"
                    )
        out = func(*args, **kwargs)
        if not inputs:
            if target is not None:
                self._current.pop(target, None)  # a constant now
            return out
        outs = tuple(o for o in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(o, Tensor))
        if any(o.is_floating_point() or o.is_complex() for o in outs):  # else comparisons, shapes: derivative zero
            mask = self._mask(inputs.values())
            if any(o.is_complex() for o in outs):
                self.refuse(mask, f"{name.removeprefix('aten.')} gives complex numbers")
            self._keep(Node(name, func, kept, kwargs, outs, inputs, ()), mask, target)
        return out

    def _mask(self, numbers: Iterable[int]) -> int:
        mask = 0
        for number in numbers:
            mask |= self.values[number].dep
        return mask

    def _lookup(self, tensor: Tensor) -> int | None:
        number: int | None = self._current.get(tensor)
        if self._with_autograd and is_custom(tensor):
            # Made by a Python autograd.Function, whose backward need not match the operations seen inside it.
            self.refuse(self._mask(range(len(self.values))), "a Python autograd.Function is used")
        if number is None:
            number = self._find_again(tensor)
        if number is None:
            return None
        value = self.values[number]
        constant = self._with_autograd and not (tensor.requires_grad and tensor.is_floating_point())
        if constant and not self._follow_constant(value):
            return None
        if number in self._stale:
            self.refuse(value.dep, "an alias of an activation is changed in place")
        value.gradient_edge()
        return number

    def _find_again(self, tensor: Tensor) -> int | None:
        """Number of a tensor that came as a new object, ``None`` for a constant.

        Autograd hands an operation that saved its *output* (tanh, exp, softmax) a fresh object, when the network takes
        a gradient inside its forward pass: the same memory, the same ``grad_fn``. What is not found so but hangs on a
        weight, by autograd's own graph, cannot be followed; taken for a constant it would give wrong numbers.
        """
        if not self._with_autograd or not tensor.requires_grad or tensor.grad_fn is None:
            return None
        held = self._held.get(storage_of(tensor), _Held())
        for number in reversed(held.values):
            known = self.values[number].tensor
            if known is not None and _is_again(known, tensor):
                self._current[tensor] = number
                return number
        self.refuse(self._weights_behind(tensor.grad_fn), "autograd hands the network a tensor that was not recorded")
        return None

    def _weights_behind(self, grad_fn: Any) -> int:
        """Which weights a result depends on by autograd's graph."""
        todo = [grad_fn]
        while todo:
            node = todo[-1]
            if node in self._reached:
                todo.pop()
                continue
            below = [after for after, _ in node.next_functions if after is not None]
            missing = [after for after in below if after not in self._reached]
            if missing:
                todo += missing
                continue
            mask = self._leaves.get(id(getattr(node, "variable", None)), 0)
            for after in below:
                mask |= self._reached[after]
            self._reached[node] = mask
        return self._reached[grad_fn]

    def _new_value(self, tensor: Tensor, dep: int) -> Value:
        held = self._held.setdefault(storage_of(tensor), _Held())
        view = bool(held.values)
        number = len(self.values)
        of_weight = number < self._n_weights or (view and self.values[held.values[0]].of_weight)
        value = Value(number, dep, tuple(tensor.shape), tensor.dtype, view=view, of_weight=of_weight)
        self.values.append(value)
        self._current[tensor] = number
        held.values.append(number)
        return value

    def _number(self, node: Node, mask: int) -> None:
        """Give the outputs their value numbers, and take the node in."""
        node.outputs = tuple(self._new_value(o, mask).number if o.is_floating_point() else None for o in node.outs)
        self.nodes.append(node)

    def _guard(self, node: Node, tensors: Iterable[Tensor]) -> None:
        """Have the node's tensors copied before they are overwritten."""
        for tensor in tensors:
            self._held.setdefault(storage_of(tensor), _Held()).nodes.append(node)

    def _before_overwriting(self, target: Tensor) -> None:
        """Save what is about to be lost: the values earlier nodes hold, and where autograd keeps their adjoints."""
        storage = storage_of(target)
        held = self._held.pop(storage, None)
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
        if kept:
            self._held[storage] = _Held(values=kept)
        for node in held.nodes:
            node.copy_from(storage)


def _is_again(known: Tensor, tensor: Tensor) -> bool:
    """Whether two objects are one tensor to autograd."""
    return bool(
        known.grad_fn is tensor.grad_fn
        and known.output_nr == tensor.output_nr
        and known.shape == tensor.shape
        and known.stride() == tensor.stride()
        and known.storage_offset() == tensor.storage_offset()
    )


def _tensors_in(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, (tuple, list)):
        for value in item:
            yield from _tensors_in(value)


def _with_copies(item: Any, storage: int) -> Any:
    if isinstance(item, Tensor):
        return item.detach().clone() if storage_of(item) == storage else item
    if isinstance(item, dict):
        return {key: _with_copies(value, storage) for key, value in item.items()}
    if isinstance(item, (tuple, list)) and not isinstance(item, torch.Size):
        return type(item)(_with_copies(value, storage) for value in item)
    return item


# -- with autograd, every operation ---------------------------------------------------------------------------------


class Recording(Recorder):
    """Record a differentiable pass whole. What autograd treats as constant is a constant here too."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__(weights, with_autograd=True)

    def release(self) -> None:
        """Let go of every tensor that only recording needed."""
        self._current = WeakIdKeyDictionary()
        self._held, self._reached = {}, {}
        for value in self.values:
            value.tensor = value.edge = None

    def _detached(self, before: Tensor, after: Tensor) -> None:
        pass

    def _follow_constant(self, value: Value) -> bool:
        return False

    def _reads_target(self, name: str) -> bool:
        return True

    def _new_value(self, tensor: Tensor, dep: int) -> Value:
        value = super()._new_value(tensor, dep)
        value.tensor = tensor
        return value

    def _keep(self, node: Node, mask: int, target: Tensor | None) -> None:
        self._number(node, mask)
        overwritten = None if target is None else storage_of(target)
        tensors = (*node.tensors(), *node.outs)
        self._guard(node, (t for t in tensors if storage_of(t) != overwritten or t is target))


# -- without autograd, what backward rules need ---------------------------------------------------------------------

_WEIGHT_OPS = {"aten.convolution": (0, 1), "aten.addmm": (1, 2), "aten.mm": (0, 1)}
_ALIASES = {"aten.t", "aten.alias"}


class Tape(Recorder):
    """Record what a backward sweep from the outputs needs: each operation's rule, and what the rule saves.

    Args:
        weights: the parameters of interest.
        on_use: called with each :class:`WeightUse` when the operation runs; what it returns replaces the kept
            input activation (engines project it on the spot, so the activation itself need not be kept).
        analysing: note in ``refused`` what cannot be swept back through, and look for branches that autograd treats as
            constant; needs grad mode. Without it such an operation raises :class:`UnsupportedOperationError`.
    """

    _refuse_views = True

    def __init__(
        self,
        weights: Sequence[Tensor],
        *,
        on_use: Callable[[WeightUse], Tensor] | None = None,
        analysing: bool = False,
    ) -> None:
        super().__init__(weights, with_autograd=analysing)
        self.uses: list[WeightUse] = []
        self._analysing = analysing
        self._on_use = on_use

    def refuse(self, mask: int, reason: str) -> None:
        """Note that the weights in ``mask`` cannot be followed, or stop at once."""
        if mask and not self._analysing:
            raise UnsupportedOperationError(reason)
        super().refuse(mask, reason)

    def _detached(self, before: Tensor, after: Tensor) -> None:
        # Autograd itself detaches outputs it saves; only a detached value that is used later matters, and that shows
        # when it is looked up: it does not require grad.
        number = self._lookup(before)
        if number is not None:
            self._new_value(after, self.values[number].dep)

    def _follow_constant(self, value: Value) -> bool:
        if value.weight is None and value.dtype.is_floating_point:
            self.refuse(value.dep, "a branch is detached from the graph")
        return True

    def _reads_target(self, name: str) -> bool:
        rule = find_rule(name)
        return rule is not None and rule.reads_target

    def _keep(self, node: Node, mask: int, target: Tensor | None) -> None:
        found = [self.values[n] for n in node.inputs.values()]
        if node.name in _ALIASES and found[0].weight is not None:
            alias = self._new_value(node.outs[0], found[0].dep)
            alias.weight, alias.transposed = found[0].weight, found[0].transposed ^ (node.name == "aten.t")
            return
        bare = node.name.removeprefix("aten.")
        node.use = self._use_of(node, found)
        node.inputs = {p: n for p, n in node.inputs.items() if self.values[n].weight is None}
        node.rule = self._rule_of(node, mask, found)
        for value in found:
            if value.weight is not None and node.use is None:
                self.refuse(value.dep, f"the weight is transformed by {bare} before it is used")
        self._number(node, mask)
        if node.rule is None:
            self.nodes.pop()  # nothing is swept back through it, and what its rule would keep may not exist
        else:
            node.saved = node.rule.save(node.args, node.kwargs, node.outs, tuple(node.inputs))
            self._guard(node, _tensors_in(node.saved))
            if node.use is not None:
                self.uses.append(node.use)
                if self._on_use is not None:
                    node.use.inputs = self._on_use(node.use)
        node.func, node.args, node.kwargs, node.outs = None, (), {}, ()

    def _rule_of(self, node: Node, mask: int, found: Sequence[Value]) -> BackwardRule | None:
        rule = find_rule(node.name)
        claim = read_claim(node.name, node.args, node.kwargs, node.inputs, len(node.tensors()))
        if claim.kind in (Kind.CURVED, Kind.JUMPING):
            self.refuse(mask, claim.reason)
            return None
        clash = union = 0
        for value in found:
            clash |= union & value.dep
            union |= value.dep
        if claim.kind is Kind.PRODUCT and clash:
            self.refuse(clash, claim.reason)
            return rule
        problem = claim.reason if rule is None else rule.refuse(node.args, node.kwargs, tuple(node.inputs))
        if problem is not None:
            self.refuse(mask, problem)
            return None
        return rule

    def _use_of(self, node: Node, found: Sequence[Value]) -> WeightUse | None:
        weights = [value for value in found if value.weight is not None]
        if len(weights) != 1 or node.name not in _WEIGHT_OPS:
            return None
        data, matrix = _WEIGHT_OPS[node.name]
        (value,), args = weights, node.args
        if self._current.get(args[matrix]) != value.number:
            return None
        assert value.weight is not None
        if node.name == "aten.convolution":
            if value.transposed or args[6]:
                return None
            return WeightUse(value.weight, "conv", False, args[data], tuple(args[3:9]))
        # x @ W^T is nn.Linear with W stored (out, in); x @ W is the transposed storage of HF Conv1D.
        return WeightUse(value.weight, "linear", not value.transposed, args[data])
