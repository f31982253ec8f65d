"""What a weight's held-out measurement says for and against an exponent: doubts, damping, decreases. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spectrascope.numerics.transfer import transfer
from spectrascope.records.advice import SpectralRule, StepEfficiency
from spectrascope.records.report import LayerReport
from spectrascope.records.signal import HeldOut, NullDraws
from spectrascope.records.values import Missing

__all__ = [
    "LEAST_DAMPING",
    "apply_spectral_rule",
    "describe_exponent",
    "find_damping",
    "find_doubts",
    "has_enough_directions",
    "rate_exponents",
    "schatten4",
    "training_sigma",
]

Vector = NDArray[np.float64]

LEAST_DAMPING = 1e-4
"""Relative to the gradient's squared Schatten 4-norm: what is below a hundredth of sigma_1 is noise in any training."""

_DAMPINGS = np.geomspace(LEAST_DAMPING, 1.0, 81)

MIN_DIRECTIONS = 4
"""Along one direction all exponents are the same step; along two or three they hardly differ."""


def find_doubts(row: LayerReport) -> tuple[str, ...]:
    """Say why a weight's own exponent is not used; nothing if it is.

    Only samples that did not choose the directions count. R² and the triangle are no evidence: noise alone closes both.
    """
    held = row.held_out
    if isinstance(held, Missing):
        return (f"no held-out slopes: {held.reason}",)
    step, doubts = held.step_exponent, []
    if isinstance(step, Missing):
        doubts.append(f"no step exponent: {step.reason}")
    elif not step.determined:
        doubts.append(f"step exponent undetermined: {step.reason}")
    if not has_enough_directions(row):
        doubts.append(f"{_window(row)[1] - _window(row)[0]} held-out directions, fewer than {MIN_DIRECTIONS}")
    if doubts and isinstance(row.null, NullDraws) and row.null.contains_beta is True:
        doubts.append("its published β is within the range of noise alone")
    return tuple(doubts)


def has_enough_directions(row: LayerReport) -> bool:
    """Whether a weight's window holds enough held-out directions to tell exponents apart."""
    first, last = _window(row)
    return last - first >= MIN_DIRECTIONS


def _window(row: LayerReport) -> tuple[int, int]:
    """The window's held-out directions as a slice, first and one past the last."""
    if isinstance(row.held_out, Missing):
        return 0, 0
    chosen = row.held_out.within(row.analysis.window)
    return chosen.start, chosen.stop


def describe_exponent(beta: float) -> str:
    """Say which known step an exponent is close to.

    >>> describe_exponent(0.1), describe_exponent(1.5), describe_exponent(2.2)
    ('gradient descent', 'between Muon and Newton', 'Newton-like')
    """
    if beta > 2.5:
        return "beyond Newton"
    names = ("gradient descent", "Muon-like", "Newton-like")
    nearest = min(range(3), key=lambda value: abs(value - beta))
    if abs(nearest - beta) <= 0.3 or beta < 0 or beta > 2:
        return names[nearest]
    return "between gradient descent and Muon" if beta < 1 else "between Muon and Newton"


def training_sigma(row: LayerReport, noise: float) -> Vector:
    """Return the singular values that a training step's gradient has, (K,).

    What of sigma² is the held-out slope's stays; the rest is sampling noise, and grows as the batch shrinks.

    Args:
        row: a weight with held-out slopes.
        noise: samples of the report over samples that a training step averages; 1 gives sigma itself, exactly.
    """
    sigma = np.asarray(row.measurement.sigma)
    if noise == 1 or isinstance(row.held_out, Missing):
        return sigma
    slopes = np.zeros_like(sigma)
    known = min(len(row.held_out.slopes), sigma.size)
    slopes[:known] = np.clip(row.held_out.slopes[:known], 0.0, sigma[:known])
    return np.asarray(np.sqrt(slopes**2 + (sigma**2 - slopes**2) * noise))


def schatten4(sigma: Vector) -> float:
    """(Σ sigma⁴)^(1/4) over the measured directions, which hold nearly all of it."""
    largest = float(sigma.max(initial=0.0))
    return largest * float(np.sum((sigma / largest) ** 4)) ** 0.25 if largest > 0 else 0.0


