"""The few largest eigenvalues of a large Gram matrix, with their vectors, by a block Krylov method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["leading_eigenvectors"]

_MORE = 16  # vectors beside those wanted: what lies close behind them is told apart sooner
_BLOCKS = 12  # products kept before the best of their span begin anew
_PASSES = 60
_TOLERANCE = 1e-10  # of a residual, in the largest eigenvalue


def leading_eigenvectors(
    apply: Callable[[Tensor], Tensor], like: Tensor, size: int, k: int
) -> tuple[Tensor, Tensor] | None:
    """The k largest eigenvalues (k,) of a positive semidefinite matrix, and their vectors (size, k).

    Args:
        apply: multiplies the matrix (size, size) by vectors (size, b).
        like: any tensor on the device and of the precision to work in.
        size: of the matrix.
        k: how many, fewer than ``size``.

    Returns:
        Both in decreasing order, with residuals below 1e-10 of the largest eigenvalue; ``None`` where they do not get
        there, as on a spectrum that is flat.

    Cost: about ten products with k + 16 vectors where the spectrum falls, at most 60.

    >>> matrix = torch.diag(torch.arange(50, 0, -1, dtype=torch.float64))
    >>> found = leading_eigenvectors(lambda x: matrix @ x, matrix, 50, 2)
    >>> [round(value, 9) for value in found[0].tolist()]
    [50.0, 49.0]
    """
    width = min(k + _MORE, size)
    start = torch.randn(size, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(start.to(like)).Q
    image = apply(basis)
    new = image
    for _ in range(_PASSES):
        small = basis.T @ image
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        values, vectors = values.flip(0), vectors.flip(1)
        found = basis @ vectors[:, :k]
        residual = (image @ vectors[:, :k] - found * values[:k]).norm(dim=0).max()
        if float(residual) <= _TOLERANCE * float(values[0]):
            return values[:k].clamp_min(0), found
        if basis.shape[1] == size:
            return None
        if basis.shape[1] + width > _BLOCKS * width:
            basis, image = basis @ vectors[:, : 2 * width], image @ vectors[:, : 2 * width]
            new = image[:, :width]
        new = new[:, : size - basis.shape[1]]
        for _ in range(2):  # once leaves what rounding lets through
            new = torch.linalg.qr(new - basis @ (basis.T @ new)).Q
        more = apply(new)
        basis, image, new = torch.cat([basis, new], 1), torch.cat([image, more], 1), more
    return None
