"""A linear softmax model whose population is known: the oracle of held-out slopes, curvature and exponents.

Inputs are drawn from a large fixed pool and labels from a teacher's softmax, so the mean gradient and curvature over
the pool, with labels averaged out, are exact.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from spectrascope.numerics.signal import split_folds

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@dataclass(frozen=True)
class Batch:
    """What a measurement would hand to the statistics: of the whole batch, and by group along held-out directions."""

    sigma: Array
    h: Array  # along the whole batch's directions, same samples
    slopes: Array  # (groups, k) held out
    curvature: Array  # (groups, k) held out
    matrices: Array  # (groups, k, k) held out
    sizes: tuple[int, ...]
    true_slopes: Array  # population slopes along the held-out directions, mean over folds
    optimum: float  # exponent that is best for the population along the whole batch's directions
    same_sample_optimum: float  # exponent that looks best on the samples that chose the directions
    null_sigma: Array  # largest singular values of 20 sign-flipped gradients

    @property
    def matrix(self) -> Array:
        return self.matrices.mean(0)


class Population:
    """``signal`` scales the teacher away from the student; 0 is a network with nothing left to learn."""

    def __init__(self, signal: float, d: int = 24, classes: int = 10, pool: int = 30_000) -> None:
        generator = np.random.default_rng(5)
        self.x = generator.standard_normal((pool, d)) * np.arange(1, d + 1) ** -0.5
        self.student = generator.standard_normal((classes, d)) * 0.7
        away = generator.standard_normal((classes, d)) * np.arange(1, d + 1) ** -0.3
        self.p = softmax(self.x @ self.student.T)
        self.teacher = softmax(self.x @ (self.student + signal * away).T)
        self.gradient = (self.p - self.teacher).T @ self.x / pool
        self.d, self.classes = d, classes

    def curvature(self, rows: Array | slice, left: Array, right: Array) -> Array:
        """M (k, k) of the mean loss of some inputs along u_k v_kᵀ."""
        p, x = self.p[rows], self.x[rows]
        outputs = (x @ right)[:, None, :] * left[None]  # (b, C, k): how the scores move
        centred = outputs - np.einsum("bc,bck->bk", p, outputs)[:, None, :]
        return np.einsum("bc,bck,bcj->kj", p, centred, centred) / len(x)

    def draw(self, n: int, seed: int, k: int = 10, groups: int = 16, folds: int = 4) -> Batch:
        generator = np.random.default_rng([seed, 1])
        rows = generator.integers(len(self.x), size=n)
        labels = (self.teacher[rows].cumsum(1) < generator.random((n, 1))).sum(1).clip(max=self.classes - 1)
        errors = self.p[rows].copy()
        errors[np.arange(n), labels] -= 1
        size = n // groups
        parts = [slice(g * size, (g + 1) * size) for g in range(groups)]
        by_group = np.stack([errors[part].T @ self.x[rows[part]] / size for part in parts])
        u, sigma, vt = np.linalg.svd(by_group.mean(0))
        slopes, curvature = np.zeros((groups, k)), np.zeros((groups, k))
        matrices, true = np.zeros((groups, k, k)), np.zeros(k)
        for members in split_folds(groups, folds):
            others = [g for g in range(groups) if g not in members]
            fu, _, fvt = np.linalg.svd(by_group[others].mean(0))
            left, right = fu[:, :k], fvt[:k].T
            true += np.einsum("ck,cd,dk->k", left, self.gradient, right) / folds
            for g in members:
                slopes[g] = np.einsum("ck,cd,dk->k", left, by_group[g], right)
                matrices[g] = self.curvature(rows[parts[g]], left, right)
                curvature[g] = np.diag(matrices[g])
        left, right = u[:, :k], vt[:k].T
        s = np.einsum("ck,cd,dk->k", left, self.gradient, right)
        same = self.curvature(rows, left, right)
        best = [
            _best_exponent(sigma[:k], *model)
            for model in ((s, self.curvature(slice(0, 6_000), left, right)), (sigma[:k], same))
        ]
        signs = [generator.permutation(np.repeat([1.0, -1.0], groups // 2)) for _ in range(20)]
        null = [np.linalg.norm(np.einsum("g,gcd->cd", e, by_group) / groups, 2) for e in signs]
        return Batch(
            sigma[:k], np.diag(same), slopes, curvature, matrices, (size,) * groups, true, *best,
            np.array(null),
        )  # fmt: skip


def _best_exponent(sigma: Array, slopes: Array, matrix: Array) -> float:
    exponents = np.linspace(0, 3, 301)
    transfer = (sigma / sigma[0]) ** (1 - exponents[:, None])
    gains = np.maximum(transfer @ slopes, 0) ** 2 / np.einsum("ek,kj,ej->e", transfer, matrix, transfer)
    return float(exponents[gains.argmax()])


@cache
def population(signal: float) -> Population:
    return Population(signal)
