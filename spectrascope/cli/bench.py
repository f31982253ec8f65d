"""``spectrascope bench``: speed against plain double backprop."""

from __future__ import annotations

from typing import Annotated

import typer

from spectrascope.cli import groups
from spectrascope.cli import options as o
from spectrascope.cli.compose import composed
from spectrascope.cli.measure import measure_bench, spell_command
from spectrascope.cli.output import emit
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.render import render

__all__ = ["bench"]


@composed(target=groups.network_and_data, options=groups.measurement, result=groups.result)
def bench(
    context: typer.Context,
    target: groups.Request,
    options: ProbeOptions,
    result: groups.Result,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=o.MEASUREMENT, help="Interleaved rounds of timing.")
    ] = 3,
) -> None:
    """Time this engine against plain double backprop on the same layers and directions, in one run."""
    found = measure_bench(target, options, rounds=rounds, command=spell_command(context.obj or ()), quiet=result.quiet)
    emit(lambda width: render(found, result.format, width=width), result.output)
