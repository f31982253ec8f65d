"""A gradient matrix seen through its singular value decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spectrascope.errors import NonFiniteError
from spectrascope.numerics.leading import leading_eigenvectors
from spectrascope.numerics.lifted import is_below
from spectrascope.numerics.spectra import gram_eigenvalues

__all__ = [
    "Directions", "join_directions", "largest_singular_value", "singular_values", "spectral_norm", "top_directions",
]  # fmt: skip

_DENSE_MAX = 1024  # smaller side up to which all singular vectors are computed
_SVD_MAX = 2048  # the same of a matrix measured in float64, whose Gram matrix would lose half the digits
_POWER_MIN = 384  # smaller side up to which eigenvalues are as fast as power iteration
_SPECTRUM_MAX = 8192  # smaller side up to which at least all singular values are


@dataclass(frozen=True)
class Directions:
    """The leading singular directions of a matrix (m, n), in order of decreasing singular value.

    ``sigma`` (k,), ``left`` (m, k) and ``right`` (n, k) with unit columns, all float64 on the CPU.
    ``spectrum`` holds all min(m, n) singular values, or ``None`` when the matrix is too large for that.
    ``rank`` counts ``sigma > max(m, n) · eps · sigma_1``; without the full spectrum it counts within the k
    computed, so it is a lower bound.
    """

    sigma: Tensor
    left: Tensor
    right: Tensor
    rank: int
    spectrum: Tensor | None

    def __post_init__(self) -> None:
        for name in ("sigma", "left", "right", "spectrum"):  # products of other strides are rounded otherwise
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, value.contiguous())

    @property
    def k(self) -> int:
        """Number of directions held."""
        return len(self.sigma)

    def forms(self, matrix: Tensor) -> Tensor:
        """Forms u_kᵀ A v_k (k,) of a matrix (m, n), in float64 on the CPU: of a gradient, the slopes along them."""
        return torch.einsum("mk,mn,nk->k", self.left, matrix.detach().cpu().double(), self.right)

    def pick(self, places: Sequence[int]) -> Directions:
        """Some of them, by place from 0."""
        chosen = list(places)
        return replace(self, sigma=self.sigma[chosen], left=self.left[:, chosen], right=self.right[:, chosen])


def top_directions(matrix: Tensor, k: int, dtype: torch.dtype = torch.float32, *, spectrum: bool = True) -> Directions:
    """Leading singular triplets of a matrix.

    Small matrices (smaller side up to 1024) are decomposed densely: through the float64 Gram matrix when the
    matrix was measured in float32 (whose rounding noise, max(m, n)·1.2e-7·sigma_1, is far above the 1e-8·sigma_1 that a
    Gram matrix resolves), by a full SVD (up to 2048) when it was measured in float64. Of larger ones the vectors wanted
    alone are computed, by a block Krylov method whose residuals are verified.

    Args:
        matrix: (m, n), any device, finite.
        k: how many; at most min(m, n) are returned, and none past the numerical rank.
        dtype: the precision the matrix was measured in; sets the rank cut.
        spectrum: whether the other singular values of a large matrix are wanted too.

    Returns:
        Directions with at most ``min(k, rank)`` columns. Signs are fixed so that the largest entry of every left
        vector is positive.

    Raises:
        NonFiniteError: the matrix holds NaN or infinity.

    Cost: m n min(m, n) for the Gram matrix, and 9 min(m, n)³ for all its vectors, 4/3 min(m, n)³ for its eigenvalues
    alone, or some ten products of it with k + 16 vectors.
    Reference: MEASUREMENT section 1.

    >>> d = top_directions(torch.diag(torch.tensor([3.0, 2.0, 0.0])), 3)
    >>> d.sigma.tolist(), d.rank
    ([3.0, 2.0], 2)
    """
    if not bool(torch.isfinite(matrix).all()):
        raise NonFiniteError("the gradient holds NaN or infinity: lower the input scale or measure in float64")
    on_cuda = matrix.device.type == "cuda"
    work = matrix.detach().to(device=None if on_cuda else "cpu").to(torch.float64)
    m, n = work.shape
    small = min(m, n)
    eps = float(torch.finfo(dtype).eps)
    # In a narrow format every entry is off by its own rounding, which spreads over all singular values.
    cut = eps / 4 if is_below(dtype, torch.float32) else max(m, n) * eps
    scale = float(work.abs().max()) if work.numel() else 0.0
    if scale == 0.0:
        nothing = [torch.zeros(shape, dtype=torch.float64) for shape in ((0,), (m, 0), (n, 0))]
        return Directions(nothing[0], nothing[1], nothing[2], 0, torch.zeros(small, dtype=torch.float64))
    work = work / scale  # keeps the Gram matrix of a tiny gradient away from underflow
    full: Tensor | None = None
    if small <= (_SVD_MAX if dtype is torch.float64 else _DENSE_MAX):
        left, sigma, right = _dense(work, gram=dtype is not torch.float64)
        full = sigma
    else:
        gram = _gram(work) if small <= _SPECTRUM_MAX else None
        left, sigma, right = _leading(work, gram, k)
        if spectrum and gram is not None:
            full = _roots(torch.linalg.eigvalsh(gram).flip(0))
    everything = sigma if full is None else full
    rank = int((everything > cut * everything[0]).sum())
    keep = min(k, rank, len(sigma))
    left, sigma, right = left[:, :keep], sigma[:keep], right[:, :keep]
    peak = left.abs().argmax(0)
    sign = torch.sign(left.gather(0, peak[None]))
    return Directions(
        (sigma * scale).cpu(),
        (left * sign).cpu(),
        (right * sign).cpu(),
        rank,
        None if full is None else (full * scale).cpu(),
    )


def _dense(work: Tensor, gram: bool) -> tuple[Tensor, Tensor, Tensor]:
    if not gram:
        left, sigma, right_h = torch.linalg.svd(work, full_matrices=False)
        return left, sigma, right_h.T
    values, vectors = torch.linalg.eigh(_gram(work))
    return _triplets(work, values.flip(0), vectors.flip(1))


def _triplets(work: Tensor, eigenvalues: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, singular values and right vectors, of some eigenvectors of the smaller Gram matrix."""
    side = _wide(work)
    other = side.T @ vectors
    other = other / other.norm(dim=0).clamp_min(torch.finfo(work.dtype).tiny)
    sigma = _roots(eigenvalues)
    return (vectors, sigma, other) if side is work else (other, sigma, vectors)


