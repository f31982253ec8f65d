"""Charts over training: a number's median and its layers, and the shares of the rank models."""

from __future__ import annotations

from itertools import pairwise

from spectrascope.records.trajectory import LayerTrack, Trajectory
from spectrascope.records.values import Interval, Missing, RankModel
from spectrascope.reports.charts.axes import OPTIMIZERS, linear_axis, log_axis, steps_axis
from spectrascope.reports.charts.chart import Band, Bars, Chart, Ink, Line, Part, Picture, Points, PointShape
from spectrascope.reports.charts.inks import KIND_INKS, MODEL_INKS
from spectrascope.reports.fields import RANK_MODEL_NAMES, UNDETERMINED, Field, followed, named
from spectrascope.reports.figures import format_count, format_percent

__all__ = ["drawn_fields", "layer_chart", "quality_charts", "share_chart", "track_chart", "trajectory_pictures"]


def drawn_fields(trajectory: Trajectory) -> list[Field]:
    """Numbers that are drawn over training, as far as some layer has them at some checkpoint."""
    return [
        field
        for field in followed()
        if field.drawn
        and any(not isinstance(value, Missing) for track in trajectory.layers for value in track.values[field.flat])
    ]


def track_chart(trajectory: Trajectory, number: str) -> Chart:
    """A number over training: a faint line per layer, coloured by kind, and the median over layers.

    Beside the published β, that of noise alone. Where a layer has no number its line goes on to the next checkpoint
    where it has one; the note counts such places.
    """
    steps = [point.step for point in trajectory.points]
    field = named(number)
    name, key = field.spoken, field.flat
    parts: list[Part] = []
    everything: list[float] = []
    kinds = []
    n_missing = 0
    for track in trajectory.layers:
        pairs = _known(steps, track.values[key])
        n_missing += len(steps) - len(pairs)
        if pairs:
            xs, ys = zip(*pairs, strict=True)
            label = "" if track.kind in kinds else f"{track.kind.value} layers"
            kinds.append(track.kind)
            parts.append(Line(xs, ys, KIND_INKS[track.kind], label, faint=True, name=track.name))
            everything += ys
    bands = [
        (point.step, point.beta_iqr)
        for point in trajectory.points
        if key == "beta" and isinstance(point.beta_iqr, Interval)
    ]
    if bands:
        xs = tuple(step for step, _ in bands)
        lows, highs = tuple(b.low for _, b in bands), tuple(b.high for _, b in bands)
        parts.append(Band(xs, lows, highs, Ink.PURPLE, "middle half of layers"))
    noise = _known(steps, tuple(point.medians["null_beta"] for point in trajectory.points)) if key == "beta" else []
    if noise:
        xs, ys = zip(*noise, strict=True)
        parts.append(Line(xs, ys, Ink.GREY, "noise alone, median", dashed=True))
        everything += ys
    medians = _known(steps, tuple(point.medians[key] for point in trajectory.points))
    if medians:
        xs, ys = zip(*medians, strict=True)
        parts.append(Line(xs, ys, Ink.PURPLE, "median"))
        names = tuple(f"{trajectory.step_name} {x:g}: median {name} = {y:{field.form}}" for x, y in medians)
        parts.append(Points(xs, ys, Ink.PURPLE, names=names))
        span = f"{ys[0]:{field.form}} to {ys[-1]:{field.form}} over" if len(ys) > 1 else f"{ys[0]:{field.form}} at 1 of"
        summary = f"Median {name} {'from ' * (len(ys) > 1)}{span} {format_count(len(steps), 'checkpoint')}."
    else:
        summary = f"No checkpoint has a median {name}."
    y = log_axis(name, everything) if field.logarithmic else linear_axis(name, everything)
    n_all = len(steps) * len(trajectory.layers)
    unknown = n_missing if key == "step_exponent" else 0
    note = f"{UNDETERMINED.capitalize()} or not measured: {unknown} of {n_all}" if unknown else ""
    guides = tuple((place, text) for place, text in OPTIMIZERS if y.holds(place)) if key == "step_exponent" else ()
    x = steps_axis(trajectory.step_name, steps)
    return Chart(f"{name} over training", x, y, tuple(parts), summary, note, guides=guides)


