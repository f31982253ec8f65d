"""Apply the spectral transfer T(sigma; beta) = sigma / (sigma² + d)^(beta/2) to whole stacks of matrices.

With G = U diag(sigma) Vᵀ the result is U diag(T(sigma)) Vᵀ. Every route but the last works on the Gram matrix of the
smaller side, S = G Gᵀ, since U diag(T) Vᵀ = (S + d I)^(-beta/2) G: no singular vector is ever formed. The damping
stands inside the root, so that it bounds the condition number of what the root is taken of, whatever beta is.

========== ============================ =========================================================================
route      for                          cost of an m × n matrix, m ≤ n (multiply-adds)
========== ============================ =========================================================================
scale      beta = 0                     m n
cholesky   beta = 2                     2 m² n + m³: Gram, factor, inverse, product
roots      beta = ¼, ½, … to 3          2 m² n and 11 to 27 m³ down to d = 1e-4: matrix products alone; 1e-3 accurate
eigh       any beta                     2 m² n + about 9 m³ of an eigensolver
svd        what the Gram matrix cannot  about 20 m² n
           resolve, and the reference
========== ============================ =========================================================================

A Gram matrix squares the spread of the singular values. How much of it matters is known beforehand: directions with
sigma² below d are damped anyway, so what has to be resolved is sigma_1² / d. Where float32 does not resolve it,
float64 does; where float64 does not, the SVD is taken.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from spectrascope.optim.inverse_roots import RootPlan, apply_inverse_root, plan_inverse_root
from spectrascope.optim.precision import full_float32

__all__ = ["Precision", "Route", "apply_transfer", "choose_route"]


class Route(str, Enum):
    """Algorithms for the transfer; see the table of the module."""

    AUTO = "auto"
    SCALE = "scale"
    CHOLESKY = "cholesky"
    ROOTS = "roots"
    EIGH = "eigh"
    SVD = "svd"


class Precision(str, Enum):
    """Floating-point format of the Gram matrix and what follows.

    ``AUTO`` is float32 where that is accurate and else float64. Only with absolute damping does this take a look at
    the gradient (on CUDA: one number read back per stack).
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT64 = "float64"


MAX_SPREAD_FLOAT32 = {Route.CHOLESKY: 3e4, Route.EIGH: 1e4, Route.ROOTS: 1.1e4}
"""Largest sigma_1² / d a float32 Gram matrix is trusted with: measured errors stay below 1e-3, of roots below 2e-2."""

MAX_SPREAD_FLOAT64 = 1e6
"""The largest spread a float64 Gram matrix of float64 input is trusted with: the error stays below 1e-9."""

MAX_SPREAD_WIDENED = 1e10
"""The same for input of lower precision, whose own rounding is far above the error."""


MAX_SPREAD_ROOTS = 1e7
"""The largest spread that roots are taken of in float64: beyond it an eigensolver costs no more."""


def choose_route(beta: float, device: torch.device | str = "cpu") -> Route:
    """Return the cheapest route of an exponent.

    Measured on a CPU over the shapes of a ResNet-18 and a GPT-2 block: an eigensolver costs less than the iterations
    that would replace it (``examples/optimizers/step_cost.py``). On a GPU eigensolvers and Cholesky factors are slow
    and products fast: there a beta that is a multiple of ¼, to 3, takes at most two of Muon's steps; any other an
    eigensolver, exactly as asked.

    >>> [choose_route(beta).value for beta in (0, 1, 2)], [choose_route(beta, "cuda").value for beta in (0, 1.25, 1.3)]
    (['scale', 'eigh', 'cholesky'], ['scale', 'roots', 'eigh'])
    """
    if beta == 0:
        return Route.SCALE
    if torch.device(device).type != "cpu" and _is_root(beta):
        return Route.ROOTS
    return Route.CHOLESKY if beta == 2 else Route.EIGH


def _is_root(beta: float) -> bool:
    return 0 < beta <= 3 and float(4 * beta).is_integer()


