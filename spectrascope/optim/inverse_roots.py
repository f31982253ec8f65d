"""Inverse roots of positive definite matrices by matrix products alone, which is what a GPU is fast at.

A^(-s), s = k/p, p a power of two, by a coupled iteration from Z = I, M = A:

    q ≈ M^(-1/p),    Z ← Z q^k,    M ← M q^p

Every q is the polynomial closest, in relative error, to x^(-1/p) on the interval that M's eigenvalues lie in, so M
comes as near to I as its degree allows and the worst error is known beforehand from the condition number alone. For
p = 2 and quadratic q this is Newton and Schulz's iteration with the coefficients of Polar Express; a larger p needs
fewer products for the finer roots than square roots of square roots, since x^(-1/8) is nearly flat. All matrices are
polynomials of A: they commute, and no inverse is taken.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["TOLERANCE", "RootPlan", "apply_inverse_root", "plan_inverse_root"]

TOLERANCE = 1e-3
"""Largest relative error of A^(-s), in exact arithmetic; float32 rounding adds about 1e-7 · the condition number."""

_DEGREES = {1: 0, 2: 1, 4: 2}
"""Degrees worth having, and the products that a polynomial of each costs; a cubic costs as much as a quartic."""


@dataclass(frozen=True)
class RootPlan:
    """Polynomials q of the coupled iteration for A^(-power/root), coefficients from the constant up.

    ``error`` bounds the relative error in exact arithmetic; ``products`` counts products of two matrices shaped as A.
    """

    root: int
    power: int
    polynomials: tuple[tuple[float, ...], ...]
    error: float
    products: int


def plan_inverse_root(eighths: int, condition: float) -> RootPlan:
    """Find the iteration of the fewest products for A^(-eighths/8) to :data:`TOLERANCE`.

    Args:
        eighths: 1 or more.
        condition: of A, whose eigenvalues are to lie between 1/condition and 1.

    Cost: some 50 ms for each new exponent and third of a decade of the condition number; then none.

    >>> plan = plan_inverse_root(4, 1e4)
    >>> plan.root, plan.power, plan.products, plan.error < 1e-3
    (2, 1, 14, True)
    """
    thirds = math.ceil(3 * math.log10(condition) - 0.03)
    return _plan(eighths, 10.0 ** (max(thirds, 1) / 3))


# What torch.compiler.assume_constant_result says, which imports the compiler: over a second in each process.
plan_inverse_root._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _plan(eighths: int, condition: float) -> RootPlan:
    """The plan of fewest products over all sequences of degrees: a search that goes on with the cheapest begun."""
    root = 2 if eighths % 4 == 0 else 8 // math.gcd(eighths, 8)
    power = eighths * root // 8
    # A little more room than rounding needs: outside of its interval a polynomial is soon far off.
    begun: list[_Begun] = [(0, 0, (), 0.9 / condition, 1.01)]
    plans: list[tuple[int, RootPlan]] = []
    count = 0
    while not plans or begun[0][0] < plans[0][0]:
        products, _, done, low, high = heapq.heappop(begun)
        for degree, cost in _DEGREES.items():
            q, error = _closest_polynomial(root, degree, low, high)
            count += 1
            joined = products + cost + power.bit_count() - 1 + bool(done)
            if power * error <= TOLERANCE:  # the last one: M is needed no more
                plan = RootPlan(root, power, (*done, q), power * error, joined + _squarings(power))
                plans = sorted([*plans, (plan.products, plan)], key=lambda found: found[0])
                break
            both = joined + max(_squarings(root) - 1, _squarings(power)) + 2
            heapq.heappush(begun, (both, count, (*done, q), (1 - error) ** root, (1 + error) ** root))
    return plans[0][1]


_Begun: TypeAlias = "tuple[int, int, tuple[tuple[float, ...], ...], float, float]"
"""Products so far, a number that no other has, polynomials so far, and the interval of M's eigenvalues."""


def _squarings(power: int) -> int:
    return power.bit_length() - 1


@lru_cache(maxsize=4096)
def _closest_polynomial(root: int, degree: int, low: float, high: float) -> tuple[tuple[float, ...], float]:
    """The polynomial with the smallest worst relative error to x^(-1/root) on [low, high], and that error (Remez)."""
    points = np.geomspace(low / high, 1.0, 1000)
    basis = points[:, None] ** (np.arange(degree + 1) + 1 / root)  # of what is to be 1
    chosen = np.linspace(0, len(points) - 1, degree + 2).astype(int)
    signs = (-1.0) ** np.arange(degree + 2)
    coefficients: NDArray[np.float64] = np.zeros(degree + 1)
    for _ in range(50):
        *found, level = np.linalg.solve(np.column_stack([basis[chosen], signs]), np.ones(degree + 2))
        coefficients = np.array(found)
        residual = basis @ coefficients - 1
        pieces = np.split(np.arange(len(points)), np.flatnonzero(np.diff(np.sign(residual))) + 1)
        if len(pieces) != degree + 2:
            break
        chosen = np.array([piece[np.argmax(np.abs(residual[piece]))] for piece in pieces])
        if np.abs(residual).max() <= abs(level) * (1 + 1e-3):
            break
    scaled = coefficients / high ** (np.arange(degree + 1) + 1 / root)
    return tuple(scaled.tolist()), float(np.abs(basis @ coefficients - 1).max())


def apply_inverse_root(matrices: Tensor, plan: RootPlan) -> Tensor:
    """Return A^(-power/root) of symmetric matrices (b, m, m) whose eigenvalues the plan was made for.

    Cost: ``plan.products`` products of m × m matrices, and five such matrices in memory.
    """
    m, z = matrices, None
    for place, q in enumerate(plan.polynomials):
        is_last = place == len(plan.polynomials) - 1
        powers = [_evaluate(q, m)]
        while len(powers) <= max(_squarings(plan.power), 0 if is_last else _squarings(plan.root) - 1):
            powers.append(powers[-1] @ powers[-1])
        for bit in range(plan.power.bit_length()):
            if plan.power >> bit & 1:
                z = powers[bit] if z is None else z @ powers[bit]
        if not is_last:  # in two products: what the first one rounds away grows by half of the power alone
            half = powers[_squarings(plan.root) - 1]
            m = m @ half @ half
    assert z is not None
    return z


def _evaluate(q: tuple[float, ...], m: Tensor) -> Tensor:
    if len(q) == 2:
        found = m * q[1]
    else:
        square = m @ m
        found = m * q[1] + square * q[2]
        if len(q) == 5:
            found = torch.baddbmm(found, square, m * q[3] + square * q[4])
    found.diagonal(dim1=1, dim2=2).add_(q[0])
    return found