def quality_charts(trajectory: Trajectory) -> list[Chart]:
    """The loss on the batch over training, and the accuracy where there is one."""
    steps = [point.step for point in trajectory.points]
    found = []
    for name, values, ink, write in (
        ("loss", tuple(point.loss for point in trajectory.points), Ink.ORANGE, "{:.3g}".format),
        ("accuracy", tuple(point.accuracy for point in trajectory.points), Ink.BLUE, format_percent),
    ):
        pairs = _known(steps, values)
        if not pairs:
            continue
        xs, ys = zip(*pairs, strict=True)
        spans_decades = name == "loss" and min(ys) > 0 and max(ys) > 20 * min(ys)
        names = tuple(f"{trajectory.step_name} {x:g}: {name} {y:.4g}" for x, y in pairs)
        found.append(
            Chart(
                title=f"{name} over training",
                x=steps_axis(trajectory.step_name, steps),
                y=log_axis(name, ys) if spans_decades else linear_axis(name, ys, include=[0.0]),
                parts=(Line(xs, ys, ink), Points(xs, ys, ink, names=names)),
                summary=f"The {name} goes from {write(ys[0])} to {write(ys[-1])} on the samples measured.",
            )
        )
    return found


def layer_chart(trajectory: Trajectory, track: LayerTrack) -> Chart:
    """The exponents of one layer over training: of the step on held-out samples, published β beside noise's, decays."""
    steps = [point.step for point in trajectory.points]
    parts: list[Part] = []
    everything: list[float] = []
    series = (
        ("step_exponent", Ink.GREEN, PointShape.DIAMOND),
        ("null_beta", Ink.GREY, PointShape.CROSS),
        ("beta", Ink.PURPLE, PointShape.CIRCLE),
        ("alpha_g", Ink.BLUE, PointShape.SQUARE),
        ("alpha_h", Ink.ORANGE, PointShape.TRIANGLE),
    )
    for number, ink, mark in series:
        pairs = _known(steps, track.values[number])
        if pairs:
            xs, ys = zip(*pairs, strict=True)
            parts += [Line(xs, ys, ink), Points(xs, ys, ink, named(number).spoken, mark)]
            everything += ys
    return Chart(
        title=track.name,
        x=steps_axis(trajectory.step_name, steps),
        y=linear_axis("exponent", everything),
        parts=tuple(parts),
        summary=f"Exponents of {track.name} over {format_count(len(steps), 'checkpoint')}.",
    )


def share_chart(trajectory: Trajectory) -> Chart:
    """Which share of the layers follows which rank model, checkpoint by checkpoint, in stacked bars."""
    points = [point for point in trajectory.points if sum(point.bic_wins.values())]
    steps = [point.step for point in points]
    gaps = [b - a for a, b in pairwise(steps) if b > a]
    width = 0.8 * min(gaps) if gaps else 0.8
    spread = (max(steps) - min(steps)) if steps else 0.0
    width = max(width, 0.012 * spread)
    bottoms = [0.0] * len(points)
    parts: list[Part] = []
    for model in RankModel:
        lows = tuple(bottoms)
        shares = [100 * point.bic_wins.get(model.value, 0) / sum(point.bic_wins.values()) for point in points]
        bottoms = [low + share for low, share in zip(lows, shares, strict=True)]
        names = tuple(
            f"{trajectory.step_name} {point.step:g}: {RANK_MODEL_NAMES[model]} on {point.bic_wins[model.value]} of "
            f"{format_count(sum(point.bic_wins.values()), 'layer')}"
            for point in points
        )
        parts.append(
            Bars(tuple(steps), lows, tuple(bottoms), MODEL_INKS[model], RANK_MODEL_NAMES[model], names, width=width)
        )
    return Chart(
        title="rank models over training",
        x=steps_axis(trajectory.step_name, [s + d for s in steps for d in (-width / 2, width / 2)]),
        y=linear_axis("share of layers, %", [0.0, 100.0], margin=0.0),
        parts=tuple(parts),
        summary="Share of layers whose gradient spectrum follows each rank model, by BIC.",
    )


def trajectory_pictures(trajectory: Trajectory) -> list[Picture]:
    """The pictures of a trajectory: all in one, then one by one."""
    charts = {
        **{f"training-{chart.title.split()[0]}": chart for chart in quality_charts(trajectory)},
        "training-rank-models": share_chart(trajectory),
        **{
            f"training-{field.flat.replace('_', '-')}": track_chart(trajectory, field.flat)
            for field in drawn_fields(trajectory)
        },
    }
    together = tuple(charts.values())
    title = f"{trajectory.model}: {format_count(len(trajectory.points), 'checkpoint')}"
    return [
        Picture("training-overview", title, together, columns=2),
        *(Picture(name, f"{trajectory.model}: {chart.title}", (chart,)) for name, chart in charts.items()),
    ]


def _known(steps: list[float], values: tuple[float | Missing, ...]) -> list[tuple[float, float]]:
    return [(step, value) for step, value in zip(steps, values, strict=True) if not isinstance(value, Missing)]
