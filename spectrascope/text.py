"""Words and names that every room writes alike."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

__all__ = [
    "device_map_of",
    "file_name",
    "first_line",
    "listed",
    "matches",
    "memory_of",
    "memory_text",
    "plural",
    "printable",
]


def printable(text: str, substitute: str | None = None) -> str:
    r"""Escape control characters, which could move a cursor or forge a line of output; or substitute them.

    >>> printable("a\x1bb"), printable("a\x1bb", "?")
    ('a\\x1bb', 'a?b')
    """

    def instead(char: str) -> str:
        return char.encode("unicode_escape").decode("ascii") if substitute is None else substitute

    return "".join(char if char.isprintable() else instead(char) for char in text)


def file_name(label: str) -> str:
    """Turn a label into the name of a file or folder: what could be a path, or hide it, gives way.

    >>> file_name("runs/a/step 5.pt"), file_name("../..")
    ('runs_a_step_5.pt', 'checkpoint')
    """
    return re.sub(r"[^\w.=@+-]+", "_", label).strip("._") or "checkpoint"


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message; the name of its class where it has none.

    >>> first_line(ValueError("no such layer\nTraceback …")), first_line(KeyboardInterrupt())
    ('no such layer', 'KeyboardInterrupt')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


def plural(n: int, noun: str) -> str:
    """Write a number of things, the noun in the plural unless there is one.

    >>> plural(1, "layer"), plural(2048, "sample")
    ('1 layer', '2,048 samples')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def matches(pattern: str, name: str) -> bool:
    """Say whether a name is the pattern itself or matches it as a shell-style glob.

    Names of weights carry brackets that a glob reads as a set of characters, so a name always matches itself.

    >>> matches("a.in_proj_weight[q]", "a.in_proj_weight[q]"), matches("a.*", "a.bias"), matches("b.*", "a.bias")
    (True, True, False)
    """
    return name == pattern or fnmatchcase(name, pattern)


def listed(globs: str | Iterable[str], what: str) -> tuple[str, ...]:
    """Take one glob where several are expected.

    Args:
        globs: one, or several.
        what: what they are for, for the message.

    Raises:
        TypeError: something else.

    >>> listed("0.*", "layers"), listed(["0.*", "2.*"], "layers")
    (('0.*',), ('0.*', '2.*'))
    """
    found = (globs,) if isinstance(globs, str) or not isinstance(globs, Iterable) else tuple(globs)
    wrong = next((glob for glob in found if not isinstance(glob, str)), None)
    if wrong is not None or globs is None:
        raise TypeError(f"{what}: expected a glob on names, or a list of them, got {wrong!r}")
    return found


_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{letter}b": 1000**i for i, letter in enumerate("kmgt", 1)}
_UNITS |= {f"{letter}ib": 1024**i for i, letter in enumerate("kmgt", 1)}


def memory_of(size: int | str) -> int | str:
    """Read an amount of memory: bytes, or a number with a unit of 1000 or 1024 bytes; or ``auto``.

    Raises:
        ValueError: something else.

    >>> memory_of(4096), memory_of("500MB"), memory_of("1.5 GiB"), memory_of("auto")
    (4096, 500000000, 1610612736, 'auto')
    """
    if size == "auto":
        return "auto"
    found = re.fullmatch(r"([0-9]{1,18}(\.[0-9]{1,9})?) ?([a-z]*)", str(size).lower())
    if found and found[3] in _UNITS and (found[3] or not found[2]):
        n = int(Fraction(found[1]) * _UNITS[found[3]])
        if n > 0:
            return n
    raise ValueError("expected auto or a number of bytes from 1 on, as 8GiB or 500MB")


def device_map_of(given: str) -> dict[str, int | str] | str:
    """Read where the modules of a network are put: ``none``, ``auto``, a JSON file or its text.

    Returns:
        The words as they are; else module name -> the number of a GPU, or ``cpu`` for the host's memory.

    Raises:
        ValueError: something else.

    >>> device_map_of("auto"), device_map_of('{"h.0": 0, "h.1": "cpu"}')
    ('auto', {'h.0': 0, 'h.1': 'cpu'})
    """
    if given in ("none", "auto"):
        return given
    expected = "expected none, auto, or a JSON file of module names and what each is on: a GPU's number, or cpu"
    try:
        found = json.loads(given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{expected}; {first_line(error)}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{expected}; got {json.dumps(found)[:60]}")
    for name, at in found.items():
        if isinstance(at, bool) or not (at == "cpu" or (isinstance(at, int) and at >= 0)):
            raise ValueError(f'{name[:60]!r} is on {json.dumps(at)[:40]}: expected a GPU\'s number, or "cpu"')
    return found


def memory_text(size: int) -> str:
    """Write at least so many bytes as :func:`memory_of` reads them, in units of 1024.

    >>> memory_text(1_000_000_000), memory_text(1000)
    ('953.7MiB', '1000')
    """
    unit = next((unit for unit in ("TiB", "GiB", "MiB", "KiB") if size >= _UNITS[unit.lower()]), "")
    return f"{math.ceil(10 * size / _UNITS[unit.lower()]) / 10:g}{unit}"
