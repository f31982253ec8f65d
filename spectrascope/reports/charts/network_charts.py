"""Charts of a whole network: step exponents and β along depth, the α triangle, participation ratios, rank models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import HeldOut, NullBeta, NullDraws, StepExponent
from spectrascope.records.values import Interval, LayerKind, Missing, PowerFit, RankModel, Triangle
from spectrascope.reports.charts.axes import OPTIMIZERS, Axis, linear_axis, log_axis, names_axis
from spectrascope.reports.charts.chart import Band, Bars, Chart, Ink, Line, Part, Points, PointShape
from spectrascope.reports.charts.inks import KIND_INKS, KIND_MARKS, MODEL_INKS
from spectrascope.reports.fields import RANK_MODEL_NAMES
from spectrascope.reports.figures import format_count

__all__ = ["depth_chart", "measured_layers", "participation_chart", "rank_model_chart", "step_chart", "triangle_chart"]

Named = tuple[int, LayerReport]

_ASIDE = 0.12
"""Between the points of one weight, so that none hides another."""


def measured_layers(report: Report) -> list[LayerReport]:
    """Rows with numbers, in the network's order."""
    return [row for row in report.layers if isinstance(row, LayerReport)]


def triangle_chart(layers: Sequence[LayerReport]) -> Chart:
    """α_H against β·α_G, a point per layer, with the identity and the ±10 % band around it.

    The band is |α_H − β·α_G| ≤ 0.1·|α_H|, the same as "well conditioned".
    """
    found = [(row, row.analysis.triangle) for row in layers]
    pairs = [
        (row, triangle.predicted, row.analysis.alpha_h.value)
        for row, triangle in found
        if isinstance(triangle, Triangle) and isinstance(row.analysis.alpha_h, PowerFit)
    ]
    values = [value for _, x, y in pairs for value in (x, y)]
    axis = linear_axis("predicted, β·α_G", values, include=[0.0])
    # y with |y - x| = 0.1·|y|: y = x / 0.9 and x / 1.1, on both sides of zero.
    xs = (axis.low, 0.0, axis.high) if axis.low < 0 < axis.high else (axis.low, axis.high)
    edges = [(min(x / 0.9, x / 1.1), max(x / 0.9, x / 1.1)) for x in xs]
    parts: list[Part] = [
        Band(xs, tuple(low for low, _ in edges), tuple(high for _, high in edges), Ink.GREY, "within 10 %"),
        Line((axis.low, axis.high), (axis.low, axis.high), Ink.GREY, "α_H = β·α_G"),
    ]
    for kind, members in _by_kind([row for row, _, _ in pairs]):
        wanted = {id(row) for _, row in members}
        mine = [pair for pair in pairs if id(pair[0]) in wanted]
        parts.append(
            Points(
                tuple(x for _, x, _ in mine),
                tuple(y for _, _, y in mine),
                KIND_INKS[kind],
                kind.value,
                KIND_MARKS[kind],
                names=tuple(f"{row.info.name}: α_H = {y:.2f}, β·α_G = {x:.2f}" for row, x, y in mine),
            )
        )
    n_close = sum(isinstance(t, Triangle) and t.well_conditioned for _, t in found)
    return Chart(
        title="α triangle",
        x=axis,
        y=Axis("measured, α_H", axis.low, axis.high, axis.ticks),
        parts=tuple(parts),
        summary=f"α_H is within 10 % of β·α_G on {n_close} of {format_count(len(pairs), 'layer')}.",
        note=_note_missing(len(layers) - len(pairs), "no triangle"),
    )


