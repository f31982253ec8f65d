"""``spectrascope bench``: speed against plain double backprop."""

from __future__ import annotations

from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import loaded
from spectrascope.cli.output import emit
from spectrascope.cli.rerun import KeptWhole


def bench(
    context: typer.Context,
    target: o.Request,
    options: o.MeasurementOptions,
    kept: KeptWhole,
    result: o.Result,
    rounds: Annotated[int, o.measurement_option(min=1, metavar="N", help="Interleaved rounds of timing.")] = 3,
    peers: Annotated[
        bool,
        o.measurement_option("--peers", help="PyHessian, curvlinops and hessian-eigenthings too, where installed."),
    ] = False,
) -> None:
    """Time spectrascope against plain double backprop and other tools on the same layers and directions, in one run."""
    with loaded(target, options.asked, context, quiet=result.quiet) as run:
        from spectrascope.measure.bench import run_bench

        found = run_bench(run, rounds=rounds, peers=peers)
    kept.keep(context, found)
    emit(found, result)
