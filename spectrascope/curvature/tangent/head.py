"""The last product before the loss's log-softmax, fused with it: the K × tokens × classes tangent never exists.

For rows n with logits x_n W, p_n = softmax and w_n minus the sum of the adjoint over the row, the second-order term is
sum_n w_n Var_{p_n}(z_n W), taken row block by row block: y = z W − s, s_n = z_n · (W p_n), each block small
enough to stay in cache.

That costs V d per direction and token. Where more than d/2 directions arrive (a whole language model), the d × d form
A_n = w_n (W diag(p_n) W^T − W p_n p_n^T W^T) of every token is cheaper: V d² / 2 once, then d² per direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.products import MatrixProduct
from spectrascope.curvature.tangent.rule import Pushed, Tangents
from spectrascope.curvature.tangent.values import RankOne, Tangent, dense
from spectrascope.curvature.tangent.within import Within, block_size

__all__ = ["HeadStep", "row_order", "token_forms"]

_WORTH_FORMS = 0.6  # directions per width; measured even at 0.54 for d = 768, V = 50 257 on a CPU


@dataclass(frozen=True, slots=True)
class HeadStep:
    """Product and log-softmax in one; it has no outputs.

    ``rows`` (R) says which row of the product each of the R log-softmax rows is; ``p`` (R, V) are probabilities,
    ``weights`` (R, 1) w, ``mean`` (R, d) W p; ``positive`` that no weight is negative.
    """

    product: MatrixProduct
    rows: Tensor
    p: Tensor
    weights: Tensor
    mean: Tensor
    positive: bool
    forms: Tensor | None = None  # (R, d, d)

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        """Add the second-order terms of both operations."""
        if within is None:
            return (), None
        found = self.product.split(z)
        total = self.product.bend(found, within)
        if self.forms is not None and tuple(found) == ("left",):
            moving = dense(found["left"])[:, self.rows].to(self.forms.dtype)
            rows = moving.transpose(0, 1)  # (R, S, d)
            bent = within.gram((rows @ self.forms).transpose(0, 1), moving) * self.product.scale**2
            return (), bent
        bent = within.by_group(len(self.rows), lambda part: self._bend(found, part, within.alone))
        return (), bent if total is None else total + bent

    def splits(self, samples: int) -> bool:
        """Rows of the log-softmax are told apart."""
        return len(self.rows) % samples == 0 and self.product.splits(samples)

    def _bend(self, found: dict[str, Tangent], part: slice, within: Within) -> Tensor:
        """The log-softmax's own terms (1, W, K, K), from some of its rows."""
        moving = dense(found["left"])[:, self.rows[part]] if "left" in found else None
        if moving is not None and len(found) == 1 and self.positive:
            return self._by_columns(moving, part, within)
        offset = dense(found["offset"]) if "offset" in found else None
        total: Tensor | None = None
        step = block_size(self.p, _count(found) * self.p.shape[1], 4)
        for start in range(part.start, part.stop, step):
            some = slice(start, min(start + step, part.stop))
            y = None if moving is None else self._of_inputs(moving[:, start - part.start :][:, :step], some)
            for more in (self._of_weight(found.get("right"), some), self._of_offset(offset, some)):
                if more is not None:
                    y = more if y is None else y.add_(more)
            assert y is not None
            weights = self.p[some] * self.weights[some]
            if self.positive:
                y = y.mul_(weights.sqrt_())
                block = within.gram(y, y)
            else:
                block = within.gram(y * weights, y)
            total = block if total is None else total + block
        assert total is not None
        return total

    def _by_columns(self, moving: Tensor, part: slice, within: Within) -> Tensor:
        """Form (1, W, K, K) of tangents (S, R, d) of the inputs alone, some rows by some columns of W at a time.

        W is read once per block of rows, so that the product runs at the speed of a large one.
        """
        k, n, width = moving.shape
        rows = min(n, block_size(moving, k * width, 4))
        columns = max(64, block_size(moving, k * rows, 8))
        total: Tensor | None = None
        for start in range(0, n, rows):
            some = slice(part.start + start, part.start + min(start + rows, n))
            x = moving[:, start : start + rows]
            shift = torch.einsum("knd,nd->kn", x.to(self.mean.dtype), self.mean[some]).unsqueeze(-1)
            flat = x.reshape(-1, width)
            root = (self.p[some] * self.weights[some]).sqrt_()
            for first in range(0, root.shape[1], columns):
                these = slice(first, first + columns)
                y = (flat @ self.product.right[:, these]).view(k, -1, root[:, these].shape[1]).to(root.dtype)
                y = y.sub_(shift).mul_(root[:, these])
                block = within.gram(y, y)
                total = block if total is None else total.add_(block)
        assert total is not None
        return total * self.product.scale**2

    def _of_inputs(self, x: Tensor, part: slice) -> Tensor:
        """Centred tangents (K, rows, V) of the logits, from tangents x (K, rows, d) of the inputs."""
        y = (x.reshape(-1, x.shape[-1]) @ self.product.right).view(*x.shape[:2], -1).to(self.p.dtype)
        y = y.sub_(torch.einsum("knd,nd->kn", x.to(self.p.dtype), self.mean[part]).unsqueeze(-1))
        return y if self.product.scale == 1 else y.mul_(self.product.scale)

    def _of_weight(self, right: Tangent | None, part: slice) -> Tensor | None:
        if right is None:
            return None
        p = self.p[part]
        inputs = self.product.left[self.rows[part]].to(p.dtype)
        if isinstance(right, RankOne):
            right = right.to(p.dtype)
            centred = right.right.T[:, None, :] - (p @ right.right).T[:, :, None]
            return centred * (inputs @ right.left).T.unsqueeze(-1) * self.product.scale
        return _centred(inputs @ dense(right).to(p.dtype), p) * self.product.scale

    def _of_offset(self, offset: Tensor | None, part: slice) -> Tensor | None:
        if offset is None:
            return None
        rows = (
            offset.expand(-1, *self.product.shape)
            if offset.dim() == 3
            else offset[:, None].expand(-1, *self.product.shape)
        )
        return _centred(rows[:, self.rows[part]], self.p[part]) * self.product.offset_scale