def find_damping(rows: Sequence[LayerReport], beta: float, noise: float) -> tuple[float, str]:
    """Return the relative damping whose step lowers the held-out loss most, for one weight or several together.

    The exponent was chosen on held-out samples and has seen the noise already, so damping by the noise floor as well
    would damp twice. Here the same criterion, (Tᵀs)² / (2 TᵀMT) at the exponent recommended, decides: where the
    exponent did it all, what comes out is the floor.

    Args:
        rows: weights that determine the exponent together.
        beta: the exponent, 0 or more.
        noise: see :func:`training_sigma`.

    Returns:
        Damping in units of the squared Schatten 4-norm, from 1e-4 to 1, and words on where it comes from.
    """
    total, known = np.zeros(_DAMPINGS.size), False
    for row in rows:
        sigma = training_sigma(row, noise)
        norm = schatten4(sigma)
        if isinstance(row.held_out, Missing) or norm == 0:
            continue
        found = [_decrease(row, row.held_out, transfer(sigma / norm, beta, float(d))) for d in _DAMPINGS]
        total += np.array(found)
        known = known or max(found) > 0
    if not known:
        return LEAST_DAMPING, "no damping predicts a decrease on held-out samples: the least"
    # Of equal decreases the least damping: rounding must not choose.
    place = int(np.argmax(total >= total.max() * (1 - 1e-9)))
    if place == 0:
        return LEAST_DAMPING, "more only costs on held-out samples: the least"
    return float(_DAMPINGS[place]), "lowers the held-out loss most"


def _decrease(row: LayerReport, held: HeldOut, weights: Vector) -> float:
    """By how much the held-out loss falls along Σ T_k D_k at its best length; 0 where it does not. T over all k."""
    window = slice(*_window(row))
    t = weights[window]
    matrix = np.asarray(held.curvature_matrix)[window, window]
    slope, curvature = float(t @ np.asarray(held.slopes)[window]), float(t @ matrix @ t)
    return slope**2 / (2 * curvature) if slope > 0 and curvature > 0 else 0.0


def rate_exponents(
    row: LayerReport, beta: float | Missing, damping: float | Missing
) -> tuple[StepEfficiency, ...] | Missing:
    """Return the held-out decrease of the steps with b = 0, 1, 2 and, with its damping, of the recommended one."""
    held = row.held_out
    if isinstance(held, Missing):
        return held
    first, last = _window(row)
    if last == first:
        return Missing("the window holds no held-out direction")
    step = held.step_exponent
    best = step if isinstance(step, Missing) else step.decrease_best
    asked = [(f"{b:g}", b, 0.0) for b in (0.0, 1.0, 2.0)]
    if not isinstance(beta, Missing) and not isinstance(damping, Missing):
        asked.append(("recommended", beta, damping))
    sigma, found = np.asarray(row.measurement.sigma), []
    for name, exponent, d in asked:
        decrease = _decrease(row, held, transfer(sigma, exponent, d))
        share: float | Missing = Missing("no best combination of directions to compare with")
        if isinstance(best, Missing):
            share = best
        elif best > 0:
            share = min(1.0, decrease / best)
        found.append(StepEfficiency(name, exponent, d, share, decrease, last - first))
    return tuple(found)


def apply_spectral_rule(row: LayerReport) -> SpectralRule | Missing:
    """Compare the gradient's nuclear rank with the stable rank of the layer's input (SIGNAL section 6)."""
    nuclear = row.measurement.pr_g
    if isinstance(nuclear, Missing):
        return nuclear
    if isinstance(row.decomposition, Missing):
        return Missing(f"the layer's input is not known ({row.decomposition.reason}): see spectrascope decompose")
    factor = row.decomposition.factors.a
    if not factor.exact or not factor.eigenvalues or factor.eigenvalues[0] <= 0:
        return Missing("the input's largest eigenvalue is not known exactly")
    return SpectralRule(nuclear, factor.trace / factor.eigenvalues[0])
