"""A report as a document: the whole of it, or the α triangle alone."""

from __future__ import annotations

from spectrascope.records.report import Report, SummaryGroup
from spectrascope.records.values import RankModel
from spectrascope.reports.fields import RANK_MODEL_NAMES, write, write_interval
from spectrascope.reports.order import ORDER, Sort, sort_layers
from spectrascope.reports.views.document import Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_run
from spectrascope.reports.views.layer_sheet import build_layer_sheet, build_triangle_sheet
from spectrascope.reports.views.words import describe_triangle, explain, say_in_words, warn

__all__ = ["build_probe", "build_summary_sheet", "build_triangle"]

_PROFILES = "σ_k and h_k are profiles over the directions k, from the first to the last, on a logarithmic scale."


def build_probe(report: Report, sort: Sort | str = ORDER) -> Document:
    """Everything about every layer, a summary by kind, and what it means."""
    return Document(
        title="spectrascope: curvature along gradient directions",
        facts=describe_run(report.provenance),
        sheets=(build_layer_sheet(sort_layers(report, sort)), build_summary_sheet(report)),
        closing=(
            *((line, Tone.PLAIN) for line in say_in_words(report)),
            *explain(report),
            *([(_PROFILES, Tone.QUIET)] if report.summary.n_ok else []),
            *warn(report),
        ),
    )


def build_triangle(report: Report, sort: Sort | str = ORDER) -> Document:
    """The α triangle alone: three exponents per layer, the error of α_H ≈ β·α_G, and a verdict."""
    closing = [(line, Tone.PLAIN) for line in describe_triangle(report)]
    closing.append(("The verdict is “holds” where the relative error is at most 10 %.", Tone.PLAIN))
    return Document(
        title="spectrascope: α triangle, α_H ≈ β·α_G",
        facts=describe_run(report.provenance),
        sheets=(build_triangle_sheet(sort_layers(report, sort)),),
        closing=(*closing, *warn(report)),
    )


def build_summary_sheet(report: Report) -> Sheet:
    """Medians over the measured layers, by kind and all together."""
    summary, notes = report.summary, Footnotes()
    columns = (
        Column("kind", right=False),
        Column("layers"),
        Column("median β", strong=True),
        Column("middle half of β", drop_order=3),
        Column("median triangle error"),
        Column("triangle ≤ 10 %", drop_order=2),
        *(Column(f"BIC: {name}", drop_order=1) for name in RANK_MODEL_NAMES.values()),
    )
    groups = [*summary.by_kind]
    if len(groups) != 1:
        groups.append(summary.overall)
    counts = f"{summary.n_ok} measured, {summary.n_skipped} skipped, {summary.n_failed} failed"
    rows = tuple(_summary_row(group, notes) for group in groups)
    return Sheet(f"Summary: {counts}", columns, rows, notes.lines())


def _summary_row(group: SummaryGroup, notes: Footnotes) -> Row:
    return Row(
        (
            group.kind,
            str(group.n),
            notes.show(write(group.beta_median)),
            notes.show(write_interval(group.beta_iqr)),
            notes.show(write(group.triangle_error_median, "%")),
            str(group.n_well_conditioned),
            *(str(group.bic_wins.get(model.value, 0)) for model in RankModel),
        )
    )