def token_forms(right: Tensor, p: Tensor, weights: Tensor, directions: int, memory: int) -> Tensor | None:
    """The forms A_n (R, d, d), or ``None`` where they would cost more than they save, or lose digits.

    Args:
        right: W (d, V).
        p: probabilities (R, V).
        weights: w (R, 1).
        directions: tangents that will arrive, over all weights.
        memory: bytes they may take.
    """
    width, rows = right.shape[0], len(p)
    if directions < _WORTH_FORMS * width or rows * width**2 * p.element_size() > memory:
        return None
    spread = float((weights * (1 - p.square().sum(-1, keepdim=True))).sum() / weights.sum())
    if not spread > 1e5 * torch.finfo(p.dtype).eps:
        return None  # nearly certain predictions: the two terms of the form cancel
    weighted = p * weights
    right = right.to(p.dtype)
    columns = right.T - (weighted.sum(0) @ right.T / weights.sum())  # (V, d); a common shift changes nothing
    mean = p @ columns
    forms = p.new_empty(rows, width, width)
    block = 4
    for first in range(0, width, block):
        last = min(first + block, width)
        part = p.new_zeros(rows, (last - first) * (width - first))
        for start in range(0, len(columns), 2048):
            some = columns[start : start + 2048]
            products = some[:, first:last, None] * some[:, None, first:]
            part.addmm_(weighted[:, start : start + 2048], products.flatten(1))
        part = part.view(rows, last - first, width - first)
        forms[:, first:last, first:] = part
        forms[:, first:, first:last] = part.transpose(1, 2)
    return forms.baddbmm_((mean * weights).unsqueeze(2), mean.unsqueeze(1), alpha=-1)


def _centred(y: Tensor, p: Tensor) -> Tensor:
    return y - (y * p).sum(-1, keepdim=True)


def _count(found: dict[str, Tangent]) -> int:
    some = next(iter(found.values()))
    return some.left.shape[1] if isinstance(some, RankOne) else dense(some).shape[0]


def row_order(nodes: Sequence[Node], rows: int) -> Tensor | None:
    """Which row of a product (rows, V) each row of the log-softmax is, after views and slices that keep rows whole.

    ``None`` where the operations between do more than that.
    """
    width = int(nodes[0].tensors()[0].shape[-1]) if nodes else 0
    index: Tensor | None = None
    for node in nodes:
        x = node.tensors()[0]
        if x.shape[-1] != width or node.outs[0].shape[-1] != width:
            return None
        if node.name == "aten._to_copy":  # another format of the same numbers
            continue
        lead = torch.arange(rows, device=x.device).view(*x.shape[:-1], 1) if index is None else index
        whole = lead.expand(*lead.shape[:-1], width)
        out = node.func(whole, *node.args[1:], **node.kwargs)
        if not bool((out == out[..., :1]).all()):
            return None
        index = out[..., :1]
    return torch.arange(rows) if index is None else index.reshape(-1)
