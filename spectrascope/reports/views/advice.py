"""An advice as a document: per layer, per group, and the steps taken for real."""

from __future__ import annotations

from spectrascope.records.advice import Advice, BetaGroup, BetaSource, LayerAdvice, Treatment, ValidateOn, Validation
from spectrascope.records.values import Missing
from spectrascope.reports.fields import write, write_interval
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_data, describe_model
from spectrascope.reports.views.words import point_to_explain

__all__ = ["build_advice"]

_STEPS = ("0", "1", "2", "recommended")
_TITLES = {"0": "b = 0", "1": "b = 1", "2": "b = 2", "recommended": "use β", "best": "M⁻¹σ"}

_ABOUT_BETA = (
    "the b of T(σ; b) = σ / (σ² + damping)^(b/2) that lowers the loss most on samples that did not choose the "
    "directions, of the weight itself or of its group together: 0 is gradient descent, 1 Muon-like, 2 Newton-like"
)
_ABOUT_DAMPING = (
    "relative to the gradient's squared Schatten 4-norm (about σ_1²), as scale_free steps take it, chosen on the same "
    "held-out numbers: 1e-4 is none"
)
_ABOUT_STEP = (
    "predicted decrease of the held-out loss of one step of that exponent at its best length, as a share of the best "
    "combination of directions; in units of the loss where that is not known (b = 1 and b = 2 likewise)"
)
_ABOUT_RULE = "a spectral step where the gradient's nuclear rank exceeds its input's stable rank"

_ABOUT_TRAINING = (
    "half-way from Muon's 1 to that of all together, and damping 1e-4; the exponents above are each the best for one "
    "step: spectrascope explain optimizer."
)

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
        opening=((advice.known, Tone.PLAIN),),
        closing=_closing(advice),
    )


def _batch(advice: Advice) -> str:
    batch = advice.train_batch
    return f"steps on {batch:,} samples with momentum {advice.momentum:g}" if isinstance(batch, int) else batch.reason


def _layer_sheet(advice: Advice) -> Sheet:
    notes = Footnotes()
    columns = (
        Column("layer", right=False),
        Column("role", right=False, drop_order=7),
        Column("m × n", drop_order=9),
        Column("use β", strong=True, about=_ABOUT_BETA),
        Column("interval", drop_order=2),
        Column("from", right=False, drop_order=1),
        Column("meaning", right=False, drop_order=4),
        Column("damping", drop_order=3, about=_ABOUT_DAMPING),
        Column("own b", drop_order=6),
        Column("signal", drop_order=9),
        *(
            Column(_TITLES[name], drop_order=5, about="" if i else _ABOUT_STEP, together="steps")
            for i, name in enumerate(_STEPS[:3])
        ),
        Column("published β", drop_order=8, about="and noise's β beside it decide nothing", together="β"),
        Column("noise's β", drop_order=8, together="β"),
        Column("rule", right=False, drop_order=11, about=_ABOUT_RULE),
        Column("window", drop_order=10),
    )
    rows = tuple(_layer_row(layer, notes) for layer in advice.layers)
    return Sheet("Layers", columns, rows, notes.lines())


def _layer_row(layer: LayerAdvice, notes: Footnotes) -> Row:
    m, n = layer.info.shape
    head = (layer.info.name, layer.info.role.value, f"{m}×{n}")
    if layer.treatment is Treatment.ADAMW:
        use = (notes.mark("AdamW", layer.reason), DASH, DASH, "stepped by AdamW", DASH)
    elif layer.treatment is Treatment.UNDETERMINED:
        use = (notes.mark("?", "; ".join((layer.reason, *layer.doubts))), DASH, DASH, "undetermined", DASH)
    else:
        use = (
            _or_dash(write(layer.beta)),
            _or_dash(write_interval(layer.interval)),
            _source(layer, notes),
            layer.meaning,
            _damping(layer, notes),
        )
    own, fit, null, rule, window = layer.own, layer.measured, layer.null, layer.spectral_rule, layer.window
    exponent = notes.missing(own) if isinstance(own, Missing) else f"{own.value:.2f}" if own.determined else "?"
    published = notes.missing(fit) if isinstance(fit, Missing) else f"{fit.value:.2f} ±{fit.interval.half_width:.2f}"
    noise = notes.missing(null) if isinstance(null, Missing) else f"{null.low:.2f} to {null.high:.2f}"
    cells = (
        *head,
        *use,
        exponent,
        _or_dash(layer.n_signal if isinstance(layer.n_signal, Missing) else str(layer.n_signal)),
        *_efficiencies(layer, notes),
        published,
        noise,
        DASH if isinstance(rule, Missing) else rule.favours,
        DASH if isinstance(window, Missing) else f"{window[0]}-{window[1]}",
    )
    return Row(cells, Tone.PLAIN if layer.treatment is Treatment.SPECTRAL else Tone.QUIET)


