"""Softmax and normalisation by the statistics of the activations themselves, in centred form.

The algebraically equal uncentred forms lose every digit on confident predictions (SECOND_ORDER section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.curvature.claims import BATCH_NORMS, batch_norm_eps
from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.rule import Pushed, Step, TangentRule, Tangents, argument
from spectrascope.curvature.tangent.values import dense
from spectrascope.curvature.tangent.within import Within
from spectrascope.numerics.lifted import is_below, wide

__all__ = ["NORMALISING_RULES"]


def _centred(z: Tangents, p: Tensor, axis: int) -> Tensor:
    """The tangent less its mean under p."""
    (x,) = z
    assert x is not None
    x = dense(x).to(p.dtype)
    return x - (p * x).sum(axis, keepdim=True)


@dataclass(frozen=True, slots=True)
class _Softmax:
    """p = softmax(x): p' = p (z − s), second-order <g, (z − s)²>, s = <p, z>, g = p (delta − <p, delta>)."""

    p: Tensor
    axis: int
    adjoint: Tensor | None

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        centred = _centred(z, self.p, self.axis)
        bent = None
        if within is not None and self.adjoint is not None:
            g = self.p * (self.adjoint - (self.p * self.adjoint).sum(self.axis, keepdim=True))
            bent = within.weighted(centred, g)
        return ((self.p * centred,) if outputs else ()), bent

    def splits(self, samples: int) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _LogSoftmax:
    """x' = z − s, second-order −(sum of delta) <p, (z − s)²>."""

    p: Tensor
    axis: int
    adjoint: Tensor | None

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        centred = _centred(z, self.p, self.axis)
        bent = None
        if within is not None and self.adjoint is not None:
            bent = -within.weighted(centred, self.p * self.adjoint.sum(self.axis, keepdim=True))
        return ((centred,) if outputs else ()), bent

    def splits(self, samples: int) -> bool:
        return True


