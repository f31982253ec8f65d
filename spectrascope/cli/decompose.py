"""``spectrascope decompose``: why beta is what it is."""

from __future__ import annotations

from typing import Annotated

import typer

from spectrascope.cli import groups
from spectrascope.cli import options as o
from spectrascope.cli.compose import composed
from spectrascope.cli.measure import measure, spell_command
from spectrascope.cli.output import emit
from spectrascope.records.decomposition import DecomposeOptions, FisherType, Sharing
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.order import ORDER
from spectrascope.reports.render import View, render

__all__ = ["decompose"]


def _factors(
    fisher: Annotated[
        FisherType,
        typer.Option(
            help="What C_δ is made of: the loss's own curvature, labels drawn from the model, or the true labels.",
            rich_help_panel=o.MEASUREMENT,
        ),
    ] = FisherType.GGN,
    sharing: Annotated[
        Sharing,
        typer.Option(
            help="Of a weight used at many positions: each by itself, or summed first.", rich_help_panel=o.MEASUREMENT
        ),
    ] = Sharing.EXPAND,
    draws: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Random columns per sample where exact ones cannot be had (language models, many classes, mc).",
            rich_help_panel=o.MEASUREMENT,
        ),
    ] = 8,
) -> DecomposeOptions:
    """Which Kronecker factors."""
    return DecomposeOptions(fisher, sharing, draws)


@composed(
    target=groups.network_and_data,
    factors=_factors,
    options=groups.measurement,
    window=groups.window,
    result=groups.result,
)
def decompose(
    context: typer.Context,
    target: groups.Request,
    factors: DecomposeOptions,
    options: ProbeOptions,
    window: groups.Window,
    result: groups.Result,
    sort: o.SortOption = ORDER,
) -> None:
    """Say why β is what it is: β = β_Λ + β_Φ + β_χ, weight by weight.

    β_Λ comes from the eigenvalues of the Kronecker factors of the curvature, β_Φ from how the gradient's singular
    directions lie in their eigenbases, β_χ from what the product of factors leaves out (χ = h / h_Kron).

    Factors are sums per sample, not divided by the batch size, so χ is of order 1. Published ratios of 10³ to 10⁷ come
    from cotangents of the mean loss, which are smaller by the number of samples.

    JSON is the whole report, as from probe, with a block per layer.
    """
    command = spell_command(context.obj or ())
    report = measure(target, window.of(options), command=command, quiet=result.quiet, decompose=factors)
    emit(lambda width: render(report, result.format, view=View.DECOMPOSITION, sort=sort, width=width), result.output)
