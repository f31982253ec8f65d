"""From slopes with their intervals to words: which mechanism a layer shows, and whether Kronecker factors suit it."""

from __future__ import annotations

import numpy as np

from spectrascope.numerics.vectors import Vector
from spectrascope.records.decomposition import Alignment, Determination, Mechanism
from spectrascope.records.values import Missing, PowerFit

__all__ = ["FLAT_WITHIN", "read_mechanisms", "suits_kronecker"]

FLAT_WITHIN = 0.25
"""Slopes this near to 0 change beta by less than its usual uncertainty, and count as flat."""

_ALIGNED_WITHIN = 1.5  # a factor by which a typical rho may differ from 1 and still be called aligned
_CHI_SPREAD = (3.0, 10.0)  # of chi over directions: Kronecker factors suit up to the first, not beyond the second


def _within(fit: PowerFit) -> Determination:
    """Whether a slope is flat: its interval within ±0.25; not, if wholly outside."""
    interval = fit.interval
    if interval.low >= -FLAT_WITHIN and interval.high <= FLAT_WITHIN:
        return Determination.YES
    if interval.low > FLAT_WITHIN or interval.high < -FLAT_WITHIN:
        return Determination.NO
    return Determination.UNDETERMINED


def _all(*verdicts: Determination) -> Determination:
    if Determination.NO in verdicts:
        return Determination.NO
    return Determination.UNDETERMINED if Determination.UNDETERMINED in verdicts else Determination.YES


def _not(verdict: Determination) -> Determination:
    return {Determination.YES: Determination.NO, Determination.NO: Determination.YES}.get(verdict, verdict)


def _say(name: str, fit: PowerFit) -> str:
    interval = fit.interval
    return f"slope of {name} {fit.value:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def read_mechanisms(alignment: Alignment, *, positions: int) -> tuple[Mechanism, ...]:
    """Say of each mechanism whether the measured slopes bear it out.

    Each claim is that some slope is flat (its interval within ±0.25) or is not (its interval wholly outside); where the
    interval lies across the border the verdict is "undetermined".

    * ``layernorm flattening``: rho_A is flat though not near 1, so C_A's eigenbasis does not follow the gradient.
    * ``residual decorrelation``: the same of rho_delta.
    * ``softmax concentration``: rho_delta falls with rank (its slope on sigma is positive) and beta exceeds 2.
    * ``weight-sharing gap``: the weight is used at several positions and chi is not flat.
    * ``none``: alignment and chi are both flat, so beta is that of the factors' eigenvalues.

    Args:
        alignment: slopes and ratios of one weight.
        positions: how often one sample uses the weight.

    Reference: MEASUREMENT section 6; the paper's section 6.
    """
    slopes = (
        alignment.beta, alignment.beta_rho_a, alignment.beta_rho_delta, alignment.beta_chi, alignment.beta_phi,
    )  # fmt: skip
    missing = next((fit for fit in slopes if isinstance(fit, Missing)), None)
    names = ("layernorm flattening", "residual decorrelation", "softmax concentration", "weight-sharing gap", "none")
    if missing is not None:
        return tuple(Mechanism(name, Determination.UNDETERMINED, f"no slopes: {missing.reason}") for name in names)
    beta, rho_a, rho_delta, chi, phi = (fit for fit in slopes if isinstance(fit, PowerFit))
    aligned_a, aligned_delta = _typical(alignment.rho_a), _typical(alignment.rho_delta)
    low_delta = rho_delta.interval.low
    high_delta = rho_delta.interval.high
    falls = Determination.YES if low_delta > 0 else Determination.NO if high_delta <= 0 else Determination.UNDETERMINED
    beyond = beta.interval
    exceeds = (
        Determination.YES if beyond.low > 2 else Determination.NO if beyond.high <= 2 else Determination.UNDETERMINED
    )
    shared = Determination.YES if positions > 1 else Determination.NO
    found = (
        (_all(_within(rho_a), _apart(aligned_a)), f"{_say('rho_A', rho_a)}, typical rho_A {aligned_a:.2g}"),
        (
            _all(_within(rho_delta), _apart(aligned_delta)),
            f"{_say('rho_delta', rho_delta)}, typical rho_delta {aligned_delta:.2g}",
        ),
        (_all(falls, exceeds), f"{_say('rho_delta', rho_delta)}, beta {beta.value:.2f}"),
        (_all(shared, _not(_within(chi))), f"{_say('chi', chi)}, {positions} positions"),
        (_all(_within(phi), _within(chi)), f"{_say('Phi', phi)}, {_say('chi', chi)}"),
    )
    return tuple(Mechanism(name, verdict, evidence) for name, (verdict, evidence) in zip(names, found, strict=True))


def _typical(rho: tuple[float, ...]) -> float:
    positive = [value for value in rho if value > 0]
    return float(np.exp(np.mean(np.log(positive)))) if positive else 0.0


def _apart(typical: float) -> Determination:
    near = typical > 0 and abs(np.log(typical)) <= np.log(_ALIGNED_WITHIN)
    return Determination.NO if near else Determination.YES


def suits_kronecker(beta_chi: PowerFit | Missing, chi: Vector, ratio: float | Missing) -> Mechanism:
    """Say whether a Kronecker preconditioner (K-FAC, Shampoo) sees this weight's curvature as it is.

    Yes where chi = h / h_kron is flat and varies by at most a factor 3 over the directions; no where its slope is not
    flat or it varies by more than 10. A chi that is constant is only another step length.

    >>> suits_kronecker(Missing("3 points"), np.array([1.0, 1.0]), 1.0).verdict.value
    'undetermined'
    """
    name = "suits a Kronecker preconditioner"
    if isinstance(beta_chi, Missing):
        return Mechanism(name, Determination.UNDETERMINED, f"no slope of χ: {beta_chi.reason}")
    positive = chi[chi > 0]
    spread = float(positive.max() / positive.min())
    flat = _within(beta_chi)
    if flat is Determination.NO or spread > _CHI_SPREAD[1]:
        verdict = Determination.NO
    elif flat is Determination.YES and spread <= _CHI_SPREAD[0]:
        verdict = Determination.YES
    else:
        verdict = Determination.UNDETERMINED
    evidence = f"{_say('χ', beta_chi)}, χ {positive.min():.2g} to {positive.max():.2g}"
    if not isinstance(ratio, Missing):
        evidence += f", concentration ratio {ratio:.2g}"
    return Mechanism(name, verdict, evidence)