def apply_transfer(
    matrices: Tensor,
    beta: float | Sequence[float] = 2.0,
    damping: float | Sequence[float] = 0.1,
    *,
    scale_free: bool = False,
    route: Route | str = Route.AUTO,
    precision: Precision | str = Precision.AUTO,
) -> Tensor:
    """Replace every singular value sigma of the matrices by T(sigma; beta) = sigma / (sigma² + d)^(beta/2).

    With damping 0 the directions past the numerical rank, sigma ≤ max(m, n)·eps·sigma_1, are dropped, as they are
    rounding noise that a beta above 1 would blow up. A matrix of zeros gives zeros. A matrix with NaN or infinity in
    it gives NaN throughout and leaves the others alone.

    Args:
        matrices: one matrix (m, n) or a stack (b, m, n), any floating-point dtype and device, any strides.
        beta: the exponent, 0 or more; a sequence of b gives each matrix its own (route ``eigh`` or ``svd``).
        damping: d, 0 or more, in units of sigma²; a sequence of b gives each matrix its own.
        scale_free: measure sigma in units of s, the matrix's Schatten 4-norm (Σ sigma⁴)^(1/4), which lies between
            sigma_1 and m^(1/4)·sigma_1: damping is then relative to s². And give the result the Frobenius norm
            √min(m, n) of an orthogonal matrix, so that neither beta nor the gradient's size changes how long a step
            is. The result no longer depends on the scale of the input.
        route: how; ``auto`` is :func:`choose_route`, with ``svd`` where a Gram matrix does not resolve the damping.
        precision: of the work; the result has the dtype of ``matrices``.

    Returns:
        A tensor shaped as ``matrices``.

    Raises:
        ValueError: beta or damping negative, a shape that is not a matrix or stack, an integer dtype, or a route that
            does not fit beta or, as roots do not, a damping of 0.

    Cost: see the table of the module.
    Reference: MEASUREMENT section 8.

    >>> diagonal = torch.diag(torch.tensor([3.0, 1.0]))
    >>> apply_transfer(diagonal, beta=2.0, damping=1.0)
    tensor([[0.3000, 0.0000],
            [0.0000, 0.5000]])
    """
    if matrices.dim() not in (2, 3) or not matrices.is_floating_point():
        raise ValueError(
            f"expected real matrices (m, n) or (b, m, n), got shape {tuple(matrices.shape)} of {matrices.dtype}"
        )
    stack = matrices if matrices.dim() == 3 else matrices[None]
    if stack.numel() == 0:
        return torch.zeros_like(matrices)
    betas, dampings = _per_matrix(beta, len(stack), "beta"), _per_matrix(damping, len(stack), "damping")
    tall = stack.shape[1] > stack.shape[2]
    wide = stack.mT if tall else stack
    # A Gram matrix rounded to TF32 has negative eigenvalues where the damping is small: a root of it is anything.
    with contextlib.nullcontext() if wide.device.type == "cpu" or torch.compiler.is_compiling() else full_float32():
        result = _transfer(wide, betas, dampings, scale_free, Route(route), Precision(precision))
    result = result.mT if tall else result
    return result.to(matrices.dtype).reshape(matrices.shape)


def _per_matrix(value: float | Sequence[float], count: int, name: str) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(values) != count:
        raise ValueError(f"{name}: expected one value, or one for each of {count} matrices, got {len(values)}")
    for each in values:
        if not 0 <= each < math.inf:
            raise ValueError(f"{name} must be a finite number from 0 on, got {each}")
    return tuple(float(each) for each in values)


def _transfer(
    wide: Tensor,
    betas: tuple[float, ...],
    dampings: tuple[float, ...],
    scale_free: bool,
    route: Route,
    precision: Precision,
) -> Tensor:
    """Transfer a stack (b, m, n) with m ≤ n."""
    if route is Route.AUTO:
        # Float64 is asked for by those who want more than the tolerance of roots; without damping roots have no end.
        device = "cpu" if wide.dtype == torch.float64 or min(dampings) == 0 else wide.device
        route = choose_route(betas[0], device) if len(set(betas)) == 1 else Route.EIGH
    _require_fit(route, betas, dampings)
    damping = _as_tensor(dampings, wide.device)
    work, size, finite = _scaled_to_one(wide)
    if route is Route.SCALE:
        factor = torch.ones_like(size) if scale_free else size
        found = work * torch.where(finite, factor, torch.nan).to(work.dtype)[:, None, None]
        return _with_orthogonal_norm(found) if scale_free else found
    spread = _largest_spread(dampings) if scale_free else None
    return _by_spectrum(work, size, finite, betas, damping, spread, route, precision, wide.dtype)


