"""Load a network and its data and measure, as all measuring commands do."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from spectrascope.api.progress import follow_progress
from spectrascope.cli.garbage import set_aside
from spectrascope.cli.job import join_job
from spectrascope.cli.load import find_momentum_file, load_model, make_run, refuse_absent
from spectrascope.cli.options import Request
from spectrascope.cli.output import prints_on_stderr
from spectrascope.cli.rerun import Kept, Parts, keep_command
from spectrascope.errors import OptionError
from spectrascope.records.decomposition import DecomposeOptions
from spectrascope.records.report import ProbeOptions, Report
from spectrascope.records.signal import GradientSource
from spectrascope.text import plural

if TYPE_CHECKING:
    from spectrascope.measure.division import Division
    from spectrascope.measure.ranks import Ranks
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
    kept: Kept | None = None,
    place: str = "",
) -> Report:
    """Load and measure, alone or with the other ranks of a job, which end here; a shard ends here too.

    Args:
        target: which network and samples.
        options: what to measure.
        context: of the command.
        quiet: whether to say nothing on the way.
        decompose: the spectral alignment decomposition too, by one process.
        kept: where the run is kept, and which part of it to do.
        place: the folder in that one, where the run consists of several measurements.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """
    refuse_impossible(target, options)  # before ranks join, which takes torch
    kept = kept or Kept()
    with join_job() as ranks, loaded(target, options, context, quiet=quiet) as run:
        division = divide(kept, context, ranks, place)
        if decompose is not None:
            report: Report | None = _decompose(run, decompose, division)
        else:
            report = _probe(run, division, quiet=quiet)
    if report is None or ranks.index:
        raise typer.Exit
    if not place:
        kept.keep(context, report)
    return report


def divide(kept: Kept, context: typer.Context, ranks: Ranks | None = None, place: str = "") -> Division:
    """Who measures what and where it is kept; the command is, before anything is measured."""
    from spectrascope.measure.division import Division
    from spectrascope.measure.ranks import ALONE
    from spectrascope.measure.run_folder import RunFolder

    ranks = ranks or ALONE
    if kept.run is None:
        return Division(ranks)
    shard, merge = (kept.shard, kept.merge) if isinstance(kept, Parts) else (None, False)
    if ranks.index == 0 and not merge:
        keep_command(kept.run, context)
    return Division(ranks, RunFolder(kept.run / place), shard, merge)


def _decompose(run: Run, decompose: DecomposeOptions, division: Division) -> Report:
    from spectrascope.measure.decompose import run_decompose

    if division.ranks.count > 1:
        raise OptionError("decompose is measured by one process: start it without torchrun")
    return run_decompose(run, decompose, division)


def _probe(run: Run, division: Division, *, quiet: bool) -> Report | None:
    """The report, or ``None`` from a shard."""
    from spectrascope.measure.run import run_probe

    if division.shard is None:
        return run_probe(run, division)
    from spectrascope.measure.run import run_share

    missing = run_share(run, division)
    if not quiet:
        number, of = division.shard
        left = (
            f"{plural(len(missing), 'part')} of the run still missing" if missing else "no part of the run is missing"
        )
        print(f"spectrascope: shard {number + 1} of {of} is done; {left}", file=sys.stderr)
    return None


def refuse_impossible(target: Request, options: ProbeOptions) -> None:
    """Refuse what can be seen to be impossible without torch.

    Raises:
        OptionError: options that contradict each other.
        LoadError: no such checkpoint, network or architecture.
        DataError: no such data.
    """
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
    if options.gradient is GradientSource.MOMENTUM:
        find_momentum_file(target)
    refuse_absent(target)


@contextmanager
def loaded(target: Request, options: ProbeOptions, context: typer.Context, *, quiet: bool) -> Iterator[Run]:
    """Import what measures, then load the network and its data, with progress all along.

    Raises:
        SpectrascopeError: something cannot be loaded.
    """
    refuse_impossible(target, options)
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        started = time.perf_counter()
        import spectrascope.measure.run  # noqa: F401
        from spectrascope.workload import StageClock

        imported = time.perf_counter()
        on_progress("import", 1, 1)
        on_progress("load", 0, 2)
        network = load_model(target, options.seed, dtype=options.dtype)
        on_progress("load", 1, 2)
        run = make_run(target, options, network)
        if options.gradient is GradientSource.MOMENTUM:
            from spectrascope.loading.checkpoints.momentum import read_momentum

            run = replace(run, momentum=read_momentum(find_momentum_file(target), run.model))
        on_progress("load", 2, 2)
        clock = StageClock({"import": imported - started, "load": time.perf_counter() - imported})
        with set_aside(), prints_on_stderr():
            yield replace(run, command=spell_command(context), clock=clock, on_progress=on_progress)
