"""The last product before the loss's log-softmax, fused with it: the K × tokens × classes tangent never exists.

For rows n with logits x_n W, p_n = softmax and w_n minus the sum of the adjoint over the row, the second-order term is
sum_n w_n Var_{p_n}(z_n W), taken row block by row block: y = z W − s, s_n = z_n · (W p_n), each block small
enough to stay in cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.measure.tangents.products import MatrixProduct
from spectrascope.measure.tangents.recording import Node
from spectrascope.measure.tangents.step import Pushed, Tangents
from spectrascope.measure.tangents.tangent import RankOne, Tangent, dense

__all__ = ["HeadStep", "row_order"]

_BLOCK_BYTES = {"cpu": 2 << 20}
_BLOCK_BYTES_DEVICE = 256 << 20


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

    def push(self, z: Tangents, *, outputs: bool, bend: bool) -> tuple[Pushed, Tensor | None]:
        """Add the second-order terms of both operations."""
        found = self.product.split(z)
        total = self.product.bend(found)
        if not bend:
            return (), total
        moving = dense(found["left"])[:, self.rows] if "left" in found else None
        offset = dense(found["offset"]) if "offset" in found else None
        k = _count(found)
        width = k * self.p.shape[1] * self.p.element_size()
        step = max(1, _BLOCK_BYTES.get(self.p.device.type, _BLOCK_BYTES_DEVICE) // width)
        for start in range(0, len(self.rows), step):
            part = slice(start, start + step)
            y = None if moving is None else self._of_inputs(moving[:, part], part)
            for more in (self._of_weight(found.get("right"), part), self._of_offset(offset, part)):
                if more is not None:
                    y = more if y is None else y.add_(more)
            assert y is not None
            weights = self.p[part] * self.weights[part]
            if self.positive:
                y = y.mul_(weights.sqrt_()).flatten(1)
                block = y @ y.T
            else:
                block = (y * weights).flatten(1) @ y.flatten(1).T
            total = block if total is None else total + block
        return (), total

    def _of_inputs(self, x: Tensor, part: slice) -> Tensor:
        """Centred tangents (K, rows, V) of the logits, from tangents x (K, rows, d) of the inputs."""
        y = (x.reshape(-1, x.shape[-1]) @ self.product.right).view(*x.shape[:2], -1)
        y = y.sub_(torch.einsum("knd,nd->kn", x, self.mean[part]).unsqueeze(-1))
        return y if self.product.scale == 1 else y.mul_(self.product.scale)

    def _of_weight(self, right: Tangent | None, part: slice) -> Tensor | None:
        if right is None:
            return None
        inputs, p = self.product.left[self.rows[part]], self.p[part]
        if isinstance(right, RankOne):
            centred = right.right.T[:, None, :] - (p @ right.right).T[:, :, None]
            return centred * (inputs @ right.left).T.unsqueeze(-1) * self.product.scale
        return _centred(inputs @ dense(right), p) * self.product.scale

    def _of_offset(self, offset: Tensor | None, part: slice) -> Tensor | None:
        if offset is None:
            return None
        rows = offset.expand(-1, *self.product.shape) if offset.dim() == 3 else offset[:, None].expand(
            -1, *self.product.shape
        )
        return _centred(rows[:, self.rows[part]], self.p[part]) * self.product.offset_scale


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
        lead = torch.arange(rows, device=x.device).view(*x.shape[:-1], 1) if index is None else index
        whole = lead.expand(*lead.shape[:-1], width)
        out = node.func(whole, *node.args[1:], **node.kwargs)
        if not bool((out == out[..., :1]).all()):
            return None
        index = out[..., :1]
    return torch.arange(rows) if index is None else index.reshape(-1)
