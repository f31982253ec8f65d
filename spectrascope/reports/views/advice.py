"""An advice as a document: per layer, per group, and the steps taken for real."""

from __future__ import annotations

from spectrascope.records.advice import Advice, BetaGroup, BetaSource, LayerAdvice, Treatment, ValidateOn, Validation
from spectrascope.records.values import Missing
from spectrascope.reports.fields import write, write_interval
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_data, describe_model

__all__ = ["build_advice"]

_STEPS = ("0", "1", "beta", "2")
_TITLES = {"0": "b = 0", "1": "b = 1", "beta": "b = β", "2": "b = 2", "best": "M⁻¹σ"}

Line = tuple[str, Tone]


def build_advice(advice: Advice) -> Document:
    """Everything that is recommended and why, and what it means."""
    sheets = [_layer_sheet(advice), _group_sheet(advice)]
    if isinstance(advice.validation, Validation):
        sheets.append(_validation_sheet(advice.validation))
    return Document(
        title="spectrascope: suggested exponents",
        facts=(
            *describe_model(advice.model),
            *describe_data(advice.data),
            ("damping", f"for {_batch(advice)}"),
            *(("note", note) for note in advice.notes),
        ),
        sheets=tuple(sheets),
        closing=_closing(advice),
    )


def _batch(advice: Advice) -> str:
    batch = advice.train_batch
    return f"steps on {batch:,} samples with momentum 0.95" if isinstance(batch, int) else batch.reason


def _layer_sheet(advice: Advice) -> Sheet:
    notes = Footnotes()
    columns = (
        Column("layer", right=False),
        Column("role", right=False, drop_order=7),
        Column("m × n", drop_order=9),
        Column("use β", strong=True),
        Column("interval", drop_order=2),
        Column("from", right=False, drop_order=1),
        Column("meaning", right=False, drop_order=4),
        Column("damping", drop_order=3),
        Column("measured β", drop_order=6),
        Column("R²", drop_order=8),
        Column("window", drop_order=10),
        Column("above noise", drop_order=11),
        *(Column(_TITLES[name], drop_order=5) for name in _STEPS),
        Column("best b", drop_order=7),
    )
    rows = tuple(_layer_row(layer, notes) for layer in advice.layers)
    return Sheet("Layers", columns, rows, notes.lines())


def _layer_row(layer: LayerAdvice, notes: Footnotes) -> Row:
    m, n = layer.info.shape
    head = (layer.info.name, layer.info.role.value, f"{m}×{n}")
    if layer.treatment is Treatment.ADAMW:
        use = (notes.mark("AdamW", layer.reason), DASH, DASH, "stepped by AdamW", DASH)
    else:
        use = (
            _or_dash(write(layer.beta)),
            _or_dash(write_interval(layer.interval)),
            _source(layer, notes),
            layer.meaning,
            _damping(layer, notes),
        )
    own = layer.measured
    measured = (
        (notes.missing(own), DASH)
        if isinstance(own, Missing)
        else (f"{own.value:.2f} ±{own.interval.half_width:.2f}", f"{own.r2:.3f}")
    )
    window, above = layer.window, layer.n_above_noise
    where = (
        DASH if isinstance(window, Missing) else f"{window[0]}-{window[1]}",
        DASH if isinstance(above, Missing) else str(above),
    )
    best = layer.best_exponent
    cells = (*head, *use, *measured, *where, *_efficiencies(layer, notes))
    tone = Tone.QUIET if layer.treatment is Treatment.ADAMW else Tone.PLAIN
    return Row((*cells, notes.show(write(best))), tone)


def _or_dash(text: str | Missing) -> str:
    return DASH if isinstance(text, Missing) else text


def _source(layer: LayerAdvice, notes: Footnotes) -> str:
    if not isinstance(layer.source, BetaSource):
        return DASH
    words = "the layer" if layer.source is BetaSource.LAYER else f"its {layer.source.value}"
    if layer.source is BetaSource.NETWORK:
        words = "the network"
    if layer.source is BetaSource.USUAL:
        words = "the paper"
    return notes.mark(words, "; ".join(layer.doubts)) if layer.doubts else words


def _damping(layer: LayerAdvice, notes: Footnotes) -> str:
    value = layer.relative_damping
    if isinstance(value, Missing):
        return DASH
    text = f"{value:.2g}"
    return text if layer.damping_reason == "noise floor^beta" else notes.mark(text, layer.damping_reason)


def _efficiencies(layer: LayerAdvice, notes: Footnotes) -> tuple[str, ...]:
    if isinstance(layer.efficiencies, Missing):
        return tuple(notes.missing(layer.efficiencies) for _ in _STEPS)
    found = {step.name: step.efficiency for step in layer.efficiencies}
    return tuple(f"{100 * found[name]:.0f} %" if name in found else DASH for name in _STEPS)


