"""A trajectory as sheets: one line per checkpoint, one per layer, and what changed in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from spectrascope.records.trajectory import LayerTrack, Trajectory, TrajectoryPoint
from spectrascope.records.values import Missing, RankModel
from spectrascope.reports.charts.sparklines import sparkline
from spectrascope.reports.fields import RANK_MODEL_NAMES, UNDETERMINED, Field, followed, named, write, write_interval
from spectrascope.reports.figures import format_count
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_data, describe_model
from spectrascope.reports.views.words import point_to_explain

__all__ = [
    "build_checkpoint_sheet",
    "build_track_sheet",
    "build_trajectory_document",
    "say_trajectory",
]

_MOST_CHECKPOINTS = 8  # columns of the sheet of layers; the profile shows them all
_SPARK_WIDTH = 16


def build_trajectory_document(trajectory: Trajectory, number: str = "step_exponent") -> Document:
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
        ),
        sheets=(build_checkpoint_sheet(trajectory), build_track_sheet(trajectory, number)),
        opening=(
            *((line, Tone.PLAIN) for line in say_trajectory(trajectory)),
            *((f"{note}.", Tone.WARNING) for note in trajectory.notes),
            *((f"{point.label} has no numbers: {point.reason}.", Tone.ALARM) for point in _failed(trajectory)),
        ),
        closing=(point_to_explain("step exponent", "beta", "resolved"),),
    )


def say_trajectory(trajectory: Trajectory) -> tuple[str, ...]:
    """Say what could be known along the way, how the median exponents moved, and where the rank model changed."""
    lines = _say_signal(trajectory)
    moves = []
    for name in ("beta", "alpha_g", "alpha_h", "pr_h"):
        values = [v for p in trajectory.points if not isinstance(v := p.medians[name], Missing)]
        if values:
            moves.append(f"{named(name).spoken} {values[0]:.2f} → {values[-1]:.2f}")
    if moves:
        lines.append(
            f"Published definitions, medians, first checkpoint → last: {', '.join(moves)}{_beside_noise(trajectory)}."
        )
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


def _say_signal(trajectory: Trajectory) -> list[str]:
    """Directions resolved and step exponents at the first and the last checkpoint with numbers."""
    tracks = trajectory.layers
    places = [place for place, point in enumerate(trajectory.points) if not point.reason]
    resolved = [track.values["n_resolved"] for track in tracks]
    known = [place for place in places if any(not isinstance(values[place], Missing) for values in resolved)]
    if not known:
        reasons = [v.reason for values in resolved for p in places if isinstance(v := values[p], Missing)]
        return [f"Not known what of this is signal: {reasons[0]}."] if reasons else []

    def count(place: int) -> str:
        return f"{sum(v for values in resolved if not isinstance(v := values[place], Missing)):g}"

    def step(place: int) -> str:
        steps = [track.values["step_exponent"][place] for track in tracks]
        found = sum(not isinstance(value, Missing) for value in steps)
        value = trajectory.points[place].medians["step_exponent"]
        of = f"{found} of {format_count(len(tracks), 'layer')}"
        return UNDETERMINED if isinstance(value, Missing) else f"{value:.2f} (median of {of} that determine one)"

    first, last = known[0], known[-1]
    return [
        f"Held-out samples, first checkpoint → last: directions resolved {count(first)} → {count(last)}, "
        f"step exponent {step(first)} → {step(last)}."
    ]


def _beside_noise(trajectory: Trajectory) -> str:
    noise = [v for p in trajectory.points if not isinstance(v := p.medians["null_beta"], Missing)]
    return f"; noise alone gives β {noise[0]:.2f} → {noise[-1]:.2f}" if noise else "; noise alone gives β of about 2"


def build_checkpoint_sheet(trajectory: Trajectory) -> Sheet:
    """One line per checkpoint: medians over layers, and how many layers follow which rank model."""
    notes = Footnotes()
    columns = (
        Column(trajectory.step_name, right=True),
        Column("file", right=False, drop_order=1),
        Column("loss"),
        Column("accuracy"),
        *(column for field in followed() for column in _median_columns(field)),
        *(Column(f"BIC: {name}", drop_order=10, together="BIC") for name in RANK_MODEL_NAMES.values()),
        Column("layers", drop_order=16),
    )
    rows = tuple(_checkpoint_row(point, notes) for point in trajectory.points)
    return Sheet("Checkpoints: medians over layers", columns, rows, notes.lines())


def _median_columns(field: Field) -> list[Column]:
    column = Column(field.header, drop_order=2 * (field.followed or 0), strong=field.strong)
    return [column, Column("middle half of β", drop_order=12)] if field.name == "beta" else [column]


def _checkpoint_row(point: TrajectoryPoint, notes: Footnotes) -> Row:
    medians = []
    for field in followed():
        medians.append(notes.show(write(point.medians[field.flat], field.form)))
        if field.name == "beta":
            medians.append(notes.show(write_interval(point.beta_iqr)))
    return Row(
        (
            f"{point.step:g}",
            point.label,
            notes.show(write(point.loss, ".4g")),
            notes.show(write(point.accuracy, "%")),
            *medians,
            *(DASH if point.reason else str(point.bic_wins[model.value]) for model in RankModel),
            DASH if point.reason else f"{point.n_ok}" + (f", {point.n_failed} failed" if point.n_failed else ""),
        ),
        Tone.ALARM if point.reason else Tone.PLAIN,
    )


def build_track_sheet(trajectory: Trajectory, number: str) -> Sheet:
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
    field = named(number)
    rows = tuple(_track_row(track, field, places, notes) for track in trajectory.layers)
    of = f" (at {len(places)} of {n} checkpoints)" if len(places) < n else ""
    return Sheet(f"{field.spoken} by layer{of}", columns, rows, notes.lines())


def _track_row(track: LayerTrack, field: Field, places: Sequence[int], notes: Footnotes) -> Row:
    values, form = track.values[field.flat], "%" if field.form == "%" else ".2f"
    known = [value for value in values if not isinstance(value, Missing)]
    models = [model for model in track.rank_models if not isinstance(model, Missing)]
    change = f"{known[-1] - known[0]:+.2f}" if len(known) > 1 else DASH
    first, last = (RANK_MODEL_NAMES[model] for model in (models[0], models[-1])) if models else (DASH, DASH)
    return Row(
        (
            track.name,
            track.kind.value,
            *(notes.show(write(values[place], form)) for place in places),
            sparkline(values, _SPARK_WIDTH),
            change.replace("-", "−"),
            first if first == last else f"{first} → {last}",
        )
    )


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
