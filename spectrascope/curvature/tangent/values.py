"""A batch of tangents of one value: dense, or rank one per direction as those of a weight are.

Dense tangents are (K, …), direction first; those of several weights are stacked. The directions D_k = u_k v_k^T of a
weight stay factored for as long as the operations allow it, so that no K × m × n tensor need exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["RankOne", "Stacked", "Tangent", "Zero", "dense", "joined", "picked"]


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

    def to(self, dtype: torch.dtype) -> RankOne:
        """The same in another format."""
        return RankOne(self.left.to(dtype), self.right.to(dtype), self.shape)

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


@dataclass(frozen=True, slots=True)
class Zero:
    """Tangents that are zero: nothing travels on."""


Tangent: TypeAlias = "Tensor | RankOne | Stacked"


def dense(tangent: Tangent) -> Tensor:
    """The tangents as one tensor (K, …)."""
    return tangent if isinstance(tangent, Tensor) else tangent.dense()


def picked(tangent: Tangent, rows: slice | list[int]) -> Tangent:
    """Some of the tangents."""
    if isinstance(tangent, RankOne):
        return RankOne(tangent.left[:, rows], tangent.right[:, rows], tangent.shape)
    if isinstance(tangent, Stacked):
        matrix = picked(tangent.matrix, rows)
        assert isinstance(matrix, RankOne)
        return Stacked(tangent.index, matrix, tangent.shape)
    return tangent[rows]


def joined(tangents: Sequence[Tangent]) -> Tangent | None:
    """Tangents one after another; ``None`` where they are not of one kind."""
    if len(tangents) == 1:
        return tangents[0]
    if all(isinstance(t, RankOne) for t in tangents):
        ones = [t for t in tangents if isinstance(t, RankOne)]
        return RankOne(torch.cat([t.left for t in ones], 1), torch.cat([t.right for t in ones], 1), ones[0].shape)
    if all(isinstance(t, Tensor) for t in tangents):
        return torch.cat([t for t in tangents if isinstance(t, Tensor)])
    return None