def depth_chart(layers: Sequence[LayerReport]) -> Chart:
    """Published β along depth, coloured by kind, with its 95 % intervals."""
    found = [(i, row, row.analysis.beta) for i, row in enumerate(layers, start=1)]
    fits = [(i, row, fit) for i, row, fit in found if isinstance(fit, PowerFit)]
    y = linear_axis("published exponent β", _with_whiskers([fit for *_, fit in fits]), include=[0.0, 2.0])
    x = names_axis([row.info.name for row in layers])
    parts: list[Part] = [Line((x.low, x.high), (2.0, 2.0), Ink.GREY, "about what noise gives", dashed=True)]
    places = {id(row): (i, fit) for i, row, fit in fits}
    for kind, members in _by_kind([row for _, row, _ in fits]):
        here = [(*places[id(row)], row) for _, row in members]
        parts.append(
            Points(
                tuple(float(i) for i, _, _ in here),
                tuple(fit.value for _, fit, _ in here),
                KIND_INKS[kind],
                kind.value,
                KIND_MARKS[kind],
                names=tuple(f"{row.info.name}: β = {fit.value:.2f}" for _, fit, row in here),
                whiskers=tuple(_clip(fit.interval, y) for _, fit, _ in here),
            )
        )
    summary = _say_range([fit.value for *_, fit in fits])
    note = _note_missing(len(layers) - len(fits), "no β")
    return Chart("published β along depth", x, y, tuple(parts), summary, note, guides=OPTIMIZERS)


def step_chart(layers: Sequence[LayerReport]) -> Chart | None:
    """Step exponents on held-out samples along depth with their 95 % intervals, beside published β and noise's.

    A weight that does not determine one has none here, and is counted. Nothing where no weight was held out.
    """
    found = [(i, row, row.held_out) for i, row in enumerate(layers, start=1)]
    held = [(i, row, out.step_exponent) for i, row, out in found if isinstance(out, HeldOut)]
    if not held:
        return None
    steps = [(i, row, step) for i, row, step in held if isinstance(step, StepExponent) and step.determined]
    betas = [
        (i, row, fit.value) for i, row in enumerate(layers, start=1) if isinstance(fit := row.analysis.beta, PowerFit)
    ]
    nulls = [
        (i, row, row.null.beta)
        for i, row in enumerate(layers, start=1)
        if isinstance(row.null, NullDraws) and isinstance(row.null.beta, NullBeta)
    ]
    x = names_axis([row.info.name for row in layers])
    parts: list[Part] = []
    if nulls:
        parts.append(
            Points(
                tuple(i - _ASIDE for i, *_ in nulls),
                tuple(null.value for *_, null in nulls),
                Ink.GREY,
                "β of noise alone",
                PointShape.CROSS,
                names=tuple(f"{row.info.name}: noise alone gives β = {null.value:.2f}" for _, row, null in nulls),
                whiskers=tuple((null.low, null.high) for *_, null in nulls),
            )
        )
    if betas:
        parts.append(
            Points(
                tuple(float(i) for i, *_ in betas),
                tuple(beta for *_, beta in betas),
                Ink.ORANGE,
                "published β",
                PointShape.SQUARE,
                hollow=True,
                names=tuple(f"{row.info.name}: published β = {beta:.2f}" for _, row, beta in betas),
            )
        )
    if steps:
        parts.append(
            Points(
                tuple(i + _ASIDE for i, *_ in steps),
                tuple(step.value for *_, step in steps),
                Ink.BLUE,
                "step exponent",
                names=tuple(
                    f"{row.info.name}: step exponent {step.value:.2f} ({step.interval.low:.2f} to "
                    f"{step.interval.high:.2f})"
                    for _, row, step in steps
                ),
                whiskers=tuple((step.interval.low, step.interval.high) for *_, step in steps),
            )
        )
    shown = [y for part in parts if isinstance(part, Points) for y in part.ys]
    n_not = format_count(len(held) - len(steps), "weight")
    return Chart(
        "step exponents along depth",
        x,
        linear_axis("exponent", [min(max(y, -1.0), 5.0) for y in shown], include=[0.0, 3.0]),
        tuple(parts),
        f"{len(steps)} of {format_count(len(held), 'weight')} determine a step exponent on held-out samples.",
        f"{n_not} undetermined" if len(held) > len(steps) else "",
        guides=OPTIMIZERS,
    )


def _say_range(values: Sequence[float]) -> str:
    if not values:
        return "No layer has a β."
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"β is {low}." if low == high else f"β lies between {low} and {high}."


