"""Reports as documents: the whole report, the α triangle alone, a benchmark."""

from __future__ import annotations

from spectrascope.records.bench import BenchReport
from spectrascope.records.report import Report, SummaryGroup
from spectrascope.records.values import Interval, Missing, RankModel
from spectrascope.reports.figures import format_count, format_percent, format_seconds
from spectrascope.reports.order import Sort, sort_layers
from spectrascope.reports.views.document import Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_data, describe_model, describe_run, list_engines
from spectrascope.reports.views.in_words import say_in_words
from spectrascope.reports.views.layer_sheet import (
    RANK_MODEL_NAMES,
    build_layer_sheet,
    build_triangle_sheet,
)
from spectrascope.reports.views.words import describe_triangle, explain, warn

__all__ = ["build_bench", "build_probe", "build_summary_sheet", "build_triangle"]

_PROFILES = "σ_k and h_k are profiles over the directions k, from the first to the last, on a logarithmic scale."


def build_probe(report: Report, sort: Sort = Sort.ORDER) -> Document:
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


def build_triangle(report: Report, sort: Sort = Sort.ORDER) -> Document:
    """The α triangle alone: three exponents per layer, the error of α_H ≈ β·α_G, and a verdict."""
    closing = [(line, Tone.PLAIN) for line in describe_triangle(report)]
    closing.append(("The verdict is “holds” where the relative error is at most 10 %.", Tone.PLAIN))
    return Document(
        title="spectrascope: α triangle, α_H ≈ β·α_G",
        facts=describe_run(report.provenance),
        sheets=(build_triangle_sheet(sort_layers(report, sort)),),
        closing=(*closing, *warn(report)),
    )


def build_bench(bench: BenchReport) -> Document:
    """The engines of ``probe`` against plain double backprop."""
    columns = (
        Column("", right=False),
        Column("seconds"),
        Column("forward passes"),
        Column("per product"),
        Column("ratio", strong=True),
    )
    rows = tuple(
        Row((name, format_seconds(seconds), f"{forwards:,.1f}", f"{each:.2f}", f"{ratio:.1f}"))
        for name, seconds, forwards, each, ratio in (
            ("spectrascope", bench.engine_seconds, bench.engine_forward_equivalents, bench.engine_per_product, 1.0),
            (
                "double backprop, a graph per product",
                bench.reference_seconds,
                bench.reference_forward_equivalents,
                bench.reference_per_product,
                bench.ratio,
            ),
            (
                "double backprop, graphs kept",
                bench.kept_graph_seconds,
                bench.kept_graph_forward_equivalents,
                bench.kept_graph_per_product,
                bench.kept_graph_ratio,
            ),
        )
    )
    rounds = ", ".join(f"{value:.1f}" for value in bench.ratio_rounds)
    closing = [
        f"{bench.ratio:.1f} times fewer seconds than double backprop as it is usually done (by round: {rounds}), "
        f"{bench.kept_graph_ratio:.1f} times fewer than at its fastest.",
        f"Largest relative difference of h: {bench.max_relative_difference:.1e}.",
        f"All did {format_count(bench.n_products, 'product')}: one direction of one layer over "
        f"{format_count(bench.n_samples, 'sample')} each. A forward pass is one over the same samples without "
        f"gradients, {format_seconds(bench.forward_seconds)}; 'per product': forward passes per layer and direction.",
    ]
    if bench.extrapolated:
        closing.append(
            f"Double backprop was timed on {bench.n_products_timed:,} of {bench.n_products:,} products and "
            f"{bench.n_samples_timed:,} of {bench.n_samples:,} samples, and scaled up."
        )
    machine = f"{bench.device}, {bench.dtype}, {format_count(bench.threads, 'thread')}, micro-batch {bench.micro_batch}"
    return Document(
        title="spectrascope: speed against double backprop",
        facts=(
            *describe_model(bench.model),
            *describe_data(bench.data),
            ("engine", f"{list_engines(bench.engines)}, up to {format_count(bench.top_k, 'direction')} each"),
            ("device", machine),
        ),
        sheets=(Sheet("Seconds for the same curvatures", columns, rows),),
        closing=tuple((line, Tone.PLAIN) for line in closing),
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
    def number(value: float | Missing) -> str:
        return notes.missing(value) if isinstance(value, Missing) else f"{value:.2f}"

    def spread(value: Interval | Missing) -> str:
        return notes.missing(value) if isinstance(value, Missing) else f"{value.low:.2f} to {value.high:.2f}"

    error = group.triangle_error_median
    return Row(
        (
            group.kind,
            str(group.n),
            number(group.beta_median),
            spread(group.beta_iqr),
            notes.missing(error) if isinstance(error, Missing) else format_percent(error),
            str(group.n_well_conditioned),
            *(str(group.bic_wins.get(model.value, 0)) for model in RankModel),
        )
    )
