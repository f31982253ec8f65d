"""A report as a document: the whole of it, or the α triangle alone."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from spectrascope.records.report import LayerReport, Report, SummaryGroup
from spectrascope.records.signal import StepExponent
from spectrascope.records.values import Missing, RankModel
from spectrascope.reports.fields import RANK_MODEL_NAMES, UNDETERMINED, named, write, write_interval
from spectrascope.reports.order import ORDER, Sort, sort_layers
from spectrascope.reports.views.across import say_across
from spectrascope.reports.views.document import Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_run
from spectrascope.reports.views.layer_sheet import build_layer_sheet, build_triangle_sheet
from spectrascope.reports.views.words import describe_triangle, point_to_explain, say_first, say_in_words, warn

__all__ = ["build_probe", "build_summary_sheet", "build_triangle"]


def build_probe(report: Report, sort: Sort | str = ORDER) -> Document:
    """Everything about every layer, a summary by kind, and what it means."""
    return Document(
        title="spectrascope: curvature along gradient directions",
        facts=describe_run(report.provenance),
        sheets=(build_layer_sheet(sort_layers(report, sort)), build_summary_sheet(report)),
        opening=(
            say_first(report),
            *((line, Tone.PLAIN) for line in (*say_in_words(report)[1:], *say_across(report))),
            *warn(report),
        ),
        closing=(point_to_explain("beta", "step exponent", "rank model"),),
    )


def build_triangle(report: Report, sort: Sort | str = ORDER) -> Document:
    """The α triangle alone: three exponents per layer, the error of α_H ≈ β·α_G, and a verdict."""
    return Document(
        title="spectrascope: α triangle, α_H ≈ β·α_G",
        facts=describe_run(report.provenance),
        sheets=(build_triangle_sheet(sort_layers(report, sort)),),
        opening=(say_first(report), *((line, Tone.PLAIN) for line in describe_triangle(report)), *warn(report)),
        closing=(point_to_explain("triangle", "alpha_h", "beta"),),
    )


def build_summary_sheet(report: Report) -> Sheet:
    """Medians over the measured layers, by kind and all together."""
    summary, notes = report.summary, Footnotes()
    wins = summary.overall.bic_wins
    columns = (
        Column("kind", right=False),
        Column("layers"),
        Column("resolved"),
        Column("determined", drop_order=1),
        Column("step exponent", strong=True),
        Column("β"),
        Column("null β"),
        Column("middle half of β", drop_order=4),
        Column("triangle error", drop_order=2),
        Column("triangle ≤ 10 %", drop_order=3),
        *(
            Column(f"BIC: {name}", drop_order=5 * (wins.get(model.value, 0) < max(wins.values(), default=0)))
            for model, name in RANK_MODEL_NAMES.items()
        ),
    )
    groups = [*summary.by_kind]
    if len(groups) != 1:
        groups.append(summary.overall)
    counts = f"medians of {summary.n_ok} measured, {summary.n_skipped} skipped, {summary.n_failed} failed"
    measured = [row for row in report.layers if isinstance(row, LayerReport)]
    rows = tuple(
        _summary_row(group, [row for row in measured if group.kind in (row.info.kind.value, "all")], notes)
        for group in groups
    )
    return Sheet(f"Summary: {counts}", columns, rows, notes.lines())


def _summary_row(group: SummaryGroup, rows: Sequence[LayerReport], notes: Footnotes) -> Row:
    needed = [named("n_resolved").read(row) for row in rows]
    resolved = [n for n in needed if not isinstance(n, Missing)]
    size = sum(len(share) for row in rows if not isinstance(share := row.analysis.signal_share, Missing))
    return Row(
        (
            group.kind,
            str(group.n),
            notes.show(f"{sum(resolved)}/{size}" if resolved else _first_reason(needed)),
            *_say_steps(rows, notes),
            notes.show(write(group.beta_median)),
            notes.show(write(_median("null_beta", rows))),
            notes.show(write_interval(group.beta_iqr)),
            notes.show(write(group.triangle_error_median, "%")),
            str(group.n_well_conditioned),
            *(str(group.bic_wins.get(model.value, 0)) for model in RankModel),
        )
    )


def _say_steps(rows: Sequence[LayerReport], notes: Footnotes) -> tuple[str, str]:
    """How many weights determine a step exponent, and its median over them."""
    field = named("step_exponent")
    found = [field.read(row) for row in rows]
    steps = [step for step in found if isinstance(step, StepExponent)]
    if not steps:
        return notes.show(_first_reason(found)), notes.show(_first_reason(found))
    determined = sum(step.determined for step in steps)
    shown = write(_median(field.flat, rows)) if determined else UNDETERMINED
    return f"{determined}/{len(steps)}", notes.show(shown)


def _median(number: str, rows: Sequence[LayerReport]) -> float | Missing:
    values = [named(number).value(row) for row in rows]
    known = [value for value in values if not isinstance(value, Missing)]
    return float(median(known)) if known else _first_reason(values)


def _first_reason(values: Sequence[Any]) -> Missing:
    return next((value for value in values if isinstance(value, Missing)), Missing("no layer was measured"))