def _softmax(log: bool) -> object:
    def make(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
        out = node.outs[0].detach()
        out = out.to(wide(out.dtype))
        # Counted from the end, where a leading direction axis changes nothing.
        axis = int(node.args[1]) % max(out.dim(), 1) - max(out.dim(), 1)
        if log:
            return _LogSoftmax(out.exp(), axis, adjoints[0])
        return _Softmax(out, axis, adjoints[0])

    return make


@dataclass(frozen=True, slots=True)
class _Normalised:
    """y = gamma · (x − mean) · r (+ beta) over the last axis of x seen as (rows, size), r = 1/sqrt(var + eps).

    With G = gamma delta, xh = (x − mean) r, zc = z − mean z, a = mean(xh zc), w = zc − a xh:
    y' = gamma r w, second-order r² (−2 a <G, w> − <G, xh> mean(w zc)). Exact with eps. ``centred=False`` is RMSNorm:
    the same without means.
    """

    xh: Tensor  # (rows, size)
    r: Tensor  # (rows, 1)
    gamma: Tensor | None  # broadcasts to (rows, size)
    adjoint: Tensor | None  # (rows, size)
    centred: bool
    shape: tuple[int, ...]

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        (x,) = z
        assert x is not None
        x = dense(x)
        x = x.reshape(x.shape[0], *self.xh.shape).to(self.xh.dtype)
        size = self.xh.shape[1]
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        a = torch.einsum("rn,krn->kr", self.xh, x).unsqueeze(-1) / size
        w = torch.addcmul(x, a, self.xh, value=-1)
        bent = None
        if within is not None and self.adjoint is not None:
            g = self.adjoint if self.gamma is None else self.adjoint * self.gamma
            r2 = self.r.square()
            slope = torch.einsum("rn,krn->kr", g, w).unsqueeze(-1) * r2
            pull = (g * self.xh).sum(-1, keepdim=True) * r2 / size
            bent = -2 * within.gram(a, slope) - within.gram(w * pull, x)
        if not outputs:
            return (), bent
        scale = self.r if self.gamma is None else self.r * self.gamma
        return (w.mul_(scale).reshape(-1, *self.shape),), bent

    def splits(self, samples: int) -> bool:
        return self.xh.shape[0] % samples == 0


def _layer_norm(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
    x, normalized, gamma = node.args[0].detach(), node.args[1], argument(node, 2, "weight", None)
    xh, r = _statistics(x.reshape(-1, _product(normalized)), node, argument(node, 4, "eps", 1e-5))
    return _normalised(node, xh, r, gamma, adjoints[0], centred=True)


def _rms_norm(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
    x, normalized, gamma = node.args[0].detach(), node.args[1], argument(node, 2, "weight", None)
    rows = x.reshape(-1, _product(normalized)).to(wide(x.dtype))
    eps = argument(node, 3, "eps", None)
    eps = torch.finfo(x.dtype).eps if eps is None else float(eps)
    r = (rows.square().mean(-1, keepdim=True) + eps).rsqrt()
    return _normalised(node, rows * r, r, gamma, adjoints[0], centred=False)


def _statistics(rows: Tensor, node: Node, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised rows and the inverse of their spread: as recorded, and from the rows where that has fewer digits."""
    mean, r = (node.outs[i].detach().reshape(-1, 1) for i in (1, 2))
    if is_below(rows.dtype, torch.float32):
        rows = rows.float()
        mean = rows.mean(-1, keepdim=True)
        r = (rows.var(-1, unbiased=False, keepdim=True) + float(eps)).rsqrt()
    return (rows - mean.to(rows.dtype)) * r.to(rows.dtype), r


def _normalised(
    node: Node, xh: Tensor, r: Tensor, gamma: Tensor | None, adjoint: Tensor | None, *, centred: bool
) -> Step:
    return _Normalised(
        xh,
        r.reshape(-1, 1).to(xh.dtype),
        None if gamma is None else gamma.detach().reshape(-1, xh.shape[1]),
        None if adjoint is None else adjoint.reshape(xh.shape).to(xh.dtype),
        centred,
        tuple(node.outs[0].shape),
    )


def _group_norm(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
    x, gamma = node.args[0].detach(), node.args[1]
    batch, channels, area, groups = (int(n) for n in node.args[3:7])
    xh, r = _statistics(x.reshape(batch * groups, -1), node, node.args[7])
    if gamma is not None:
        gamma = gamma.detach().view(1, channels, 1).expand(batch, channels, area).reshape(xh.shape)
    return _normalised(node, xh, r, gamma, adjoints[0], centred=True)


@dataclass(frozen=True, slots=True)
class _ByChannel:
    """Normalisation of every channel (axis 1) over all other axes."""

    inner: _Normalised
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        (x,) = z
        assert x is not None
        x = dense(x)
        channels_first = x.permute(0, *(a + 1 for a in self.order))
        out, bent = self.inner.push([channels_first], outputs=outputs, within=within)
        if not outputs:
            return (), bent
        (y,) = out
        assert isinstance(y, Tensor)
        return (y.permute(0, *(a + 1 for a in self.order)),), bent

    def splits(self, samples: int) -> bool:
        return False


def _batch_statistics(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
    x, gamma, adjoint = node.args[0].detach(), node.args[1], adjoints[0]
    x = x.to(wide(x.dtype))
    order = (1, 0, *range(2, x.dim()))  # its own inverse
    moved = x.permute(order)
    rows = moved.reshape(moved.shape[0], -1)
    centred = rows - rows.mean(-1, keepdim=True)
    r = (centred.square().mean(-1, keepdim=True) + batch_norm_eps(node.args)).rsqrt()
    inner = _Normalised(
        centred * r,
        r,
        None if gamma is None else gamma.detach().view(-1, 1),
        None if adjoint is None else adjoint.permute(order).reshape(rows.shape).to(rows.dtype),
        True,
        tuple(moved.shape),
    )
    return _ByChannel(inner, order, tuple(x.shape))


@dataclass(frozen=True, slots=True)
class _WeightNorm:
    """w = g v / ‖v‖ row by row, g of one number per row. torch's own second derivative of it is wrong (2.14)."""

    unit: _Normalised  # v / ‖v‖, its adjoint being g delta
    g: Tensor  # (rows, 1)
    adjoint: Tensor | None  # (rows, size)
    positions: tuple[int, ...]
    axis: int
    shape: tuple[int, ...]

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        found = {p: self._rows(dense(t)) for p, t in zip(self.positions, z, strict=True) if t is not None}
        turned: Tensor | None = None
        bent: Tensor | None = None
        if 0 in found:
            (pushed,), bent = self.unit.push([found[0]], outputs=True, within=within)
            assert isinstance(pushed, Tensor)
            turned = pushed
        if within is not None and self.adjoint is not None and turned is not None and 1 in found:
            crossed = 2 * within.gram(self.adjoint * found[1], turned)
            bent = crossed if bent is None else bent + crossed
        if not outputs:
            return (), bent
        out: Tensor | None = None if turned is None else turned * self.g
        if 1 in found:
            stretched = found[1] * self.unit.xh * (self.unit.gamma if self.unit.gamma is not None else 1)
            out = stretched if out is None else out + stretched
        assert out is not None
        moved = self.shape[self.axis], *self.shape[: self.axis], *self.shape[self.axis + 1 :]
        return (out.reshape(-1, *moved).movedim(1, self.axis + 1),), bent

    def splits(self, samples: int) -> bool:
        return False

    def _rows(self, x: Tensor) -> Tensor:
        return x.movedim(self.axis + 1, 1).flatten(2)


def _weight_norm(node: Node, adjoints: Sequence[Tensor | None]) -> Step:
    v, g = (node.args[i].detach().to(wide(node.args[i].dtype)) for i in (0, 1))
    axis = int(argument(node, 2, "dim", 0))
    rows = v.movedim(axis, 0).flatten(1)
    lengths = g.movedim(axis, 0).flatten(1)
    root = rows.shape[1] ** 0.5
    r = root / rows.norm(dim=1, keepdim=True)
    adjoint = None if adjoints[0] is None else adjoints[0].movedim(axis, 0).flatten(1)
    gamma = torch.full_like(r, 1 / root)
    unit = _Normalised(rows * r, r, gamma, None if adjoint is None else adjoint * lengths, False, tuple(rows.shape))
    return _WeightNorm(unit, lengths, adjoint, tuple(node.inputs), axis, tuple(v.shape))


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= int(size)
    return total


def _only_input(node: Node) -> bool:
    """Only the activations carry a tangent, and only the normalised output is used further."""
    return tuple(node.inputs) == (0,)


NORMALISING_RULES: dict[str, TangentRule] = {
    "aten._softmax": TangentRule(_softmax(False), _only_input),  # type: ignore[arg-type]
    "aten._safe_softmax": TangentRule(_softmax(False), _only_input),  # type: ignore[arg-type]
    "aten._log_softmax": TangentRule(_softmax(True), _only_input),  # type: ignore[arg-type]
    "aten.native_layer_norm": TangentRule(_layer_norm, _only_input),
    "aten._fused_rms_norm": TangentRule(_rms_norm, _only_input),
    "aten._weight_norm_interface": TangentRule(_weight_norm, lambda node: int(argument(node, 2, "dim", 0)) >= 0),
    "aten.native_group_norm": TangentRule(_group_norm, _only_input),
    **{f"aten.{name}": TangentRule(_batch_statistics, _only_input) for name in BATCH_NORMS},
}
