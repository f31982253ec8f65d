"""Fit a saved report again over another window of ranks, from the arrays it holds."""

from __future__ import annotations

from dataclasses import replace

from spectrascope.errors import OptionError
from spectrascope.records.decomposition import Decomposition
from spectrascope.records.report import LayerReport, LayerRow, Report

__all__ = ["refit"]


def refit(report: Report, *, top_k: int | None = None, min_rank: int | None = None) -> Report:
    """Fit every layer again over ranks ``min_rank … top_k``; nothing is measured and torch is not needed.

    Sigma, h and the other arrays stay as measured, so a narrower window can be widened again. A note in the
    provenance says that the window changed.

    Args:
        report: a measured report.
        top_k: largest rank in the window; as in the report when ``None``.
        min_rank: smallest rank, 1-based; as in the report when ``None``.

    Raises:
        OptionError: ``top_k`` beyond what was measured, or an empty window.

    Cost: milliseconds per layer.
    """
    options = report.options
    top_k = options.top_k if top_k is None else top_k
    min_rank = options.min_rank if min_rank is None else min_rank
    sizes = [len(row.measurement.sigma) for row in report.layers if isinstance(row, LayerReport)]
    measured = max([options.top_k, *sizes])
    if top_k > measured:
        raise OptionError(
            f"--top-k {top_k} asks for more directions than the {measured} that were measured: "
            f"use at most {measured}, or measure again with `spectrascope probe --top-k {top_k}`"
        )
    if min_rank < 1 or top_k < min_rank:
        raise OptionError(f"--min-rank {min_rank} must lie between 1 and --top-k {top_k}")
    if (top_k, min_rank) == (options.top_k, options.min_rank):
        return report

    from spectrascope.numerics.alignment import align
    from spectrascope.numerics.analysis import analyse  # scipy: only when something is fitted
    from spectrascope.numerics.rank_models import count_rank_wins
    from spectrascope.numerics.signal import read_signal
    from spectrascope.numerics.summary import summarise

    layers: list[LayerRow] = []
    for row in report.layers:
        if isinstance(row, LayerReport):
            analysis = analyse(row.measurement, top_k=top_k, min_rank=min_rank)
            old = row.decomposition
            if isinstance(old, Decomposition):
                new = replace(old, alignment=align(row.measurement, old.factors, analysis.window))
                row = replace(row, decomposition=new)  # noqa: PLW2901
            held_out, null, analysis = read_signal(row.measurement, row.held_out, row.null, analysis)
            resamples = count_rank_wins(row.rank_resamples, analysis.window)
            row = replace(  # noqa: PLW2901
                row, analysis=analysis, held_out=held_out, null=null, rank_resamples=resamples
            )
        layers.append(row)
    note = (
        f"fitted again over ranks {min_rank} to {top_k}; before that, over ranks {options.min_rank} to {options.top_k}"
    )
    return replace(
        report,
        options=replace(options, top_k=top_k, min_rank=min_rank),
        provenance=replace(report.provenance, notes=(*report.provenance.notes, note)),
        layers=tuple(layers),
        summary=replace(summarise(layers), across=report.summary.across),  # of all directions, whatever the window
    )
