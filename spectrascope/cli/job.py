"""A command as one of several ranks that torchrun started: the first speaks, the others are silent."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from spectrascope.errors import OptionError

if TYPE_CHECKING:
    from spectrascope.measure.ranks import Ranks

_stderr: list[int] = []  # of a silenced rank, for what no other rank can say


def rank_in_job() -> tuple[int, int] | None:
    """This process's rank and their number, where torchrun runs ``-m spectrascope``; ``None`` for any other process.

    A command that a training script starts inherits that script's rank, and is none of its job: it is not run as the
    module, or by its console script.

    Raises:
        OptionError: the launcher's variables are no numbers, or name no port.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None or spec.name != "spectrascope.__main__" or "MASTER_ADDR" not in os.environ:
        return None
    try:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        raise OptionError("RANK and WORLD_SIZE: expected numbers beside MASTER_ADDR, as torchrun sets them") from None
    if count > 1 and os.environ.get("MASTER_PORT") == "0":  # the ranks would wait for each other for ever
        raise OptionError("MASTER_PORT is 0: start torchrun with --standalone, which finds a free port, or name one")
    return (rank, count) if count > 1 else None


def silence_others() -> None:
    """Let no rank but the first write to the terminal, libraries beneath it included."""
    place = rank_in_job()
    if place is None or place[0] == 0 or _stderr:
        return
    _stderr.append(os.dup(2))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def join_job() -> Iterator[Ranks]:
    """Work together with the other ranks, where there are any: what goes wrong on one of them ends all.

    Raises:
        SpectrascopeError: what went wrong, said by the first rank; what the others cannot know is said where it was.
    """
    from spectrascope.measure.ranks import ALONE, join_ranks

    place = rank_in_job()
    if place is None:
        yield ALONE
        return
    with join_ranks(*place) as ranks:
        try:
            with ranks.together():
                yield ranks
        except Exception as error:
            if error is not ranks.agreed and _stderr:
                os.dup2(_stderr[0], 2)
            raise
