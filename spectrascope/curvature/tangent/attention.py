"""Scaled dot-product attention as one operation, whichever fused kernel ran: only its inputs and adjoint are needed.

With S = c q k^T + mask, P = softmax S, G the adjoint of P v and gS = P (G v^T − rowsum(P · G v^T)):
S' = c (q' k^T + q k'^T), C = S' − rowsum(P S'), P' = P C, out' = P' v + P v', and the second-order terms
<gS, C²> + 2c <gS, q' k'^T> + 2 <P' v', G>. Reference: SECOND_ORDER section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.rule import Pushed, TangentRule, Tangents
from spectrascope.curvature.tangent.values import dense
from spectrascope.curvature.tangent.within import Within, block_size
from spectrascope.numerics.lifted import wide

__all__ = ["ATTENTION_RULES"]


_ROWS = {"cpu": 32}
_ROWS_DEVICE = 512
"""Queries taken at a time where none sees a later key: what they do not see is then not computed."""


@dataclass(frozen=True, slots=True)
class _Primal:
    """Some queries of a few heads, q (N, R, d), the keys and values k, v (N, T, d) that they see, and what follows.

    ``scores`` P and ``pull`` gS are (N, R, T).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    adjoint: Tensor | None
    pull: Tensor | None


@dataclass(frozen=True, slots=True)
class _Attention:
    q: Tensor  # (B, H, T, d)
    k: Tensor  # (B, H or fewer, T, d)
    v: Tensor
    mask: Tensor | None  # added to the scores; broadcasts to (B, H, T, T)
    causal: bool
    backward: bool  # no query sees a later key, be it by ``causal`` or by the mask
    scale: float
    positions: tuple[int, ...]
    adjoint: Tensor | None

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        found = {p: dense(t) for p, t in zip(self.positions, z, strict=True) if t is not None}
        directions = next(iter(found.values())).shape[0]
        batch, heads, rows, _ = self.q.shape
        repeat = heads // self.k.shape[1]
        flat = {p: _heads(t if p == 0 else _repeated(t, repeat, 2)).flatten(1, 2) for p, t in found.items()}
        n = batch * heads
        q, k, v = self.q.flatten(0, 1), *(_repeated(t, repeat, 1).flatten(0, 1) for t in (self.k, self.v))
        whole = self.v.new_empty(directions, n, rows, self.v.shape[3]) if outputs else None
        forms: Tensor | None = None
        for some, seen in self._row_blocks():
            step = block_size(self.q, directions * (some.stop - some.start) * seen.stop, 4)
            for start in range(0, n, step):
                part = slice(start, min(start + step, n))
                heads_here = q[part, some], k[part, seen], v[part, seen]
                primal = self._primal(heads_here, part, some, seen, bend=within is not None)
                z_part = {p: t[:, part, some if p == 0 else seen] for p, t in flat.items()}
                out, form = self._push(primal, z_part, outputs, within)
                if whole is not None and out is not None:
                    whole[:, part, some] = out
                if form is not None:
                    forms = form.new_zeros(n, *form.shape[1:]) if forms is None else forms
                    forms[part] += form
        bent = within.sums(forms) if within is not None and forms is not None else None
        return (() if whole is None else (whole.unflatten(1, (batch, heads)),)), bent

    def _row_blocks(self) -> Iterator[tuple[slice, slice]]:
        """Queries taken together, and the keys that they see."""
        rows, columns = self.q.shape[2], self.k.shape[2]
        step = _ROWS.get(self.q.device.type, _ROWS_DEVICE) if self.backward else rows
        for start in range(0, rows, max(step, 1)):
            stop = min(start + step, rows)
            yield slice(start, stop), slice(0, min(stop, columns) if self.backward else columns)

    def splits(self, samples: int) -> bool:
        return self.q.shape[0] % samples == 0

    def _primal(
        self, of: tuple[Tensor, Tensor, Tensor], part: slice, rows: slice, seen: slice, *, bend: bool
    ) -> _Primal:
        q, k, v = of
        scores = _product(q, k.transpose(1, 2)) * self.scale
        if self.mask is not None:
            batch, heads = self.q.shape[:2]
            mask = self.mask.expand(batch, heads, self.q.shape[2], self.k.shape[2])[:, :, rows, seen]
            index = torch.arange(part.start, part.stop, device=q.device)
            scores = scores + mask[index // heads, index % heads]
        if self.causal:
            # Where the lengths differ, torch aligns the triangle with the first query and the first key.
            keep = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril(rows.start)
            scores = scores.masked_fill(~keep, -math.inf)
        scores = scores.softmax(-1).nan_to_num(0.0)  # a query that may look nowhere
        if self.adjoint is None or not bend:
            return _Primal(q, k, v, scores, None, None)
        adjoint = self.adjoint.flatten(0, 1)[part, rows]
        pull = _product(adjoint, v.transpose(1, 2))
        pull = scores * (pull - (scores * pull).sum(-1, keepdim=True))
        return _Primal(q, k, v, scores, adjoint, pull)

    def _push(
        self, of: _Primal, z: dict[int, Tensor], outputs: bool, within: Within | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The outputs' tangents (S, N, T, d), and second-order terms head by head (N, W, K, K)."""
        zq, zk, zv = (z.get(p) for p in range(3))
        out = bent = weights = None
        if zq is not None or zk is not None:
            moved = self._centred_scores(of, zq, zk)
            if within is not None and of.pull is not None:
                bent = within.pairs(moved.flatten(2) * of.pull.flatten(1).unsqueeze(1), moved.flatten(2))
                if zq is not None and zk is not None:
                    crossed = _by_head(_fold(of.pull.to(zq.dtype).transpose(1, 2), zq))
                    bent = bent.add_(within.pairs(crossed, _by_head(zk)), alpha=2 * self.scale)
            weights = moved.mul_(of.scores.unsqueeze(1)).to(of.v.dtype)
        if outputs:
            if weights is not None:
                heads, directions, rows, _ = weights.shape
                out = torch.bmm(weights.flatten(1, 2), of.v).view(heads, directions, rows, -1).transpose(0, 1)
            if zv is not None:
                part = _fold(of.scores.to(zv.dtype), zv)
                out = part if out is None else out.add_(part)
        if within is not None and of.adjoint is not None and weights is not None and zv is not None:
            crossed = (weights.transpose(2, 3) @ of.adjoint.unsqueeze(1)).flatten(2)
            more = within.pairs(crossed, _by_head(zv))
            bent = 2 * more if bent is None else bent.add_(more, alpha=2)
        return out, bent

    def _centred_scores(self, of: _Primal, zq: Tensor | None, zk: Tensor | None) -> Tensor:
        """S' − rowsum(P S') (N, K, T, T), heads first: every product is then one of large matrices."""
        moved: Tensor | None = None
        if zq is not None:
            directions, heads, rows, width = zq.shape
            stacked = zq.transpose(0, 1).reshape(heads, directions * rows, width)
            keys = (of.k * self.scale).transpose(1, 2)
            moved = _product(stacked, keys).view(heads, directions, rows, -1)
        if zk is not None:
            directions, heads, columns, width = zk.shape
            stacked = zk.transpose(0, 1).reshape(heads, directions * columns, width)
            part = _product(of.q * self.scale, stacked.transpose(1, 2))
            part = part.view(heads, -1, directions, columns).transpose(1, 2)
            moved = part.contiguous() if moved is None else moved.add_(part)
        assert moved is not None
        return moved.sub_((moved * of.scores.unsqueeze(1)).sum(-1, keepdim=True))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A product of narrow matrices whose result goes on in float32: what a softmax is made of."""
    out = torch.bmm(a, b)
    return out.to(wide(out.dtype))


def _by_head(z: Tensor) -> Tensor:
    """Tangents (S, N, T, d) as (N, S, T d)."""
    return z.transpose(0, 1).flatten(2)


def _heads(z: Tensor) -> Tensor:
    return z if z.dim() == 5 else z.unsqueeze(1)


def _repeated(x: Tensor, times: int, axis: int) -> Tensor:
    """Keys and values shared by several query heads, one copy per head."""
    return x if times == 1 else x.repeat_interleave(times, axis)


def _fold(matrix: Tensor, z: Tensor) -> Tensor:
    """Matrix (N, S, T) times each of z (K, N, T, d), the directions side by side as columns."""
    k, n, rows, width = z.shape
    columns = z.permute(1, 2, 0, 3).reshape(n, rows, k * width)
    out = torch.bmm(matrix, columns).view(n, -1, k, width)
    return out.permute(2, 0, 1, 3)


def _make(node: Node, adjoints: Sequence[Tensor | None]) -> _Attention:
    q, k, v = (t.detach() for t in node.args[:3])
    named = _named(node)
    mask = named.get("attn_mask", named.get("attn_bias"))
    if mask is not None:
        mask = mask.detach()
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -math.inf)
        mask = mask.reshape(*(1,) * (4 - mask.dim()), *mask.shape)
    scale = named.get("scale")
    causal = bool(named.get("is_causal", False))
    return _Attention(
        q, k, v, mask, causal, causal or (mask is not None and _hides_later_keys(mask)),
        1 / math.sqrt(q.shape[-1]) if scale is None else float(scale),
        tuple(node.inputs), adjoints[0],
    )  # fmt: skip


def _hides_later_keys(mask: Tensor) -> bool:
    """Whether no query sees a key after its own place, whatever else a mask (…, T, T) does."""
    rows, columns = mask.shape[-2:]
    later = torch.ones(rows, columns, dtype=torch.bool, device=mask.device).triu(1)
    return rows > 1 and bool(mask[..., later].isneginf().all())


def _named(node: Node) -> dict[str, Any]:
    """All arguments by the names in the operation's schema."""
    names = [argument.name for argument in node.func._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _accepts(node: Node) -> bool:
    return (
        set(node.inputs) <= {0, 1, 2} and all(t.dim() == 4 for t in node.args[:3]) and not _named(node).get("dropout_p")
    )


_KERNELS = (
    "flash_attention_for_cpu",
    "flash_attention",
    "efficient_attention",
    "cudnn_attention",
    "fused_attention_overrideable",
)
ATTENTION_RULES: dict[str, TangentRule] = {
    f"aten._scaled_dot_product_{kernel}": TangentRule(_make, _accepts) for kernel in _KERNELS
}