def _require_fit(route: Route, betas: tuple[float, ...], dampings: tuple[float, ...]) -> None:
    needs = {Route.SCALE: 0.0, Route.CHOLESKY: 2.0}.get(route)
    if needs is not None and set(betas) != {needs}:
        raise ValueError(f"route {route.value} is for beta = {needs:g} alone, got {betas[0]:g}")
    if route is Route.ROOTS and (len(set(betas)) > 1 or not _is_root(betas[0])):
        raise ValueError(f"route roots is for one beta of ¼, ½, … 3, got {', '.join(f'{b:g}' for b in set(betas))}")
    if route is Route.ROOTS and min(dampings) == 0:
        raise ValueError("route roots needs a damping above 0, which bounds what it takes the root of")


def _as_tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    if len(set(values)) == 1:  # filled on the device: nothing is copied to it
        return torch.full((len(values),), values[0], dtype=torch.float64, device=device)
    return torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)


def _largest_spread(dampings: Iterable[float]) -> float:
    """Largest 1 / d over the stack, at least 1, infinite without damping; d in units of sigma_1² ≤ 1."""
    least = min(dampings)
    return max(1.0, 1 / least) if least > 1e-300 else math.inf


def _scaled_to_one(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices over their largest entry, in float32 at least; that entry (b,) in float64; which matrices are finite."""
    work = wide if wide.dtype == torch.float64 else wide.to(torch.float32)
    size = torch.linalg.vector_norm(work, ord=math.inf, dim=(1, 2)).double()
    finite = torch.isfinite(size)
    # Within the range of the dtype, reciprocal included: squares of the quotient neither overflow nor vanish.
    largest = 1e307 if work.dtype == torch.float64 else 1e37
    size = torch.where(finite & (size > 0), size, 1.0).clamp(1 / largest, largest)
    return work * size.reciprocal().to(work.dtype)[:, None, None], size, finite


def _with_orthogonal_norm(matrices: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    factor = math.sqrt(min(matrices.shape[1:])) / norm
    return matrices * torch.where(norm > 0, factor, 0.0)


def _by_spectrum(
    work: Tensor,
    size: Tensor,
    finite: Tensor,
    betas: tuple[float, ...],
    damping: Tensor,
    spread: float | None,
    route: Route,
    precision: Precision,
    given: torch.dtype,
) -> Tensor:
    scale_free, beta = spread is not None, _as_tensor(betas, work.device)
    gram = _gram(work, finite)
    unit = torch.linalg.vector_norm(gram, dim=(1, 2)).sqrt().double()  # Schatten 4-norm of work
    unit = torch.where(unit > 0, unit, 1.0)
    # From here on sigma is in units of size · unit, so that sigma_1 ≤ 1. Powers of that overflow: logarithms do not.
    log_scale = torch.zeros_like(size) if scale_free else size.log() + unit.log()
    log_relative = damping.log() - 2 * log_scale
    log_cap = log_relative.clamp_min(0.0)
    if spread is None and route is not Route.SVD and (precision is Precision.AUTO or route is Route.ROOTS):
        spread = _largest_spread(log_relative.exp().tolist())
    # Above beta = 2 the root is steeper than the spread: what rounding leaks into damped directions grows with it.
    steep = max(1.0, max(betas) / 2) if route is Route.ROOTS else 1.0
    route, dtype = _settle(route, precision, given, spread, steep)
    if dtype != work.dtype:
        work = work.to(dtype)
        gram = _gram(work, finite)
    # T = prefactor · sigma / (sigma² / cap + relative / cap)^(beta/2), with both terms between 0 and 1.
    prefactor = torch.where(finite, ((1.0 - beta) * log_scale - beta / 2 * log_cap).exp() / unit, torch.nan)
    shrink, floor = (-log_cap).exp().to(dtype), log_relative.clamp_max(0.0).exp().to(dtype)
    terms = _Terms(beta, shrink, floor, unit.to(dtype), prefactor.to(dtype), given)
    if route is Route.CHOLESKY:
        found = terms.by_cholesky(gram) @ work
    elif route is Route.ROOTS:
        assert spread is not None
        found = terms.by_roots(gram, plan_inverse_root(round(4 * betas[0]), 1 + spread)) @ work
    elif route is Route.EIGH:
        found = terms.by_eigh(gram, max(work.shape[1:])) @ work
    else:
        found = terms.by_svd(work.masked_fill(~finite[:, None, None], 0.0))
    return _with_orthogonal_norm(found) if scale_free else found


def _gram(work: Tensor, finite: Tensor) -> Tensor:
    """Work · workᵀ (b, m, m), zero where a matrix is not finite: an eigensolver would raise on it."""
    return (work @ work.mT).masked_fill_(~finite[:, None, None], 0.0)


def _settle(
    route: Route, precision: Precision, given: torch.dtype, spread: float | None, steep: float
) -> tuple[Route, torch.dtype]:
    """Choose precision, and whether a Gram matrix will do, from the spread that the damping leaves to be resolved."""
    widest = given == torch.float64 or precision is Precision.FLOAT64
    if route is Route.ROOTS and spread is not None and spread > MAX_SPREAD_ROOTS:
        route = Route.EIGH
    if route is Route.SVD or precision is not Precision.AUTO or spread is None:
        return route, torch.float64 if widest else torch.float32
    if given == torch.float64:
        return (route if route is Route.ROOTS or spread <= MAX_SPREAD_FLOAT64 else Route.SVD), torch.float64
    if spread**steep <= MAX_SPREAD_FLOAT32[route]:
        return route, torch.float32
    # Cut at the numerical rank of float32, which a float64 Gram matrix resolves.
    return (route if spread <= MAX_SPREAD_WIDENED else Route.EIGH), torch.float64


@dataclass(frozen=True)
class _Terms:
    """T(sigma) = prefactor · sigma / (sigma² · shrink + floor)^(beta/2), sigma in units of ``unit``; tensors (b,)."""

    beta: Tensor
    shrink: Tensor
    floor: Tensor
    unit: Tensor
    prefactor: Tensor
    given: torch.dtype

    def by_cholesky(self, gram: Tensor) -> Tensor:
        """T(sigma) / sigma as a function of the Gram matrix, beta = 2; NaN where the damping is lost in rounding."""
        # No-op at the spreads that Precision.AUTO leaves to this route and dtype.
        floor = self.floor.clamp_min(64 * torch.finfo(gram.dtype).eps)
        matrix = self._damped(gram, self.shrink, floor)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        scale = torch.where(failed == 0, self.prefactor, torch.nan)
        inverse: Tensor = torch.cholesky_inverse(factor)
        return inverse * scale[:, None, None]

    def by_roots(self, gram: Tensor, plan: RootPlan) -> Tensor:
        """T(sigma) / sigma as a function of the Gram matrix, with the one beta that the plan was made for."""
        largest = self.shrink + self.floor
        root = apply_inverse_root(self._damped(gram, self.shrink / largest, self.floor / largest), plan)
        return root * (self.prefactor * largest ** (-plan.power / plan.root))[:, None, None]

    def _damped(self, gram: Tensor, shrink: Tensor, floor: Tensor) -> Tensor:
        matrix = gram * (shrink / self.unit.square())[:, None, None]
        matrix.diagonal(dim1=1, dim2=2).add_(floor[:, None])
        return matrix

    def by_eigh(self, gram: Tensor, longer_side: int) -> Tensor:
        """T(sigma) / sigma as a function of the Gram matrix."""
        values, vectors = torch.linalg.eigh(gram)
        sigma = values.clamp_min(0).sqrt()
        found: Tensor = (vectors * self._weights(sigma, sigma[:, -1:], longer_side)[:, None, :]) @ vectors.mT
        return found

    def by_svd(self, work: Tensor) -> Tensor:
        """Return the transferred matrices by their singular value decomposition, which is the definition."""
        left, sigma, right = torch.linalg.svd(work, full_matrices=False)
        weights = self._weights(sigma, sigma[:, :1], max(work.shape[1:]))
        found: Tensor = (left * (sigma * weights)[:, None, :]) @ right
        return found

    def _weights(self, sigma: Tensor, largest: Tensor, longer_side: int) -> Tensor:
        """T(sigma) / sigma (b, m); without damping 0 past the numerical rank."""
        beta, floor = self.beta.to(sigma.dtype)[:, None], self.floor[:, None]
        eps = torch.finfo(torch.float64 if self.given == torch.float64 else torch.float32).eps
        kept = (floor > 0) | (sigma > longer_side * eps * largest)
        inner = torch.where(kept, sigma / self.unit[:, None], 1.0) ** 2 * self.shrink[:, None] + floor
        return torch.where(kept, inner ** (-beta / 2), 0.0) * self.prefactor[:, None]
