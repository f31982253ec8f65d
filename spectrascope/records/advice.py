"""What ``suggest-beta`` recommends, and on what evidence: frozen records, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from spectrascope.records.report import DataInfo, LayerInfo, ModelInfo
from spectrascope.records.signal import NullBeta, StepExponent
from spectrascope.records.values import SCHEMA_VERSION, Interval, Missing, PowerFit

__all__ = [
    "STEP_FORMULA",
    "Advice",
    "BetaGroup",
    "BetaSource",
    "LayerAdvice",
    "ParameterExponent",
    "SpectralRule",
    "StepEfficiency",
    "Treatment",
    "ValidateOn",
    "ValidatedStep",
    "Validation",
]


STEP_FORMULA = "sigma / (sigma^2 + damping)^(beta/2)"
"""What beta and damping mean, in every file that an optimizer reads them from."""


class Treatment(str, Enum):
    """How an optimizer should step a parameter; undetermined where samples do not tell one exponent from another."""

    SPECTRAL = "spectral"
    ADAMW = "adamw"
    UNDETERMINED = "undetermined"


class BetaSource(str, Enum):
    """Where a recommended exponent comes from, the layer's own measurement first."""

    LAYER = "layer"
    FAMILY = "family"
    ROLE = "role"
    KIND = "kind"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class StepEfficiency:
    """The step of one exponent on samples held out, under the local quadratic model with the full curvature matrix.

    ``decrease`` is by how much the loss falls with the best step length, in units of the loss, 0 where it does not;
    ``efficiency`` is that over the decrease of the best combination of the window's ``k`` directions.
    """

    name: str  # "0" | "1" | "2" | "recommended"
    exponent: float
    damping: float
    efficiency: float | Missing
    decrease: float
    k: int


@dataclass(frozen=True, slots=True)
class SpectralRule:
    """Davis and Drusvyatskiy's rule: a spectral (Muon-like) step beats gradient descent where the first is the larger.

    ``nuclear_rank`` is ‖G‖_*² / ‖G‖_F² of the gradient, ``stable_rank`` ‖A‖_F² / ‖A‖_2² of the layer's input.
    """

    nuclear_rank: float
    stable_rank: float

    @property
    def favours(self) -> str:
        """Which of the two the rule favours."""
        return "spectral step" if self.nuclear_rank > self.stable_rank else "gradient descent"


@dataclass(frozen=True, slots=True)
class LayerAdvice:
    """What to do with one measured weight, and why.

    ``beta`` is recommended, with ``interval`` about it: the exponent that lowers the loss most on samples held out, of
    the weight itself or of its group taken together. ``doubts`` says why the weight's own was not used, and is empty
    where it was. ``damping`` belongs to T(sigma; beta) of a training step's gradient (units of sigma²);
    ``relative_damping`` is the same in units of the gradient's squared Schatten 4-norm, for ``scale_free`` steps.

    Beside it stand what the samples that chose the directions say (``measured``, the published beta), the beta of
    noise alone (``null``), how many directions are signal, and ``own``, the weight's own held-out exponent,
    undetermined or not.
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
    own: StepExponent | Missing
    measured: PowerFit | Missing
    null: NullBeta | Missing
    window: tuple[int, int] | Missing
    n_signal: int | Missing
    n_resolved: int | Missing
    samples_needed: float | Missing
    efficiencies: tuple[StepEfficiency, ...] | Missing
    spectral_rule: SpectralRule | Missing

    def __post_init__(self) -> None:
        if (self.treatment is Treatment.SPECTRAL) == isinstance(self.beta, Missing):
            raise ValueError("a spectral step needs an exponent, any other has none")


@dataclass(frozen=True, slots=True)
class BetaGroup:
    """The one exponent for all weights of a group together, with its own interval.

    ``n_confident`` of the ``n`` weights determine an exponent of their own.
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

    ``predicted_held_out``, ``predicted`` and ``measured`` are decreases of the loss, best over step lengths: under the
    quadratic model of slopes and curvature held out within the half that was measured, under that of the same samples
    (as published), and of the loss itself along a line search (see :class:`Validation`). Each ``*_efficiency`` is that
    over the best possible decrease in the window under the published model, ½ sigmaᵀ M⁻¹ sigma. Step ``best`` is that
    model's own, T = M⁻¹ sigma.
    """

    layer: str
    name: str
    exponent: float
    predicted: float
    predicted_held_out: float | Missing
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
    is theirs before any step. ``correlation`` is Pearson's r, over weights and steps, of the logarithms of predicted
    and measured gain over gradient descent on the same weight, ``correlation_held_out`` the same for the held-out
    prediction; the model's own step does not enter. ``ratio`` and ``ratio_held_out`` are the median predicted over
    measured decrease by step, of the steps that lowered the loss. ``best_agrees`` counts weights on which the exponent
    that held-out numbers predict to be the best is the one that lowered the loss most, to within 5 %.
    """

    on: ValidateOn
    n_measured: int
    n_checked: int
    loss: float
    n_layers: int
    correlation: float | Missing
    correlation_held_out: float | Missing
    ratio: dict[str, float | Missing]
    ratio_held_out: dict[str, float | Missing]
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
    """A recommended exponent for every weight of a report that determines one, group by group, with its evidence.

    ``known`` says in a line what can be known at all. ``train_batch`` and ``momentum`` are of the training that the
    damping is meant for; a Missing batch is the measured one. ``undetermined`` names parameters that are matrices to
    step spectrally, but without an exponent.
    """

    model: ModelInfo
    data: DataInfo
    versions: dict[str, str]
    command: str
    known: str
    top_k: int
    train_batch: int | Missing
    momentum: float
    layers: tuple[LayerAdvice, ...]
    groups: tuple[BetaGroup, ...]
    parameters: tuple[ParameterExponent, ...]
    undetermined: tuple[str, ...]
    adamw: tuple[str, ...]
    notes: tuple[str, ...] = ()
    validation: Validation | Missing = field(default=Missing("not asked for: see --validate"))
    schema_version: int = SCHEMA_VERSION

    @property
    def training_beta(self) -> float | Missing:
        """One exponent for all weights of a whole training: half-way from Muon's 1 to that of all weights together.

        The measured exponents are each the best for one step from where the network was. Over trainings this one did
        better than they (``examples/optimizers``), with a relative damping of 1e-4.
        """
        together = next((group.beta for group in self.groups if group.by == BetaSource.NETWORK.value), None)
        if together is None or isinstance(together, Missing):
            return together or Missing("no weight is stepped spectrally")
        return (1.0 + together) / 2
