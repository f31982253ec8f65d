"""What of a measurement is signal: held-out slopes and curvature, null draws, samples needed. Frozen records.

Glossary: fold f, a union of sample groups; D_k^(-f) the k-th singular direction of the gradient of all other folds;
slope s_k, the gradient of samples that did not choose the direction, along it; t_k = s_k over its standard error.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from spectrascope.records.values import Interval, Missing, PowerFit

__all__ = [
    "NOT_HELD_OUT",
    "NOT_RESAMPLED",
    "Estimate",
    "GradientSource",
    "HeldOut",
    "LabelSource",
    "NullBeta",
    "NullDraws",
    "RankResamples",
    "SamplesNeeded",
    "SignalSummary",
    "SignalVerdict",
    "StepExponent",
]

NOT_HELD_OUT = Missing("the report was written before held-out numbers were measured: measure again")
"""What reports of version 1 say of every number of this page."""

NOT_RESAMPLED = Missing("not asked for: see `spectrascope decompose`")
"""Why a layer has no resamples of its gradient."""


class Estimate(str, Enum):
    """Which curvature is measured: along directions of the same samples, of held-out samples, or both."""

    BOTH = "both"
    PUBLISHED = "published"
    HELD_OUT = "held-out"


class GradientSource(str, Enum):
    """Whose singular directions are measured: the batch's gradient's, or an optimizer's momentum's."""

    BATCH = "batch"
    MOMENTUM = "momentum"


class LabelSource(str, Enum):
    """Which labels the loss sees: the data's, draws from the model's own softmax, or the data's permuted.

    With ``model`` the true gradient is exactly zero: whatever is measured is what noise alone gives.
    """

    DATA = "data"
    MODEL = "model"
    SHUFFLED = "shuffled"


class SignalVerdict(str, Enum):
    """What can be known of a network's gradient and curvature at this number of samples."""

    SIGNAL = "signal"
    UNDETERMINED = "undetermined"
    NO_SIGNAL = "no-signal"


@dataclass(frozen=True, slots=True)
class StepExponent:
    """The exponent b in [0, 3] whose step U diag(sigma^(1-b)) Vᵀ lowers the loss most on samples held out.

    ``interval`` is the jackknife's over sample groups. ``determined`` is false, with the ``reason``, where the interval
    covers all of [0, 3] or no exponent predicts a decrease beyond its error: then ``value`` says nothing.
    ``decrease`` is by how much the loss falls with the best length at ``value``, ``decrease_0``, ``_1`` and ``_2`` at
    gradient descent, Muon and Newton, ``decrease_best`` with the best combination of directions there is; each in
    units of the loss, by the local quadratic model.
    """

    value: float
    interval: Interval
    determined: bool
    reason: str
    decrease: float
    decrease_stderr: float | Missing
    decrease_0: float
    decrease_1: float
    decrease_2: float
    decrease_best: float | Missing


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Slopes and curvature on samples that did not choose the directions; arrays over ranks k = 1 … K.

    ``slopes`` and ``h`` are means over ``n_folds`` folds of <D_k^(-f), G_f> and <D_k^(-f), H_f D_k^(-f)>, and ``t``
    the slopes over their standard errors. ``group_slopes[g][k]`` and ``group_h[g][k]`` are those of each sample group.
    A slope can be negative: then a step along that direction raises the loss on fresh samples. ``beta`` is fitted to
    the directions with t of at least 2. ``n_folds`` is 0 where the directions come from elsewhere (an optimizer's
    momentum), so that every sample is held out.
    """

    n_folds: int
    slopes: tuple[float, ...]
    t: tuple[float, ...]
    h: tuple[float, ...]
    curvature_matrix: tuple[tuple[float, ...], ...]
    group_slopes: tuple[tuple[float, ...], ...]
    group_h: tuple[tuple[float, ...], ...]
    beta: PowerFit | Missing
    step_exponent: StepExponent | Missing

    def __post_init__(self) -> None:
        k = len(self.slopes)
        if not k == len(self.t) == len(self.h) == len(self.curvature_matrix):
            raise ValueError(f"{k} held-out slopes, {len(self.t)} t, {len(self.h)} curvatures")
        if len(self.group_slopes) != len(self.group_h):
            raise ValueError("sample groups of different number")

    def within(self, window: tuple[int, int]) -> slice:
        """Where the held-out directions of a window of ranks (1-based, inclusive) stand; possibly nowhere."""
        first = window[0] - 1
        return slice(first, max(first, min(window[1], len(self.slopes))))


@dataclass(frozen=True, slots=True)
class NullBeta:
    """Beta where there is nothing but sampling noise: mean and range over draws of the gradient's noise."""

    value: float
    low: float
    high: float
    n_draws: int


@dataclass(frozen=True, slots=True)
class NullDraws:
    """Gradients of nothing but sampling noise: the sample groups' with random signs, so that their mean cancels.

    ``sigma_1`` are the largest singular values of the draws and ``quantile`` their 95 % quantile: a singular value of
    the gradient above it is signal. ``sigma[r][k]`` and ``h[r][k]`` are singular values of draw r and the curvature
    along its directions, for the draws along which curvature was measured. ``beta`` is fitted to those as the
    measured beta is; ``contains_beta`` says whether the measured beta lies within their range.
    """

    sigma_1: tuple[float, ...]
    quantile: float
    sigma: tuple[tuple[float, ...], ...]
    h: tuple[tuple[float, ...], ...]
    beta: NullBeta | Missing
    contains_beta: bool | Missing


@dataclass(frozen=True, slots=True)
class RankResamples:
    """How often each rank model wins when the sample groups are drawn again, with replacement.

    Ordered singular values are strongly correlated, so that a difference in BIC claims more than it knows. ``sigma[r]``
    are the leading singular values of the mean gradient of resample r, decreasing; ``wins`` counts, over the window of
    the fits, the resamples on which each model has the lowest BIC.
    """

    sigma: tuple[tuple[float, ...], ...]
    wins: dict[str, int]


@dataclass(frozen=True, slots=True)
class SamplesNeeded:
    """Samples that bring directions to three standard errors of their slope, as t² grows with the samples.

    ``for_4`` is the number for the four directions that are nearest to it, ``for_all`` for every one of the window;
    ``n_resolved`` directions are there already.
    """

    n_resolved: int
    for_4: float | Missing
    for_all: float | Missing


@dataclass(frozen=True, slots=True)
class SignalSummary:
    """What of a whole report is signal.

    ``n_directions`` were held out over ``n_layers`` weights; ``n_signal`` of them, on ``n_layers_signal`` weights, have
    singular values that noise would not reach, ``n_resolved`` slopes of three standard errors or more.
    ``step_exponent`` is the one exponent for all weights together; ``n_determined`` weights determine one of their own,
    with the median and quartiles over them. ``null_beta_median`` is the median over weights of beta where there is
    nothing but noise, ``n_inside_null`` of ``n_null`` weights have a measured beta in its range. ``samples_for_4`` and
    ``samples_for_all`` are medians over weights.
    """

    verdict: SignalVerdict
    n_layers: int
    n_directions: int
    n_signal: int
    n_layers_signal: int
    n_resolved: int
    step_exponent: StepExponent | Missing
    n_determined: int
    exponent_median: float | Missing
    exponent_iqr: Interval | Missing
    null_beta_median: float | Missing
    n_null: int
    n_inside_null: int
    samples_for_4: float | Missing
    samples_for_all: float | Missing
