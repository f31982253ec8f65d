"""A batch of tangents of one value: dense, or rank one per direction as those of a weight are.

Dense tangents are (K, …), direction first. The directions D_k = u_k v_k^T of a weight stay factored for as
long as the operations allow it, so that no K × m × n tensor need exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["RankOne", "Stacked", "Tangent", "dense", "gram", "weighted_gram"]


@dataclass(frozen=True, slots=True)
class RankOne:
    """K tangents of a value of shape (rows, …): the k-th is ``left[:, k] right[:, k]^T``, reshaped.

    ``left`` (rows, K) and ``right`` (prod(columns), K).
    """

    left: Tensor
    right: Tensor
    shape: tuple[int, ...]

    def t(self) -> RankOne:
        """The tangents of the transposed matrix."""
        return RankOne(self.right, self.left, self.shape[::-1])

    def dense(self) -> Tensor:
        """(K, …)."""
        return torch.einsum("mk,nk->kmn", self.left, self.right).reshape(-1, *self.shape)


@dataclass(frozen=True, slots=True)
class Stacked:
    """K tangents of a stack of matrices (E, m, n), zero but for matrix ``index``."""

    index: int
    matrix: RankOne
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """(K, E, m, n)."""
        one = self.matrix.dense()
        whole = one.new_zeros(one.shape[0], *self.shape)
        whole[:, self.index] = one
        return whole


Tangent: TypeAlias = "Tensor | RankOne | Stacked"


def dense(tangent: Tangent) -> Tensor:
    """The tangents as one tensor (K, …)."""
    return tangent if isinstance(tangent, Tensor) else tangent.dense()


def gram(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (K, K) of two batches of tangents (K, …), entry by entry.

    >>> gram(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([[11.]])
    """
    return a.reshape(a.shape[0], -1) @ b.reshape(b.shape[0], -1).T


def weighted_gram(x: Tensor, weight: Tensor) -> Tensor:
    """``gram(weight * x, x)``, block by block, so that the product with the weight need not leave the cache.

    Args:
        x: tangents (K, …).
        weight: one entry per entry of a tangent.

    >>> weighted_gram(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, -1.0]))
    tensor([[-1.]])
    """
    k = x.shape[0]
    flat, entries = x.reshape(k, -1), weight.reshape(-1)
    step = max(1, _BLOCK_ENTRIES.get(x.device.type, _BLOCK_ENTRIES_DEVICE) // k)
    total: Tensor | None = None
    for start in range(0, flat.shape[1], step):
        part = flat[:, start : start + step]
        block = (part * entries[start : start + step]) @ part.T
        total = block if total is None else total.add_(block)
    return x.new_zeros(k, k) if total is None else total


_BLOCK_ENTRIES = {"cpu": 1 << 17}
_BLOCK_ENTRIES_DEVICE = 1 << 26
