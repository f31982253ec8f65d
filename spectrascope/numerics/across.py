"""What weights share of their curvature, read off the matrix across weights. NumPy only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from spectrascope.numerics.vectors import Table, Vector
from spectrascope.records.across import JointStep
from spectrascope.records.values import Missing

__all__ = ["block_norms", "joint_step", "largest_pair"]


def _blocks(table: Table, sizes: Sequence[int]) -> Table:
    """Sums (W, W) over blocks of a table (S, S)."""
    starts = [0, *itertools.accumulate(sizes)][:-1]
    return np.asarray(np.add.reduceat(np.add.reduceat(table, starts, axis=0), starts, axis=1))


def joint_step(matrix: ArrayLike, sizes: Sequence[int], slopes: ArrayLike, lengths: ArrayLike) -> JointStep:
    """Curvature along a step of all weights at once, and how long it should be.

    Args:
        matrix: M (S, S).
        sizes: directions of each weight, S in all.
        slopes: of the loss along all directions (S,).
        lengths: T (S,), the step along each direction.

    >>> joint_step([[2.0, 1.0], [1.0, 2.0]], (1, 1), (1.0, 1.0), (1.0, 1.0))
    JointStep(joint=6.0, separate=4.0, ratio=1.5, factor=0.6666666666666666, left_out=0)
    """
    m, t = np.asarray(matrix, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    forms = _blocks(m * np.outer(t, t), sizes)
    starts = [0, *itertools.accumulate(sizes)][:-1]
    along = np.add.reduceat(t * np.asarray(slopes, dtype=np.float64), starts)
    alone = forms.diagonal()
    joint, separate = float(forms.sum()), float(alone.sum())
    ratio: float | Missing = Missing("the weights' own curvature along their steps is not positive")
    if separate > 0:
        ratio = joint / separate
    return JointStep(joint, separate, ratio, _factor(forms, along), int((alone <= 0).sum()))


def _factor(forms: Table, slopes: Vector) -> float | Missing:
    curved = forms.diagonal() > 0
    if not curved.any():
        return Missing("no weight's curvature along its step is positive")
    own = slopes[curved] / forms.diagonal()[curved]
    bent = float(own @ forms[np.ix_(curved, curved)] @ own)
    if not bent > 0:
        return Missing("the loss does not curve upward along the step of all weights at once")
    return float(own @ slopes[curved]) / bent


def block_norms(matrix: ArrayLike, sizes: Sequence[int]) -> Table:
    """Frobenius norms (W, W) of the blocks.

    >>> block_norms([[3.0, 0.0], [0.0, 4.0]], (1, 1)).tolist()
    [[3.0, 0.0], [0.0, 4.0]]
    """
    return np.sqrt(_blocks(np.square(np.asarray(matrix, dtype=np.float64)), sizes))


def largest_pair(norms: Table) -> tuple[float, int, int]:
    """The largest coupling of two weights, and which they are.

    >>> largest_pair(np.array([[4.0, 1.0, 3.0], [1.0, 4.0, 0.0], [3.0, 0.0, 9.0]]))
    (0.5, 0, 2)
    """
    own = np.sqrt(np.outer(norms.diagonal(), norms.diagonal()))
    coupling = np.divide(norms, own, out=np.zeros_like(norms), where=own > 0)
    upper = np.triu(coupling, 1)
    first, second = np.unravel_index(int(upper.argmax()), upper.shape)
    return float(upper[first, second]), int(first), int(second)
