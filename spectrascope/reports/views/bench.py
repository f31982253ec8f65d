"""A benchmark as a document."""

from __future__ import annotations

from spectrascope.records.bench import BenchReport
from spectrascope.reports.figures import format_count, format_seconds
from spectrascope.reports.views.document import Column, Document, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_data, describe_model, list_engines

__all__ = ["build_bench"]


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
    opening = (
        f"{bench.ratio:.1f} times fewer seconds than double backprop as it is usually done (by round: {rounds}), "
        f"{bench.kept_graph_ratio:.1f} times fewer than at its fastest."
    )
    closing = [
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
        opening=((opening, Tone.PLAIN),),
        closing=tuple((line, Tone.QUIET) for line in closing),
    )
