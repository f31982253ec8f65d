"""Putting a file's tensors into a network whose architecture is known.

A file's keys may be meant in several ways, called readings here: below a prefix, beside a trainer's own tensors, spelt
differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import require_finite_parameters, require_plain_parameters
from spectrascope.loading.checkpoints.skeleton import (
    KeyDifference,
    Skeleton,
    assign_tensors,
    build_skeleton,
    compare,
    meta_copy,
    skeleton_of,
)
from spectrascope.loading.models.source import Architecture, Build
from spectrascope.network.effective import effective_tensors

__all__ = ["Filled", "Reading", "fill", "fill_architecture", "readings", "without_auxiliary_heads"]

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

    These are: with other spellings of known networks; with pruned and normalised weights evaluated; without the first
    component all keys share (``model.``, ``net.``, …; repeatedly); and one part of the file, where the rest is a
    training program's own: its loss, metrics, counters or averaged weights.
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
    evaluated = effective_tensors(current)
    if len(evaluated) != len(current):
        yield Reading(evaluated, reading.place, reading.left_out)
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


@dataclass(frozen=True, slots=True)
class Filled:
    """A network with a file's weights, and how the file was read."""

    network: nn.Module
    reading: Reading
    num_classes: int | None


def without_auxiliary_heads(model: nn.Module) -> nn.Module:
    """Drop heads that only training uses (GoogLeNet, Inception): evaluation gives them no gradient to measure."""
    if getattr(model, "aux_logits", None) is True:
        model.aux_logits = False  # type: ignore[assignment]
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, head):
                setattr(model, head, None)
    return model


def fill(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Build a network and give it a file's tensors, which fit; where they are on the meta device, so is it.

    Raises:
        LoadError: a parameter has no tensor, or a quantised, sparse or complex one.
        NonFiniteError: a parameter would be NaN or infinite.
    """
    network = meta_copy(build_skeleton(build))
    require_plain_parameters(network, tensors, path)
    network = _assigned(network, tensors, path)
    if any(tensor.is_meta for tensor in tensors.values()):
        return network
    left = [name for name, p in network.named_parameters() if p.is_meta]
    if left:
        raise LoadError(f"{len(left)} parameters got no weights from the file ({', '.join(left[:3])})")
    if any(buffer.is_meta for buffer in network.buffers()):
        # A table that the constructor computes in place; only running it for real gives its values.
        del network
        with torch.random.fork_rng(devices=[]):
            network = _assigned(meta_copy(build()), tensors, path)
    return network


def _assigned(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    require_finite_parameters(assign_tensors(network, tensors), tensors, path)
    return without_auxiliary_heads(network)


def fill_architecture(path: Path, architecture: Architecture, state_dict: Mapping[str, Tensor]) -> Filled:
    """Fill an architecture by name, with as many outputs as the file has.

    Raises:
        LoadError: the file does not fit.
    """
    fixed = architecture.name.startswith("mlp:")
    best: KeyDifference | None = None
    for reading in readings(state_dict):
        shapes = {key: tuple(value.shape) for key, value in reading.state_dict.items()}
        builds: Sequence[Build] = architecture.builds_for(shapes) if architecture.builds_for else (architecture.build,)
        for build in builds:
            skeleton = skeleton_of(_fixed(build) if fixed else build)
            count, difference = compare(skeleton, shapes)
            if difference.size == 0:
                return _filled(build, skeleton, reading, count, path)
            if best is None or difference.size < best.size:
                best = difference
    tensors = list(state_dict.values())
    if fixed and [tuple(tensor.shape) for tensor in tensors] == list(skeleton.shapes.values()):
        # Whoever names the widths has said what the network is; only the names of its layers differ.
        renamed = Reading(dict(zip(skeleton.shapes, tensors, strict=True)))
        return _filled(architecture.build, skeleton, renamed, None, path)
    raise LoadError(
        f"{path} does not fit {architecture.name}: {best}; pass the architecture it was trained with, or "
        f"drop --arch to have it recognised"
    )


def _fixed(build: Build) -> Build:
    return lambda num_classes: build(None)


def _filled(build: Build, skeleton: Skeleton, reading: Reading, count: int | None, path: Path) -> Filled:
    found = count if count is not None else next(reversed(skeleton.shapes.values()))[0]
    return Filled(fill(lambda: build(found), reading.state_dict, path), reading, found)