def _group_sheet(advice: Advice) -> Sheet:
    columns = (
        Column("group", right=False),
        Column("by", right=False),
        Column("layers"),
        Column("trusted"),
        Column("median β", strong=True),
        Column("interval", drop_order=1),
        Column("meaning", right=False, drop_order=2),
    )
    return Sheet("Groups", columns, tuple(_group_row(group) for group in advice.groups))


def _group_row(group: BetaGroup) -> Row:
    cells = (group.name, group.by, str(group.n), str(group.n_confident), _or_dash(write(group.beta)))
    return Row((*cells, _or_dash(write_interval(group.interval)), group.meaning or DASH))


def _validation_sheet(found: Validation) -> Sheet:
    columns = (
        Column("layer", right=False),
        Column("step", right=False),
        Column("predicted decrease"),
        Column("measured decrease", strong=True),
        Column("predicted efficiency", drop_order=2),
        Column("measured efficiency", drop_order=2),
        Column("length ÷ predicted", drop_order=1),
    )
    rows = []
    for step in found.steps:
        rows.append(
            Row(
                (
                    step.layer,
                    _TITLES.get(step.name, step.name),
                    f"{step.predicted:.2e}",
                    f"{step.measured:.2e}",
                    format_percent(step.predicted_efficiency),
                    format_percent(step.measured_efficiency),
                    f"{step.measured_length / step.predicted_length:.2f}",
                )
            )
        )
    whose = "others" if found.on is ValidateOn.HELD_OUT else "of the same"
    title = (
        f"Steps taken for real: measured on {format_count(found.n_measured, 'sample')}, "
        f"loss of {found.n_checked:,} {whose} (now {found.loss:.4g})"
    )
    return Sheet(title, columns, tuple(rows))


def _closing(advice: Advice) -> tuple[Line, ...]:
    spectral = [layer for layer in advice.layers if layer.treatment is Treatment.SPECTRAL]
    own = sum(layer.source is BetaSource.LAYER for layer in spectral)
    lines: list[Line] = [
        (
            "T(σ; β) = σ / (σ^β + damping): β ≈ 0 is gradient descent, β ≈ 1 a Muon-like step of equal sizes, β ≈ 2 a "
            "Newton-like one. The interval is the wider of the two 95 % intervals of the fit, widened because "
            "directions and curvature come from the same samples, or the hull of these over the group it was taken "
            "from.",
            Tone.PLAIN,
        ),
        (
            "b = … : how much of the best possible decrease in the window one step of that exponent gets, at its best "
            "length, under the local quadratic model with the full curvature matrix. best b: the exponent that gets "
            "most.",
            Tone.PLAIN,
        ),
        (
            "Damping is relative to the gradient's Schatten 4-norm (about σ_1), as scale_free steps take it: the noise "
            "floor to the power β.",
            Tone.PLAIN,
        ),
        (
            "above noise: directions of the window whose σ is above the sampling noise of the gradient. The others are "
            "damped, not left out: curvature along them is measured all the same.",
            Tone.PLAIN,
        ),
        (f"{own} of {format_count(len(spectral), 'layer')} by their own measurement.", Tone.PLAIN),
    ]
    if spectral and own * 2 < len(spectral):
        lines.append(
            (
                "Most layers could not be trusted on their own: more samples (--num-samples) narrow the intervals.",
                Tone.WARNING,
            )
        )
    if isinstance(advice.validation, Validation):
        lines += [(line, Tone.PLAIN) for line in _describe_validation(advice.validation)]
    return tuple(lines)


def _describe_validation(found: Validation) -> list[str]:
    def words(value: float | Missing) -> str:
        return f"not computed ({value.reason})" if isinstance(value, Missing) else f"{value:.2f}"

    ranked = [step for step in found.steps if step.name in _STEPS]  # M⁻¹σ is the yardstick, not a prediction of rank
    n_downhill = sum(step.measured > 0 for step in ranked)
    by_step = ", ".join(f"{_TITLES.get(k, k)}: {words(v)}" for k, v in found.correlation_by_step.items())
    lines = [
        f"Predicted and measured efficiency correlate with r = {words(found.correlation)} over "
        f"{format_count(len(ranked), 'step')} (over layers, {by_step}); the logarithms of the decreases with r = "
        f"{words(found.correlation_decrease)} over the {n_downhill} that lowered the loss.",
        f"The exponent predicted to be best lowered the loss most, to within 5 %, on {found.best_agrees} of "
        f"{format_count(found.n_layers, 'layer')}.",
    ]
    if found.on is ValidateOn.HELD_OUT:
        lines.append(
            "Where a step of larger b falls short on samples it was not measured on, its gain lay along directions "
            "whose σ is sampling noise: more samples, or --validate-on measured for the quadratic model alone."
        )
    return lines