def participation_chart(layers: Sequence[LayerReport]) -> Chart:
    """Participation ratios along depth: how many directions carry curvature (PR_h) and gradient (PR_g)."""
    series: tuple[tuple[str, Ink, PointShape, Callable[[LayerReport], float | Missing]], ...] = (
        ("PR_g, gradient", Ink.BLUE, PointShape.SQUARE, lambda row: row.measurement.pr_g),
        ("PR_h, curvature", Ink.ORANGE, PointShape.CIRCLE, lambda row: row.analysis.pr_h),
    )
    parts: list[Part] = []
    everything: list[float] = [1.0]
    for label, ink, mark, value_of in series:
        points = [
            (float(i), value, f"{row.info.name}: {label.split(',')[0]} = {value:.2f}")
            for i, row in enumerate(layers, start=1)
            if not isinstance(value := value_of(row), Missing)
        ]
        if points:
            xs, ys, names = zip(*points, strict=True)
            parts.append(Points(xs, ys, ink, label, mark, names=names))
            everything += ys
    return Chart(
        title="participation ratios",
        x=names_axis([row.info.name for row in layers]),
        y=log_axis("participation ratio", everything),
        parts=tuple(parts),
        summary="Effective number of directions that carry the gradient and the curvature of each layer.",
    )


def rank_model_chart(report: Report) -> Chart:
    """How many layers of each kind follow which rank model, by BIC."""
    groups = [group for group in report.summary.by_kind if sum(group.bic_wins.values())]
    tops = [0.0] * len(groups)
    parts: list[Part] = []
    for model in RankModel:
        lows = tuple(tops)
        counts = [group.bic_wins.get(model.value, 0) for group in groups]
        tops = [low + count for low, count in zip(tops, counts, strict=True)]
        names = tuple(
            f"{group.kind}: {RANK_MODEL_NAMES[model]} on {format_count(count, 'layer')}"
            for group, count in zip(groups, counts, strict=True)
        )
        xs = tuple(float(i) for i in range(1, len(groups) + 1))
        parts.append(Bars(xs, lows, tuple(tops), MODEL_INKS[model], RANK_MODEL_NAMES[model], names, width=0.6))
    wins = report.summary.overall.bic_wins
    said = ", ".join(f"{RANK_MODEL_NAMES[model]} {wins.get(model.value, 0)}" for model in RankModel)
    y = linear_axis("layers", [0.0, *tops], margin=0.04)
    x = names_axis([group.kind for group in groups], "kind of layer")
    return Chart(
        title="rank models by BIC",
        x=Axis(x.label, x.low, x.high, x.ticks),
        y=Axis(y.label, 0.0, y.high, tuple(tick for tick in y.ticks if tick[0] >= 0 and tick[0].is_integer())),
        parts=tuple(parts),
        summary=f"Layers won: {said}.",
    )


def _by_kind(layers: Sequence[LayerReport]) -> list[tuple[LayerKind, list[Named]]]:
    found = []
    for kind in LayerKind:
        members = [(i, row) for i, row in enumerate(layers, start=1) if row.info.kind is kind]
        if members:
            found.append((kind, members))
    return found


def _with_whiskers(fits: Sequence[PowerFit]) -> list[float]:
    """The values and the ends of their intervals, none further out than half the range of the values."""
    values = [fit.value for fit in fits] or [0.0]
    reach = 0.5 * max(max(values) - min(values), 1.0)
    low, high = min(values) - reach, max(values) + reach
    ends = [end for fit in fits for end in (fit.interval.low, fit.interval.high)]
    return [*values, *(min(max(end, low), high) for end in ends)]


def _clip(interval: Interval, axis: Axis) -> tuple[float, float]:
    """A whisker that is wider than the axis ends at its edges: one bad layer must not squeeze all others."""
    return max(interval.low, axis.low), min(interval.high, axis.high)


def _note_missing(n: int, what: str) -> str:
    return f"{format_count(n, 'layer')} not shown: {what}" if n else ""
