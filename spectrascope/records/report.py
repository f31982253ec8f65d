"""What a measurement is made of: frozen records, standard library only.

Everything downstream of a measurement (tables, JSON, gates, advice) reads these records and nothing else, so
a saved report can be refitted, rendered or judged on a machine without torch. A value that was not measured
is a :class:`Missing` with a reason, never ``None``, NaN or a sentinel number.

Glossary: m outputs (rows), n inputs (columns) of a weight seen as a matrix; k direction, 1-based;
``sigma`` singular values of the mean gradient; ``h`` second derivatives of the loss along unit directions
``u_k v_k^T`` (loss per weight², both per unit Frobenius norm).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from spectrascope.records.across import NOT_ASKED_ACROSS, Across
from spectrascope.records.decomposition import Decomposition
from spectrascope.records.signal import (
    NOT_HELD_OUT,
    NOT_RESAMPLED,
    Estimate,
    GradientSource,
    HeldOut,
    LabelSource,
    NullDraws,
    RankResamples,
    SamplesNeeded,
    SignalSummary,
)
from spectrascope.records.values import (
    ADDED_LATER,
    SCHEMA_VERSION,
    BetaQuartile,
    CheckScope,
    EngineName,
    Interval,
    LayerKind,
    LayerRole,
    LayerStatus,
    Missing,
    PowerFit,
    RankComparison,
    Task,
    Triangle,
    ZetaBound,
)

__all__ = [
    "NOT_DECOMPOSED",
    "NOT_SELECTED",
    "WHERE_IT_FITS",
    "Analysis",
    "DataInfo",
    "LayerInfo",
    "LayerReport",
    "LayerRow",
    "Measurement",
    "ModelInfo",
    "ProbeOptions",
    "Provenance",
    "Report",
    "SelfCheck",
    "SkippedLayer",
    "Summary",
    "SummaryGroup",
]


NOT_SELECTED = "not selected by --layers"
"""Reason of weights the user's own choice leaves out; tables count them instead of listing them."""


_NOT_COUNTED = Missing("the report was written before compared weights were counted")

