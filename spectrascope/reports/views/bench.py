"""A benchmark as a document."""

from __future__ import annotations

from collections.abc import Sequence

from spectrascope.records.bench import BenchReport, PeerTimes
from spectrascope.records.values import Missing
from spectrascope.reports.figures import format_count, format_seconds
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_data, describe_model, list_engines

__all__ = ["build_bench"]


def build_bench(bench: BenchReport) -> Document:
    """The engines of ``probe`` against plain double backprop and other tools."""
    columns = (
        Column("timed", right=False),
        Column("seconds", drop_order=1),
        Column("forward passes", drop_order=3),
        Column("per product", drop_order=2),
        Column("ratio", strong=True),
        Column("h differs by"),
    )
    notes = Footnotes()
    rows = (
        _row(
            "spectrascope", bench.engine_seconds, bench.engine_forward_equivalents, bench.engine_per_product, 1.0, None
        ),
        _row(
            "double backprop, a graph per product",
            bench.reference_seconds,
            bench.reference_forward_equivalents,
            bench.reference_per_product,
            bench.ratio,
            bench.max_relative_difference,
        ),
        _row(
            "double backprop, graphs kept",
            bench.kept_graph_seconds,
            bench.kept_graph_forward_equivalents,
            bench.kept_graph_per_product,
            bench.kept_graph_ratio,
            bench.max_relative_difference,
        ),
        *(_peer_row(peer, notes) for peer in bench.peers),
    )
    opening = (
        f"{bench.ratio:.1f} times fewer seconds than double backprop as it is usually done (by round: "
        f"{_by_round(bench.ratio_rounds)}), {bench.kept_graph_ratio:.1f} times fewer than at its fastest."
    )
    closing = [
        f"All did {format_count(bench.n_products, 'product')}: one direction of one layer over "
        f"{format_count(bench.n_samples, 'sample')} each. A forward pass is one over the same samples without "
        f"gradients, {format_seconds(bench.forward_seconds)} of {bench.clock}; 'per product': forward passes per layer "
        "and direction. h differs by at most so much of a layer's largest.",
    ]
    if bench.n_samples < bench.n_samples_asked:
        closing.append(
            f"Of the {bench.n_samples_asked:,} samples asked for the first {bench.n_samples:,} were timed, for a round "
            "to end in reasonable work."
        )
    if bench.extrapolated:
        closing.append(
            f"Double backprop was timed on {bench.n_products_timed:,} of {bench.n_products:,} products, of "
            f"{bench.n_layers_timed} of {bench.n_layers} layers, and {bench.n_samples_timed:,} of {bench.n_samples:,} "
            "samples, and scaled up."
        )
    for peer in bench.peers:
        if not isinstance(peer.ratio, Missing):
            closing.append(
                f"{peer.name} was timed on {format_count(peer.n_products_timed, 'product')} and "
                f"{format_count(peer.n_samples_timed, 'sample')}; its ratio by round: {_by_round(peer.ratio_rounds)}."
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
        sheets=(Sheet("Seconds for the same curvatures", columns, rows, notes.lines()),),
        opening=((opening, Tone.PLAIN),),
        closing=tuple((line, Tone.QUIET) for line in closing),
    )


def _row(
    name: str, seconds: float, forwards: float, each: float, ratio: float, difference: float | Missing | None
) -> Row:
    differs = f"{difference:.1e}" if isinstance(difference, float) else DASH
    return Row((name, format_seconds(seconds), f"{forwards:,.1f}", f"{each:.2f}", f"{ratio:.1f}", differs))


def _peer_row(peer: PeerTimes, notes: Footnotes) -> Row:
    """A tool that was not measured says why at its name, one that was how its product was taken."""
    name = f"{peer.name} {peer.version}".strip()
    numbers = peer.seconds, peer.forward_equivalents, peer.per_product, peer.ratio
    measured = [number for number in numbers if not isinstance(number, Missing)]
    if len(measured) < len(numbers):
        why = next(number for number in numbers if isinstance(number, Missing))
        return Row((notes.mark(name, why.reason), *[DASH] * 5))
    seconds, forwards, each, ratio = measured
    return _row(notes.mark(name, peer.product), seconds, forwards, each, ratio, peer.max_relative_difference)


def _by_round(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.1f}" for ratio in ratios)