def _or_dash(text: str | Missing) -> str:
    return DASH if isinstance(text, Missing) else text


def _source(layer: LayerAdvice, notes: Footnotes) -> str:
    if not isinstance(layer.source, BetaSource):
        return DASH
    words = "the layer" if layer.source is BetaSource.LAYER else f"its {layer.source.value}"
    if layer.source is BetaSource.NETWORK:
        words = "the network"
    return notes.mark(words, "; ".join(layer.doubts)) if layer.doubts else words


def _damping(layer: LayerAdvice, notes: Footnotes) -> str:
    value = layer.relative_damping
    if isinstance(value, Missing):
        return DASH
    text = f"{value:.2g}"
    return text if layer.damping_reason == "lowers the held-out loss most" else notes.mark(text, layer.damping_reason)


def _efficiencies(layer: LayerAdvice, notes: Footnotes) -> tuple[str, ...]:
    """Share of the best possible held-out decrease; the decrease itself where that is not known."""
    if isinstance(layer.efficiencies, Missing):
        return tuple(notes.missing(layer.efficiencies) for _ in _STEPS[:3])
    found = {step.name: step for step in layer.efficiencies}
    return tuple(
        f"{step.decrease:.1e}" if isinstance(step.efficiency, Missing) else format_percent(step.efficiency)
        for step in (found[name] for name in _STEPS[:3])
    )


def _group_sheet(advice: Advice) -> Sheet:
    columns = (
        Column("group", right=False),
        Column("by", right=False),
        Column("layers"),
        Column("determined"),
        Column("pooled b", strong=True),
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
        Column("predicted, held out"),
        Column("measured decrease", strong=True),
        Column("predicted, same samples", drop_order=1),
        Column("length ÷ predicted", drop_order=2),
    )
    rows = []
    for step in found.steps:
        rows.append(
            Row(
                (
                    step.layer,
                    _TITLES.get(step.name, step.name),
                    DASH if isinstance(step.predicted_held_out, Missing) else f"{step.predicted_held_out:.2e}",
                    f"{step.measured:.2e}",
                    f"{step.predicted:.2e}",
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
    lines: list[Line] = []
    if isinstance(advice.validation, Validation):
        lines += [(line, Tone.PLAIN) for line in _describe_validation(advice.validation)]
    return (*lines, point_to_explain("step exponent", "damping", "resolved"), _bottom_line(advice))


def _bottom_line(advice: Advice) -> Line:
    own = sum(layer.source is BetaSource.LAYER for layer in advice.layers)
    pooled = sum(layer.treatment is Treatment.SPECTRAL for layer in advice.layers) - own
    left = sum(layer.treatment is Treatment.UNDETERMINED for layer in advice.layers)
    parts = ((own, "an exponent of their own"), (pooled, "one pooled over their group"), (left, "none: undetermined"))
    shares = ", ".join(f"{n} get {what}" for n, what in parts if n) or "none has an exponent"
    text = f"Of {format_count(own + pooled + left, 'weight')}, {shares}."
    if not isinstance(beta := advice.training_beta, Missing):
        text += f" For a whole training: β {beta:.2f} for all weights, {_ABOUT_TRAINING}"
    return (text, Tone.WARNING if left else Tone.PLAIN)


def _describe_validation(found: Validation) -> list[str]:
    def words(value: float | Missing) -> str:
        return f"not computed ({value.reason})" if isinstance(value, Missing) else f"{value:.2f}"

    def by_step(ratio: dict[str, float | Missing]) -> str:
        return ", ".join(f"{_TITLES.get(name, name)}: {words(value)}" for name, value in ratio.items())

    return [
        f"The gain over gradient descent, predicted and measured, correlates in logarithms with r = "
        f"{words(found.correlation_held_out)} where predicted on samples held out, r = {words(found.correlation)} on "
        f"the same samples.",
        f"Predicted over measured decrease (median): held out {by_step(found.ratio_held_out)}; same samples "
        f"{by_step(found.ratio)}.",
        f"The exponent predicted to be best lowered the loss most, to within 5 %, on {found.best_agrees} of "
        f"{format_count(found.n_layers, 'weight')}.",
    ]
