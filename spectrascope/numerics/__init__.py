"""From spectra to exponents: fits, rank models, participation ratios and what they say of a layer.

Glossary, used by every name and docstring of the package:

========== ==============================================================================================
m          outputs: rows of a weight seen as a matrix
n          inputs: its columns (of a fit: the number of points)
k          directions, 1-based, in order of decreasing sigma
b          samples of the batch
t          positions that share a weight (pixels, tokens)
c          classes
sigma      singular values of the mean gradient G = U Σ Vᵀ (m × n)
h          h_k = <D_k, H[D_k]>, the loss's second derivative along D_k = u_k v_kᵀ
beta       curvature exponent, h_k ∝ sigma_k^beta
alpha_g    gradient rank-decay exponent, sigma_k ∝ k^(-alpha_g)
alpha_h    curvature decay exponent, h_(j) ∝ j^(-alpha_h) with h_(1) ≥ h_(2) ≥ … the positive h sorted
========== ==============================================================================================

Only modules that need no torch are re-exported here, so a saved report can be refitted without it.
"""

from __future__ import annotations

from spectrascope.numerics.analysis import analyse, compare_triangle, find_window
from spectrascope.numerics.fits import fit_alpha_g, fit_alpha_h, fit_beta, fit_log_log
from spectrascope.numerics.participation import effective_rank, participation_ratio, zeta_bound
from spectrascope.numerics.rank_models import compare_rank_models
from spectrascope.numerics.sample_groups import SampleGroups, jackknife
from spectrascope.numerics.summary import summarise

__all__ = [
    "SampleGroups",
    "analyse",
    "compare_rank_models",
    "compare_triangle",
    "effective_rank",
    "find_window",
    "fit_alpha_g",
    "fit_alpha_h",
    "fit_beta",
    "fit_log_log",
    "jackknife",
    "participation_ratio",
    "summarise",
    "zeta_bound",
]
