"""What the measuring commands do alike: load a network and its data, then measure."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from spectrascope.cli.garbage import set_aside
from spectrascope.cli.groups import Request
from spectrascope.cli.load import load_subject
from spectrascope.cli.progress import follow_progress
from spectrascope.errors import OptionError
from spectrascope.records.bench import BenchReport
from spectrascope.records.decomposition import DecomposeOptions
from spectrascope.records.report import ProbeOptions, Report

if TYPE_CHECKING:
    from spectrascope.records.advice import Advice, ValidateOn

Result = TypeVar("Result")

__all__ = ["measure", "measure_bench", "measure_validated", "spell_command"]


def spell_command(arguments: Sequence[str]) -> str:
    """Return the command as it can be pasted into a shell again."""
    return shlex.join(["spectrascope", *arguments])


def measure(
    target: Request,
    options: ProbeOptions,
    *,
    command: str,
    quiet: bool,
    decompose: DecomposeOptions | None = None,
) -> Report:
    """Load and measure; with ``decompose``, the spectral alignment decomposition too.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """

    def runner() -> Callable[..., Report]:
        if decompose is None:
            from spectrascope.measure.run import run_probe

            return run_probe
        from spectrascope.measure.decompose import run_decompose

        return functools.partial(run_decompose, decompose=decompose)

    with _loaded(runner, target, options, command=command, quiet=quiet) as ready:
        return ready.run(seconds=ready.seconds, notes=ready.notes)


def measure_bench(target: Request, options: ProbeOptions, *, rounds: int, command: str, quiet: bool) -> BenchReport:
    """Load and time against double backprop.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """

    def runner() -> Callable[..., BenchReport]:
        from spectrascope.measure.bench import run_bench

        return run_bench

    with _loaded(runner, target, options, command=command, quiet=quiet) as ready:
        return ready.run(rounds=rounds)


def measure_validated(
    target: Request, options: ProbeOptions, *, train_batch: int | None, on: ValidateOn, command: str, quiet: bool
) -> Advice:
    """Load, measure on half of the samples, advise, and take the steps for real.

    Raises:
        SpectrascopeError: something cannot be loaded or measured.
    """

    def runner() -> Callable[..., Advice]:
        from spectrascope.measure.validate import advise_and_validate

        return advise_and_validate

    with _loaded(runner, target, options, command=command, quiet=quiet) as ready:
        return ready.run(train_batch=train_batch, on=on, notes=ready.notes)


@dataclass(frozen=True)
class _Ready(Generic[Result]):
    """A measurement that has its network and samples, and what is only known once they are loaded."""

    run: Callable[..., Result]
    seconds: dict[str, float]
    notes: tuple[str, ...]


@contextmanager
def _loaded(
    runner: Callable[[], Callable[..., Result]],
    target: Request,
    options: ProbeOptions,
    *,
    command: str,
    quiet: bool,
) -> Iterator[_Ready[Result]]:
    """Import what measures, by ``runner``, then load the network and its data, with progress all along."""
    _require_window(options)
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        started = time.perf_counter()
        run = runner()
        imported = time.perf_counter()
        on_progress("import", 1, 1)
        subject = load_subject(target, options, on_progress)
        seconds = {"import": imported - started, "load": time.perf_counter() - imported}
        given = functools.partial(
            run,
            subject.loaded.model,
            subject.source,
            subject.loss_fn,
            options=options,
            model_info=subject.loaded.info,
            data_info=subject.data_info,
            command=command,
            on_progress=on_progress,
        )
        with set_aside():
            yield _Ready(given, seconds, subject.notes)


def _require_window(options: ProbeOptions) -> None:
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
