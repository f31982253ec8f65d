"""Vectors of measured numbers: what is refused, what is missing, and how wide an interval is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from spectrascope.records.values import Interval, Missing

__all__ = ["Table", "Vector", "as_vector", "find_nonfinite", "interval_about", "is_constant", "too_few"]

Vector = NDArray[np.float64]
Table = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)


def as_vector(values: ArrayLike, name: str) -> Vector:
    """Return ``values`` as a float64 vector.

    Raises:
        ValueError: not one-dimensional.
    """
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {vector.shape}")
    return vector


def find_nonfinite(*vectors: Vector) -> Missing | None:
    """Return why points with these coordinates cannot be used if any is NaN or infinite, else ``None``.

    >>> find_nonfinite(np.array([1.0, 2.0]), np.array([np.nan, 1.0]))
    Missing(reason='NaN or infinity in 1 of 2 points')
    """
    finite = np.logical_and.reduce([np.isfinite(vector) for vector in vectors])
    n_bad = int(np.count_nonzero(~finite))
    return Missing(f"NaN or infinity in {n_bad} of {finite.size} points") if n_bad else None


def too_few(n: int, noun: str, purpose: str, least: int, *, of: int | None = None) -> Missing:
    """Return why there is nothing to report: fewer things than it takes.

    >>> too_few(1, "usable point", "a fit", 4, of=6)
    Missing(reason='1 usable point of 6, a fit needs at least 4')
    """
    things = noun if n == 1 else f"{noun}s"
    return Missing(f"{n} {things}{'' if of is None else f' of {of}'}, {purpose} needs at least {least}")


def is_constant(values: Vector) -> bool:
    """Say whether values differ by no more than the rounding of their own computation (a few ulp)."""
    spread = float(values.max() - values.min())
    return spread <= 8 * _EPS * max(1.0, float(np.abs(values).max()))


def interval_about(value: float, stderr: float, *, dof: int) -> Interval:
    """Return the 95 % interval of a number with a standard error estimated from so many degrees of freedom.

    >>> interval_about(1.0, 0.5, dof=2).high
    3.1513263648...
    """
    # stdtrit is scipy.stats.t.ppf without the second that importing scipy.stats takes.
    half_width = float(special.stdtrit(dof, 0.975)) * stderr
    return Interval(value - half_width, value + half_width)
