"""``spectrascope triangle``: the α triangle of a network or of a saved report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import groups
from spectrascope.cli import options as o
from spectrascope.cli.compose import composed
from spectrascope.cli.measure import measure, spell_command
from spectrascope.cli.output import emit
from spectrascope.cli.saved import is_saved_report, refit_saved
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.order import ORDER
from spectrascope.reports.render import View, render

__all__ = ["triangle"]

_OF_A_SAVED_REPORT = {"model", "top_k", "min_rank", "format", "json", "sort", "output", "quiet"}

_ModelOrReport = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="As for probe, or a report saved as .json: then nothing is measured.",
    ),
]


@composed(target=groups.network_and_data, options=groups.measurement, window=groups.window, result=groups.result)
def triangle(
    context: typer.Context,
    model: _ModelOrReport,
    target: groups.Request,
    options: ProbeOptions,
    window: groups.Window,
    result: groups.Result,
    sort: o.SortOption = ORDER,
) -> None:
    """Check α_H ≈ β·α_G: the three exponents of each weight, their relative error and a verdict.

    JSON is the whole report, as from probe.
    """
    if is_saved_report(model):
        report = refit_saved(context, Path(model), options.top_k, window.min_rank, _OF_A_SAVED_REPORT)
    else:
        command = spell_command(context.obj or ())
        report = measure(target, window.of(options), command=command, quiet=result.quiet)
    emit(lambda width: render(report, result.format, view=View.TRIANGLE, sort=sort, width=width), result.output)
