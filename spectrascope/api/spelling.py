"""Errors in the words of who calls from Python."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

from spectrascope.errors import SpectrascopeError

__all__ = ["in_python"]

_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])(?: ([A-Z]+\b|[\w.]+:[\w.]+))?")
_ADVICE = re.compile(r"(?:(?<=\buse )|(?<=\btry )|(?<=\bwith ))--([a-z][a-z-]*[a-z]) ([a-z][a-z0-9:]*)")
_OF_COMMANDS = ("help", "version")
_OTHERWISE = {"dataset": "batches", "loss": "loss_fn", "rule": "rules", "number": "numbers"}
Function = TypeVar("Function", bound=Callable[..., object])


def in_python(function: Function) -> Function:
    """Have errors name options as Python spells them: ``top_k``, where the command line says ``--top-k``."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SpectrascopeError as error:
            error.args = tuple(_respelt(word) if isinstance(word, str) else word for word in error.args)
            raise

    return call  # type: ignore[return-value]


def _respelt(message: str) -> str:
    """Spell options as keywords.

    >>> _respelt("--top-k 0: must be at least 1; or name it with --arch NAME, see `spectrascope probe --help`")
    'top_k 0: must be at least 1; or name it with arch=NAME, see `spectrascope probe --help`'
    >>> _respelt("--device cuda: no usable CUDA device on this machine; use --device cpu")
    "device cuda: no usable CUDA device on this machine; use device='cpu'"
    """

    def spelt(found: re.Match[str]) -> str:
        if found[1] in _OF_COMMANDS:
            return found[0]
        name = _OTHERWISE.get(found[1], found[1].replace("-", "_"))
        return f"{name}={found[2]}" if found[2] else name

    def advised(found: re.Match[str]) -> str:
        return f"{found[1].replace('-', '_')}={found[2]!r}"

    return _OPTION.sub(spelt, _ADVICE.sub(advised, message))
