"""All singular values of a weight, as eigenvalues of its smaller Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gram_eigenvalues", "lower_gram", "sum_dtype"]

_DOUBLE_UP_TO = 1024
"""Smaller side up to which the Gram matrix is formed in float64 in any case: it costs less than a second."""


def sum_dtype(device: torch.device) -> torch.dtype:
    """The type to sum in: float64, or float32 on a device that has no other (``mps``)."""
    return torch.float32 if device.type == "mps" else torch.float64


def gram_eigenvalues(matrix: Tensor, *, precise: bool = True) -> tuple[Tensor, float]:
    """Eigenvalues of the smaller of WᵀW and WWᵀ, and how far each may be off.

    Args:
        matrix: (m, n), finite, on any device.
        precise: in float64; otherwise in float32 where the matrix is large, in about half the time.

    Returns:
        Eigenvalues (min(m, n),) in decreasing order, non-negative, float64 on the CPU; and how far each may be off by
        rounding, an estimate: twice the largest error seen, over flat, decaying and spiked spectra.

    Cost: m n min(m, n) for the Gram matrix and 4/3 min(m, n)³ for the eigenvalues.

    >>> gram_eigenvalues(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))[0].tolist()
    [9.0, 4.0]
    """
    m, n = matrix.shape
    side = matrix.detach() if m <= n else matrix.detach().T
    single = not precise and min(m, n) > _DOUBLE_UP_TO
    dtype = torch.float32 if single else sum_dtype(matrix.device)
    work = side.to(dtype)
    scale = float(work.abs().max()) if work.numel() else 0.0
    if scale == 0.0:
        return torch.zeros(min(m, n), dtype=torch.float64), 0.0
    work = work / scale  # squares must neither overflow nor vanish
    # The triangle that LAPACK's reduction reads along columns, a quarter faster than the other.
    values = torch.linalg.eigvalsh(lower_gram(work.T).T, UPLO="U").flip(0).clamp_min(0).cpu().double()
    # Rounding of the Gram matrix and its reduction is of the order of the largest; where many eigenvalues are of a
    # size, what the iterations after it leave over adds up like a random walk over them.
    walk = float(values.square().sum().sqrt())
    error = 8 * torch.finfo(dtype).eps * (float(values[0]) + walk)
    return values * scale**2, error * scale**2


def lower_gram(rows: Tensor) -> Tensor:
    """XᵀX of rows X (r, size), of which only the lower triangle is right where the matrix is large.

    Eigenvalue solvers read no more, and the rest would take as long again.

    >>> lower_gram(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """
    size = rows.shape[1]
    if size < 128:
        return rows.T @ rows
    gram = rows.new_zeros(size, size)
    step = min(-(-size // 4), 256)  # smaller pieces save more and run slower
    for start in range(0, size, step):
        part = slice(start, min(start + step, size))
        gram[part, : part.stop] = rows[:, part].T @ rows[:, : part.stop]
    return gram
