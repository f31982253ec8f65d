"""Products: linear in each factor, so second-order terms arise only where both factors depend on the weight.

A weight enters as a factor with rank-one tangents, which are applied without ever being written out:
x (u v^T)^T = (x v) u^T. Reference: SECOND_ORDER section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.rule import Pushed, TangentRule, Tangents
from spectrascope.curvature.tangent.values import RankOne, Tangent, dense, picked
from spectrascope.curvature.tangent.within import Within

__all__ = ["PRODUCT_RULES", "MatrixProduct", "matrix_product"]

_CONV = (functional.conv1d, functional.conv2d, functional.conv3d)


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """out = scale · left @ right + offset, for mm, addmm, bmm and baddbmm.

    ``places`` says, per tracked input, which it is: ``offset``, ``left`` or ``right``.
    """

    left: Tensor
    right: Tensor
    scale: float
    offset_scale: float
    places: tuple[str, ...]
    shape: tuple[int, ...]
    adjoint: Tensor | None

    def split(self, z: Tangents) -> dict[str, Tangent]:
        """Tangents by place, those absent left out."""
        return {place: t for place, t in zip(self.places, z, strict=True) if t is not None}

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        """Product rule."""
        found = self.split(z)
        out: Tensor | None = None
        if outputs:
            parts = []
            if "left" in found:
                parts.append(_left_times(found["left"], self.right))
            if "right" in found:
                parts.append(_times_right(self.left, found["right"]))
            for part in parts:
                out = part if out is None else out.add_(part)
            if out is not None and self.scale != 1:
                out = out.mul_(self.scale)
            if "offset" in found:
                offset = dense(found["offset"]) * self.offset_scale
                lead = (1,) * (len(self.shape) + 1 - offset.dim())
                offset = offset.reshape(offset.shape[0], *lead, *offset.shape[1:])
                out = offset.expand(-1, *self.shape) if out is None else out + offset
        return ((out,) if outputs else ()), None if within is None else self.bend(found, within)

    def splits(self, samples: int) -> bool:
        """The rows of a plain product are told apart, or the matrices of a batch of them."""
        return self.shape[0] % samples == 0

    def bend(self, found: dict[str, Tangent], within: Within) -> Tensor | None:
        """2 <delta, left' right'> where both factors carry a tangent."""
        if self.adjoint is None or "left" not in found or "right" not in found:
            return None
        left, right, delta = found["left"], found["right"], self.adjoint
        if isinstance(right, RankOne):
            z = dense(left)
            forms = [_rank_one_form(z[rows], right, rows, delta, within) for rows in within.rows()]
            return 2 * self.scale * within.padded(forms)
        if isinstance(left, RankOne):
            z, delta = dense(right).transpose(-1, -2), delta.transpose(-1, -2)
            forms = [_rank_one_form(z[rows], left.t(), rows, delta, within) for rows in within.rows()]
            return 2 * self.scale * within.padded(forms)
        z, w = dense(left).transpose(-1, -2), dense(right)
        if delta.dim() == 3:
            return 2 * self.scale * within.gram(_left_times(z, delta), w)
        z, delta = within.in_order(z, z.dim() - 1), within.in_order(delta, 0)
        return within.by_group(
            delta.shape[0], lambda part: 2 * self.scale * within.alone.gram(_left_times(z[..., part], delta[part]), w)
        )

    def slopes(self, z: Tangents, within: Within) -> Tensor | None:
        """<delta, out'> (G, S) where a plain product's right factor alone carries tangents, without making out'."""
        found = self.split(z)
        right = found.get("right")
        if set(found) != {"right"} or not isinstance(right, RankOne) or self.adjoint is None:
            return None
        if not self.splits(within.rounds * within.borders[-1]):
            return None  # samples lie within rows
        return self.scale * within.sums((self.left @ right.left) * (self.adjoint @ right.right))


def _rank_one_form(z: Tensor, other: RankOne, rows: slice, delta: Tensor, within: Within) -> Tensor:
    """<delta, z_k D_j> (G, K, K) for tangents z (K, N, d) and rank-one D of the other factor, some of them."""
    one = picked(other, rows)
    assert isinstance(one, RankOne)
    return within.sums(((z @ one.left) * (delta @ one.right)).transpose(0, 1))


def _left_times(z: Tangent, right: Tensor) -> Tensor:
    """Tangents of the left factor times the right one, (K, …, N, p)."""
    if isinstance(z, RankOne):
        return _outer(z.left, right.T @ z.right)
    z = dense(z)
    out: Tensor
    if right.dim() == 2:
        out = (z.reshape(-1, z.shape[-1]) @ right).reshape(*z.shape[:-1], right.shape[-1])
        return out
    # One product per batch entry, the directions stacked as rows: the shared factor is never copied.
    k, batch, rows, inner = z.shape
    stacked = z.transpose(0, 1).reshape(batch, k * rows, inner)
    out = torch.bmm(stacked, right).view(batch, k, rows, -1).transpose(0, 1)
    return out


def _times_right(left: Tensor, z: Tangent) -> Tensor:
    """The left factor times tangents of the right one, (K, …, n, p)."""
    if isinstance(z, RankOne):
        return _outer(left @ z.left, z.right)
    z = dense(z)
    flat = left.dim() == 2
    if flat:
        left, z = left.unsqueeze(0), z.unsqueeze(1)
    k, batch, inner, columns = z.shape
    stacked = z.permute(1, 2, 0, 3).reshape(batch, inner, k * columns)
    out = torch.bmm(left, stacked).view(batch, -1, k, columns).permute(2, 0, 1, 3)
    return out.squeeze(1) if flat else out


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """(N, K) and (m, K) to (K, N, m)."""
    return rows.T.contiguous()[:, :, None] * columns.T.contiguous()[:, None, :]


