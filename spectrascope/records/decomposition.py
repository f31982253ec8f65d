"""Why beta is what it is: Kronecker factors and their alignment with the gradient. Frozen records.

Glossary: C_A (n × n) second moment of a weight's inputs ``a``, C_delta (m × m) of the cotangents ``delta`` at its
outputs; ``lambda`` their eigenvalues in decreasing order; ``rayleigh`` u_kᵀ C_delta u_k and v_kᵀ C_A v_k along the
gradient's singular vectors; rho = rayleigh / lambda, Phi = rho_delta · rho_A, Lambda = lambda_delta · lambda_A,
h_kron = Lambda · Phi, chi = h / h_kron (MEASUREMENT section 6).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from spectrascope.records.values import ADDED_LATER, Missing, PowerFit, RankComparison, RankModel

__all__ = [
    "NOT_CROSS_VALIDATED",
    "Alignment",
    "Concentration",
    "DecomposeOptions",
    "Decomposition",
    "Determination",
    "Factor",
    "FactorReading",
    "Factors",
    "FisherType",
    "Mechanism",
    "PredictedProfile",
    "Sharing",
]


NOT_CROSS_VALIDATED = Missing("the report was written before eigenvalues were cross-validated: measure again")
"""What older reports say of cross-validated eigenvalues and the slope made of them."""


class FisherType(str, Enum):
    """Which cotangents make C_delta: columns of the loss's own curvature, sampled labels, or the true labels."""

    GGN = "ggn"
    MC = "mc"
    EMPIRICAL = "empirical"


class Sharing(str, Enum):
    """A weight used at many positions: each position counts by itself, or positions are summed first."""

    EXPAND = "expand"
    REDUCE = "reduce"


class Determination(str, Enum):
    """What the intervals say."""

    YES = "yes"
    NO = "no"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True, slots=True)
class DecomposeOptions:
    """What was asked for. ``draws`` is the number of random columns where exact ones would be too many."""

    fisher: FisherType = FisherType.GGN
    sharing: Sharing = Sharing.EXPAND
    draws: int = 8


@dataclass(frozen=True, slots=True)
class Factor:
    """One Kronecker factor: its leading eigenvalues and its spectrum in numbers.

    ``dimension`` is its size, ``trace`` its trace. ``exact`` is false where only a sketch was held because the factor
    is large: then leading eigenvalues are estimates (from below) and the rest is missing.

    Sampling spreads the spectrum of d dimensions over N rows by (1 ± sqrt(d/N))², so the leading ``eigenvalues`` are
    too large. ``cross_validated`` are q_kᵀ C q_k with eigenvectors q_k of one half of the samples and C of the other,
    the mean of both ways round: without bias the second moment along the directions found. They need not decrease.
    """

    dimension: int
    eigenvalues: tuple[float, ...]
    trace: float
    effective_rank: float | Missing
    participation_ratio: float | Missing
    exact: bool
    cross_validated: tuple[float, ...] | Missing = field(default=NOT_CROSS_VALIDATED, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class Concentration:
    """How unevenly samples and positions share the curvature; medians over the directions of the window.

    ``ratio`` is, per direction, the mean over (sample, position) of (u·delta)²(v·a)² over the product of the means: 1
    where a product of means is as good as the mean of products. ``top_1_percent`` and ``top_10_percent`` are shares of
    the curvature that the samples with most of it hold; Gini coefficients are 0 where all are equal, near 1 where one
    holds everything.
    """

    ratio: tuple[float, ...]
    top_1_percent: float | Missing
    top_10_percent: float | Missing
    gini_samples: float | Missing
    gini_positions: float | Missing


@dataclass(frozen=True, slots=True)
class PredictedProfile:
    """Singular values of the gradient as the factors' spectra alone predict them.

    Those of C_delta^½ X C_A^½ / √N with X of independent normal entries, whose law depends on the two spectra only
    (separable covariance). ``sigma`` are medians over ``n_draws``.
    """

    sigma: tuple[float, ...]
    n_draws: int


@dataclass(frozen=True, slots=True)
class Factors:
    """What was measured on one weight; arrays over directions k = 1 … K.

    ``positions`` is how often one sample uses the weight, ``columns`` the cotangents pulled back per sample;
    ``exact`` is false where they are random draws. ``h_gn`` is the curvature of the Gauss–Newton (or Fisher) matrix
    itself; ``group_*`` are means by sample group, in the groups of the measurement.
    """

    fisher: FisherType
    sharing: Sharing
    columns: int
    exact: bool
    positions: int
    delta: Factor
    a: Factor
    rayleigh_delta: tuple[float, ...]
    rayleigh_a: tuple[float, ...]
    h_gn: tuple[float, ...] | Missing
    group_rayleigh_delta: tuple[tuple[float, ...], ...]
    group_rayleigh_a: tuple[tuple[float, ...], ...]
    concentration: Concentration
    profile: PredictedProfile | Missing
    s_weight: PowerFit | Missing

    def __post_init__(self) -> None:
        if len(self.rayleigh_delta) != len(self.rayleigh_a):
            raise ValueError(
                f"{len(self.rayleigh_delta)} values along left vectors but {len(self.rayleigh_a)} along right ones"
            )


@dataclass(frozen=True, slots=True)
class FactorReading:
    """The factors' spectra beside the gradient's.

    ``matches`` says whether a factor has the gradient's rank model; ``driver`` which (``delta`` or ``a``: the one whose
    BIC prefers that model by more), ``min_effective_rank`` the smaller of the two.
    """

    delta_model: RankComparison | Missing
    a_model: RankComparison | Missing
    gradient_model: RankModel | Missing
    matches: bool | Missing
    driver: str | Missing
    min_effective_rank: float | Missing


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One explanation, whether the measured slopes bear it out, and the figures that decide."""

    name: str
    verdict: Determination
    evidence: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """What follows from :class:`Factors` over the window of ranks that the fits use.

    Slopes are of logarithms on log sigma over the same points (all of h, lambda and rayleigh positive), so that
    beta = beta_lambda + beta_phi + beta_chi and beta_phi = beta_rho_delta + beta_rho_a up to rounding;
    ``identity_residual`` is by how much they differ. R² and r are of logarithms. ``beta_lambda_cv`` is beta_lambda from
    cross-validated eigenvalues, which sampling does not spread; it enters no sum.
    """

    window: tuple[int, int]
    rho_delta: tuple[float, ...]
    rho_a: tuple[float, ...]
    chi: tuple[float, ...]
    beta: PowerFit | Missing
    beta_lambda: PowerFit | Missing
    beta_lambda_delta: PowerFit | Missing
    beta_lambda_a: PowerFit | Missing
    beta_phi: PowerFit | Missing
    beta_rho_delta: PowerFit | Missing
    beta_rho_a: PowerFit | Missing
    beta_chi: PowerFit | Missing
    identity_residual: float | Missing
    chi_median: float | Missing
    r2_h_sigma2: float | Missing
    r2_h_gn_sigma2: float | Missing
    r2_h_h_gn: float | Missing
    r_h_kron_sigma2: float | Missing
    concentration_ratio: float | Missing
    reading: FactorReading
    profile_distance: float | Missing
    profile_scale: float | Missing
    mechanisms: tuple[Mechanism, ...]
    kronecker: Mechanism
    beta_lambda_cv: PowerFit | Missing = field(default=NOT_CROSS_VALIDATED, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Factors as measured and what follows from them."""

    factors: Factors
    alignment: Alignment
