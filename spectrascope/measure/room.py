"""What a measurement needs in memory beside what the device has, and which options bring it down."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from spectrascope.errors import OptionError
from spectrascope.measure.asked import device_named
from spectrascope.records.inspection import MemoryNeed, Remedy
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import Missing

__all__ = ["HeldBytes", "available_bytes", "device_asked_for", "need_of"]


_NARROWER = {"float64": "float32", "float32": "bfloat16"}
"""The format of half the size."""


@dataclass(frozen=True)
class HeldBytes:
    """Bytes of what is held.

    All weights; the gradients of the largest block of them, and of the largest of all; directions; one sample's pass.
    """

    weights: int
    gradients: int
    largest_gradient: int
    directions: int
    tangents: int | Missing

    @property
    def fixed(self) -> int:
        """What is held throughout."""
        return self.weights + self.gradients + self.directions


def device_asked_for(options: ProbeOptions) -> torch.device | Missing:
    """The device that a measurement would run on, where this machine has it."""
    try:
        return device_named(options.device)
    except OptionError as error:
        return Missing(str(error))


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


def need_of(parts: HeldBytes, options: ProbeOptions) -> MemoryNeed:
    """Compare what is needed with what there is.

    Args:
        parts: what is needed.
        options: as for the measurement.
    """
    device = device_asked_for(options)
    available = device if isinstance(device, Missing) else available_bytes(device)
    total = parts.fixed + (0 if isinstance(parts.tangents, Missing) else parts.tangents)
    fits: bool | Missing = available if isinstance(available, Missing) else total <= available
    return MemoryNeed(
        weight_bytes=parts.weights,
        gradient_bytes=parts.gradients,
        direction_bytes=parts.directions,
        tangent_bytes=parts.tangents,
        total_bytes=total,
        available_bytes=available,
        device=options.device if isinstance(device, Missing) else str(device),
        fits=fits,
        helps=() if fits is True or isinstance(available, Missing) else _helps(parts, options, total),
    )


def _helps(parts: HeldBytes, options: ProbeOptions, total: int) -> tuple[Remedy, ...]:
    """Options that need at least a twentieth less, the strongest first, and all of them together last."""
    sample = 0 if isinstance(parts.tangents, Missing) else parts.tangents
    saved = {
        "--layers with one weight at a time": parts.gradients - parts.largest_gradient + parts.directions,
        f"--top-k {max(1, options.top_k // 4)}": parts.directions - parts.directions // 4,
        "inputs of half the size (--block-size, --image-size)": sample // 2,
    }
    if options.dtype in _NARROWER:
        saved[f"--dtype {_NARROWER[options.dtype]}"] = (parts.weights + sample) // 2
    worth = sorted((name for name in saved if 20 * saved[name] >= total), key=lambda name: -saved[name])
    found = [Remedy(name, total - saved[name], "bytes") for name in worth]
    if len(worth) > 1:
        least = parts.weights // (2 if any(name.startswith("--dtype") for name in worth) else 1)
        found.append(Remedy("all of these", max(least, total - sum(saved[name] for name in worth)), "bytes"))
    return tuple(found)
