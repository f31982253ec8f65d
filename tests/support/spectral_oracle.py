"""The spectral transfer by its definition: a float64 SVD, one singular value at a time."""

import torch
from torch import Tensor


def transfer_by_svd(matrix: Tensor, beta: float, damping: float) -> Tensor:
    """U diag(sigma / (sigma^beta + d)) Vᵀ in float64; zero singular values give zero."""
    left, sigma, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    result = torch.zeros_like(matrix, dtype=torch.float64)
    cut = max(matrix.shape) * torch.finfo(matrix.dtype).eps * float(sigma.max())
    for k, value in enumerate(sigma.tolist()):
        if value > (0 if damping else cut):
            result += value / (value**beta + damping) * torch.outer(left[:, k], right[k])
    return result


def matrix_with_spectrum(rows: int, columns: int, sigma: Tensor, seed: int = 0) -> Tensor:
    """A float64 matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    sides = [torch.randn(size, len(sigma), generator=generator, dtype=torch.float64) for size in (rows, columns)]
    left, right = (torch.linalg.qr(side)[0] for side in sides)
    return (left * sigma) @ right.T


def power_law(r: int, decay: float) -> Tensor:
    """sigma_k = k^-decay."""
    return torch.arange(1, r + 1, dtype=torch.float64) ** -decay
