"""``spectrascope decompose``: why beta is what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import measure
from spectrascope.cli.output import emit
from spectrascope.cli.rerun import Kept
from spectrascope.records.decomposition import DecomposeOptions, FisherType, Sharing
from spectrascope.reports.order import ORDER
from spectrascope.reports.render import View


@dataclass(frozen=True, slots=True)
class FactorOptions:
    """Which Kronecker factors: fields of :class:`DecomposeOptions`."""

    fisher: Annotated[
        FisherType,
        o.measurement_option(
            help="What C_δ is made of: the loss's own curvature, labels drawn from the model, or the true labels."
        ),
    ] = FisherType.GGN
    sharing: Annotated[
        Sharing, o.measurement_option(help="Of a weight used at many positions: each by itself, or summed first.")
    ] = Sharing.EXPAND
    draws: Annotated[
        int,
        o.measurement_option(
            min=1,
            metavar="N",
            help="Random columns per sample where exact ones cannot be had (language models, many classes, mc).",
        ),
    ] = 8


def decompose(
    context: typer.Context,
    target: o.Request,
    factors: FactorOptions,
    options: o.FitOptions,
    kept: Kept,
    result: o.Result,
    sort: o.SortOption = ORDER,
) -> None:
    """Say why β is what it is: β = β_Λ + β_Φ + β_χ, weight by weight.

    β_Λ comes from the eigenvalues of the Kronecker factors of the curvature, β_Φ from how the gradient's singular
    directions lie in their eigenbases, β_χ from what the product of factors leaves out (χ = h / h_Kron).

    Factors are sums per sample, not divided by the batch size, so χ is of order 1. Published ratios of 10³ to 10⁷ come
    from cotangents of the mean loss, which are smaller by the number of samples.

    JSON is the whole report, as from probe, with a block per layer.
    """
    wanted = o.record_of(DecomposeOptions, factors)
    report = measure(target, options.asked, context, quiet=result.quiet, decompose=wanted, kept=kept)
    emit(report, result, view=View.DECOMPOSITION, sort=sort)
