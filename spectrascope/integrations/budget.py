"""Keep the time that probes take within a share of the training time."""

from __future__ import annotations

import time
from collections.abc import Callable

from spectrascope.errors import OptionError

__all__ = ["Deadline", "OutOfTimeError", "TimeBudget"]

LONG_STAGE = "curvature"
"""The stage of a probe that takes most of its time."""


class OutOfTimeError(Exception):
    """Raised where a probe has reached its deadline, or is sure to pass it, and is given up.

    ``expected`` is how many seconds the whole of it would take, as far as it can be told.
    """

    def __init__(self, expected: float) -> None:
        super().__init__(f"the probe would take some {expected:.2g} s")
        self.expected = expected


class Deadline:
    """Follows the stages of a probe and gives it up in time.

    The curvature stage is the long one: as soon as its pace says that the probe would take a quarter longer than there
    is time, there is no use in going on.

    Args:
        seconds: there are.
        clock: seconds that only increase.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._began = clock()
        self._stage_began = 0.0
        self._stage = ""

    def __call__(self, stage: str, done: float, total: int) -> None:
        """Note progress.

        Raises:
            OutOfTimeError: the deadline has passed, or will have.
        """
        passed = self._clock() - self._began
        if stage != self._stage:
            self._stage, self._stage_began = stage, passed
        expected = 2 * passed  # nothing better is known
        if stage == LONG_STAGE and 0 < done < total:
            expected = self._stage_began + (passed - self._stage_began) * total / done
            # The first micro-batches are slower than the others.
            if done >= total / 8 and expected > 1.25 * self._seconds:
                raise OutOfTimeError(expected)
        if passed > self._seconds:
            raise OutOfTimeError(max(expected, 1.2 * passed))


class TimeBudget:
    """Keeps the time spent on probes within a share of the time spent on training.

    A probe may begin when what is left of the budget covers what the last one took, and is given up when it has used
    the budget up. How long the first one takes nobody knows: it begins with what there is, and where that was not
    enough the next one waits for as much as the pace of that one asks for. A machine may have been busy just then, so
    that expectation shrinks with each probe that waits. Probes never take more than the share, but for the moment
    between two signs of progress (a micro-batch).

    Args:
        share: time for probes per time for training: 0.05 makes training at most 5 % longer.
        clock: seconds that only increase.

    Raises:
        OptionError: a share that is not positive.

    >>> now = 0.0
    >>> budget = TimeBudget(0.1, clock=lambda: now)
    >>> budget.start(); now = 100.0
    >>> budget.left, budget.may_begin()
    (10.0, True)
    >>> budget.spend(10.0); now = 120.0
    >>> budget.left, budget.may_begin(), round(budget.overhead, 3)
    (1.0, False, 0.091)
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        if not share > 0:
            raise OptionError(f"a time budget must be a positive share of the training time, such as 0.05, got {share}")
        self.share = share
        self.spent = 0.0
        self.expected = 0.0
        self._clock = clock
        self._began: float | None = None

    def start(self) -> None:
        """Note that training begins now, if it has not yet."""
        if self._began is None:
            self._began = self._clock()

    @property
    def training(self) -> float:
        """Seconds since training began, without those of probes."""
        return 0.0 if self._began is None else max(self._clock() - self._began - self.spent, 0.0)

    @property
    def left(self) -> float:
        """Seconds a probe that begins now may take."""
        return self.share * self.training - self.spent

    @property
    def overhead(self) -> float:
        """Time spent on probes per time spent on training."""
        return self.spent / self.training if self.training > 0 else 0.0

    def may_begin(self) -> bool:
        """Whether what is left covers a probe, as far as is known."""
        return self.left > 0 and self.left >= self.expected

    def wait(self) -> None:
        """Note that a probe was due and not covered."""
        self.expected *= 0.97

    def spend(self, seconds: float, expected: float | None = None) -> None:
        """Note a probe that took ``seconds``, and would have taken ``expected`` had it not been given up."""
        self.spent += seconds
        self.expected = seconds if expected is None else max(expected, seconds)
