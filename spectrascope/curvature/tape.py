"""A tape of the tensor operations a network really ran, seen from a chosen set of weights.

Recording sits below autograd (``TorchDispatchMode``), so it needs no tracing, no knowledge of module classes and
no particular coding style: whatever Python the model runs, the tape holds the tensor operations that depend on
the weights of interest, in order, with concrete values. Each operation either has a rule that says it is linear
or piecewise linear in what depends on the weights (``rules.py``), or the weights upstream of it are marked as
having a smooth tail, with the operation's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spectrascope.curvature.columns import BackwardRule, Saved
from spectrascope.curvature.engine import UnsupportedOperationError
from spectrascope.curvature.operations import describe, is_custom, same_elements, tensors_of
from spectrascope.curvature.rules import find_rule

__all__ = ["Tape", "TapeNode", "WeightUse"]


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
class TapeNode:
    """One recorded operation: value numbers in and out, and what its rule needs for the backward sweep."""

    op: str
    rule: BackwardRule
    saved: Saved
    inputs: tuple[tuple[int, int], ...]  # (position among the tensor arguments, value number)
    outputs: tuple[int, ...]
    use: WeightUse | None = None


@dataclass(slots=True)
class _Value:
    """What is known of a tensor that depends on the weights."""

    number: int
    dep: int  # bit l set: depends on weight l
    weight: int | None = None  # this tensor IS weight l …
    transposed: bool = False  # … seen through an odd number of transposes


_WEIGHT_OPS = {"aten.convolution": (0, 1), "aten.addmm": (1, 2), "aten.mm": (0, 1)}
_ALIASES = {"aten.t", "aten.alias"}


class Tape(TorchDispatchMode):
    """Record the operations downstream of ``weights`` while active.

    Args:
        weights: the parameters of interest; bit l of every mask stands for ``weights[l]``.
        on_use: called with each :class:`WeightUse` when the operation runs; what it returns replaces the kept
            input activation (engines project it on the spot, so the activation itself need not be kept).
        analysing: look for branches that autograd treats as constant (``detach``, ``no_grad``, custom Functions).
            Needs grad mode; without it a smooth operation raises :class:`UnsupportedOperationError`.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        *,
        on_use: Callable[[WeightUse], Tensor] | None = None,
        analysing: bool = False,
    ) -> None:
        super().__init__()
        self.nodes: list[TapeNode] = []
        self.smooth: dict[int, str] = {}
        self.uses: list[WeightUse] = []
        self._analysing = analysing
        self._on_use = on_use
        self._values = WeakIdKeyDictionary()
        self._storages: dict[int, set[int]] = {}
        self._boxes: dict[int, list[Saved]] = {}
        self._stale: set[int] = set()
        self._dep: list[int] = []
        for index, weight in enumerate(weights):
            self._new_value(weight, 1 << index, weight=index)

    # -- reading the tape ---------------------------------------------------------------------------------

    def number_of(self, tensor: Tensor) -> int | None:
        """Value number of a tensor that depends on the weights, ``None`` if it does not."""
        value = self._lookup(tensor)
        return None if value is None else value.number

    def dep(self, number: int) -> int:
        """Mask of the weights a value depends on."""
        return self._dep[number]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping means importing the compiler (seconds); nothing is compiled while recording.
        return False

    # -- recording ----------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_of(args, kwargs)
        found = [(i, v) for i, t in enumerate(tensors) if (v := self._lookup(t)) is not None]
        name, mutates = describe(func)
        if not found:
            if mutates and self._storages:
                self._invalidate(args[0] if args else None)
            return func(*args, **kwargs)
        if name == "aten.as_strided_" and same_elements(*args[:4]):
            return func(*args, **kwargs)
        rule = find_rule(name)
        before = rule.before(args) if rule is not None else None
        if mutates:
            self._protect(args[0])
        out = func(*args, **kwargs)
        self._record(name, rule, before, args, kwargs, tensors, found, out, mutates)
        return out

    def _record(
        self,
        name: str,
        rule: BackwardRule | None,
        before: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        found: list[tuple[int, _Value]],
        out: Any,
        mutates: bool,
    ) -> None:
        outs = [o for o in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(o, Tensor)]
        dep = 0
        clash = 0
        for _, value in found:
            clash |= dep & value.dep
            dep |= value.dep
        if name in _ALIASES and found[0][1].weight is not None:
            value = found[0][1]
            self._new_value(outs[0], value.dep, weight=value.weight, transposed=value.transposed ^ (name == "aten.t"))
            return
        if name == "aten.detach":
            # Autograd itself detaches outputs it saves; only a detached value that is used later matters, and
            # that shows when it is looked up: it does not require grad.
            self._new_value(outs[0], dep)
            return
        if not any(o.is_floating_point() for o in outs):
            return  # comparisons, argmax, shapes: derivative zero almost everywhere
        if mutates and isinstance(args[0], Tensor) and args[0]._base is not None:
            self._mark(dep, f"{name} writes into a view in place")
        use = self._weight_use(name, args, found)
        if rule is None:
            self._mark(dep, f"{name.removeprefix('aten.')} is not piecewise linear")
        elif not rule.joint and clash:
            self._mark(clash, f"{name.removeprefix('aten.')} multiplies two activations of the same weight")
        elif (problem := rule.refuse(args, kwargs, [i for i, v in found if v.weight is None])) is not None:
            self._mark(dep, problem)
            rule = None  # nothing is swept back through it, and what its rule would keep may not exist
        for _, value in found:
            if value.weight is not None and use is None:
                self._mark(value.dep, f"the weight is transformed by {name.removeprefix('aten.')} before it is used")
        if mutates:
            self._invalidate(args[0])
        numbers = tuple(self._new_value(o, dep) for o in outs)
        if rule is None:
            return
        inputs = tuple((i, v.number) for i, v in found if v.weight is None)
        saved = Saved(rule.save(args, kwargs, out, before, tuple(i for i, _ in inputs)))
        self._guard(saved)
        if use is not None:
            self.uses.append(use)
            if self._on_use is not None:
                use.inputs = self._on_use(use)
        self.nodes.append(TapeNode(name, rule, saved, inputs, numbers, use))

    def _weight_use(self, name: str, args: tuple[Any, ...], found: list[tuple[int, _Value]]) -> WeightUse | None:
        weights = [v for _, v in found if v.weight is not None]
        if len(weights) != 1 or name not in _WEIGHT_OPS:
            return None
        data, matrix = _WEIGHT_OPS[name]
        value = self._values.get(args[matrix])
        if value is None or value is not weights[0]:
            return None
        assert value.weight is not None
        if name == "aten.convolution":
            if value.transposed or args[6]:
                return None
            return WeightUse(value.weight, "conv", False, args[data], tuple(args[3:9]))
        if args[matrix].dim() != 2:
            return None
        # x @ W^T is nn.Linear with W stored (out, in); x @ W is the transposed storage of HF Conv1D.
        return WeightUse(value.weight, "linear", not value.transposed, args[data])

    def _mark(self, mask: int, reason: str) -> None:
        if not self._analysing:
            raise UnsupportedOperationError(reason)
        index = 0
        while mask:
            if mask & 1:
                self.smooth.setdefault(index, reason)
            mask >>= 1
            index += 1

    def _lookup(self, tensor: Tensor) -> _Value | None:
        value: _Value | None = self._values.get(tensor)
        if value is None:
            if self._analysing and is_custom(tensor):
                # Built inside a Python autograd.Function: its backward need not match the operations seen.
                self._mark(self._all_seen(), "a Python autograd.Function is used")
            return None
        if value.dep == 0:
            return None
        if value.number in self._stale:
            self._mark(value.dep, "an alias of an activation is changed in place")
        if self._analysing and value.weight is None:
            if not tensor.requires_grad and tensor.is_floating_point():
                self._mark(value.dep, "a branch is detached from the graph")
            elif is_custom(tensor):
                self._mark(self._all_seen(), "a Python autograd.Function is used")
        return value

    def _all_seen(self) -> int:
        mask = 0
        for dep in self._dep:
            mask |= dep
        return mask

    def _new_value(self, tensor: Tensor, dep: int, weight: int | None = None, transposed: bool = False) -> int:
        number = len(self._dep)
        self._dep.append(dep)
        self._values[tensor] = _Value(number, dep, weight, transposed)
        if weight is None:
            self._storages.setdefault(tensor.untyped_storage()._cdata, set()).add(number)
        return number

    def _guard(self, saved: Saved) -> None:
        for tensor in saved.activations():
            self._boxes.setdefault(tensor.untyped_storage()._cdata, []).append(saved)

    def _protect(self, target: Any) -> None:
        """Before ``target`` is overwritten, copy what earlier nodes saved of it."""
        if isinstance(target, Tensor):
            for saved in self._boxes.pop(target.untyped_storage()._cdata, ()):
                saved.copy()

    def _invalidate(self, target: Any) -> None:
        """After an in-place write, every other value in that storage no longer holds what was recorded."""
        if not isinstance(target, Tensor):
            return
        self._protect(target)
        self._stale |= self._storages.get(target.untyped_storage()._cdata, set())
