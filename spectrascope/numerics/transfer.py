"""The spectral transfer T(sigma; beta), and how good a step it makes under the local quadratic model.

A step ΔW = -η U diag(T) Vᵀ along measured directions changes the loss, to second order, by -η Σ T_k sigma_k +
½ η² Tᵀ M T. NumPy only: a saved report is judged without torch. The same transfer on whole matrices is
:func:`spectrascope.optim.apply_transfer`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spectrascope.numerics.vectors import as_vector
from spectrascope.records.values import Missing

__all__ = [
    "LEAST_PIVOT",
    "QuadraticModel",
    "StepOutcome",
    "find_most_efficient",
    "make_quadratic_model",
    "transfer",
]

Vector = NDArray[np.float64]

LEAST_PIVOT = 1e-3
"""A direction is resolved while its curvature, the earlier ones minimised out, is above this share of its own h.

Float32 measurements of M are good to about 1e-5; below a thousandth, M⁻¹ would be made of their rounding.
"""


def transfer(sigma: ArrayLike, beta: float, damping: float = 0.0) -> Vector:
    """Return T(sigma; beta) = sigma / (sigma² + d)^(beta/2), entry by entry.

    beta = 0 is gradient descent, beta = 1 without damping Muon's orthogonalised step, beta = 2 Spectral Newton.

    Args:
        sigma: singular values, positive, shape (k,).
        beta: the exponent, any number.
        damping: d, 0 or more, in units of sigma²: directions with sigma below √d are damped, whatever beta is.

    Returns:
        T, shape (k,), in units of sigma^(1 - beta).

    Raises:
        ValueError: a singular value that is not positive, or negative damping.

    Cost: O(k).
    Reference: MEASUREMENT section 8.

    >>> transfer([4.0, 2.0], beta=2.0).tolist(), transfer([4.0, 0.0625], beta=1.0, damping=9.0).tolist()[0]
    ([0.25, 0.5], 0.8)
    """
    values = as_vector(sigma, "sigma")
    if not (values > 0).all():
        raise ValueError("sigma must be positive: directions past the numerical rank have no transfer")
    if not damping >= 0:
        raise ValueError(f"damping must be 0 or more, got {damping}")
    return np.asarray(values / (values**2 + damping) ** (beta / 2), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The best step along one combination of directions, under the local quadratic model.

    Attributes:
        length: η of the step -η U diag(T) Vᵀ that lowers the model most.
        decrease: by how much the loss falls there, (Σ T_k sigma_k)² / (2 TᵀM T).
        efficiency: ``decrease`` over the best possible in the window, ½ sigmaᵀ M⁻¹ sigma; in (0, 1].
    """

    length: float
    decrease: float
    efficiency: float


@dataclass(frozen=True, slots=True)
class QuadraticModel:
    """The loss to second order along the window's leading directions, as many as M resolves.

    Attributes:
        sigma: slopes, shape (k,), decreasing and positive.
        matrix: M, shape (k, k), symmetric and positive definite.
        best: T of the best step there is, M⁻¹ sigma, shape (k,); its length η is 1.
        best_decrease: ½ sigmaᵀ M⁻¹ sigma, in units of the loss.
    """

    sigma: Vector
    matrix: Vector
    best: Vector
    best_decrease: float

    def step(self, transfer: ArrayLike) -> StepOutcome | Missing:
        """Return the best step along Σ_k T_k D_k.

        Args:
            transfer: T, shape (k,), any unit.

        Returns:
            The step; Missing if the loss does not fall along it.

        Raises:
            ValueError: not one value per direction.

        >>> model = make_quadratic_model([2.0, 1.0], [[4.0, 0.0], [0.0, 1.0]])
        >>> model.step([0.5, 1.0]), round(model.step([2.0, 1.0]).efficiency, 3)
        (StepOutcome(length=1.0, decrease=1.0, efficiency=1.0), 0.735)
        """
        weights = as_vector(transfer, "transfer")
        if weights.shape != self.sigma.shape:
            raise ValueError(f"transfer has {weights.size} values, the model {self.sigma.size} directions")
        slope = float(weights @ self.sigma)
        curvature = float(weights @ self.matrix @ weights)
        if not (slope > 0 and curvature > 0):
            return Missing("the loss does not fall along this step")
        decrease = slope**2 / (2 * curvature)
        return StepOutcome(slope / curvature, decrease, min(1.0, decrease / self.best_decrease))


