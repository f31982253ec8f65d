"""What a saved report says of one number, or of one weight, in sentences: Markdown. No torch."""

from __future__ import annotations

import difflib
from statistics import median

from spectrascope.advice.advise import advise
from spectrascope.errors import OptionError
from spectrascope.records.advice import BetaSource, LayerAdvice, Treatment
from spectrascope.records.report import LayerReport, Report, SkippedLayer
from spectrascope.records.signal import NullBeta, NullDraws
from spectrascope.records.values import Missing, PowerFit
from spectrascope.reports.fields import RANK_MODEL_NAMES, Field, named, plain, write_interval
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.views.signal import say_layer_signal, say_signal
from spectrascope.text import matches

__all__ = ["explain_number", "explain_weight", "nearest_weights", "weights_named"]

MOST_ROWS = 12
"""Weights listed one by one; of more, those with the smallest and the largest value."""


def weights_named(report: Report, name: str) -> list[LayerReport | SkippedLayer]:
    """The weights of a report that a name or a glob means; a part of a name does where only one has it."""
    exact = [row for row in report.layers if matches(name, row.info.name)]
    if exact:
        return exact
    part = [row for row in report.layers if name in row.info.name]
    return part if len(part) == 1 else []


def nearest_weights(report: Report, name: str) -> list[str]:
    """Names of weights that are close to one that the report lacks."""
    return difflib.get_close_matches(name, [row.info.name for row in report.layers], n=3, cutoff=0.4)


def explain_number(report: Report, name: str) -> str:
    """A number of the layers, weight by weight, with what makes it believable or not.

    Args:
        report: a saved report.
        name: the flat name of a field of :data:`spectrascope.reports.fields.FIELDS`.

    Raises:
        OptionError: a report holds no such number.
    """
    try:
        field = named(name)
    except KeyError:
        raise OptionError(f"{name!r} is no number of a weight, so the report says nothing of it") from None
    rows = [row for row in report.layers if isinstance(row, LayerReport)]
    known = [(field, row) for row in rows if not isinstance(field.text(row), Missing)]
    lines = [say_signal(report), ""]
    values = [value for row in rows if isinstance(value := field.value(row), int | float)]
    if len(values) > 1:
        ends = f"{min(values):.3g} to {max(values):.3g}"
        lines += [f"Median {median(values):.3g} over {format_count(len(values), 'weight')}, from {ends}.", ""]
    shown = known if len(known) <= MOST_ROWS else _ends(known)
    lines += [f"- `{row.info.name}`: {_say_value(field, row)}" for field, row in shown]
    if len(known) > len(shown):
        lines.append(f"- … and {format_count(len(known) - len(shown), 'weight')} in between")
    for reason, count in _reasons(field, rows).items():
        lines.append(f"- {format_count(count, 'weight')} without it: {reason}")
    return "\n".join(lines)


def _ends(known: list[tuple[Field, LayerReport]]) -> list[tuple[Field, LayerReport]]:
    """The smallest and the largest where there is an order, else the first."""

    def value(item: tuple[Field, LayerReport]) -> float:
        found = item[0].value(item[1])
        return float(found) if isinstance(found, int | float) else 0.0

    ordered = sorted(known, key=value)
    half = MOST_ROWS // 2
    return [*ordered[:half], *ordered[-half:]]


