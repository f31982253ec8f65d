"""The ways in which a file's keys may be meant: below a prefix, beside a trainer's own tensors, spelt differently."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Reading", "readings"]

# Other spellings of the same networks: the usual CIFAR re-implementations of ResNet, the dotted names in torchvision's
# own DenseNet files, and weight_norm before it became a parametrization.
_RESPELLINGS: tuple[tuple[tuple[str, str], ...], ...] = (
    ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
    ((r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),),
    (
        (r"(^|\.)(\w+)_g$", r"\1parametrizations.\2.original0"),
        (r"(^|\.)(\w+)_v$", r"\1parametrizations.\2.original1"),
    ),
)
# Parts of a training program's state beside the network: what it is compared with, and averages of it.
_BESIDE = re.compile(
    r"criterion|(.*_)?(loss|losses|loss_fn|loss_fun|metric|metrics|acc|accuracy)(_.*)?|(train|val|valid|test)_.*|"
    r"(.*_)?(ema|swa|averaged?|teacher|target|momentum|shadow|discriminator)(_.*)?|ema.*",
    re.IGNORECASE,
)
_DEPTH = 6


@dataclass(frozen=True, slots=True)
class Reading:
    """The tensors that may be the network's, under its own names.

    ``left_out`` names the parts of the file beside them that hold weights too (``ema``), ``place`` the prefix under
    which the network was found where there are such parts.
    """

    state_dict: dict[str, Tensor]
    place: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What was chosen, for the report; empty where nothing was left out."""
        if not self.left_out:
            return ""
        return f"those under {self.place!r}, not {', '.join(repr(name) for name in self.left_out)}"


def readings(state_dict: Mapping[str, Tensor]) -> Iterator[Reading]:
    """Yield the tensors as they are, then readings that may fit where the first does not.

    These are: with other spellings of known networks; without the first component all keys share (``model.``,
    ``net.``, …; repeatedly); and one part of the file, where the rest is a training program's own: its loss,
    metrics, counters or averaged weights.
    """
    yield from _below(Reading(dict(state_dict)), _DEPTH)


def _below(reading: Reading, depth: int) -> Iterator[Reading]:
    current = reading.state_dict
    if not current:
        return
    yield reading
    for rules in _RESPELLINGS:
        respelt = {_respell(key, rules): value for key, value in current.items()}
        if list(respelt) != list(current) and len(respelt) == len(current):
            yield Reading(respelt, reading.place, reading.left_out)
    if depth == 0:
        return
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in current.items():
        first, dot, rest = key.partition(".")
        parts.setdefault(first, {})[rest if dot else ""] = value
    with_matrices = [name for name, part in parts.items() if _has_matrix(part)]
    main = [name for name in with_matrices if not _BESIDE.fullmatch(name)] or with_matrices
    if len(main) != 1 or "" in parts[main[0]]:
        return
    name = main[0]
    left_out = tuple(other for other in with_matrices if other != name)
    place = f"{reading.place}.{name}" if reading.place else name
    yield from _below(Reading(parts[name], place, (*reading.left_out, *left_out)), depth - 1)


def _has_matrix(part: Mapping[str, Tensor]) -> bool:
    return any(value.ndim >= 2 and value.is_floating_point() for value in part.values())


def _respell(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