def matrix_product(node: Node, adjoint: Tensor | None) -> MatrixProduct:
    """The factors of a recorded mm, addmm, bmm or baddbmm."""
    with_offset = node.name.startswith(("aten.addmm", "aten.baddbmm"))
    names = ("offset", "left", "right") if with_offset else ("left", "right")
    tensors = node.tensors()
    left, right = (tensors[names.index(side)].detach() for side in ("left", "right"))
    return MatrixProduct(
        left,
        right,
        float(node.kwargs.get("alpha", 1)),
        float(node.kwargs.get("beta", 1)),
        tuple(names[p] for p in node.inputs),
        tuple(node.outs[0].shape),
        adjoint,
    )


def _make_product(node: Node, adjoints: Sequence[Tensor | None]) -> MatrixProduct:
    return matrix_product(node, adjoints[0])


# -- convolution --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Convolution:
    x: Tensor
    weight: Tensor
    settings: tuple[Any, ...]  # stride, padding, dilation, transposed, output padding, groups
    positions: tuple[int, ...]
    shape: tuple[int, ...]
    adjoint: Tensor | None

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        found = {p: t for p, t in zip(self.positions, z, strict=True) if t is not None}
        x, weight = found.get(0), found.get(1)
        out: Tensor | None = None
        if outputs:
            if x is not None:
                out = self._of_input(dense(x))
            if weight is not None:
                part = self._of_weight(weight)
                out = part if out is None else out + part
            if 2 in found:
                offset = dense(found[2])
                offset = offset.reshape(*offset.shape[:1], 1, -1, *(1,) * (len(self.shape) - 2))
                out = offset.expand(-1, *self.shape) if out is None else out + offset
        bent = None
        if within is not None and self.adjoint is not None and x is not None and weight is not None:
            images = dense(x)
            bent = within.padded([self._bend(images[rows], picked(weight, rows))[None] for rows in within.rows()])
        return ((out,) if outputs else ()), bent

    def splits(self, samples: int) -> bool:
        return False

    def _of_input(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        if self.x.dim() == 4 and self.x.is_contiguous(memory_format=torch.channels_last):
            flat = flat.contiguous(memory_format=torch.channels_last)
        out = self._convolve(flat, self.weight)
        return out.reshape(*x.shape[:2], *out.shape[1:])

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        stride, padding, dilation, transposed, output_padding, groups = self.settings
        out: Tensor = torch.ops.aten.convolution(
            x, weight, None, stride, padding, dilation, transposed, output_padding, groups
        )
        return out

    def _of_weight(self, weight: Tangent) -> Tensor:
        if isinstance(weight, RankOne) and not self.settings[3]:
            projected = self._project(self.x, weight)  # (b, g, K, *positions)
            k, groups = weight.left.shape[1], self.settings[5]
            left = weight.left.T.reshape(k, 1, groups, -1, *(1,) * (projected.dim() - 3))
            return (left * projected.permute(2, 0, 1, *range(3, projected.dim())).unsqueeze(3)).flatten(2, 3)
        return torch.stack([self._convolve(self.x, w) for w in dense(weight)])

    def _project(self, x: Tensor, weight: RankOne) -> Tensor:
        """Every group's inputs (b, g, K, *positions) through the filters v_k, which all groups share."""
        stride, padding, dilation, _, _, groups = self.settings
        filters = weight.right.T.reshape(-1, *self.weight.shape[1:])
        x = x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:])
        out = _CONV[x.dim() - 3](x, filters.contiguous(), None, stride, padding, dilation)
        return out.reshape(-1, groups, *out.shape[1:])

    def _bend(self, x: Tensor, weight: Tangent) -> Tensor:
        delta = self.adjoint
        assert delta is not None
        if isinstance(weight, RankOne) and not self.settings[3]:
            groups = self.settings[5]
            k = x.shape[0]
            projected = self._project(x.flatten(0, 1), weight).unflatten(0, (k, -1))  # (K, b, g, K', *positions)
            left = weight.left.reshape(groups, -1, weight.left.shape[1])
            folded = torch.einsum("bgop,goj->bgjp", delta.flatten(2).unflatten(1, (groups, -1)), left)
            return 2 * torch.einsum("kbgjp,bgjp->kj", projected.flatten(4), folded)
        return 2 * torch.stack([torch.stack([(delta * self._convolve(a, w)).sum() for w in dense(weight)]) for a in x])


def _make_convolution(node: Node, adjoints: Sequence[Tensor | None]) -> _Convolution:
    x, weight = node.args[0].detach(), node.args[1].detach()
    return _Convolution(x, weight, tuple(node.args[3:9]), tuple(node.inputs), tuple(node.outs[0].shape), adjoints[0])


def _is_batched(node: Node) -> bool:
    return bool(node.args[0].dim() == node.args[1].dim())


PRODUCT_RULES: dict[str, TangentRule] = {
    **{f"aten.{name}": TangentRule(_make_product) for name in ("mm", "addmm", "bmm", "baddbmm")},
    "aten.convolution": TangentRule(_make_convolution, _is_batched),
}