NOT_DECOMPOSED = Missing("not asked for: see `spectrascope decompose`")


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """Which weight, and how it is seen as an m × n matrix.

    ``frozen`` says that training would leave it alone (``requires_grad=False``); it is measured all the same.
    ``parametrized``: it is no parameter but computed from others on every use; measured is what they evaluate to.
    """

    name: str
    kind: LayerKind
    role: LayerRole
    shape: tuple[int, int]
    stored_shape: tuple[int, ...]
    tied_names: tuple[str, ...] = ()
    frozen: bool = field(default=False, metadata=ADDED_LATER)
    parametrized: bool = field(default=False, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured on one weight: arrays over directions k = 1 … K, in order of decreasing sigma.

    ``curvature_matrix`` is M_kj = <D_k, H D_j>, whose diagonal is ``h``. ``group_sigma[g][k]`` is
    u_kᵀ G_g v_k with G_g the mean gradient of sample group g (so their size-weighted mean is ``sigma``), and
    ``group_h[g][k]`` likewise. ``rank`` counts singular values above ``max(m, n)·eps·sigma_1``; ``full_rank``
    is min(m, n). ``noise_floor`` is half the spectral norm of the difference of two half-batch gradients:
    singular values below it are sampling noise. ``residual`` is this layer's self-check: the largest
    |h − h_reference| / max|h_reference| over the pairs compared. ``h_stderr`` is the standard error of each h where
    the engine only estimates it (``exact`` is false). ``h``, ``curvature_matrix`` and the rows of
    ``group_h`` are empty where only held-out directions were measured.
    """

    sigma: tuple[float, ...]
    h: tuple[float, ...]
    curvature_matrix: tuple[tuple[float, ...], ...]
    group_sizes: tuple[int, ...]
    group_sigma: tuple[tuple[float, ...], ...]
    group_h: tuple[tuple[float, ...], ...]
    rank: int
    full_rank: int
    pr_g: float | Missing
    effective_rank_g: float | Missing
    noise_floor: float | Missing
    engine: EngineName
    engine_reason: str
    exact: bool
    residual: float | Missing
    h_stderr: tuple[float, ...] | Missing = field(default=Missing("the engine is exact"), metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        k = len(self.sigma)
        if len(self.h) not in (0, k) or len(self.curvature_matrix) != len(self.h):
            raise ValueError(f"{k} singular values but {len(self.h)} curvatures")
        if any(a < b for a, b in zip(self.sigma, self.sigma[1:], strict=False)):
            raise ValueError("singular values are not in decreasing order")
        if not isinstance(self.h_stderr, Missing) and len(self.h_stderr) != k:
            raise ValueError(f"{k} curvatures but {len(self.h_stderr)} standard errors")
        if not len(self.group_sizes) == len(self.group_sigma) == len(self.group_h):
            raise ValueError("sample groups of different number")


@dataclass(frozen=True, slots=True)
class Analysis:
    """What follows from a :class:`Measurement` by fits over a window ``(k1, k2)``, 1-based and inclusive.

    ``n_signal`` leading directions have a sigma that sampling noise alone would not reach; ``signal_share`` is the
    held-out slope over sigma, direction by direction; ``samples_needed`` what it takes to resolve them.
    """

    window: tuple[int, int]
    beta: PowerFit | Missing
    alpha_g: PowerFit | Missing
    alpha_h: PowerFit | Missing
    triangle: Triangle | Missing
    rank_models: RankComparison | Missing
    pr_h: float | Missing
    effective_rank_h: float | Missing
    zeta_bound: ZetaBound | Missing
    n_negative: int
    n_above_noise: int | Missing
    off_diagonal_mass: float | Missing
    curvature_eigenvalues: tuple[float, ...]
    beta_quartiles: tuple[BetaQuartile, ...] | Missing
    n_signal: int | Missing = field(default=NOT_HELD_OUT, metadata=ADDED_LATER)
    signal_share: tuple[float, ...] | Missing = field(default=NOT_HELD_OUT, metadata=ADDED_LATER)
    samples_needed: SamplesNeeded | Missing = field(default=NOT_HELD_OUT, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """A measured weight, with its decomposition where one was made.

    This is where a layer grows. A new field here, with the metadata ``ADDED_LATER`` and for its default a Missing that
    says why older reports lack it, is written where it is not the default, read back and in the published schema
    without another line.
    """

    info: LayerInfo
    measurement: Measurement
    analysis: Analysis
    decomposition: Decomposition | Missing = field(default=NOT_DECOMPOSED, metadata=ADDED_LATER)
    held_out: HeldOut | Missing = field(default=NOT_HELD_OUT, metadata=ADDED_LATER)
    null: NullDraws | Missing = field(default=NOT_HELD_OUT, metadata=ADDED_LATER)
    rank_resamples: RankResamples | Missing = field(default=NOT_RESAMPLED, metadata=ADDED_LATER)

    @property
    def status(self) -> LayerStatus:
        """Always ``ok``."""
        return LayerStatus.OK


@dataclass(frozen=True, slots=True)
class SkippedLayer:
    """A candidate weight without numbers: left out on purpose (``skipped``) or not measurable (``failed``)."""

    info: LayerInfo
    status: LayerStatus
    reason: str

    def __post_init__(self) -> None:
        if self.status is LayerStatus.OK or not self.reason:
            raise ValueError("a layer without numbers is skipped or failed, with a reason")


LayerRow: TypeAlias = "LayerReport | SkippedLayer"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Where the network came from.

    ``sha256`` is of the checkpoint file's bytes; for several files, of their sorted names and hashes.
    """

    id: str
    architecture: str
    source: str  # "built-in" | "checkpoint" | "torchvision" | "timm" | "huggingface" | "factory" | "python"
    path: str | Missing
    sha256: str | Missing
    weights: str  # "checkpoint", "IMAGENET1K_V2", "random (seed 0)", …
    n_parameters: int
    task: Task = field(default=Task.UNKNOWN, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class DataInfo:
    """Which samples were used. ``digest`` is a sha256 over the inputs and targets in order."""

    id: str
    n: int
    n_available: int | Missing
    digest: str
    input_shape: tuple[int, ...]
    n_classes: int | Missing
    preprocessing: str
    label_order: str
    synthetic: bool


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """The exact engines against their references, on ``n_pairs`` (weight, k) pairs of ``n_weights`` weights.

    Of every weight a pair is compared on two samples drawn anywhere in the batch, of a few weights two pairs on the
    first ``n_samples``. ``residual`` is the largest |h − h_reference| / max|h_reference of the weight|.
    """

    residual: float
    tolerance: float
    n_pairs: int
    n_samples: int
    n_weights: int | Missing = field(default=_NOT_COUNTED, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class PrecisionError:
    """How far numbers of a narrow ``--dtype`` are from float32's, found in the same run on ``n_weights`` weights.

    Along the same directions and on the same samples, over ``n_pairs`` (weight, k) pairs: ``h_median`` is the median of
    |h − h_float32| / |h_float32|, ``h_largest`` the largest |h − h_float32| / max |h_float32 of the weight|, ``beta``
    the largest difference of the published β, ``step_exponent`` that of the step exponent these weights give together.
    """

    n_weights: int
    n_pairs: int
    h_median: float | Missing
    h_largest: float
    beta: float | Missing
    step_exponent: float | Missing


NOT_NARROW = Missing("the network was not measured in a narrow format")
"""Why a report has no error of its format."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What produced a report."""

    versions: dict[str, str]
    command: str
    created: str  # ISO 8601, UTC
    model: ModelInfo
    data: DataInfo
    loss_name: str
    loss: float
    accuracy: float | Missing
    device: str
    dtype: str
    seed: int
    micro_batch: int
    memory_format: str
    threads: int
    seconds: dict[str, float]  # wall time per stage
    engines: dict[str, int]  # engine -> number of layers
    self_check: SelfCheck | Missing
    notes: tuple[str, ...] = ()
    ranks: int = field(default=1, metadata=ADDED_LATER)  # processes that measured together
    precision: PrecisionError | Missing = field(default=NOT_NARROW, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """What was asked for. ``window`` of an analysis is ``min_rank … min(top_k, rank)``."""

    num_samples: int = 2048
    top_k: int = 20
    min_rank: int = 1
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    engine: EngineName = EngineName.AUTO
    device: str = "auto"
    dtype: str = "float32"
    micro_batch: int | str = "auto"
    seed: int = 0
    groups: int = 16
    self_check: CheckScope = CheckScope.ALL
    split_fused: bool = field(default=True, metadata=ADDED_LATER)
    estimate: Estimate = field(default=Estimate.BOTH, metadata=ADDED_LATER)
    null_draws: int | str = field(default="auto", metadata=ADDED_LATER)
    curvature_samples: int | str = field(default="auto", metadata=ADDED_LATER)
    folds: int = field(default=4, metadata=ADDED_LATER)
    gradient: GradientSource = field(default=GradientSource.BATCH, metadata=ADDED_LATER)
    labels: LabelSource = field(default=LabelSource.DATA, metadata=ADDED_LATER)
    across_weights: bool = field(default=False, metadata=ADDED_LATER)
    across_matrix: bool = field(default=False, metadata=ADDED_LATER)
    memory: int | str = field(default="auto", metadata=ADDED_LATER)
    device_map: str = field(default="none", metadata=ADDED_LATER)


WHERE_IT_FITS = ("memory", "device_map")
"""Options of which no number hangs: what was killed for taking too much goes on with less, or on more devices."""


@dataclass(frozen=True, slots=True)
class SummaryGroup:
    """Statistics over the measured layers of one kind (or all of them)."""

    kind: str
    n: int
    beta_median: float | Missing
    beta_iqr: Interval | Missing
    triangle_error_median: float | Missing
    n_well_conditioned: int
    bic_wins: dict[str, int]


@dataclass(frozen=True, slots=True)
class Summary:
    """The report in a few numbers; layers without a value never enter a statistic."""

    n_ok: int
    n_skipped: int
    n_failed: int
    overall: SummaryGroup
    by_kind: tuple[SummaryGroup, ...]
    # Medians over layers whose triangle is well conditioned, keys beta, alpha_g, alpha_h, triangle_error.
    well_conditioned_median: dict[str, float] | Missing
    signal: SignalSummary | Missing = field(default=NOT_HELD_OUT, metadata=ADDED_LATER)
    across: Across | Missing = field(default=NOT_ASKED_ACROSS, metadata=ADDED_LATER)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole measurement."""

    provenance: Provenance
    options: ProbeOptions
    layers: tuple[LayerRow, ...]
    summary: Summary
    schema_version: int = SCHEMA_VERSION
    extra: dict[str, Any] = field(default_factory=dict)