def _reasons(field: Field, rows: list[LayerReport]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        text = field.text(row)
        if isinstance(text, Missing):
            found[text.reason] = found.get(text.reason, 0) + 1
    return found


def _say_value(field: Field, row: LayerReport) -> str:
    """A value with its interval, and what noise alone would give where that is known."""
    value, text = field.read(row), field.text(row)
    if isinstance(text, Missing):
        return f"none: {text.reason}"
    said = " ".join(text.split())
    if isinstance(value, PowerFit):
        said = f"{value.value:.2f}, 95 % interval {write_interval(value.interval)}, R² {value.r2:.3f}"
        said += f" over {format_count(value.n, 'direction')}"
    if field.flat == "beta":
        said += f"; {_beside_noise(row)}"
    return said


def _beside_noise(row: LayerReport) -> str:
    null = row.null
    if isinstance(null, Missing):
        return f"what noise alone gives is not known ({null.reason})"
    if not isinstance(null, NullDraws) or not isinstance(null.beta, NullBeta):
        return "what noise alone gives is not known"
    inside = null.contains_beta
    where = "so it lies outside" if inside is False else "so this is no more than noise gives"
    where = where if isinstance(inside, bool) else "not compared"
    return f"noise alone gives {null.beta.low:.2f} to {null.beta.high:.2f}, {where}"


def explain_weight(report: Report, row: LayerReport | SkippedLayer) -> str:
    """All that a report says of one weight, in words."""
    info = row.info
    m, n = info.shape
    lines = [f"# {info.name}", "", f"A {info.kind.value} weight, seen as {m} outputs × {n} inputs."]
    if isinstance(row, SkippedLayer):
        return "\n".join([*lines, f"It was not measured ({row.status.value}): {row.reason}."])
    measured, analysis = row.measurement, row.analysis
    how = "exactly" if measured.exact else "approximately"
    lines[-1] += (
        f" Measured {how} by {measured.engine.value} on {format_count(report.provenance.data.n, 'sample')} "
        f"({measured.engine_reason}); rank {measured.rank} of {measured.full_rank}."
    )
    advice = next(layer for layer in advise(report).layers if layer.info.name == info.name)
    triangle, ranks = analysis.triangle, analysis.rank_models
    lines += [
        "",
        f"**What is signal.** {_capital(say_layer_signal(row))}.",
        "",
        f"**What to do with it.** {_say_advice(advice)}",
        "",
        f"**Published exponents.** {_say_beta(row)}",
    ]
    if not isinstance(analysis.alpha_g, Missing) and not isinstance(analysis.alpha_h, Missing):
        lines[-1] += f" σ falls with rank at α_G {analysis.alpha_g.value:.2f}, h at α_H {analysis.alpha_h.value:.2f}"
        closed = "" if isinstance(triangle, Missing) else f"; β·α_G is {format_percent(triangle.relative_error)} off"
        lines[-1] += f"{closed}."
    if not isinstance(ranks, Missing):
        tie = f", in a tie with {RANK_MODEL_NAMES[ranks.runner_up]}" if ranks.tie else ""
        lines[-1] += f" σ follows {RANK_MODEL_NAMES[ranks.best]} in rank best{tie}."
    lines += ["", f"**Where curvature lies.** {_say_curvature(row)}"]
    return "\n".join(lines)


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


_SOURCES = {
    BetaSource.LAYER: "its own",
    BetaSource.FAMILY: "of its family together",
    BetaSource.ROLE: "of all weights of its role together",
    BetaSource.KIND: "of all weights of its kind together",
    BetaSource.NETWORK: "of the whole network together",
}


def _say_advice(layer: LayerAdvice) -> str:
    if layer.treatment is Treatment.ADAMW:
        return f"Step it with AdamW: {layer.reason}."
    doubts = f" Its own is not used: {'; '.join(layer.doubts)}." if layer.doubts else ""
    if isinstance(layer.beta, Missing):
        return f"{_capital(layer.beta.reason)}.{doubts}"
    interval = "" if isinstance(layer.interval, Missing) else f" ({write_interval(layer.interval)})"
    source = "" if isinstance(layer.source, Missing) else f", {_SOURCES[layer.source]}"
    damping = "" if isinstance(layer.relative_damping, Missing) else f", damping {layer.relative_damping:.2g}"
    return f"Step with exponent {layer.beta:.2f}{interval}{source}: {layer.meaning}{damping}.{doubts}"


def _say_beta(row: LayerReport) -> str:
    beta = row.analysis.beta
    if isinstance(beta, Missing):
        return f"No β: {beta.reason}."
    ends = write_interval(beta.interval)
    return f"β {beta.value:.2f} ({ends}), R² {beta.r2:.3f}; {_beside_noise(row)}."


def _say_curvature(row: LayerReport) -> str:
    measured, analysis = row.measurement, row.analysis
    if not measured.h:
        return "Not measured along the directions of the whole batch."
    said = f"Along its first direction h is {measured.h[0]:.3g} at a singular value of {measured.sigma[0]:.3g}"
    pr = plain(analysis.pr_h)
    if isinstance(pr, float):
        said += f"; {pr:.1f} directions carry it (participation ratio)"
    down = analysis.n_negative
    return f"{said}; {format_count(down, 'direction')} of the window {'curves' if down == 1 else 'curve'} down."
