"""What a measurement needs in memory beside what the device has, and which options bring it down."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch

from spectrascope.curvature.microbatches import available_bytes
from spectrascope.errors import OptionError
from spectrascope.measure.asked import device_named
from spectrascope.records.inspection import MemoryNeed, Remedy
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import Missing
from spectrascope.text import memory_of, memory_text

__all__ = ["HeldBytes", "device_asked_for", "need_of"]


_NARROWER = {"float64": "float32", "float32": "bfloat16"}
"""The format of half the size."""


@dataclass(frozen=True)
class HeldBytes:
    """Bytes of what a measurement holds.

    ``weights`` of the network in the format it is measured in, ``given`` as it was handed over or read, ``converted``
    where the formats differ; ``owned``: nobody else holds that. ``gradients`` of the largest block of weights,
    ``largest_gradient`` of the largest weight. ``tangents``: one sample's pass. ``check``: copies of the network
    in more digits, to check by.
    """

    weights: int
    given: int
    converted: bool
    owned: bool
    gradients: int
    largest_gradient: int
    directions: int
    tangents: int | Missing
    check: int = 0

    @property
    def fixed(self) -> int:
        """What is held throughout, gradients counted in."""
        return self.weights + self.gradients + self.directions

    @property
    def sample(self) -> int:
        """What one sample's pass takes, as far as that is known."""
        return 0 if isinstance(self.tangents, Missing) else self.tangents

    @property
    def copy(self) -> int:
        """The network as given, where fewer digits are measured or it is another's; or another's values, put back."""
        if self.converted:
            return 0 if self.owned and self.given <= self.weights else self.given  # more digits: in place
        return 0 if self.owned else self.weights

    def most(self, process: int) -> int:
        """The most that is held at a time, in the host's memory with a process of so many bytes.

        Loading takes no more: a file's tensors are mapped, and copied one after the other.
        """
        return process + self.on_device() + self.copy

    def on_device(self) -> int:
        """The most that is held at a time on a device of its own, to which a copy of the network is moved."""
        return self.weights + self.directions + max(self.gradients, self.check + self.sample)


_Way: TypeAlias = "Callable[[HeldBytes], HeldBytes]"


def device_asked_for(options: ProbeOptions) -> torch.device | Missing:
    """The device that a measurement would run on, where this machine has it."""
    try:
        return device_named(options.device)
    except OptionError as error:
        return Missing(str(error))


def resident_bytes() -> int | Missing:
    """Bytes that this process has in memory."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return Missing("this system does not tell what a process takes")


def need_of(parts: HeldBytes, options: ProbeOptions, *, loaded: int = 0) -> MemoryNeed:
    """Compare what is needed with what there is.

    Args:
        parts: what is needed.
        options: as for the measurement.
        loaded: bytes of weights that this process holds already.
    """
    device = device_asked_for(options)
    available = device if isinstance(device, Missing) else available_bytes(device)
    shared = isinstance(device, Missing) or device.type == "cpu"
    process = 0
    if shared and not isinstance(taken := resident_bytes(), Missing):
        process = max(0, taken - loaded)
        if not isinstance(available, Missing):
            available += taken  # given back by a dry run that ends, or taken by the measurement already

    def most(parts: HeldBytes) -> int:
        return parts.most(process) if shared else parts.on_device()

    def spread(parts: HeldBytes) -> HeldBytes:
        """What does not fit in half of a device lies on others, or in the host's memory."""
        return parts if isinstance(available, Missing) else replace(parts, weights=min(parts.weights, available // 2))

    ways: dict[str, _Way] = {}
    if not shared and options.device_map != "none":
        parts = spread(parts)
    elif not shared:
        ways["--device-map auto"] = spread

    if parts.check and not isinstance(available, Missing) and most(parts) > available:
        parts = replace(parts, check=0)  # a check for which there is no room is left out
    total = most(parts)
    fits: bool | Missing = available if isinstance(available, Missing) else total <= available
    return MemoryNeed(
        weight_bytes=parts.weights,
        copy_bytes=parts.copy if shared else 0,
        gradient_bytes=parts.gradients,
        direction_bytes=parts.directions,
        tangent_bytes=parts.tangents,
        check_bytes=parts.check,
        process_bytes=process,
        total_bytes=total,
        available_bytes=available,
        device=options.device if isinstance(device, Missing) else str(device),
        fits=fits,
        helps=() if fits is True or isinstance(available, Missing) else _helps(parts, options, most, ways),
    )


def _helps(
    parts: HeldBytes, options: ProbeOptions, most: Callable[[HeldBytes], int], ways: dict[str, _Way]
) -> tuple[Remedy, ...]:
    """Options that need at least a twentieth less, the strongest first, and all of them together last."""
    one_gradient = memory_text(parts.largest_gradient)
    ways = {
        **ways,
        f"--memory {one_gradient}": lambda p: replace(p, gradients=min(p.gradients, int(memory_of(one_gradient)))),
        "--layers with one weight at a time": lambda p: replace(p, gradients=p.largest_gradient, directions=0),
        f"--top-k {max(1, options.top_k // 4)}": lambda p: replace(p, directions=p.directions // 4),
        "inputs of half the size (--block-size, --image-size)": lambda p: replace(
            p, tangents=p.tangents if isinstance(p.tangents, Missing) else p.tangents // 2
        ),
    }
    if options.dtype in _NARROWER:
        ways[f"--dtype {_NARROWER[options.dtype]}"] = _narrowed
    total = most(parts)
    left = {name: most(way(parts)) for name, way in ways.items()}
    worth = sorted((name for name in left if 20 * (total - left[name]) >= total), key=lambda name: left[name])
    found = [Remedy(name, left[name], "bytes") for name in worth]
    if len(worth) > 1:
        all_of_them = parts
        for name in worth:
            all_of_them = ways[name](all_of_them)
        found.append(Remedy("all of these", most(all_of_them), "bytes"))
    return tuple(found)


def _narrowed(parts: HeldBytes) -> HeldBytes:
    """In numbers of half the size; a network that is made for the measurement is read in them."""
    tangents = parts.tangents if isinstance(parts.tangents, Missing) else parts.tangents // 2
    return replace(
        parts,
        weights=parts.weights // 2,
        given=parts.given // 2 if parts.owned and not parts.converted else parts.given,
        converted=parts.converted or not parts.owned,
        tangents=tangents,
    )
