"""Progress on stderr: bars with the time left on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spectrascope.reports.figures import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from spectrascope.workload import OnProgress

SECONDS_BETWEEN_LINES = 30.0
"""Where there is no terminal, a long stage says this often how far it is."""


@contextmanager
def follow_progress(*, quiet: bool) -> Iterator[OnProgress]:
    """Yield what to call as stages advance."""
    if quiet:
        yield _say_nothing
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto")
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left", style="dim"),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield _Bars(progress)
    else:
        yield _Lines()


def _say_nothing(stage: str, done: float, total: int) -> None:
    pass


class _Bars:
    """A bar per stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: float, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)


class _Lines:
    """A line when a stage begins, and one now and then while it lasts, with the time left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: dict[str, float] = {}
        self._said = 0.0

    def __call__(self, stage: str, done: float, total: int) -> None:
        now = self._clock()
        if stage not in self._began:
            self._began[stage] = self._said = now
            print(f"spectrascope: {stage}", file=sys.stderr, flush=True)
        elif 0 < done < total and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._began[stage]) * (total - done) / done
            print(
                f"spectrascope: {stage}, {int(done)} of {total}, about {format_seconds(left)} left",
                file=sys.stderr,
                flush=True,
            )
