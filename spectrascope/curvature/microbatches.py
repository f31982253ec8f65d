"""How the fixed batch is cut into micro-batches: within memory, fast on this machine, on group borders.

Every quantity measured is a sum over samples, so how they are cut changes nothing but rounding. That freedom is
used to try a few sizes on the first slices (their work counts, nothing is thrown away) and keep the fastest, and
to halve the size and repeat a slice that did not fit in memory.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from spectrascope.errors import SpectrascopeError

__all__ = [
    "Groups",
    "OutOfMemoryError",
    "Schedule",
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
class Schedule:
    """Cuts ``n`` samples into slices.

    Args:
        n: number of samples.
        size: micro-batch size, or ``None`` to choose it by timing.
        borders: sample numbers that no slice may straddle.
        candidates: sizes tried, in order, when ``size`` is ``None``, instead of :func:`candidate_sizes`; trying stops
            when one is clearly slower.
        device: where the work is done; waited for before the clock is read.
    """

    n: int
    size: int | None = None
    borders: Sequence[int] = ()
    candidates: Sequence[int] = ()
    device: torch.device = _CPU
    chosen: int = field(default=0, init=False)

    def run(self, work: Callable[[int, int], None], progress: Callable[[float, int], None] | None = None) -> None:
        """Call ``work(start, stop)`` over all samples in order.

        ``work`` must add its result only once it is complete: a slice that runs out of memory is repeated in
        halves.

        Raises:
            OutOfMemoryError: one sample alone does not fit.
        """
        limit = self.n
        candidates = self.candidates or candidate_sizes(self.device)
        trial = [] if self.size is not None else [c for c in candidates if c <= self.n // 4]
        times: dict[int, float] = {}
        self.chosen = self.size or (trial or candidates)[0]
        start = 0
        warm = not trial
        while start < self.n:
            trying = trial[0] if trial else 0
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
                trial = []
                release_memory()
                self.chosen = min(self.chosen, limit)
                continue
            if trial:
                wait_for(self.device)
                if not warm:
                    warm = True  # the first slice pays for one-off set-up: it counts as work, not as a timing
                else:
                    seconds = (time.perf_counter() - began) / (stop - start)
                    if stop - start == trying:
                        times[trying] = seconds
                        trial.pop(0)
                        best = min(times, key=lambda size: times[size])
                        if seconds > 1.15 * times[best]:
                            trial = []
                        self.chosen = best
            start = stop
            if progress is not None:
                progress(start, self.n)

    def _stop(self, start: int, size: int) -> int:
        stop = min(start + max(size, 1), self.n)
        for border in self.borders:
            if start < border < stop:
                return border
        return stop
