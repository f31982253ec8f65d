"""The processes that measure one network together: one alone, or the ranks of a torch.distributed job. Silent.

Whatever is measured is kept by sample group and added in the order of groups, so which rank did what leaves no trace in
the numbers. torch.distributed moves them; nothing is built beneath it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from spectrascope.errors import SpectrascopeError

__all__ = ["ALONE", "Ranks", "join_ranks"]

Found = TypeVar("Found")

_PATIENCE = timedelta(days=30)
"""How long a rank waits for the others: whoever started them notices sooner when one is gone."""


class Ranks:
    """One process, which does everything. Ranks of a job agree on what each of these methods gives back."""

    index = 0
    count = 1
    agreed: Exception | None = None
    """What went wrong, once all ranks know it."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do something with all ranks: what goes wrong inside, on whichever rank, is raised on all of them."""
        yield

    def each(self, work: Callable[[], Found]) -> list[Found]:
        """Do something on every rank; everyone gets everyone's result, in the order of ranks.

        Raises:
            SpectrascopeError: what went wrong on the first rank where something did; on all of them.
        """
        return [work()]

    def first(self, work: Callable[[], Found]) -> Found:
        """Do something on the first rank only, and tell the others the result."""
        return self.each(lambda: work() if self.index == 0 else None)[0]  # type: ignore[return-value]

    def share(self, n: int) -> range:
        """Which of ``n`` things in a row fall to this rank: nearly as many as to any other, and none if there are few.

        >>> ALONE.share(3)
        range(0, 3)
        """
        return range(self.index * n // self.count, (self.index + 1) * n // self.count)

    def deal(self, sizes: Sequence[int]) -> list[int]:
        """The rank to which each of several things falls: the largest first, to whoever has least.

        >>> ALONE.deal([5, 1])
        [0, 0]
        """
        owners, loads = [0] * len(sizes), [0] * self.count
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            owners[i] = loads.index(min(loads))
            loads[owners[i]] += sizes[i]
        return owners

    def gather(self, mine: Tensor, n: int, owner: int) -> Tensor | None:
        """Put all ranks' shares (:meth:`share` of n, …) one after the other, on one of them; ``None`` elsewhere."""
        return mine


ALONE = Ranks()


class _RanksOfJob(Ranks):
    """The ranks of the default process group of torch.distributed."""

    def __init__(self, index: int, count: int) -> None:
        self.index = index
        self.count = count
        self._moving = False  # tensors, which the others expect from this rank before any news

    @contextmanager
    def together(self) -> Iterator[None]:
        wrong: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.agreed is not None or self._moving:
                raise
            wrong = error

        def tell() -> None:
            if wrong is not None:
                raise wrong

        self.each(tell)

    def each(self, work: Callable[[], Found]) -> list[Found]:
        self._moving = False
        outcome: tuple[Found | None, Exception | None]
        try:
            outcome = (work(), None)
        except Exception as wrong:  # the others wait for news of this rank, good or bad
            outcome = (None, wrong)
        outcomes: list[Any] = [None] * self.count
        with _in_touch(self):
            torch.distributed.all_gather_object(outcomes, _sendable(outcome))
        for rank, (_, error) in enumerate(outcomes):
            if error is not None:
                self.agreed = (outcome[1] if rank == self.index else None) or error
                raise self.agreed
        return [found for found, _ in outcomes]

    def gather(self, mine: Tensor, n: int, owner: int) -> Tensor | None:
        self._moving = True
        most = -(-n // self.count)
        padded = torch.zeros((most, *mine.shape[1:]), dtype=mine.dtype, device=mine.device)
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(self.count)] if self.index == owner else None
        with _in_touch(self):
            torch.distributed.gather(padded, parts, dst=owner)
        if parts is None:
            return None
        shares = [_RanksOfJob(rank, self.count).share(n) for rank in range(self.count)]
        return torch.cat([part[: len(share)] for part, share in zip(parts, shares, strict=True)])


def _sendable(outcome: tuple[Found | None, Exception | None]) -> tuple[Found | None, Exception | None]:
    """An error as it can be sent: those of this package as they are, others by name and first line."""
    error = outcome[1]
    if error is None or (isinstance(error, SpectrascopeError) and len(error.args) == 1):
        return outcome
    return None, RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def _in_touch(ranks: Ranks) -> Iterator[None]:
    """Say in one line that another rank is gone: what went wrong there, it says itself."""
    try:
        yield
    except RuntimeError as error:  # all errors of torch.distributed are
        ranks.agreed = SpectrascopeError(
            f"rank {ranks.index} of {ranks.count} has lost touch with another, which ended or was killed: its own "
            "message, or the launcher's, says why"
        )
        raise ranks.agreed from error


@contextmanager
def join_ranks(index: int, count: int, *, init_method: str = "env://") -> Iterator[Ranks]:
    """Join the processes that a launcher such as torchrun started.

    Args:
        index: this process's rank.
        count: how many there are.
        init_method: as of ``torch.distributed.init_process_group``.

    Raises:
        SpectrascopeError: they do not find together.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", index)) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    ranks = _RanksOfJob(index, count)
    with _in_touch(ranks):
        torch.distributed.init_process_group(
            backend, init_method=init_method, rank=index, world_size=count, timeout=_PATIENCE
        )
    try:
        yield ranks
    finally:
        torch.distributed.destroy_process_group()
