"""Putting a file's tensors into a network whose architecture is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.readings import Reading, readings
from spectrascope.loading.checkpoints.skeleton import (
    KeyDifference,
    Skeleton,
    assign_tensors,
    build_skeleton,
    compare,
    meta_copy,
    skeleton_of,
)
from spectrascope.loading.models.architectures import Architecture, Build
from spectrascope.loading.models.factories import Factory, Made
from spectrascope.loading.models.torchvision import without_auxiliary_heads

__all__ = ["Filled", "fill", "fill_architecture", "fill_factory"]


@dataclass(frozen=True, slots=True)
class Filled:
    """A network with a file's weights, and how the file was read."""

    made: Made
    reading: Reading
    num_classes: int | None


def fill(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build a network and give it a file's tensors, which fit; where they are on the meta device, so is it."""
    network = without_auxiliary_heads(assign_tensors(build_skeleton(build), tensors))
    if any(tensor.is_meta for tensor in tensors.values()):
        return network
    left = [name for name, p in network.named_parameters() if p.is_meta]
    if left:
        raise LoadError(f"{len(left)} parameters got no weights from the file ({', '.join(left[:3])})")
    if any(buffer.is_meta for buffer in network.buffers()):
        # A table that the constructor computes in place; only running it for real gives its values.
        with torch.random.fork_rng(devices=[]):
            network = without_auxiliary_heads(assign_tensors(build(), tensors))
    return network


def fill_architecture(where: str, architecture: Architecture, state_dict: Mapping[str, Tensor]) -> Filled:
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
                return _filled(build, skeleton, reading, count)
            if best is None or difference.size < best.size:
                best = difference
    tensors = list(state_dict.values())
    if fixed and [tuple(tensor.shape) for tensor in tensors] == list(skeleton.shapes.values()):
        # Whoever names the widths has said what the network is; only the names of its layers differ.
        renamed = Reading(dict(zip(skeleton.shapes, tensors, strict=True)))
        return _filled(architecture.build, skeleton, renamed, None)
    raise LoadError(
        f"{where} does not fit {architecture.name}: {best}; pass the architecture it was trained with, or "
        f"drop --arch to have it recognised"
    )


def _fixed(build: Build) -> Build:
    return lambda num_classes: build(None)


def _filled(build: Build, skeleton: Skeleton, reading: Reading, count: int | None) -> Filled:
    found = count if count is not None else next(reversed(skeleton.shapes.values()))[0]
    return Filled(Made(fill(lambda: build(found), reading.state_dict), None), reading, found)


def fill_factory(
    where: str,
    factory: Factory,
    make: Callable[[int | None], Made],
    state_dict: Mapping[str, Tensor],
    num_classes: int | None,
) -> Filled:
    """Load a file into a user's own network, by copying, which keeps its tied parameters tied.

    Args:
        where: the file, for messages.
        factory: the user's function, and
        make: how to call it.
        state_dict: the file's tensors; where they are on the meta device, they are only compared with the network.
        num_classes: as asked for; guessed from the file when ``None``.

    Raises:
        LoadError: the file does not fit, or disagrees with itself about a tied parameter.
    """
    guesses = [num_classes]
    weights = [value for value in state_dict.values() if value.ndim >= 2]
    if num_classes is None and factory.takes_num_classes and weights:
        # The last matrix of a file is nearly always the head; wrong guesses do not fit and are not used.
        guesses = [int(weights[-1].shape[0]), None]
    refusal: LoadError | None = None
    for guess in guesses:
        try:
            made = make(guess)
            reading = _fitting_reading(where, factory.name, made.network, state_dict)
        except LoadError as error:
            refusal = error
            continue
        if any(value.is_meta for value in state_dict.values()):
            meta_copy(made.network)
        else:
            _copy(where, made.network, reading.state_dict)
        return Filled(made, reading, None)
    assert refusal is not None
    raise refusal


def _own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict by reference: tied parameters are the same object under each of their names."""
    return {key: value for key, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _fitting_reading(where: str, name: str, network: nn.Module, state_dict: Mapping[str, Tensor]) -> Reading:
    own = _own_tensors(network)
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    counters = {key for key in shapes if key.endswith("num_batches_tracked")}
    best: KeyDifference | None = None
    for reading in readings(state_dict):
        there = {id(own[key]) for key in reading.state_dict if key in own}
        tied = {key for key, value in own.items() if id(value) in there}
        skeleton = Skeleton(shapes, {}, frozenset(counters | tied))
        _, difference = compare(skeleton, {key: tuple(value.shape) for key, value in reading.state_dict.items()})
        if difference.size == 0:
            return reading
        if best is None or difference.size < best.size:
            best = difference
    raise LoadError(f"{where} does not fit {name}: {best}; pass the factory of the network it was trained with")


def _copy(where: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    done: dict[int, tuple[str, Tensor]] = {}
    with torch.no_grad():
        for key, own in _own_tensors(network).items():
            value = tensors.get(key)
            if value is None:
                continue
            first, other = done.setdefault(id(own), (key, value))
            if other is not value and not torch.equal(other, value):
                raise LoadError(
                    f"{where}: {first!r} and {key!r} differ, but are one tied parameter of the network; pass a "
                    "factory that does not tie them"
                )
            own.copy_(value)
