"""What a trajectory is made of: one point per checkpoint, one track per layer. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from spectrascope.records.report import Provenance
from spectrascope.records.values import SCHEMA_VERSION, Interval, LayerKind, Missing, RankModel

__all__ = ["LayerTrack", "Trajectory", "TrajectoryPoint"]


@dataclass(frozen=True, slots=True)
class TrajectoryPoint:
    """One checkpoint in a few numbers: medians over its measured layers, and how many follow which rank model.

    ``reason`` is empty, or says why the checkpoint has no numbers. ``bic_wins`` holds every rank model; layers
    without a comparison count for none.
    """

    step: float
    label: str
    reason: str
    loss: float | Missing
    accuracy: float | Missing
    n_ok: int
    n_failed: int
    medians: dict[str, float | Missing]
    beta_iqr: Interval | Missing
    bic_wins: dict[str, int]


@dataclass(frozen=True, slots=True)
class LayerTrack:
    """One layer over training: a value or the reason for its absence per checkpoint, in the checkpoints' order."""

    name: str
    kind: LayerKind
    values: dict[str, tuple[float | Missing, ...]]
    rank_models: tuple[RankModel | Missing, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Checkpoints of one training run in order of ``step``, and their layers in order of the network.

    ``notes`` say what makes the checkpoints hard to compare (different samples, windows, dtypes …); all else of
    ``provenance``, which is of the last checkpoint that was measured, holds for the others too, but for the weights.
    """

    model: str
    step_name: str
    points: tuple[TrajectoryPoint, ...]
    layers: tuple[LayerTrack, ...]
    provenance: Provenance
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if any(a.step > b.step for a, b in zip(self.points, self.points[1:], strict=False)):
            raise ValueError("checkpoints are not in order of their steps")
        n = len(self.points)
        for track in self.layers:
            if len(track.rank_models) != n or any(len(values) != n for values in track.values.values()):
                raise ValueError(f"layer {track.name!r} has not one value per checkpoint")