def make_quadratic_model(sigma: ArrayLike, matrix: ArrayLike) -> QuadraticModel | Missing:
    """Return the quadratic model over the leading directions along which M is safely positive definite.

    Where M has negative or unresolved curvature the best step is unbounded or rounding noise, so the window ends
    before the first direction whose pivot in M's Cholesky factorisation falls below :data:`LEAST_PIVOT` of its own h.

    Args:
        sigma: singular values of the gradient, positive and decreasing, shape (k,).
        matrix: M_kj = <D_k, H D_j>, shape (k, k); symmetrised.

    Returns:
        The model; Missing if not even the first direction has positive curvature, or something is not finite.

    Raises:
        ValueError: shapes that do not match.

    Cost: O(k³).
    Reference: MEASUREMENT section 8.

    >>> make_quadratic_model([2.0, 1.0], [[4.0, 0.0], [0.0, 1.0]]).best_decrease
    1.0
    >>> make_quadratic_model([2.0, 1.0], [[4.0, 0.0], [0.0, -1.0]]).best_decrease
    0.5
    """
    slopes, block = as_vector(sigma, "sigma"), np.asarray(matrix, dtype=np.float64)
    if block.shape != (slopes.size, slopes.size):
        raise ValueError(f"matrix has shape {block.shape}, expected ({slopes.size}, {slopes.size})")
    if slopes.size == 0:
        return Missing("the window holds no direction")
    if not (np.isfinite(slopes).all() and np.isfinite(block).all()):
        return Missing("the slopes or the curvature matrix have NaN or infinite entries")
    block = (block + block.T) / 2
    k = _count_resolved(block)
    if k == 0:
        return Missing("the curvature along the first direction is not positive")
    slopes, block = slopes[:k], block[:k, :k]
    scale = np.sqrt(np.diag(block))  # unit diagonal: M⁻¹ of a spread of 1e12 would lose what float64 has
    best = np.linalg.solve(block / np.outer(scale, scale), slopes / scale) / scale
    return QuadraticModel(slopes, block, best, float(slopes @ best) / 2)


def _count_resolved(block: Vector) -> int:
    """Number of leading rows over which the pivots stay above the least share of the diagonal."""
    factor = np.zeros_like(block)
    for k in range(len(block)):
        if block[k, k] <= 0:
            return k
        scale = np.sqrt(block[k, k])
        row = np.zeros(k)
        for j in range(k):
            row[j] = (block[k, j] / scale - row[:j] @ factor[j, :j]) / factor[j, j]
        pivot = 1.0 - row @ row
        if pivot < LEAST_PIVOT:
            return k
        factor[k, :k], factor[k, k] = row * scale, np.sqrt(pivot) * scale
    return len(block)


def find_most_efficient(model: QuadraticModel, *, low: float = -1.0, high: float = 4.0) -> float:
    """Return the exponent b in [low, high] whose undamped step is the most efficient, to 0.01.

    It is beta where M is diagonal with h exactly ∝ sigma^beta; off the diagonal it can differ.

    Cost: 501 evaluations of a quadratic form.
    Reference: MEASUREMENT section 8.

    >>> find_most_efficient(make_quadratic_model([4.0, 2.0, 1.0], [[64.0, 0, 0], [0, 8.0, 0], [0, 0, 1.0]]))
    3.0
    """
    exponents = np.linspace(low, high, round(100 * (high - low)) + 1)
    relative = model.sigma / model.sigma[0]
    efficiencies = []
    for b in exponents:
        step = model.step(transfer(relative, float(b)))
        efficiencies.append(0.0 if isinstance(step, Missing) else step.efficiency)
    return round(float(exponents[int(np.argmax(efficiencies))]), 2)
