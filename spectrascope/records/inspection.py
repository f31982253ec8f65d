"""What a dry run says of a network before anything is measured: frozen records, standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from spectrascope.records.report import LayerInfo, ModelInfo, ProbeOptions
from spectrascope.records.values import SCHEMA_VERSION, EngineName, Missing

__all__ = ["CostEstimate", "InspectedWeight", "Inspection", "MemoryNeed", "Remedy", "TimeGuess"]

NOT_TIMED = Missing("not asked for")


@dataclass(frozen=True, slots=True)
class InspectedWeight:
    """One weight, and what ``probe`` would do with it.

    ``reason`` says why it would be skipped, and is empty where it would be measured. ``directions`` is how many
    directions would be looked at, 0 for a skipped weight.
    """

    info: LayerInfo
    measured: bool
    reason: str
    directions: int
    engine: EngineName | Missing
    engine_reason: str


@dataclass(frozen=True, slots=True)
class Remedy:
    """An option, and what is left with it: of ``unit`` seconds or bytes."""

    option: str
    left: float
    unit: str


@dataclass(frozen=True, slots=True)
class TimeGuess:
    """How long a run would take, guessed from ``timed_operations`` runs of ``basis`` on ``device``.

    ``total_seconds`` = ``pass_seconds``, of one forward pass over all samples, times the run's forward-equivalents.
    ``helps`` says, of a long run, what would shorten it.
    """

    total_seconds: float
    pass_seconds: float
    flops_per_second: float
    timed_operations: int
    basis: str
    device: str
    threads: int | Missing
    helps: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a run needs at the least, one sample at a time, beside those that the device has.

    ``total_bytes`` is the most at a time: gradients are gone when a sample's pass and the copies to check by come, and
    a file's content when the network holds it. ``copy_bytes``: the network as given beside the one measured, or the
    values of a caller's own, to be put back. ``gradient_bytes`` are of the largest block of weights, by sample group;
    ``tangent_bytes`` what a sample's graph and the tangents of one weight take; ``check_bytes`` copies of the network
    to check by, in float32 of a narrower one, in float64 of a small one; ``process_bytes`` the program itself,
    libraries counted in. ``helps`` says, where it would not fit, what would need less.
    """

    weight_bytes: int
    copy_bytes: int
    gradient_bytes: int
    direction_bytes: int
    tangent_bytes: int | Missing
    check_bytes: int
    process_bytes: int
    total_bytes: int
    available_bytes: int | Missing
    device: str
    fits: bool | Missing
    helps: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What a run would cost. Estimates, all of them: good for a choice between days and minutes.

    ``*_passes`` are in forward-equivalents, multiples of one plain forward pass over all ``num_samples``.
    ``flops_per_sample`` are those of one forward pass, a multiply and an add counted as two. ``fixed_bytes`` is
    held throughout (weights, summed gradients, directions); ``bytes_per_sample`` comes on top for every sample of a
    micro-batch.
    """

    gradient_passes: float | Missing
    sweep_passes: float | Missing
    tangent_passes: float | Missing
    product_passes: float | Missing
    estimate_passes: float | Missing
    total_passes: float | Missing
    flops_per_sample: int | Missing
    total_flops: float | Missing
    fixed_bytes: int
    bytes_per_sample: int | Missing
    memory: MemoryNeed
    time: TimeGuess | Missing = NOT_TIMED


@dataclass(frozen=True, slots=True)
class Inspection:
    """A dry run: every parameter, what would be measured by which engine, and at what cost.

    ``loaded`` is ``headers`` where no tensor of the checkpoint was read, else ``weights``. ``inputs`` says what
    one sample was taken to be.
    """

    model: ModelInfo
    versions: dict[str, str]
    command: str
    loaded: str
    inputs: str | Missing
    options: ProbeOptions
    weights: tuple[InspectedWeight, ...]
    n_measured: int
    n_skipped: int
    cost: CostEstimate
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION
