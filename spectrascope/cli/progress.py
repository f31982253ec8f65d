"""Progress on stderr: bars on a terminal, one plain line per stage elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["OnProgress", "follow_progress"]


class OnProgress(Protocol):
    """Called as a stage advances: its name, what is done and what there is to do (0: not known)."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Note progress."""


@contextmanager
def follow_progress(*, quiet: bool) -> Iterator[OnProgress]:
    """Yield what to call as stages advance."""
    if quiet:
        yield _say_nothing
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True, color_system=None if os.environ.get("NO_COLOR") else "auto")
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield _Bars(progress)
    else:
        yield _Lines()


def _say_nothing(stage: str, done: int, total: int) -> None:
    pass


class _Bars:
    """A bar per stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)


class _Lines:
    """A line when a stage begins."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._seen:
            self._seen.add(stage)
            print(f"spectrascope: {stage}", file=sys.stderr, flush=True)
