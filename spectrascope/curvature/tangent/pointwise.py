"""Operations that work entry by entry: their first and second derivatives, once per recording.

Derivatives come from differentiating the single operation by autograd; where autograd has no second derivative,
from its formula. Broadcasting is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.claims import STRAIGHT_ENTRY_BY_ENTRY, bare_name
from spectrascope.curvature.operations import functional, with_tensors
from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.rule import Pushed, TangentRule, Tangents
from spectrascope.curvature.tangent.values import dense
from spectrascope.curvature.tangent.within import Within

__all__ = ["POINTWISE_RULES", "Derivatives", "Factor", "PointwiseStep", "derivatives"]

Factor = "Tensor | float"
"""A derivative entry by entry, or one number for all entries."""


@dataclass(frozen=True, slots=True)
class Derivatives:
    """Of an output in its tracked inputs, in the order of ``node.inputs``.

    ``first[i]`` broadcasts to the output; ``second`` maps a pair (i, j), i ≤ j, to the mixed derivative, absent
    where it is zero.
    """

    first: tuple[Any, ...]
    second: dict[tuple[int, int], Any]


def derivatives(node: Node, *, second: bool = True) -> Derivatives:
    """Derivatives of a pointwise operation at the recorded values; ``second=False`` leaves the second ones out."""
    name = bare_name(node.name)
    closed = _CLOSED.get(name)
    if closed is not None:
        found = closed(node)
        if found is not None:
            return found
    return _by_autograd(node, second and name not in STRAIGHT_ENTRY_BY_ENTRY)


def _by_autograd(node: Node, second: bool) -> Derivatives:
    tensors = node.tensors()
    shape = node.outs[0].shape
    func = functional(node.name)
    with torch.enable_grad():
        leaves = {p: tensors[p].detach().expand(shape).requires_grad_() for p in node.inputs}
        args, kwargs = with_tensors(node.args, node.kwargs, {**leaves})
        kwargs.pop("out", None)
        out = func(*args, **kwargs)
        out = out[0] if isinstance(out, (tuple, list)) else out
        order = list(leaves.values())
        first = torch.autograd.grad(out.sum(), order, create_graph=second, materialize_grads=True)
        found: dict[tuple[int, int], Any] = {}
        for i, slope in enumerate(first):
            if not (second and slope.requires_grad):
                continue
            rows = torch.autograd.grad(slope.sum(), order[i:], retain_graph=True, allow_unused=True)
            found.update({(i, i + j): row.detach() for j, row in enumerate(rows) if row is not None})
    return Derivatives(tuple(slope.detach() for slope in first), found)


# -- derivatives by formula, where that is cheaper or autograd lacks them -----------------------------------------


def _add(sign: float) -> Callable[[Node], Derivatives]:
    def closed(node: Node) -> Derivatives:
        alpha = float(node.kwargs.get("alpha", 1))
        return Derivatives(tuple(sign * alpha if p else 1.0 for p in node.inputs), {})

    return closed


def _mul(node: Node) -> Derivatives:
    left, right = node.args[0], node.args[1]
    other = [right, left]
    if len(node.inputs) == 2:
        return Derivatives((right.detach(), left.detach()), {(0, 1): 1.0})
    (position,) = node.inputs
    factor = other[0] if isinstance(left, Tensor) and position == 0 else left
    return Derivatives((factor.detach() if isinstance(factor, Tensor) else float(factor),), {})


def _div(node: Node) -> Derivatives | None:
    if tuple(node.inputs) != (0,) or node.kwargs.get("rounding_mode") is not None:
        return None
    denominator = node.args[1]
    inverse = denominator.detach().reciprocal() if isinstance(denominator, Tensor) else 1.0 / float(denominator)
    return Derivatives((inverse,), {})


def _neg(node: Node) -> Derivatives:
    return Derivatives((-1.0,), {})


def _hardsigmoid(node: Node) -> Derivatives:
    x = node.tensors()[0].detach()
    return Derivatives((((x > -3) & (x < 3)).to(x.dtype) / 6,), {})


def _hardswish(node: Node) -> Derivatives:
    x = node.tensors()[0].detach()
    inside = ((x > -3) & (x < 3)).to(x.dtype)
    return Derivatives((inside * (2 * x + 3) / 6 + (x >= 3).to(x.dtype),), {(0, 0): inside / 3})


def _relu(node: Node) -> Derivatives:
    return Derivatives(((node.outs[0] > 0).to(node.outs[0].dtype),), {})


_CLOSED: dict[str, Callable[[Node], Derivatives | None]] = {
    "add": _add(1.0),
    "sub": _add(-1.0),
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "relu": _relu,
}

_CURVED = (
    "div", "pow", "exp", "exp2", "log", "log2", "log10", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "square",
    "sigmoid", "tanh", "gelu", "silu", "softplus", "elu", "celu", "selu", "mish", "hardswish", "log_sigmoid_forward",
    "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc",
    "erfinv", "addcmul", "addcdiv", "lerp", "logaddexp", "logaddexp2", "hypot", "xlogy", "special_xlog1py", "sinc",
    "lgamma", "digamma", "i0", "logit", "copysign", "special_erfcx", "special_ndtr", "special_log_ndtr", "float_power",
    "prelu", "_prelu_kernel",
)  # fmt: skip


# -- the step -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PointwiseStep:
    """An operation that works entry by entry, with its derivatives at the recorded values."""

    found: Derivatives
    adjoint: Tensor | None
    shape: tuple[int, ...]

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        """Scale the inputs' tangents by the derivatives, and add second-order terms pair by pair of inputs."""
        parts = [None if t is None else _aligned(dense(t), len(self.shape)) for t in z]
        out: Tensor | None = None
        if outputs:
            for factor, part in zip(self.found.first, parts, strict=True):
                if part is not None:
                    term = part if isinstance(factor, float) and factor == 1.0 else part * factor
                    out = term if out is None else out + term
            assert out is not None
            out = out.expand(out.shape[0], *self.shape)
        total: Tensor | None = None
        if within is not None and self.adjoint is not None:
            for (i, j), factor in self.found.second.items():
                a, b = parts[i], parts[j]
                if a is None or b is None:
                    continue
                weight = (self.adjoint * factor).expand(self.shape)
                a, b = a.expand(-1, *self.shape), b.expand(-1, *self.shape)
                both = within.weighted(a, weight) if i == j else within.gram(a * weight, b)
                total = _plus(total, both if i == j else 2 * both)
        return ((out,) if outputs else ()), total

    def splits(self, samples: int) -> bool:
        """Entry by entry, samples stay apart."""
        return True

    @property
    def adds(self) -> bool:
        """Whether the output's tangent is the plain sum of the inputs', entry by entry."""
        return not self.found.second and all(isinstance(f, float) and f == 1.0 for f in self.found.first)


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


def _aligned(z: Tensor, dims: int) -> Tensor:
    """Tangents (K, *shape) with ones put in, so that they broadcast against values of ``dims`` axes."""
    return z.reshape(z.shape[0], *(1,) * (dims - z.dim() + 1), *z.shape[1:]) if z.dim() <= dims else z


def _make(node: Node, adjoints: Sequence[Tensor | None]) -> PointwiseStep:
    found = derivatives(node, second=adjoints[0] is not None)
    return PointwiseStep(found, adjoints[0], tuple(node.outs[0].shape))


POINTWISE_RULES: dict[str, TangentRule] = {
    f"aten.{name}": TangentRule(_make) for name in (*STRAIGHT_ENTRY_BY_ENTRY, "mul", *_CURVED)
}
