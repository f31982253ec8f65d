"""Charts of one layer: curvature against singular value, and the rank profile with its three models."""

from __future__ import annotations

import math

from spectrascope.records.report import LayerReport
from spectrascope.records.values import Interval, Missing, PowerFit, RankModel, RankModelFit
from spectrascope.reports.charts.axes import log_axis
from spectrascope.reports.charts.chart import Band, Chart, Ink, Line, Part, Points
from spectrascope.reports.charts.inks import MODEL_INKS
from spectrascope.reports.fields import RANK_MODEL_NAMES
from spectrascope.reports.figures import format_count

__all__ = ["curvature_chart", "rank_chart", "rank_model_value"]

_STEPS = 16  # straight pieces of a drawn curve


def curvature_chart(row: LayerReport) -> Chart:
    """Curvature h against σ, both logarithmic, with the fitted line and its interval.

    The band is the line turned about the centre of the points by the 95 % interval of β. Directions outside the
    window are hollow; h ≤ 0 has no place on a logarithmic axis and is counted in the note.
    """
    measured = row.measurement
    first, last = row.analysis.window
    inside: list[tuple[float, float, str]] = []
    outside: list[tuple[float, float, str]] = []
    for k, (sigma, h) in enumerate(zip(measured.sigma, measured.h, strict=True), start=1):
        if sigma > 0 and h > 0:
            place = inside if first <= k <= last else outside
            place.append((sigma, h, f"k = {k}"))
    shown = inside + outside
    sigmas = [point[0] for point in shown]
    parts: list[Part] = [*_fit_parts(row.analysis.beta, inside)]
    floor = measured.noise_floor
    if isinstance(floor, float) and sigmas and min(sigmas) < floor < max(sigmas):
        hs = [point[1] for point in shown]
        parts.append(Line((floor, floor), (min(hs), max(hs)), Ink.GREY, "sampling noise of the gradient", dashed=True))
    if outside:
        parts.append(_points(outside, "outside the window", hollow=True))
    if inside:
        parts.append(_points(inside, "directions"))
    n_left_out = sum(h <= 0 or sigma <= 0 for sigma, h in zip(measured.sigma, measured.h, strict=True))
    return Chart(
        title=row.info.name,
        x=log_axis("singular value of the gradient, σ", sigmas),
        y=log_axis("curvature, h", [point[1] for point in shown]),
        parts=tuple(parts),
        summary=_say_fit(row.analysis.beta),
        note=f"{n_left_out} of {format_count(len(measured.h), 'direction')} not shown: h ≤ 0" if n_left_out else "",
    )


def rank_chart(row: LayerReport) -> Chart:
    """Singular value σ against its rank k, both logarithmic, with the three rank models; the winner's line is solid."""
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
    return Chart(
        title=row.info.name,
        x=log_axis("rank, k", [point[0] for point in points]),
        y=log_axis("singular value of the gradient, σ", [point[1] for point in points]),
        parts=tuple(parts),
        summary=summary,
        rises=False,
    )


def _points(points: list[tuple[float, float, str]], label: str, *, hollow: bool = False) -> Points:
    xs, ys, names = zip(*points, strict=True)
    return Points(xs, ys, Ink.GREY if hollow else Ink.BLUE, label, hollow=hollow, names=names)


def _fit_parts(fit: PowerFit | Missing, inside: list[tuple[float, float, str]]) -> list[Part]:
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
        Line(sigmas, along(fit.value), Ink.ORANGE, f"β = {fit.value:.2f}, R² {fit.r2:.3f}"),
    ]


def _sane(interval: Interval, slope: float) -> tuple[float, float]:
    """The interval, but no wider than a drawing can show."""
    return max(interval.low, slope - 20.0), min(interval.high, slope + 20.0)


def _exp(x: float) -> float:
    return math.exp(min(max(x, -690.0), 690.0))


def _say_fit(fit: PowerFit | Missing) -> str:
    if isinstance(fit, Missing):
        return f"No β: {fit.reason}."
    return f"h grows as σ to the power {fit.value:.2f}; R² {fit.r2:.3f} over {format_count(fit.n, 'direction')}."


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
