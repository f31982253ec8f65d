"""Charts of one layer: curvature against singular value, and the rank profile with its three models."""

from __future__ import annotations

import math
from typing import TypeAlias

from spectrascope.records.report import LayerReport
from spectrascope.records.values import Interval, Missing, PowerFit, RankModel, RankModelFit
from spectrascope.reports.charts.axes import log_axis
from spectrascope.reports.charts.chart import Band, Chart, Ink, Line, Part, Points, PointShape
from spectrascope.reports.charts.inks import MODEL_INKS
from spectrascope.reports.fields import RANK_MODEL_NAMES
from spectrascope.reports.figures import format_count

__all__ = ["curvature_chart", "rank_chart", "rank_model_value"]

_STEPS = 16  # straight pieces of a drawn curve
_FAR = 10.0  # below the least σ, where no held-out slope is drawn

_Point: TypeAlias = "tuple[float, float, str]"


def curvature_chart(row: LayerReport) -> Chart:
    """Curvature h against σ, both logarithmic: as published, on held-out samples, and of noise alone behind.

    Held-out points are h against the slope s, where both are positive. The band is the line turned about the centre of
    the points by the 95 % interval of the published β. Directions outside the window are grey; h ≤ 0 has no place on a
    logarithmic axis and is counted in the note, and so are slopes far below the least σ, which would squeeze all else.
    """
    measured = row.measurement
    first, last = row.analysis.window
    inside: list[_Point] = []
    outside: list[_Point] = []
    for k, (sigma, h) in enumerate(zip(measured.sigma, measured.h, strict=False), start=1):
        if sigma > 0 and h > 0:
            place = inside if first <= k <= last else outside
            place.append((sigma, h, f"k = {k}"))
    noise, held_out, n_held_out = _noise(row), *_held_out(row)
    shown = inside + outside + noise + held_out
    sigmas = [point[0] for point in inside + outside]
    parts: list[Part] = []
    if noise:
        xs, ys, names = zip(*noise, strict=True)
        parts.append(Points(xs, ys, Ink.GREY, "noise alone", names=names, pale=True))
    parts += _fit_parts(row.analysis.beta, inside)
    floor = measured.noise_floor
    if not noise and isinstance(floor, float) and sigmas and min(sigmas) < floor < max(sigmas):
        hs = [point[1] for point in shown]
        parts.append(Line((floor, floor), (min(hs), max(hs)), Ink.GREY, "sampling noise of the gradient", dashed=True))
    if outside:
        parts.append(_points(outside, "outside the window", hollow=True))
    if inside:
        parts.append(_points(inside, "same samples" if held_out else "directions"))
    if held_out:
        xs, ys, names = zip(*held_out, strict=True)
        parts.append(Points(xs, ys, Ink.GREEN, "held out", PointShape.DIAMOND, hollow=True, names=names))
    n_left_out = sum(h <= 0 or sigma <= 0 for sigma, h in zip(measured.sigma, measured.h, strict=False))
    summary = _say_fit(row.analysis.beta)
    notes = [f"{n_left_out} of {format_count(len(measured.h), 'direction')} not shown: h ≤ 0"] if n_left_out else []
    if n_held_out > len(held_out):
        notes.append(f"held out: {n_held_out - len(held_out)} of {n_held_out} not shown")
        summary += " Held-out slopes at or near zero have no place on these axes."
    return Chart(
        title=row.info.name,
        x=log_axis(
            "singular value σ, slope s" if held_out else "singular value, σ",
            [point[0] for point in shown],
        ),
        y=log_axis("curvature, h", [point[1] for point in shown]),
        parts=tuple(parts),
        summary=summary,
        note="; ".join(notes),
    )


def _noise(row: LayerReport) -> list[_Point]:
    """Points of the null draws, in the window."""
    if isinstance(row.null, Missing):
        return []
    first, last = row.analysis.window
    return [
        (sigma, h, f"noise, draw {draw}, k = {k}")
        for draw, (sigmas, hs) in enumerate(zip(row.null.sigma, row.null.h, strict=True), start=1)
        for k, (sigma, h) in enumerate(zip(sigmas, hs, strict=True), start=1)
        if sigma > 0 and h > 0 and first <= k <= last
    ]


def _held_out(row: LayerReport) -> tuple[list[_Point], int]:
    """Points of the window on held-out samples that can be shown, and of how many."""
    held = row.held_out
    if isinstance(held, Missing):
        return [], 0
    first, last = row.analysis.window
    least = min([sigma for sigma in row.measurement.sigma[first - 1 : last] if sigma > 0], default=0.0) / _FAR
    points = [
        (s, h, f"held out, k = {k}: t = {t:.1f}")
        for k, (s, h, t) in enumerate(zip(held.slopes, held.h, held.t, strict=True), start=1)
        if first <= k <= last
    ]
    return [point for point in points if point[0] > least and point[1] > 0], len(points)


