"""``spectrascope compare``: what changed between two saved reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.output import emit
from spectrascope.reports.order import ChangeOrder
from spectrascope.reports.read import read_report
from spectrascope.reports.refit import refit


def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE.json", help="A saved report.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER.json", help="Another one.")],
    all: Annotated[bool, o.result_option("--all", help="List equal numbers too.")] = False,
    number: Annotated[
        list[str] | None,
        o.result_option(
            metavar="GLOB",
            help="Numbers to compare, as named in JSON ('beta*', 'rank_models.*'), not the usual ones; repeatable.",
        ),
    ] = None,
    precision: Annotated[
        int, o.result_option(min=1, max=15, metavar="N", help="Significant digits a change must show in.")
    ] = 4,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    top_k: Annotated[
        int | None, o.measurement_option(min=1, metavar="K", help="Fit both again up to this direction.")
    ] = None,
    min_rank: Annotated[
        int | None, o.measurement_option(min=1, metavar="K", help="Fit both again from this direction on.")
    ] = None,
    *,
    sort: Annotated[
        ChangeOrder, o.result_option(help="Order of the numbers: the network's, by number, or the largest first.")
    ] = ChangeOrder.ORDER,
    result: o.Result,
) -> None:
    """List what changed between two saved reports, number by number, beside its standard error.

    Nothing is measured or judged, and torch is not needed.
    """
    one, other = (refit(read_report(path), top_k=top_k, min_rank=min_rank) for path in (before, after))
    from spectrascope.gating.changes import compare as list_changes

    found = list_changes(
        one, other, layers=layers or (), exclude=exclude or (), numbers=number or (), precision=precision, unchanged=all
    )
    emit(found, result, sort=sort)
