"""Load a network and its data and measure, as all measuring commands do."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from spectrascope.api.progress import follow_progress
from spectrascope.cli.garbage import set_aside
from spectrascope.cli.load import load_model, load_momentum, make_run
from spectrascope.cli.options import Request
from spectrascope.errors import OptionError
from spectrascope.records.decomposition import DecomposeOptions
from spectrascope.records.report import ProbeOptions, Report
from spectrascope.records.signal import GradientSource

if TYPE_CHECKING:
    from spectrascope.workload import Run


def spell_command(context: typer.Context) -> str:
    """Return the command as it can be pasted into a shell again."""
    arguments: Sequence[str] = context.obj or ()
    return shlex.join(["spectrascope", *arguments])


def measure(
    target: Request,
    options: ProbeOptions,
    context: typer.Context,
    *,
    quiet: bool,
    decompose: DecomposeOptions | None = None,
) -> Report:
    """Load and measure; with ``decompose``, the spectral alignment decomposition too.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """
    with loaded(target, options, context, quiet=quiet) as run:
        if decompose is None:
            from spectrascope.measure.run import run_probe

            return run_probe(run)
        from spectrascope.measure.decompose import run_decompose

        return run_decompose(run, decompose)


@contextmanager
def loaded(target: Request, options: ProbeOptions, context: typer.Context, *, quiet: bool) -> Iterator[Run]:
    """Import what measures, then load the network and its data, with progress all along.

    Raises:
        SpectrascopeError: something cannot be loaded.
    """
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        started = time.perf_counter()
        import spectrascope.measure.run  # noqa: F401
        from spectrascope.workload import StageClock

        imported = time.perf_counter()
        on_progress("import", 1, 1)
        on_progress("load", 0, 2)
        network = load_model(target, options.seed)
        on_progress("load", 1, 2)
        run = make_run(target, options, network)
        if options.gradient is GradientSource.MOMENTUM:
            run = replace(run, momentum=load_momentum(target, run))
        on_progress("load", 2, 2)
        clock = StageClock({"import": imported - started, "load": time.perf_counter() - imported})
        with set_aside():
            yield replace(run, command=spell_command(context), clock=clock, on_progress=on_progress)
