"""What ``suggest-beta`` recommends, and on what evidence: frozen records, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from spectrascope.records.report import DataInfo, LayerInfo, ModelInfo
from spectrascope.records.values import SCHEMA_VERSION, Interval, Missing, PowerFit

__all__ = [
    "USUAL_EXPONENTS",
    "Advice",
    "BetaGroup",
    "BetaSource",
    "LayerAdvice",
    "ParameterExponent",
    "StepEfficiency",
    "Treatment",
    "ValidateOn",
    "ValidatedStep",
    "Validation",
]

USUAL_EXPONENTS = {"convolution": 2.0, "matrix": 1.0}
"""Medians of the paper's table, rounded: what is left to say of a weight of which nothing could be measured."""


class Treatment(str, Enum):
    """How an optimizer should step a parameter."""

    SPECTRAL = "spectral"
    ADAMW = "adamw"


class BetaSource(str, Enum):
    """Where a recommended exponent comes from, the layer's own measurement first."""

    LAYER = "layer"
    FAMILY = "family"
    ROLE = "role"
    KIND = "kind"
    NETWORK = "network"
    USUAL = "usual"


@dataclass(frozen=True, slots=True)
class StepEfficiency:
    """The step of one exponent under the local quadratic model with the full curvature matrix.

    ``decrease`` is by how much the loss falls with the best step length, in units of the loss, ``efficiency`` that
    over the best possible within the window (``k`` leading directions along which the matrix is safely positive).
    """

    name: str  # "0" | "1" | "beta" | "2" | "recommended"
    exponent: float
    damping: float
    efficiency: float
    decrease: float
    length: float
    k: int


@dataclass(frozen=True, slots=True)
class LayerAdvice:
    """What to do with one measured weight, and why.

    ``beta`` is recommended, ``interval`` goes with it: the wider of the two 95 % intervals of a layer's own fit, with
    an allowance for directions chosen on the same samples, or the hull of these intervals over the confident members
    of the group it was taken from. ``doubts`` says why the layer's own fit was not used, and is empty where it was.
    ``damping`` belongs to T(sigma; beta) as measured (units of sigma^beta);
    ``relative_damping`` is the same in units of the gradient's Schatten 4-norm, for ``scale_free`` steps.
    ``scatter`` is the root mean square of log h about the fitted line. ``best_exponent`` is the one whose undamped
    step is the most efficient.
    """

    info: LayerInfo
    treatment: Treatment
    reason: str
    beta: float | Missing
    interval: Interval | Missing
    source: BetaSource | Missing
    doubts: tuple[str, ...]
    meaning: str
    damping: float | Missing
    relative_damping: float | Missing
    damping_reason: str
    measured: PowerFit | Missing
    scatter: float | Missing
    window: tuple[int, int] | Missing
    n_above_noise: int | Missing
    efficiencies: tuple[StepEfficiency, ...] | Missing
    best_exponent: float | Missing

    def __post_init__(self) -> None:
        if (self.treatment is Treatment.SPECTRAL) == isinstance(self.beta, Missing):
            raise ValueError("a spectral step needs an exponent, an AdamW step has none")


@dataclass(frozen=True, slots=True)
class BetaGroup:
    """Exponents over the weights of one group: median over the ``n_confident`` of ``n`` to be trusted.

    ``interval`` is the hull of their intervals.
    """

    by: str  # "family" | "role" | "kind" | "depth" | "network"
    name: str
    n: int
    n_confident: int
    beta: float | Missing
    interval: Interval | Missing
    meaning: str


class ValidateOn(str, Enum):
    """Whose loss the steps taken for real are to lower."""

    HELD_OUT = "held-out"
    MEASURED = "measured"


@dataclass(frozen=True, slots=True)
class ValidatedStep:
    """One step taken for real: a layer moved along one exponent's direction, everything else left as it was.

    ``predicted`` and ``measured`` are decreases of the loss, best over step lengths: under the quadratic model of
    the half that was measured, and of the loss itself along a line search (see :class:`Validation`). Each
    ``*_efficiency`` is that over the best possible decrease in the window under the model, ½ sigmaᵀ M⁻¹ sigma. Step
    ``best`` is the model's own, T = M⁻¹ sigma.
    """

    layer: str
    name: str
    exponent: float
    predicted: float
    measured: float
    predicted_efficiency: float
    measured_efficiency: float
    predicted_length: float
    measured_length: float


@dataclass(frozen=True, slots=True)
class Validation:
    """Steps taken for real, against what the measurement of one half of the batch predicts.

    ``on`` says whose loss was followed: that of ``n_checked`` samples of the other half, which shows what is left of
    a prediction on new data, or of the measured half itself, which shows how far the quadratic model holds. ``loss``
    is theirs before any step. ``correlation`` is Pearson's r of predicted and measured efficiency over the steps of
    exponents 0, 1, 2 and the measured one of all layers (not the model's own), ``correlation_by_step`` over layers for
    one exponent at a time, ``correlation_decrease`` that of the
    logarithms of the decreases. ``best_agrees`` counts layers on which the exponent predicted to be the most efficient
    (of 0, 1, 2 and the measured one) is the one that lowered the loss most, to within 5 %.
    """

    on: ValidateOn
    n_measured: int
    n_checked: int
    loss: float
    n_layers: int
    correlation: float | Missing
    correlation_by_step: dict[str, float | Missing]
    correlation_decrease: float | Missing
    best_agrees: int
    steps: tuple[ValidatedStep, ...]


@dataclass(frozen=True, slots=True)
class ParameterExponent:
    """What an optimizer needs to know of one parameter; blocks of a fused or stacked weight taken together."""

    name: str
    beta: float
    damping: float
    relative_damping: float
    layout: str  # "flat" | "stacked" | "conv_transpose"


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommended exponent for every weight of a report, group by group, with its evidence.

    ``train_batch`` is the batch size the damping is meant for; Missing means the measured batch itself.
    """

    model: ModelInfo
    data: DataInfo
    versions: dict[str, str]
    command: str
    top_k: int
    train_batch: int | Missing
    layers: tuple[LayerAdvice, ...]
    groups: tuple[BetaGroup, ...]
    parameters: tuple[ParameterExponent, ...]
    adamw: tuple[str, ...]
    notes: tuple[str, ...] = ()
    validation: Validation | Missing = field(default=Missing("not asked for: see --validate"))
    schema_version: int = SCHEMA_VERSION