def rank_chart(row: LayerReport) -> Chart:
    """Singular value σ against its rank k, both logarithmic, with the three rank models; the winner's line is solid.

    A σ above the line of noise is signal: 95 % of noise's largest σ are below it.
    """
    measured, comparison = row.measurement, row.analysis.rank_models
    first, last = row.analysis.window
    points = [(float(k), sigma, f"k = {k}") for k, sigma in enumerate(measured.sigma, start=1) if sigma > 0]
    inside = [point for point in points if first <= point[0] <= last]
    outside = [point for point in points if not first <= point[0] <= last]
    parts: list[Part] = []
    if not isinstance(comparison, Missing) and inside:
        low, high = inside[0][0], inside[-1][0]
        ks = tuple(low * (high / low) ** (i / _STEPS) for i in range(_STEPS + 1))
        for fit in comparison.fits:
            name, best = RANK_MODEL_NAMES[fit.model], fit.model is comparison.best
            label = f"{name}, lowest BIC" if best else f"{name}, BIC +{fit.bic - _lowest(comparison.fits):.1f}"
            ys = tuple(rank_model_value(fit, k) for k in ks)
            parts.append(Line(ks, ys, MODEL_INKS[fit.model], label, dashed=not best))
    quantile = None if isinstance(row.null, Missing) else row.null.quantile
    if quantile and points:
        ends = (points[0][0], points[-1][0])
        parts.append(Line(ends, (quantile, quantile), Ink.GREY, "95 % of noise", dashed=True))
    if outside:
        parts.append(_points(outside, "outside the window", hollow=True))
    if inside:
        parts.append(_points(inside, "directions"))
    if isinstance(comparison, Missing):
        summary = f"No rank model: {comparison.reason}."
    else:
        tie = ", a tie" if comparison.tie else ""
        summary = (
            f"σ falls with rank as {RANK_MODEL_NAMES[comparison.best]}; next {RANK_MODEL_NAMES[comparison.runner_up]}, "
            f"ΔBIC {comparison.delta_bic:.1f}{tie}."
        )
    if not isinstance(row.analysis.n_signal, Missing):
        summary += f" {format_count(row.analysis.n_signal, 'direction')} above noise."
    return Chart(
        title=row.info.name,
        x=log_axis("rank, k", [point[0] for point in points]),
        y=log_axis("singular value, σ", [*(point[1] for point in points), *([quantile or 0.0])]),
        parts=tuple(parts),
        summary=summary,
        rises=False,
    )


def _points(points: list[_Point], label: str, *, hollow: bool = False) -> Points:
    xs, ys, names = zip(*points, strict=True)
    return Points(xs, ys, Ink.GREY if hollow else Ink.BLUE, label, hollow=hollow, names=names)


def _fit_parts(fit: PowerFit | Missing, inside: list[_Point]) -> list[Part]:
    if isinstance(fit, Missing) or len(inside) < 2:
        return []
    logs = [math.log(point[0]) for point in inside]
    low, high, centre = min(logs), max(logs), sum(logs) / len(logs)
    xs = (low, centre, high)  # a power law is straight on these axes
    level = fit.intercept + fit.value * centre

    def along(slope: float) -> tuple[float, ...]:
        return tuple(_exp(level + slope * (x - centre)) for x in xs)

    edges = [along(slope) for slope in _sane(fit.interval, fit.value)]
    sigmas = tuple(_exp(x) for x in xs)
    return [
        Band(
            sigmas,
            tuple(min(pair) for pair in zip(*edges, strict=True)),
            tuple(max(pair) for pair in zip(*edges, strict=True)),
            Ink.ORANGE,
            "95 % interval of β",
        ),
        Line(sigmas, along(fit.value), Ink.ORANGE, f"β = {fit.value:.2f}, published"),
    ]


def _sane(interval: Interval, slope: float) -> tuple[float, float]:
    """The interval, but no wider than a drawing can show."""
    return max(interval.low, slope - 20.0), min(interval.high, slope + 20.0)


def _exp(x: float) -> float:
    return math.exp(min(max(x, -690.0), 690.0))


def _say_fit(fit: PowerFit | Missing) -> str:
    if isinstance(fit, Missing):
        return f"No β: {fit.reason}."
    return (
        f"Published β {fit.value:.2f} over {format_count(fit.n, 'direction')} of the same samples; noise gives about 2."
    )


def _lowest(fits: tuple[RankModelFit, ...]) -> float:
    return min(fit.bic for fit in fits)


def rank_model_value(fit: RankModelFit, k: float) -> float:
    """σ at rank k by a rank model (MEASUREMENT section 3)."""
    if fit.model is RankModel.POWER_LAW:
        a, gamma = fit.params
        return _exp(a - gamma * math.log(k))
    if fit.model is RankModel.EXPONENTIAL:
        a, kappa = fit.params
        return _exp(a - kappa * k)
    a, b, c = fit.params
    return _exp(a + b * math.log(k) + c * math.log(k) ** 2)
