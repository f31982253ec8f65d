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
        found = {p: _heads(dense(t)) for p, t in zip(self.positions, z, strict=True) if t is not None}
        directions = next(iter(found.values())).shape[0]
        batch, heads, rows, _ = self.q.shape
        repeat, n = heads // self.k.shape[1], batch * heads
        of_all = {p: _heads_first(t if p == 0 else _repeated(t, repeat, 2)) for p, t in found.items()}
        q, k, v = self.q.flatten(0, 1), *(_repeated(t, repeat, 1).flatten(0, 1) for t in (self.k, self.v))
        whole = self.v.new_empty(directions, n, rows, self.v.shape[3]) if outputs else None
        forms: list[Tensor] = []
        blocks = [*self._row_blocks()]
        step = block_size(self.q, directions * max((r.stop - r.start) * c.stop for r, c in blocks), 4)
        for part in (slice(start, min(start + step, n)) for start in range(0, n, step)):
            moving = _Moving({p: t[part] for p, t in of_all.items()}, self.scale, outputs, within)
            for some, seen in blocks:
                primal = self._primal((q[part, some], k[part, seen], v[part, seen]), part, some, seen, within)
                out = moving.push(primal, some, seen)
                if whole is not None and out is not None:
                    whole[:, part, some] = out.transpose(0, 1)
            if (form := moving.finish()) is not None:
                forms.append(form)
        bent = within.sums(torch.cat(forms)) if within is not None and forms else None
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
        self, of: tuple[Tensor, Tensor, Tensor], part: slice, rows: slice, seen: slice, within: Within | None
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
        if self.adjoint is None or within is None:
            return _Primal(q, k, v, scores, None, None)
        adjoint = self.adjoint.flatten(0, 1)[part, rows]
        pull = _product(adjoint, v.transpose(1, 2))
        pull = scores * (pull - (scores * pull).sum(-1, keepdim=True))
        return _Primal(q, k, v, scores, adjoint, pull)


class _Moving:
    """Tangents of a few heads' queries, keys and values (N, S, T, d), pushed some queries at a time.

    What grows with T², tangents of the scores, is never copied into another order of axes; what grows with T is.
    """

    def __init__(self, z: dict[int, Tensor], scale: float, outputs: bool, within: Within | None) -> None:
        self.zq, self.zv = z.get(0), z.get(2)
        self.zk = z[1].contiguous() if 1 in z else None
        self.directions = next(iter(z.values())).shape[1]
        self.scale = scale
        self.outputs = outputs
        self.within = within
        crossed = within is not None and self.zq is not None
        self._k_columns = _columns(self.zk) if crossed and self.zk is not None else None
        self._v_columns = _columns(self.zv) if outputs and self.zv is not None else None
        self._bent: Tensor | None = None
        self._returned: Tensor | None = None  # P'^T G, what the tangents of values meet

    def push(self, of: _Primal, some: slice, seen: slice) -> Tensor | None:
        """The outputs' tangents (N, S, R, d) where they are wanted; second-order terms are summed."""
        out = weights = None
        if self.zq is not None or self.zk is not None:
            queries = None if self.zq is None else self.zq[:, :, some].contiguous()
            moved = self._centred_scores(of, queries, seen)
            if of.pull is not None:
                self._bend(of.pull, moved, queries, seen)
            weights = moved.mul_(of.scores.unsqueeze(1)).to(of.v.dtype)
            if of.adjoint is not None and self.zv is not None:
                self._return(weights, of.adjoint, seen)
        if self.outputs:
            if weights is not None:
                out = torch.bmm(weights.flatten(1, 2), of.v).view(*weights.shape[:3], -1)
            if self._v_columns is not None:
                part = _by_columns(of.scores, self._v_columns[:, seen], self.directions)
                out = part if out is None else out.add_(part)
        return out

    def finish(self) -> Tensor | None:
        """Second-order terms head by head (N, W, K, K)."""
        if self._returned is not None and self.zv is not None:
            self._add(self._returned.flatten(2), self.zv.flatten(2), 2)
        return self._bent

    def _centred_scores(self, of: _Primal, queries: Tensor | None, seen: slice) -> Tensor:
        """S' − rowsum(P S') (N, S, R, T)."""
        moved: Tensor | None = None
        if queries is not None:
            moved = _product(queries.flatten(1, 2), (of.k * self.scale).transpose(1, 2)).view(*queries.shape[:3], -1)
        if self.zk is not None:
            still = _for_each(of.q * self.scale, self.directions)
            keys = self.zk[:, :, seen].flatten(0, 1).transpose(1, 2)
            if moved is None:
                moved = _product(still, keys).unflatten(0, (-1, self.directions))
            elif moved.dtype == keys.dtype:
                moved.flatten(0, 1).baddbmm_(still, keys)
            else:
                moved.flatten(0, 1).add_(torch.bmm(still, keys))
        assert moved is not None
        return moved.sub_((moved * of.scores.unsqueeze(1)).sum(-1, keepdim=True))

    def _bend(self, pull: Tensor, moved: Tensor, queries: Tensor | None, seen: slice) -> None:
        self._add(moved.flatten(2) * pull.flatten(1).unsqueeze(1), moved.flatten(2), 1)
        if queries is not None and self._k_columns is not None:
            crossed = _by_columns(pull, self._k_columns[:, seen], self.directions)
            self._add(crossed.flatten(2), queries.flatten(2), 2 * self.scale)

    def _return(self, weights: Tensor, adjoint: Tensor, seen: slice) -> None:
        assert self.zv is not None
        if self._returned is None:
            self._returned = self.zv.new_zeros(self.zv.shape, dtype=wide(self.zv.dtype))
        back = torch.bmm(weights.flatten(0, 1).transpose(1, 2), _for_each(adjoint, self.directions))
        self._returned[:, :, seen].add_(back.unflatten(0, (-1, self.directions)))

    def _add(self, a: Tensor, b: Tensor, times: float) -> None:
        assert self.within is not None
        more = self.within.pairs(a, b)
        self._bent = more.mul_(times) if self._bent is None else self._bent.add_(more, alpha=times)


def _heads_first(z: Tensor) -> Tensor:
    """Tangents (S, B, H, T, d) as (B H, S, T, d)."""
    return z.flatten(1, 2).transpose(0, 1)


def _columns(z: Tensor) -> Tensor:
    """Tangents (N, S, T, d) as matrices (N, T, S d), the directions side by side."""
    return z.transpose(1, 2).flatten(2)


def _by_columns(matrix: Tensor, columns: Tensor, directions: int) -> Tensor:
    """Matrix (N, R, T) times each direction of ``columns`` (N, T, S d): (N, S, R, d)."""
    product: Tensor = torch.bmm(matrix.to(columns.dtype), columns).unflatten(2, (directions, -1))
    return product.transpose(1, 2)


def _for_each(x: Tensor, directions: int) -> Tensor:
    """Matrices (N, R, d) once per direction: (N S, R, d)."""
    return x.unsqueeze(1).expand(-1, directions, -1, -1).flatten(0, 1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A product of narrow matrices whose result goes on in float32: what a softmax is made of."""
    out = torch.bmm(a, b)
    return out.to(wide(out.dtype))


def _heads(z: Tensor) -> Tensor:
    return z if z.dim() == 5 else z.unsqueeze(1)


def _repeated(x: Tensor, times: int, axis: int) -> Tensor:
    """Keys and values shared by several query heads, one copy per head."""
    return x if times == 1 else x.repeat_interleave(times, axis)


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
