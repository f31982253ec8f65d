"""``spectrascope trajectory``: checkpoints of one training run in a row."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from spectrascope.advice.trajectory import build_trajectory
from spectrascope.cli import options as o
from spectrascope.cli.checkpoints import Keeping, expand_checkpoints, measure_checkpoints
from spectrascope.cli.output import emit
from spectrascope.cli.rerun import Kept
from spectrascope.errors import OptionError, SpectrascopeError
from spectrascope.reports.fields import TrackedNumber

_option = partial(typer.Option, rich_help_panel="Checkpoints")
_STEP = TrackedNumber("step_exponent")
_Checkpoints = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Checkpoints, each as MODEL of probe, or reports saved as .json; ordered by the step they say, or "
        "that in their names.",
    ),
]


def trajectory(
    context: typer.Context,
    *,
    model: _Checkpoints = None,
    target: o.Request,
    options: o.FitOptions,
    kept: Kept,
    result: o.Result,
    glob: Annotated[
        list[str] | None, _option(metavar="PATTERN", help="Checkpoints by pattern, as 'run/*.pt'; may be repeated.")
    ] = None,
    reports: Annotated[
        Path | None,
        _option(
            metavar="DIR",
            help="Where one report per checkpoint is kept (default: trajectory); what is there already is not measured "
            "again. With --run each is in a folder of its own there.",
        ),
    ] = None,
    again: Annotated[bool, _option("--again", help="Measure also what is kept already.")] = False,
    number: Annotated[TrackedNumber, o.result_option(help="What the table of layers follows.")] = _STEP,
) -> None:
    """Follow what is signal over training, in the median and layer by layer: resolved directions, step exponents, β.

    A run that was broken off goes on where it stopped. Reports are enough: then nothing is measured and torch is not
    needed.
    """
    names = expand_checkpoints(model or [], glob or [])
    if kept.run is not None and (again or reports is not None):
        raise OptionError("--run RUN is where reports are kept, once for all: leave out --reports and --again")
    keeping = Keeping(kept, reports or Path("trajectory"), again)
    checkpoints = list(measure_checkpoints(names, target, options.asked, keeping, context, quiet=result.quiet))
    found = build_trajectory(checkpoints)
    kept.keep(context, found)
    emit(found, result, number=number.value)
    failed = [point.label for point in found.points if point.reason]
    if failed:
        raise SpectrascopeError(
            f"{len(failed)} of {len(names)} checkpoints could not be measured: {', '.join(failed[:3])}"
        )
