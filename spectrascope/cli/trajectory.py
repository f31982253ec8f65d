"""``spectrascope trajectory``: checkpoints of one training run in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from spectrascope.advice.trajectory import build_trajectory
from spectrascope.cli import groups
from spectrascope.cli import options as o
from spectrascope.cli import report_options as r
from spectrascope.cli.checkpoints import Keeping, expand_checkpoints, measure_checkpoints
from spectrascope.cli.compose import composed
from spectrascope.cli.measure import spell_command
from spectrascope.cli.output import emit, write_page
from spectrascope.errors import SpectrascopeError
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.fields import TrackedNumber
from spectrascope.reports.render import render

__all__ = ["trajectory"]

_TRAJECTORY = "Checkpoints"
_BETA = TrackedNumber("beta")
_Checkpoints = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CHECKPOINT",
        show_default=False,
        help="Checkpoints, each as MODEL of probe, or reports saved as .json; ordered by the step in their names.",
    ),
]


@composed(target=groups.network_and_data, options=groups.measurement, window=groups.window, result=groups.result)
def trajectory(
    context: typer.Context,
    *,
    model: _Checkpoints = None,
    target: groups.Request,
    options: ProbeOptions,
    window: groups.Window,
    result: groups.Result,
    glob: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            show_default=False,
            rich_help_panel=_TRAJECTORY,
            help="Checkpoints by pattern, as 'run/*.pt'; may be repeated.",
        ),
    ] = None,
    reports: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_TRAJECTORY,
            help="Where one report per checkpoint is kept; what is there already is not measured again.",
        ),
    ] = Path("trajectory"),
    again: Annotated[
        bool, typer.Option("--again", rich_help_panel=_TRAJECTORY, help="Measure also what is kept already.")
    ] = False,
    number: Annotated[
        TrackedNumber, typer.Option(rich_help_panel=o.RESULT, help="What the table of layers follows.")
    ] = _BETA,
    html: r.Html = None,
) -> None:
    """Follow β, α_G, α_H, participation ratios and rank models over training, in the median and layer by layer.

    A run that was broken off goes on where it stopped. Reports are enough: then nothing is measured and torch is not
    needed.
    """
    r.check_page(html)
    names = expand_checkpoints(_given(model), glob or [])
    checkpoints = list(
        measure_checkpoints(
            names,
            target,
            window.of(options),
            Keeping(reports, again),
            command=spell_command(context.obj or ()),
            quiet=result.quiet,
        )
    )
    found = build_trajectory(checkpoints)
    if html is not None:
        write_page(html, found)
    emit(lambda width: render(found, result.format, number=number.value, width=width), result.output)
    failed = [point.label for point in found.points if point.reason]
    if failed:
        raise SpectrascopeError(
            f"{len(failed)} of {len(names)} checkpoints could not be measured: {', '.join(failed[:3])}"
        )


def _given(model: Any) -> list[str]:
    return list(model or [])
