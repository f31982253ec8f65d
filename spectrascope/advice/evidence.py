"""What a layer's measurement says for and against an exponent: doubts, damping, efficiencies. Records in, no torch."""

from __future__ import annotations

import math

from spectrascope.numerics.transfer import find_most_efficient, make_quadratic_model, transfer
from spectrascope.records.advice import StepEfficiency
from spectrascope.records.report import LayerReport, LayerRow, Measurement
from spectrascope.records.values import Missing, PowerFit

__all__ = [
    "USUAL_DAMPING",
    "describe_exponent",
    "find_damping",
    "find_doubts",
    "measure_scatter",
    "rate_exponents",
    "selection_allowance",
]

USUAL_DAMPING = 0.1
"""The paper's damping, where no noise floor was measured; taken relative to the gradient's Schatten 4-norm."""

MAX_HALF_WIDTH = 0.5
"""Widest half-interval of a beta to be trusted: with more it does not tell Muon from Newton."""

MAX_SCATTER = 0.5
"""Largest rms of log h about the line (a factor of 1.6) of a beta to be trusted, unless R² is high all the same."""

MIN_R2 = 0.8
MIN_POINTS = 6
MAX_NEGATIVE_SHARE = 0.25


def find_doubts(row: LayerReport) -> tuple[str, ...]:
    """Say why a layer's own beta is not to be trusted; nothing if it is.

    Singular values below the gradient's noise floor are no reason: near a minimum all of them are, the curvature along
    those directions is measured all the same, and the jackknife says how well.

    R² alone would condemn every beta near 0, where a straight line explains nothing because there is nothing to
    explain; so a high scatter of log h about the line counts only together with a low R².
    """
    fit, window = row.analysis.beta, row.analysis.window
    if isinstance(fit, Missing):
        return (f"no beta: {fit.reason}",)
    doubts = []
    half = fit.interval.half_width
    if half > MAX_HALF_WIDTH:
        doubts.append(f"its interval is ±{half:.2f}, wider than ±{MAX_HALF_WIDTH:g}")
    scatter = measure_scatter(row)
    if fit.r2 < MIN_R2 and not isinstance(scatter, Missing) and scatter > MAX_SCATTER:
        doubts.append(f"h is scattered about the line (R² {fit.r2:.2f}, a factor of {math.exp(scatter):.1f})")
    if fit.n < MIN_POINTS:
        doubts.append(f"fitted to {fit.n} directions, fewer than {MIN_POINTS}")
    size = max(1, window[1] - window[0] + 1)
    if row.analysis.n_negative > MAX_NEGATIVE_SHARE * size:
        doubts.append(f"{row.analysis.n_negative} of {size} directions have no positive curvature")
    return tuple(doubts)


def selection_allowance(row: LayerReport, n_terms: int) -> float:
    """Return how far beta may be off because its directions were chosen on the samples that measured it.

    Such directions mix, which pulls beta toward 1, and neither interval of the fit sees it: the jackknife holds the
    directions fixed. In quadratic models with planted beta 0 and 2, k = 8 … 20 directions, n = 128 … 2048 samples and
    alpha_g = 0.5 … 1.5 the pull is 1 to 10 times k / n, growing as the singular values draw together; 2 k / (n ·
    alpha_g^1.5) added to the interval brings the planted value into it in at least 90 % of the seeds.

    Args:
        row: a measured layer.
        n_terms: terms of the mean loss: samples, or tokens of a language model.
    """
    alpha = row.analysis.alpha_g
    decay = 1.0 if isinstance(alpha, Missing) else max(alpha.value, 0.1)
    first, last = row.analysis.window
    return float(2 * (last - first + 1) / (n_terms * decay**1.5))


def _window_arrays(row: LayerReport) -> tuple[tuple[float, ...], tuple[float, ...], list[tuple[float, ...]]]:
    first, last = row.analysis.window
    window = slice(first - 1, last)
    m = row.measurement
    return m.sigma[window], m.h[window], [line[window] for line in m.curvature_matrix[window]]


def measure_scatter(row: LayerReport) -> float | Missing:
    """Return the root mean square of log h about the fitted line."""
    fit = row.analysis.beta
    if isinstance(fit, Missing):
        return fit
    sigma, h, _ = _window_arrays(row)
    gaps = [
        math.log(y) - fit.intercept - fit.value * math.log(x) for x, y in zip(sigma, h, strict=True) if x > 0 and y > 0
    ]
    return math.sqrt(sum(gap**2 for gap in gaps) / len(gaps))


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


def find_damping(row: LayerRow, beta: float, noise_scale: float) -> tuple[float | Missing, float, str]:
    """Return the damping that belongs to an exponent: noise floor^beta.

    Args:
        row: a row of a report.
        beta: the exponent it is for, 0 or more.
        noise_scale: the noise floor's multiple at the batch size of training.

    Returns:
        The damping in units of sigma^beta, the same in units of the Schatten 4-norm, and where it comes from. Relative
        damping is at most 1: then every direction is damped.
    """
    if not isinstance(row, LayerReport):
        return Missing(f"not measured: {row.reason}"), USUAL_DAMPING, f"the paper's {USUAL_DAMPING:g}, nothing measured"
    norm = _schatten4(row.measurement)
    floor = row.measurement.noise_floor
    if isinstance(floor, Missing) or norm == 0:
        reason = floor.reason if isinstance(floor, Missing) else "the gradient is zero"
        return USUAL_DAMPING * norm**beta, USUAL_DAMPING, f"the paper's {USUAL_DAMPING:g}, no noise floor: {reason}"
    noise = floor * noise_scale
    relative = min(1.0, (noise / norm) ** beta)
    words = "noise floor^beta" if noise < norm else "the gradient is all noise at this batch size: 1"
    return float(relative * norm**beta), float(relative), words


def _schatten4(measurement: Measurement) -> float:
    """(Σ sigma⁴)^(1/4) over the measured directions, which hold nearly all of it."""
    largest = measurement.sigma[0] if measurement.sigma else 0.0
    if largest == 0:
        return 0.0
    return float(largest * sum((s / largest) ** 4 for s in measurement.sigma) ** 0.25)


def rate_exponents(
    row: LayerReport, beta: float | Missing, damping: float | Missing
) -> tuple[tuple[StepEfficiency, ...] | Missing, float | Missing]:
    """Return the efficiency of the steps with b = 0, 1, the measured beta, 2 and the recommended one; and the best b.

    All are undamped but the recommended one, which has its damping.
    """
    sigma, _, matrix = _window_arrays(row)
    model = make_quadratic_model(sigma, matrix)
    if isinstance(model, Missing):
        return model, model
    asked: list[tuple[str, float, float]] = [("0", 0.0, 0.0), ("1", 1.0, 0.0)]
    if isinstance(row.analysis.beta, PowerFit):
        asked.append(("beta", row.analysis.beta.value, 0.0))
    asked.append(("2", 2.0, 0.0))
    if not isinstance(beta, Missing) and not isinstance(damping, Missing):
        asked.append(("recommended", beta, damping))
    found = []
    for name, exponent, d in asked:
        step = model.step(transfer(model.sigma, exponent, d))
        if isinstance(step, Missing):  # T is positive and so are slopes: only rounding can bring one here
            continue
        found.append(
            StepEfficiency(name, exponent, d, step.efficiency, step.decrease, step.length, int(model.sigma.size))
        )
    return tuple(found), find_most_efficient(model)
