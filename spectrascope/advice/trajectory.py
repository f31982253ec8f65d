"""Reports of the checkpoints of one run, put in a row: how the exponents and rank models change over training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from spectrascope.errors import SpectrascopeError
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.trajectory import LayerTrack, Trajectory, TrajectoryPoint
from spectrascope.records.values import Missing, RankComparison, RankModel
from spectrascope.reports.fields import Field, followed

__all__ = ["STEP_KEY", "MeasuredCheckpoint", "build_trajectory", "find_step", "order_checkpoints", "unrelated"]

STEP_KEY = "step"
"""Key of ``Report.extra`` under which callbacks leave the training step of a report."""

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class MeasuredCheckpoint:
    """A place in training: a name, and its report or the reason why there is none."""

    label: str
    report: Report | Missing


def find_step(label: str, report: Report | Missing) -> float | None:
    """The step of a checkpoint: as its report says, else the last whole number in its name, else ``None``.

    A number right after ``epoch``, ``step``, ``iter`` or ``checkpoint`` goes before the last one.

    >>> find_step("resnet20-epoch_012.pt", Missing("not measured")), find_step("checkpoint-500", Missing("-"))
    (12.0, 500.0)
    >>> find_step("step=40-v2.ckpt", Missing("-")), find_step("final.pt", Missing("-"))
    (40.0, None)
    """
    if isinstance(report, Report):
        step: Any = report.extra.get(STEP_KEY)
        if isinstance(step, (int, float)) and not isinstance(step, bool):
            return float(step)
    named = re.findall(r"(?:epoch|step|iter(?:ation)?|checkpoint|ckpt)s?[-_=.]?(\d+)", label, re.IGNORECASE)
    numbers = named or _NUMBER.findall(re.sub(r"\.(json|pth?|th|bin|ckpt|safetensors)$", "", label))
    return float(numbers[-1]) if numbers else None


def order_checkpoints(checkpoints: Sequence[MeasuredCheckpoint]) -> tuple[str, list[tuple[float, MeasuredCheckpoint]]]:
    """Put checkpoints in order of their steps, or number them as given where not each has a step of its own.

    Returns:
        What the steps are called (``step`` or ``checkpoint``), and (step, checkpoint) in order.
    """
    steps = [find_step(item.label, item.report) for item in checkpoints]
    known = [step for step in steps if step is not None]
    if len(set(known)) == len(checkpoints):
        return "step", sorted(zip(known, checkpoints, strict=True), key=lambda pair: pair[0])
    return "checkpoint", [(float(i), item) for i, item in enumerate(checkpoints, start=1)]


def unrelated(reports: Sequence[Report]) -> str:
    """Say why reports are not of one training run, as they share too few weights by name and shape; else nothing.

    >>> unrelated([])
    ''
    """
    weights = [{(row.info.name, row.info.shape) for row in report.layers} for report in reports]
    for report, found in zip(reports[1:], weights[1:], strict=True):
        shared = len(found & weights[0])
        if 2 * shared < min(len(found), len(weights[0])):
            one, other = reports[0].provenance.model, report.provenance.model
            return (
                f"{one.id} ({one.architecture}) and {other.id} ({other.architecture}) share {shared} of "
                f"{min(len(found), len(weights[0]))} weights"
            )
    return ""


def build_trajectory(checkpoints: Sequence[MeasuredCheckpoint]) -> Trajectory:
    """Put checkpoints in a row.

    Layers are matched by name; one that a checkpoint lacks, or that was not measured there, has a
    :class:`Missing` with the reason in its place. A checkpoint without a report keeps its place in the row.

    Args:
        checkpoints: in any order.

    Raises:
        SpectrascopeError: none of them has a report.

    Cost: O(checkpoints · layers).
    """
    step_name, ordered = order_checkpoints(checkpoints)
    reports = [item.report for _, item in ordered if isinstance(item.report, Report)]
    if not reports:
        reasons = [item.report.reason for item in checkpoints if isinstance(item.report, Missing)]
        raise SpectrascopeError(
            f"a trajectory needs at least one report: {reasons[0] if reasons else 'no checkpoint given'}"
        )
    apart = unrelated(reports)
    return Trajectory(
        model=reports[-1].provenance.model.architecture,
        step_name=step_name,
        points=tuple(_point(step, item) for step, item in ordered),
        layers=_tracks([item for _, item in ordered], reports),
        provenance=reports[-1].provenance,
        notes=(*([f"Not checkpoints of one training: {apart}"] if apart else ()), *_differences(reports)),
    )


def _point(step: float, item: MeasuredCheckpoint) -> TrajectoryPoint:
    report = item.report
    wins = dict.fromkeys((model.value for model in RankModel), 0)
    if isinstance(report, Missing):
        return TrajectoryPoint(
            step=step,
            label=item.label,
            reason=report.reason,
            loss=report,
            accuracy=report,
            n_ok=0,
            n_failed=0,
            medians={field.flat: report for field in followed()},
            beta_iqr=report,
            bic_wins=wins,
        )
    measured = [row for row in report.layers if isinstance(row, LayerReport)]
    for row in measured:
        if isinstance(row.analysis.rank_models, RankComparison):
            wins[row.analysis.rank_models.best.value] += 1
    return TrajectoryPoint(
        step=step,
        label=item.label,
        reason="",
        loss=report.provenance.loss,
        accuracy=report.provenance.accuracy,
        n_ok=report.summary.n_ok,
        n_failed=report.summary.n_failed,
        medians={field.flat: _median(measured, field) for field in followed()},
        beta_iqr=report.summary.overall.beta_iqr,
        bic_wins=wins,
    )


def _median(rows: Sequence[LayerReport], field: Field) -> float | Missing:
    values = [field.value(row) for row in rows]
    known = [value for value in values if not isinstance(value, Missing)]
    reasons = {value.reason for value in values if isinstance(value, Missing)}
    why = reasons.pop() if len(reasons) == 1 else f"no layer has a {field.spoken}"
    return float(median(known)) if known else Missing(why)


def _tracks(items: Sequence[MeasuredCheckpoint], reports: Sequence[Report]) -> tuple[LayerTrack, ...]:
    infos = {row.info.name: row.info for report in reports for row in report.layers if isinstance(row, LayerReport)}
    rows = [
        {row.info.name: row for row in item.report.layers} if isinstance(item.report, Report) else item.report
        for item in items
    ]

    def found(place: int, name: str) -> LayerReport | Missing:
        here = rows[place]
        if isinstance(here, Missing):
            return here
        row = here.get(name)
        if row is None:
            return Missing(f"{items[place].label} has no such layer")
        return row if isinstance(row, LayerReport) else Missing(row.reason)

    tracks = []
    for name, info in infos.items():
        places = [found(place, name) for place in range(len(items))]
        tracks.append(
            LayerTrack(
                name=name,
                kind=info.kind,
                values={
                    field.flat: tuple(row if isinstance(row, Missing) else field.value(row) for row in places)
                    for field in followed()
                },
                rank_models=tuple(row if isinstance(row, Missing) else _best(row) for row in places),
            )
        )
    return tuple(tracks)


def _best(row: LayerReport) -> RankModel | Missing:
    comparison = row.analysis.rank_models
    return comparison if isinstance(comparison, Missing) else comparison.best


def _differences(reports: Sequence[Report]) -> tuple[str, ...]:
    """What differs between checkpoints that ought to be the same all along."""
    questions: tuple[tuple[str, Callable[[Report], object]], ...] = (
        ("architectures", lambda r: r.provenance.model.architecture),
        ("samples", lambda r: r.provenance.data.digest),
        ("losses", lambda r: r.provenance.loss_name),
        ("dtypes", lambda r: r.provenance.dtype),
        ("windows", lambda r: (r.options.min_rank, r.options.top_k)),
    )
    return tuple(
        f"The checkpoints were measured with {len(found)} different {what}: changes may come from that"
        for what, ask in questions
        if len(found := {ask(report) for report in reports}) > 1
    )
