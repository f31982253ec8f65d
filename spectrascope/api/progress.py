"""Progress on stderr: bars with the time left on a terminal, plain lines elsewhere, nothing when quiet.

Python callers see it in a terminal or a notebook without asking; elsewhere stages go to ``logging``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from spectrascope.reports.figures import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from spectrascope.workload import OnProgress

Watch: TypeAlias = "OnProgress | bool | None"
"""What a Python caller says of progress: a function to call, ``False`` for none, ``True`` for bars or lines wherever
this is, ``None`` for bars in a terminal, a line in a notebook and records of ``logging`` elsewhere."""

_LOG = logging.getLogger("spectrascope")

SECONDS_BETWEEN_LINES = 30.0
"""Where there is no terminal, a long stage says this often how far it is."""

SECONDS_BETWEEN_REWRITES = 0.2
"""A line that is written over changes no more often than this: each time is a message from kernel to page."""


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


@contextmanager
def watched(asked: Watch) -> Iterator[OnProgress]:
    """Yield what to call as stages advance, by what a Python caller says of progress."""
    if callable(asked):
        yield asked
    elif asked is None and _in_notebook():
        line = _RewrittenLine()
        try:
            yield line
        finally:
            line.clear()
    elif asked is None and not sys.stderr.isatty():
        yield _LoggedStages()
    else:
        with follow_progress(quiet=asked is False) as on_progress:
            yield on_progress


def _in_notebook() -> bool:
    """Whether this runs in a kernel whose output a page shows, Jupyter's and its kin's."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and getattr(shell, "kernel", None) is not None


class _LoggedStages:
    """A record of ``logging`` when a stage begins."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, stage: str, done: float, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            _LOG.info("%s", stage)


class _RewrittenLine:
    """One line that says the stage and how far it is, written over and over, and cleared at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said = ("", -1.0)
        self._width = 0

    def __call__(self, stage: str, done: float, total: int) -> None:
        now = self._clock()
        if stage == self._said[0] and now - self._said[1] < SECONDS_BETWEEN_REWRITES:
            return
        self._said = (stage, now)
        self._write(f"{stage} {int(100 * done / total)} %" if total > 1 else stage)

    def _write(self, text: str) -> None:
        print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        """Leave nothing behind."""
        if self._width:
            self._write("")
            print("\r", end="", file=sys.stderr, flush=True)


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
