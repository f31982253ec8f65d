"""How the fixed batch is cut into micro-batches: within memory, fast on this machine, on group borders.

Every quantity measured is a sum over samples, so how they are cut changes nothing but rounding. That freedom is
used to try a few sizes on the first slices (their work counts, nothing is thrown away) and keep the fastest, and
to halve the size and repeat a slice that did not fit in memory.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch

from spectrascope.errors import SpectrascopeError
from spectrascope.records.values import Missing

__all__ = [
    "Groups",
    "MicroBatch",
    "OutOfMemoryError",
    "Schedule",
    "Tuning",
    "available_bytes",
    "candidate_sizes",
    "group_borders",
    "group_numbers",
    "is_out_of_memory",
    "release_memory",
    "wait_for",
]


class OutOfMemoryError(SpectrascopeError):
    """Not even one sample at a time fits in memory."""


Groups: TypeAlias = "int | Sequence[int]"
"""Sample groups: how many of nearly equal size, or the size of each."""


def group_borders(n: int, groups: Groups) -> list[int]:
    """Borders of sample groups, runs of samples: ``[0, …, n]``.

    >>> group_borders(10, 4), group_borders(10, (3, 7))
    ([0, 2, 5, 8, 10], [0, 3, 10])
    """
    if not isinstance(groups, int):
        return [0, *itertools.accumulate(groups)]
    groups = max(1, min(groups, n))
    return [round(g * n / groups) for g in range(groups + 1)]


def available_bytes(device: torch.device) -> int | Missing:
    """Bytes that a program may still take: free on a GPU; on a CPU free, or given back by caches when asked for."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return Missing(f"{device.type} does not tell its free memory")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kib = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(kib)
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return Missing("this system does not tell its free memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a failed allocation, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text.lower())


def release_memory() -> None:
    """Give back what a device's allocator holds, after an allocation failed."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def candidate_sizes(device: torch.device, largest: int | None = None) -> tuple[int, ...]:
    """Sizes worth trying for passes over whole samples, doubling: a CPU is at its best with fewer than a device.

    Args:
        device: where the passes run.
        largest: where more would not pay, as each sample's graph is kept for long.

    >>> candidate_sizes(torch.device("cpu")), candidate_sizes(torch.device("cuda"), 256)
    ((16, 32, 64, 128), (32, 64, 128, 256))
    """
    first, last = (16, 128) if device.type == "cpu" else (32, 1024)
    return tuple(first << i for i in range((min(last, largest or last) // first).bit_length()))


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was asked for, so that a clock read now means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_CPU = torch.device("cpu")


def group_numbers(borders: Sequence[int], start: int, stop: int) -> torch.Tensor:
    """Number of the group of each of the samples ``start … stop−1``.

    >>> group_numbers([0, 2, 5], 1, 4).tolist()
    [0, 1, 1]
    """
    return torch.bucketize(torch.arange(start, stop), torch.tensor(borders[1:-1]), right=True)


@dataclass
class _Trial:
    """Sizes still to be tried, seconds per sample of those that were, and the best so far."""

    left: list[int]
    chosen: int
    times: dict[int, float] = field(default_factory=dict)
    warm: bool = False


@dataclass
class Tuning:
    """What is learnt about sizes in one schedule after the other: each goes on where the last one of its kind stopped.

    Args:
        timed: whether sizes are tried by the clock. Otherwise one from the middle of the candidates is taken, so that
            the same samples are always cut alike.
    """

    timed: bool = True
    trials: dict[tuple[int, ...], _Trial] = field(default_factory=dict, repr=False)

    def trial(self, candidates: tuple[int, ...], n: int) -> _Trial:
        """How far the trial of these candidates is, over schedules of about ``n`` samples."""
        if candidates not in self.trials:
            left = [c for c in candidates if c <= n] if self.timed else []
            self.trials[candidates] = _Trial(left, candidates[0 if self.timed else (len(candidates) - 1) // 2])
        return self.trials[candidates]


MicroBatch: TypeAlias = "int | Tuning | None"
"""Samples per micro-batch: a number, as tuned over several schedules, or (``None``) tuned in each by itself."""


@dataclass
class Schedule:
    """Cuts ``n`` samples into slices.

    Args:
        n: number of samples.
        size: micro-batch size, or ``None`` or a :class:`Tuning` to choose it by timing.
        borders: sample numbers that no slice may straddle.
        candidates: sizes tried, in order, when ``size`` is no number, instead of :func:`candidate_sizes`; trying stops
            when one is clearly slower.
        device: where the work is done; waited for before the clock is read.
        start: the first sample, where the work on those before it was kept.
    """

    n: int
    size: MicroBatch = None
    borders: Sequence[int] = ()
    candidates: Sequence[int] = ()
    device: torch.device = _CPU
    start: int = 0
    chosen: int = field(default=0, init=False)

    def run(self, work: Callable[[int, int], None], progress: Callable[[float, int], None] | None = None) -> None:
        """Call ``work(start, stop)`` over all samples in order.

        ``work`` must add its result only once it is complete: a slice that runs out of memory is repeated in
        halves.

        Raises:
            OutOfMemoryError: one sample alone does not fit.
        """
        limit = self.n
        trial = self._trial()
        self.chosen = trial.chosen
        start = self.start
        while start < self.n:
            trying = trial.left[0] if trial.left else 0
            stop = self._stop(start, min(trying or self.chosen, limit))
            began = time.perf_counter()
            try:
                work(start, stop)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                limit = (stop - start) // 2
                if limit < 1:
                    raise OutOfMemoryError(
                        "out of memory with one sample at a time: use a smaller input, fewer directions "
                        "(--top-k), fewer layers (--layers) or a device with more memory"
                    ) from error
                trial.left = []
                release_memory()
                trial.chosen = self.chosen = min(self.chosen, limit)
                continue
            if trial.left:
                wait_for(self.device)
                if not trial.warm:
                    trial.warm = True  # the first slice pays for one-off set-up: it counts as work, not as a timing
                else:
                    seconds = (time.perf_counter() - began) / (stop - start)
                    if stop - start == trying:
                        trial.times[trying] = seconds
                        trial.left.pop(0)
                        best = min(trial.times, key=lambda size: trial.times[size])
                        if seconds > 1.15 * trial.times[best]:
                            trial.left = []
                        trial.chosen = self.chosen = best
            start = stop
            if progress is not None:
                progress(start, self.n)

    def _trial(self) -> _Trial:
        if isinstance(self.size, int):
            return _Trial([], self.size)
        candidates = tuple(self.candidates) or candidate_sizes(self.device)
        if isinstance(self.size, Tuning):
            return self.size.trial(candidates, self.n)
        # Of a schedule by itself the trial is not to be the whole of it.
        return _Trial([c for c in candidates if c <= self.n // 4], candidates[0])

    def _stop(self, start: int, size: int) -> int:
        stop = min(start + max(size, 1), self.n)
        for border in self.borders:
            if start < border < stop:
                return border
        return stop
