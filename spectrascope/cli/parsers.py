"""Words and numbers that options take, to values; a bad one is refused in one line."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import typer

from spectrascope.errors import OptionError
from spectrascope.records.values import ALL_SAMPLES
from spectrascope.reports.write import check_writable
from spectrascope.text import device_map_of, memory_of

_FORMS = {
    ".json", ".csv", ".md", ".html", ".htm", ".tex", ".xml", ".yaml", ".yml", ".py", ".pdf", ".png", ".svg", ".jpg",
}  # fmt: skip
"""Endings that say what is in a file."""
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def parse_device(text: str) -> str:
    """A device, as ``--device`` has it."""
    if not _DEVICE.fullmatch(text):
        raise typer.BadParameter(f"{text!r} is not one of auto, cpu, cuda, cuda:NUMBER, mps.")
    return text


def parse_output(given: str | Path) -> Path:
    """A file to write, refused before any long work where it could not be.

    Raises:
        OptionError: it could not, or it is written as a folder.
    """
    text, path = os.fspath(given), Path(given)
    if text.endswith(("/", os.sep)) and not path.is_dir():
        raise OptionError(f"cannot write {text}: it is written as a folder, name a file in it")
    check_writable(path)
    return path


def require_ending(path: Path | None, what: str, *endings: str) -> None:
    """Refuse a name whose ending says another form than what will be in the file; one that says none will do.

    Raises:
        OptionError: it does.
    """
    if path is not None and (ending := path.suffix.lower()) in _FORMS and ending not in endings:
        raise OptionError(f"{path}: {what} is written there, expected a name ending in {' or '.join(endings)}")


def parse_micro_batch(given: int | str) -> int | str:
    """A number from 1 on, or auto."""
    return _whole(given, ("auto",), least=1)


def parse_memory(given: int | str) -> int | str:
    """Bytes, or auto; as 8GiB, 500MB or a number."""
    try:
        return memory_of(given)
    except ValueError as error:
        raise typer.BadParameter(f"{str(given)!r}: {error}.") from None


def parse_device_map(given: str) -> str:
    """A map of devices: none, auto, or a JSON file, which is read here so that nothing long runs before it is known."""
    try:
        device_map_of(given)
    except ValueError as error:
        raise typer.BadParameter(f"{given!r}: {error}.") from None
    return given


def parse_null_draws(given: int | str) -> int | str:
    """A number from 0 on, or auto."""
    return _whole(given, ("auto",), least=0)


def parse_curvature_samples(given: int | str) -> int | str:
    """A number from 1 on, auto or all."""
    return _whole(given, ("auto", "all"), least=1)


def parse_channels(given: str | float) -> tuple[float, ...]:
    """A number, or one for each channel: ``0.49,0.48,0.45``."""
    try:
        values = tuple(float(part) for part in str(given).split(","))
    except ValueError:
        raise typer.BadParameter(f"{given!r} is no number, nor one per channel, as 0.49,0.48,0.45.") from None
    if not all(math.isfinite(value) for value in values):
        raise typer.BadParameter(f"{given!r} holds a value that is not finite.")
    return values


def parse_num_samples(given: int | str) -> int:
    """A number from 1 on; all as ``ALL_SAMPLES``."""
    return ALL_SAMPLES if (number := _whole(given, ("all",), least=1)) == "all" else int(number)


def parse_shard(given: str | tuple[int, int]) -> tuple[int, int]:
    """I/N with I from 1 to N, as (I − 1, N)."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", given) if isinstance(given, str) else None
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise typer.BadParameter(f"{given!r} is not I/N with I from 1 to N, as 2/8.")
    return int(found[1]) - 1, int(found[2])


def _whole(given: int | str, words: tuple[str, ...], *, least: int) -> int | str:
    text = str(given)  # a project's file may hold the number itself
    if text in words:
        return text
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise typer.BadParameter(f"{text!r} is neither {' nor '.join(words)} nor a whole number from {least} on.")
    return int(text)
