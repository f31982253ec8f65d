"""``spectrascope inspect``: a dry run."""

from __future__ import annotations

import typer

from spectrascope.cli import groups
from spectrascope.cli.compose import composed
from spectrascope.cli.garbage import no_collections
from spectrascope.cli.look import look_at
from spectrascope.cli.measure import spell_command
from spectrascope.cli.output import emit
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.render import render

__all__ = ["inspect"]


@composed(target=groups.network_and_data, options=groups.measurement, result=groups.result)
def inspect(context: typer.Context, target: groups.Request, options: ProbeOptions, result: groups.Result) -> None:
    """Say what probe would measure, with which engine and at what cost, without measuring.

    Of a checkpoint only names and shapes are read, wherever they tell what the network is. One sample is taken to
    be what the network says it reads; where it says nothing, as --dataset has it.
    """
    with no_collections():
        found = look_at(target, options, command=spell_command(context.obj or ()), quiet=result.quiet)
        emit(lambda width: render(found, result.format, width=width), result.output)
