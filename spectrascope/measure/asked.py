"""What a run's options name: formats and devices, and whether each option is in its range."""

from __future__ import annotations

import platform

import torch

from spectrascope.errors import OptionError
from spectrascope.numerics.lifted import is_below
from spectrascope.records.report import ProbeOptions
from spectrascope.records.values import DtypeName
from spectrascope.text import memory_of

__all__ = ["DTYPES", "device_name", "device_named", "memory_asked_for", "require_sensible", "require_wide"]

DTYPES: dict[str, torch.dtype] = {name.value: getattr(torch, name.value) for name in DtypeName}
"""Formats a network can be measured in."""


def require_sensible(options: ProbeOptions) -> None:
    """Refuse options that are out of range, whatever the network.

    Raises:
        OptionError: the first of them.
    """
    for name, value in (("--top-k", options.top_k), ("--min-rank", options.min_rank), ("groups", options.groups)):
        if value < 1:
            raise OptionError(f"{name} {value}: must be at least 1")
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
    if options.seed < 0:
        raise OptionError(f"--seed {options.seed}: must be at least 0")
    if options.micro_batch != "auto" and not (str(options.micro_batch).isdecimal() and int(options.micro_batch) > 0):
        raise OptionError(f"--micro-batch {options.micro_batch!r}: expected auto or a positive number")
    memory_asked_for(options)
    for name, given, words in (
        ("--null-draws", options.null_draws, ("auto",)),
        ("--curvature-samples", options.curvature_samples, ("auto", "all")),
    ):
        least = 0 if name == "--null-draws" else 1
        if given not in words and not (str(given).isdecimal() and int(given) >= least):
            raise OptionError(f"{name} {given!r}: expected {' or '.join(words)} or a whole number from {least} on")
    if options.folds < 2:
        raise OptionError(f"folds {options.folds}: must be at least 2, so that one holds out the other")
    if options.dtype not in DTYPES:
        raise OptionError(f"--dtype {options.dtype!r}: expected {', '.join(DTYPES)}")


def memory_asked_for(options: ProbeOptions) -> int | None:
    """Bytes that gradients, and then tangents, may take at a time; ``None`` where it goes by what is free.

    Raises:
        OptionError: no amount of memory.
    """
    try:
        size = memory_of(options.memory)
    except ValueError as error:
        raise OptionError(f"--memory {options.memory!r}: {error}") from None
    return None if size == "auto" else int(size)


def require_wide(options: ProbeOptions, what: str) -> None:
    """Refuse a format with fewer digits than ``what`` needs.

    Raises:
        OptionError: the format asked for is one.
    """
    if is_below(DTYPES.get(options.dtype, torch.float32), torch.float32):
        raise OptionError(f"--dtype {options.dtype}: {what} need float32 or float64")


def device_named(name: str, parameter: torch.Tensor | None = None) -> torch.device:
    """The device that ``--device`` names; for ``auto`` the one of ``parameter``, or the fastest there is.

    Raises:
        OptionError: this machine has no such device.
    """
    if name == "auto":
        if parameter is not None and parameter.device.type != "cpu":
            return parameter.device
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise OptionError(f"--device {name}: no usable CUDA device on this machine; use --device cpu")
        if device.index is not None and device.index >= count:
            raise OptionError(f"--device {name}: this machine has {count} CUDA device(s), numbered from 0")
        return torch.device("cuda", device.index if device.index is not None else torch.cuda.current_device())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise OptionError("--device mps: not available on this machine; use --device cpu")
    if device.type not in ("cpu", "mps"):
        raise OptionError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def device_name(device: torch.device) -> str:
    """Name a device as a reader would."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()})"
