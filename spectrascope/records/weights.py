"""What weights alone say: tails of their spectra. Frozen records, standard library only.

Names follow WeightWatcher where the quantity is the same: ``alpha`` here is the exponent of a density (of the
eigenvalues of WᵀW), unlike ``alpha_g`` and ``alpha_h``, which are slopes against rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from spectrascope.records.report import LayerInfo, ModelInfo, SkippedLayer
from spectrascope.records.values import SCHEMA_VERSION, Interval, LayerStatus, Missing, PowerFit, RankComparison

__all__ = [
    "ConvView",
    "TailFit",
    "TailRow",
    "WeightOptions",
    "WeightSummary",
    "WeightTail",
    "WeightsReport",
]


class ConvView(str, Enum):
    """How a convolution's weight becomes a matrix.

    ``flat`` is outputs × (inputs · kernel), as everywhere in spectrascope. ``slices`` pools the eigenvalues of one
    outputs × inputs matrix per kernel position, each divided by √2, as WeightWatcher does.
    """

    FLAT = "flat"
    SLICES = "slices"


@dataclass(frozen=True, slots=True)
class TailFit:
    """A power law p(x) ∝ x^(−alpha) for the eigenvalues x ≥ ``xmin`` of WᵀW.

    ``alpha`` by maximum likelihood, ``xmin`` where the Kolmogorov–Smirnov distance ``D`` is smallest, ``sigma`` the
    standard error (alpha − 1)/√num_pl_spikes, ``num_pl_spikes`` the number of eigenvalues in the tail.
    """

    alpha: float
    xmin: float
    xmax: float
    D: float
    sigma: float
    num_pl_spikes: int

    def __post_init__(self) -> None:
        if not self.alpha > 1 or not 0 < self.xmin <= self.xmax:
            raise ValueError(f"no power-law tail has alpha {self.alpha} from {self.xmin} to {self.xmax}")


@dataclass(frozen=True, slots=True)
class WeightTail:
    """One weight's spectrum in numbers.

    ``sigma`` are the leading singular values of W, decreasing. ``Q`` ≥ 1 is the aspect ratio of the matrix whose
    eigenvalues are fitted, of which there are ``num_evals``. ``norm`` is ‖W‖_F², ``spectral_norm`` the largest
    eigenvalue of WᵀW (the *square* of the largest singular value, ``sv_max``), ``stable_rank`` their ratio.
    ``matrix_rank`` counts singular values above max(m, n)·eps·sv_max. ``s_weight`` is minus the slope of log sigma on
    log rank over ``window``. ``alpha_h`` comes from a report of the same network, where one was given.
    """

    info: LayerInfo
    sigma: tuple[float, ...]
    window: tuple[int, int]
    Q: float
    num_evals: int
    matrix_rank: int
    norm: float
    spectral_norm: float
    sv_max: float
    stable_rank: float
    tail: TailFit | Missing
    alpha_weighted: float | Missing
    s_weight: PowerFit | Missing
    rank_models: RankComparison | Missing
    alpha_h: PowerFit | Missing
    status: LayerStatus = LayerStatus.OK


TailRow: TypeAlias = "WeightTail | SkippedLayer"


@dataclass(frozen=True, slots=True)
class WeightOptions:
    """What was asked for."""

    top_k: int = 20
    min_rank: int = 1
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    split_fused: bool = True
    conv: ConvView = ConvView.FLAT


@dataclass(frozen=True, slots=True)
class WeightSummary:
    """The report in a few numbers; a weight without a value enters no statistic.

    ``n_below_2`` and ``n_above_6`` count tails outside WeightWatcher's range for well-trained layers.
    ``n_s_weight_below`` of ``n_compared`` weights have s_weight < alpha_h.
    """

    n_ok: int
    n_skipped: int
    n_failed: int
    alpha_median: float | Missing
    alpha_quartiles: Interval | Missing
    s_weight_median: float | Missing
    n_below_2: int
    n_above_6: int
    n_compared: int
    n_s_weight_below: int


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Tails of every weight of a network. ``view`` says what told weights from other tensors."""

    model: ModelInfo
    versions: dict[str, str]
    command: str
    created: str
    options: WeightOptions
    view: str  # "network" | "names"
    rows: tuple[TailRow, ...]
    summary: WeightSummary
    seconds: float
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
