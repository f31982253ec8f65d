"""``spectrascope triangle``: the α triangle of a network or of a saved report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import measure
from spectrascope.cli.output import emit
from spectrascope.cli.rerun import Kept
from spectrascope.cli.saved import refit_saved
from spectrascope.reports.order import ORDER
from spectrascope.reports.read import is_saved_report
from spectrascope.reports.render import View

_OF_A_SAVED_REPORT = {"model", "top_k", "min_rank", "format", "json", "sort", "output", "html", "quiet"}


def triangle(
    context: typer.Context,
    model: Annotated[str, o.MODEL_OR_REPORT],
    target: o.Request,
    options: o.FitOptions,
    kept: Kept,
    result: o.Result,
    sort: o.SortOption = ORDER,
) -> None:
    """Check α_H ≈ β·α_G: the three exponents of each weight, their relative error and a verdict.

    JSON is the whole report, as from probe.
    """
    if is_saved_report(model):
        report = refit_saved(context, Path(model), options.top_k, options.min_rank, _OF_A_SAVED_REPORT)
    else:
        report = measure(target, options.asked, context, quiet=result.quiet, kept=kept)
    emit(report, result, view=View.TRIANGLE, sort=sort)
