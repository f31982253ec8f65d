"""A trajectory as sheets and as CSV: one line per checkpoint, one per layer, and what changed in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import pairwise

from spectrascope.records.trajectory import LayerTrack, TrackedNumber, Trajectory, TrajectoryPoint
from spectrascope.records.values import Missing, RankModel
from spectrascope.reports.charts.sparklines import sparkline
from spectrascope.reports.charts.training_charts import NUMBER_NAMES
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_data, describe_model
from spectrascope.reports.views.layer_sheet import RANK_MODEL_NAMES

__all__ = [
    "TRAJECTORY_COLUMNS",
    "build_checkpoint_sheet",
    "build_track_sheet",
    "build_trajectory_document",
    "say_trajectory",
    "trajectory_to_csv",
]

_MOST_CHECKPOINTS = 8  # columns of the sheet of layers; the profile shows them all
_SPARK_WIDTH = 16


def build_trajectory_document(trajectory: Trajectory, number: TrackedNumber = TrackedNumber.BETA) -> Document:
    """Everything a reader sees of a trajectory.

    Args:
        trajectory: the checkpoints.
        number: what the sheet of layers follows.
    """
    first, last = trajectory.points[0], trajectory.points[-1]
    n_layers = format_count(len(trajectory.layers), "layer")
    span = f"{trajectory.step_name} {first.step:g} to {last.step:g}"
    return Document(
        title="spectrascope: curvature over training",
        facts=(
            *describe_model(trajectory.provenance.model),
            *describe_data(trajectory.provenance.data),
            ("training", f"{format_count(len(trajectory.points), 'checkpoint')}, {span}; {n_layers}"),
            *(("note", note) for note in trajectory.notes),
        ),
        sheets=(build_checkpoint_sheet(trajectory), build_track_sheet(trajectory, number)),
        closing=(
            *((line, Tone.PLAIN) for line in say_trajectory(trajectory)),
            *((f"{point.label} has no numbers: {point.reason}.", Tone.ALARM) for point in _failed(trajectory)),
        ),
    )


def say_trajectory(trajectory: Trajectory) -> tuple[str, ...]:
    """Say how the median exponents moved, and where the prevailing rank model changed."""
    lines = []
    moves = []
    for number in (TrackedNumber.BETA, TrackedNumber.ALPHA_G, TrackedNumber.ALPHA_H, TrackedNumber.PR_H):
        values = [v for p in trajectory.points if not isinstance(v := p.medians[number.value], Missing)]
        if values:
            moves.append(f"{NUMBER_NAMES[number]} {values[0]:.2f} → {values[-1]:.2f}")
    if moves:
        lines.append(f"Medians, first checkpoint → last: {', '.join(moves)}.")
    counted = [point for point in trajectory.points if sum(point.bic_wins.values())]
    if counted:
        start, end = (_say_wins(point) for point in (counted[0], counted[-1]))
        lines.append(f"Rank models by BIC ({_names_of_models()}): {start} → {end} layers.")
    prevailing = _prevailing(counted)
    changes = [
        f"{trajectory.step_name} {point.step:g} ({RANK_MODEL_NAMES[a]} → {RANK_MODEL_NAMES[b]})"
        for point, (a, b) in zip(counted[1:], pairwise(prevailing), strict=True)
        if a is not b
    ]
    if changes:
        more = f" and {format_count(len(changes) - 4, 'more time')}" if len(changes) > 4 else ""
        lines.append(f"The prevailing rank model changes at {', '.join(changes[:4])}{more}.")
    elif prevailing[1:]:
        lines.append(f"The prevailing rank model stays {RANK_MODEL_NAMES[prevailing[0]]}.")
    return tuple(lines)


def build_checkpoint_sheet(trajectory: Trajectory) -> Sheet:
    """One line per checkpoint: medians over layers, and how many layers follow which rank model."""
    notes = Footnotes()
    columns = (
        Column(trajectory.step_name, right=True),
        Column("file", right=False, drop_order=9),
        Column("loss", drop_order=4),
        Column("accuracy", drop_order=5),
        Column("β", strong=True),
        Column("middle half", drop_order=6),
        Column("α_G", drop_order=2),
        Column("α_H", drop_order=2),
        Column("triangle", drop_order=3),
        Column("PR_h", drop_order=3),
        Column("PR_g", drop_order=7),
        *(Column(f"BIC: {name}", drop_order=1) for name in RANK_MODEL_NAMES.values()),
        Column("layers", drop_order=8),
    )
    rows = tuple(_checkpoint_row(point, notes) for point in trajectory.points)
    return Sheet("Checkpoints: medians over layers", columns, rows, notes.lines())


def _checkpoint_row(point: TrajectoryPoint, notes: Footnotes) -> Row:
    def cell(value: float | Missing, form: str = ".2f") -> str:
        return notes.missing(value) if isinstance(value, Missing) else format(value, form)

    def percent(value: float | Missing) -> str:
        return notes.missing(value) if isinstance(value, Missing) else format_percent(value)

    spread, medians = point.beta_iqr, point.medians
    return Row(
        (
            f"{point.step:g}",
            point.label,
            cell(point.loss, ".4g"),
            percent(point.accuracy),
            cell(medians["beta"]),
            notes.missing(spread) if isinstance(spread, Missing) else f"{spread.low:.2f} to {spread.high:.2f}",
            cell(medians["alpha_g"]),
            cell(medians["alpha_h"]),
            percent(medians["triangle_error"]),
            cell(medians["pr_h"]),
            cell(medians["pr_g"], ".1f"),
            *(DASH if point.reason else str(point.bic_wins[model.value]) for model in RankModel),
            DASH if point.reason else f"{point.n_ok}" + (f", {point.n_failed} failed" if point.n_failed else ""),
        ),
        Tone.ALARM if point.reason else Tone.PLAIN,
    )


def build_track_sheet(trajectory: Trajectory, number: TrackedNumber) -> Sheet:
    """One line per layer: the number at the checkpoints (some of them, where there are many), and its profile."""
    n = len(trajectory.points)
    places = list(range(n))
    if n > _MOST_CHECKPOINTS:
        places = [round(i * (n - 1) / (_MOST_CHECKPOINTS - 1)) for i in range(_MOST_CHECKPOINTS)]
    notes = Footnotes()
    columns = (
        Column("layer", right=False),
        Column("kind", right=False, drop_order=4),
        *(
            # The first and the last checkpoint stay longest.
            Column(f"{trajectory.points[place].step:g}", drop_order=0 if place in (places[0], places[-1]) else 5)
            for place in places
        ),
        Column("profile", right=False, drop_order=3),
        Column("change", drop_order=2),
        Column("rank model", right=False, drop_order=1),
    )
    rows = tuple(_track_row(track, number, places, notes) for track in trajectory.layers)
    of = f" (at {len(places)} of {n} checkpoints)" if len(places) < n else ""
    return Sheet(f"{NUMBER_NAMES[number]} by layer{of}", columns, rows, notes.lines())


def _track_row(track: LayerTrack, number: TrackedNumber, places: Sequence[int], notes: Footnotes) -> Row:
    values = track.values[number.value]

    def form(value: float) -> str:
        return format_percent(value) if number is TrackedNumber.TRIANGLE_ERROR else f"{value:.2f}"

    known = [value for value in values if not isinstance(value, Missing)]
    models = [model for model in track.rank_models if not isinstance(model, Missing)]
    change = f"{known[-1] - known[0]:+.2f}" if len(known) > 1 else DASH
    first, last = (RANK_MODEL_NAMES[model] for model in (models[0], models[-1])) if models else (DASH, DASH)
    return Row(
        (
            track.name,
            track.kind.value,
            *(notes.missing(v) if isinstance(v := values[place], Missing) else form(v) for place in places),
            sparkline(values, _SPARK_WIDTH),
            change.replace("-", "−"),
            first if first == last else f"{first} → {last}",
        )
    )


TRAJECTORY_COLUMNS: tuple[str, ...] = (
    "step",
    "checkpoint",
    "name",
    "kind",
    *(number.value for number in TrackedNumber),
    "rank_model",
    "missing",
)
"""Columns of a trajectory as CSV: one line per checkpoint and layer."""


def trajectory_to_csv(trajectory: Trajectory) -> str:
    """Write one row per checkpoint and layer, headed by :data:`TRAJECTORY_COLUMNS`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(TRAJECTORY_COLUMNS)
    for place, point in enumerate(trajectory.points):
        for track in trajectory.layers:
            values = {number.value: track.values[number.value][place] for number in TrackedNumber}
            model = track.rank_models[place]
            missing = {key: value.reason for key, value in values.items() if isinstance(value, Missing)}
            if isinstance(model, Missing):
                missing["rank_model"] = model.reason
            writer.writerow(
                (
                    f"{point.step:g}",
                    point.label,
                    track.name,
                    track.kind.value,
                    *("" if isinstance(value, Missing) else repr(value) for value in values.values()),
                    "" if isinstance(model, Missing) else model.value,
                    "; ".join(f"{key}: {reason}" for key, reason in missing.items()),
                )
            )
    return stream.getvalue().removesuffix("\n")


def _failed(trajectory: Trajectory) -> list[TrajectoryPoint]:
    return [point for point in trajectory.points if point.reason]


def _say_wins(point: TrajectoryPoint) -> str:
    return "/".join(str(point.bic_wins[model.value]) for model in RankModel)


def _names_of_models() -> str:
    return "/".join(RANK_MODEL_NAMES[model] for model in RankModel)


def _prevailing(points: Sequence[TrajectoryPoint]) -> list[RankModel]:
    """The rank model of most layers at each point; one that is level with another stays."""
    found: list[RankModel] = []
    for point in points:
        most = max(point.bic_wins.values())
        winners = [model for model in RankModel if point.bic_wins[model.value] == most]
        found.append(found[-1] if found and found[-1] in winners else winners[0])
    return found
