"""Values that records are made of: what is missing and why, intervals, fits, and names from fixed lists.

Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "ADDED_LATER",
    "ALL_SAMPLES",
    "SCHEMA_VERSION",
    "BetaQuartile",
    "CheckScope",
    "DtypeName",
    "EngineName",
    "Interval",
    "LayerKind",
    "LayerRole",
    "LayerStatus",
    "LossName",
    "Missing",
    "PowerFit",
    "RankComparison",
    "RankModel",
    "RankModelFit",
    "Task",
    "Triangle",
    "ZetaBound",
]

ALL_SAMPLES = 2**62
"""As a number of samples asked for: all there are."""

SCHEMA_VERSION = 2
"""Of the reports this release writes; it reads this one and all before. A field added with ``ADDED_LATER`` needs no new
one, unless an older release, which ignores keys it does not know, would misread the report without it."""

ADDED_LATER = {"added_later": True}
"""Metadata of fields that older reports lack; they are read as if they held the default."""


class LayerStatus(str, Enum):
    """How the measurement of one weight ended."""

    OK = "ok"
    SKIPPED = "skipped"
    FAILED = "failed"


class CheckScope(str, Enum):
    """How much of a run its self-check compares with a reference."""

    ALL = "all"
    SAMPLED = "sampled"
    OFF = "off"


class LayerKind(str, Enum):
    """The operation that uses the weight."""

    LINEAR = "linear"
    CONV = "conv"
    CONV_TRANSPOSE = "conv_transpose"
    EMBEDDING = "embedding"
    NORM = "norm"
    BIAS = "bias"
    OTHER = "other"


class LayerRole(str, Enum):
    """What the weight is for; decides what advice may be given about it."""

    MATRIX = "matrix"
    CONV = "conv"
    EMBEDDING = "embedding"
    UNEMBEDDING = "unembedding"
    EXPERT = "expert"
    NORM = "norm"
    BIAS = "bias"
    OTHER = "other"


class DtypeName(str, Enum):
    """Floating point formats a network can be measured in."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    BFLOAT16 = "bfloat16"


class EngineName(str, Enum):
    """Curvature engines, as spelled on the command line and in JSON.

    ``gauss-newton``, ``tangent`` and ``double-backprop`` are exact where they are used; ``gauss-newton-sketch`` and
    ``finite-difference`` are estimates, with an error beside each number.
    """

    AUTO = "auto"
    GAUSS_NEWTON = "gauss-newton"
    TANGENT = "tangent"
    DOUBLE_BACKPROP = "double-backprop"
    GAUSS_NEWTON_SKETCH = "gauss-newton-sketch"
    FINITE_DIFFERENCE = "finite-difference"


class Task(str, Enum):
    """What a network is for; decides its usual loss and which data fit it."""

    IMAGE_CLASSIFICATION = "image-classification"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    CAUSAL_LM = "causal-lm"
    MASKED_LM = "masked-lm"
    UNKNOWN = "unknown"


class LossName(str, Enum):
    """Losses by name, as spelled on the command line and in JSON."""

    AUTO = "auto"
    CROSS_ENTROPY = "cross-entropy"
    BCE = "bce"
    MSE = "mse"
    CAUSAL_LM = "causal-lm"
    MASKED_LM = "masked-lm"


class RankModel(str, Enum):
    """Models of log sigma_k against k (MEASUREMENT section 3)."""

    POWER_LAW = "power_law"
    EXPONENTIAL = "exponential"
    LOGNORMAL = "lognormal"


@dataclass(frozen=True, slots=True)
class Missing:
    """A value that was not measured, and why."""

    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError("a Missing value needs a reason")


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided 95 % interval, ``low <= high``."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"interval bounds out of order: {self.low} > {self.high}")

    @property
    def half_width(self) -> float:
        """What stands behind ±."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class PowerFit:
    """An exponent from ordinary least squares on natural logarithms.

    ``value`` is the exponent with the sign convention of its definition (``alpha_g`` and ``alpha_h`` are minus
    the slope). ``ci95`` is the OLS interval (how straight the line is); ``jackknife_ci95`` the interval over
    sample groups (how well the batch determines it); the wider of the two is the fit's ``interval``. ``n`` points were
    used, ``n_dropped`` left out (non-positive curvature).
    """

    value: float
    intercept: float
    stderr: float
    ci95: Interval
    jackknife_ci95: Interval | Missing
    r2: float
    n: int
    n_dropped: int

    @property
    def interval(self) -> Interval:
        """The ± of an exponent wherever one is shown or judged by: the wider of its two 95 % intervals.

        Each sees what the other does not: a crooked line on a large batch, a straight line that the samples move.
        """
        other = self.jackknife_ci95
        if isinstance(other, Missing) or other.high - other.low < self.ci95.high - self.ci95.low:
            return self.ci95
        return other


@dataclass(frozen=True, slots=True)
class Triangle:
    """The identity alpha_h ≈ beta · alpha_g on one layer.

    ``relative_error`` is ``|alpha_h − predicted| / |alpha_h|``; well conditioned means at most 0.1.
    """

    predicted: float
    relative_error: float
    well_conditioned: bool


@dataclass(frozen=True, slots=True)
class RankModelFit:
    """One rank model fitted to log sigma_k: residual sum of squares and information criteria.

    ``params`` are, in order: power law (a, gamma), exponential (a, kappa), log-normal (a, b, c).
    """

    model: RankModel
    params: tuple[float, ...]
    rss: float
    bic: float
    aic: float
    r2: float


@dataclass(frozen=True, slots=True)
class RankComparison:
    """The three rank models on the same points; the lowest BIC wins.

    ``delta_bic`` is the runner-up's BIC minus the winner's (≥ 0); ``tie`` means it is below 2.
    """

    best: RankModel
    runner_up: RankModel
    delta_bic: float
    tie: bool
    best_aic: RankModel
    n: int
    fits: tuple[RankModelFit, RankModelFit, RankModelFit]


@dataclass(frozen=True, slots=True)
class ZetaBound:
    """Bound on PR_h for curvature decaying as k^(−s), s = beta · alpha_g (MEASUREMENT section 4).

    ``infinite`` is zeta(s)²/zeta(2s) (needs s > 1), ``finite`` the finite-window form; ``*_holds`` whether the
    measured PR_h obeys it.
    """

    s: float
    infinite: float | Missing
    finite: float
    infinite_holds: bool | Missing
    finite_holds: bool


@dataclass(frozen=True, slots=True)
class BetaQuartile:
    """Beta on one quarter of the window (only for windows of at least 40 directions)."""

    name: str  # "top" | "mid_high" | "mid_low" | "bottom"
    window: tuple[int, int]
    fit: PowerFit | Missing