def _wide(work: Tensor) -> Tensor:
    """The matrix with its smaller side first."""
    return work.T if work.shape[0] > work.shape[1] else work


def _gram(work: Tensor) -> Tensor:
    """The smaller of AAᵀ and AᵀA."""
    side = _wide(work)
    return side @ side.T


def _roots(eigenvalues: Tensor) -> Tensor:
    return eigenvalues.clamp_min(0).sqrt()


def _singular_values(work: Tensor) -> Tensor:
    return _roots(torch.linalg.eigvalsh(_gram(work)).flip(0))


def _leading(work: Tensor, gram: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some of what :func:`_dense` gives, without the rest; by it where the spectrum is too flat to tell them apart."""
    side, size = _wide(work), min(work.shape)
    apply = (lambda x: side @ (side.T @ x)) if gram is None else (lambda x: gram @ x)
    found = leading_eigenvectors(apply, work, size, min(k, size - 1))
    return _dense(work, gram=True) if found is None else _triplets(work, *found)


def singular_values(matrix: Tensor, k: int) -> tuple[float, ...]:
    """The k largest singular values of a matrix (m, n), or all there are, in decreasing order; on the matrix's device.

    By the eigenvalues of its Gram matrix: what lies below a hundred-millionth of the largest is rounding.

    >>> [round(value, 12) for value in singular_values(torch.diag(torch.tensor([4.0, 9.0, 1.0])), 2)]
    [9.0, 4.0]
    """
    values = gram_eigenvalues(matrix)[0][:k].sqrt()
    return tuple(values.tolist())


def spectral_norm(matrix: Tensor) -> float:
    """Largest singular value of a matrix (m, n), on its device.

    >>> round(spectral_norm(torch.tensor([[3.0, 0.0], [4.0, 0.0]])), 12)
    5.0
    """
    work = matrix.detach().to(device=None if matrix.device.type == "cuda" else "cpu").to(torch.float64)
    scale = float(work.abs().max())
    if scale == 0.0:
        return 0.0
    work = work / scale  # as above: squares must neither underflow nor overflow
    if min(work.shape) <= _DENSE_MAX:
        return scale * float(_singular_values(work)[0])
    return scale * float(_leading(work, None, 1)[1][0])


def join_directions(parts: Sequence[Directions]) -> Directions:
    """Put several sets of directions of one matrix side by side, to be measured in one sweep.

    Their order is kept; ``rank`` and ``spectrum`` are of none of them.

    >>> one = top_directions(torch.eye(2), 2)
    >>> join_directions([one, one]).k
    4
    """
    if len(parts) == 1:
        return parts[0]
    return Directions(
        torch.cat([d.sigma for d in parts]),
        torch.cat([d.left for d in parts], 1),
        torch.cat([d.right for d in parts], 1),
        sum(d.k for d in parts),
        None,
    )


def largest_singular_value(matrix: Tensor) -> float:
    """Largest singular value of a matrix (m, n), to a thousandth where it is large; on the matrix's device.

    Small matrices by the eigenvalues of their Gram matrix; others by block power iteration until it stands still, for
    thresholds of noise, of which many are wanted.

    >>> round(largest_singular_value(torch.tensor([[3.0, 0.0], [4.0, 0.0]])), 12)
    5.0
    """
    dtype = torch.float32 if matrix.device.type == "mps" else torch.float64
    work = matrix.detach().to(dtype)
    scale = float(work.abs().max())
    if scale == 0.0:
        return 0.0
    work = work / scale
    if min(work.shape) <= _POWER_MIN:
        return scale * float(_singular_values(work)[0])
    start = torch.randn(work.shape[1], 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block, before = start.to(work), 0.0
    for _ in range(60):
        block, _ = torch.linalg.qr(work.T @ (work @ block))
        value = float(torch.linalg.matrix_norm(work @ block, 2))
        if value - before <= 1e-4 * value:
            break
        before = value
    return scale * value
