"""Read a ``torch.save`` file that names classes beside its weights, without importing or running any of them.

Scripts save their arguments, paths, dates and NumPy scalars beside the state dict; torch's restricted unpickler
refuses the whole file for one such name. Here every name it does not know is given an empty class of that name, which
takes whatever the pickle hands it and does nothing. Not ``weights_only=False``, which runs what a file asks for; nor a
list of harmless names, which is never complete. What is built of a tensor by such a name is no tensor, and is refused.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["StandIn", "UnreadableError", "holds_arrays", "names_network", "needs_name", "read_with_stand_ins"]

_MOST_NAMES = 200
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (.+?) was not an allowed global")
_FILLED = re.compile(r"Can only (SETITEMS?|append).*but got <class '(.+)'>")
# Names that nothing but an attack, or a whole program, asks for: such a file is refused, though none would run.
_NEVER = re.compile(
    r"(builtins\.)?(eval|exec|execfile|compile|__import__|open|input|breakpoint)$|"
    r"(subprocess|commands|os|posix|nt|sys|shutil|socket|runpy|importlib|ctypes|pty|pickle|webbrowser|code|pdb)(\.|$)"
)


class StandIn:
    """An object of a class that is not known: it holds what the pickle gave it, and does nothing with it."""

    named = ""
    given: list[Any]

    def __new__(cls, *given: Any, **more: Any) -> Any:
        """Take any arguments."""
        self = super().__new__(cls)
        self.given = [given, more]
        return self

    def __init__(self, *given: Any, **more: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Take any state."""
        self.given.append(state)

    def __call__(self, *given: Any, **more: Any) -> Any:
        """Take any call: what a pickle fetched from a class that is not known (``ZoneInfo._unpickle``) it may call."""
        made = object.__new__(type(self))
        made.given = [self.given, given, more]
        return made

    def __eq__(self, other: object) -> bool:
        """Equal to its own class, which torch looks for among those that a pickle may call."""
        return other is self or other is type(self)

    __hash__ = object.__hash__


class _ListStandIn(list[Any]):
    """A list of a class that is not known (``deque``)."""

    named = ""

    def __new__(cls, *given: Any, **more: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _DictStandIn:
    """A dict of a class that is not known (``defaultdict``): torch fills none but its own few kinds."""

    named = ""

    def __new__(cls, *given: Any, **more: Any) -> Any:
        return OrderedDict()


class UnreadableError(Exception):
    """The file cannot be read although every name has a stand-in; ``name`` is one it was built with, or wants to."""

    def __init__(self, name: str, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.name = name


def read_with_stand_ins(read: Callable[[bool], Any], refused: BaseException, *, headers_only: bool) -> Any:
    """Read a file that torch refused for a name.

    Args:
        read: reads the file by torch's restricted unpickler; of its data only the headers where told so.
        refused: why torch refused.
        headers_only: leave it at the headers.

    Raises:
        UnreadableError: a name that is never read over, or one that stands for more than an object aside.
    """
    kinds: dict[str, type] = {}
    while (step := _next_kind(refused, kinds)) is not None:
        name, kind = step
        if _NEVER.match(name) or len(kinds) > _MOST_NAMES:
            raise UnreadableError(name, refused)
        kinds[name] = kind
        try:
            content = _read(read, kinds, True)
            return content if headers_only else _read(read, kinds, False)
        except Exception as error:  # a damaged file provokes anything
            refused = error
    torchs = [name for name in kinds if name.startswith("torch.")]
    raise UnreadableError(next(iter([*torchs, *reversed(kinds)]), ""), refused)


def _read(read: Callable[[bool], Any], kinds: Mapping[str, type], headers_only: bool) -> Any:
    made: list[Any] = []
    for name, kind in kinds.items():
        module, _, last = name.rpartition(".")
        made.append(type(last, (kind,), {"__module__": module, "__qualname__": last, "named": name}))
    with torch.serialization.safe_globals(made):
        return read(headers_only)


def _next_kind(refused: BaseException, kinds: Mapping[str, type]) -> tuple[str, type] | None:
    """The name that stopped the reader and what may stand in for it; ``None`` where nothing more may."""
    text = str(refused)
    unknown = _UNKNOWN.search(text)
    if unknown:
        name = unknown.group(1)
        for full in (name, f"builtins.{name}"):  # torch leaves `builtins.` out
            if full not in kinds and (full != name or "." in name):
                return full, StandIn
        return None
    filled = _FILLED.search(text)
    if filled:
        as_what = _ListStandIn if filled.group(1) == "append" else _DictStandIn
        for full in (filled.group(2), f"builtins.{filled.group(2)}"):
            if kinds.get(full) is StandIn:
                return full, as_what
    return None


def names_network(content: Any) -> str:
    """The class of a whole network that was pickled in a file's contents; empty where there is none."""
    return next((found.named for found in _inside(content) if isinstance(found, StandIn) and _is_module(found)), "")


def needs_name(content: Any) -> str:
    """The name of something that was made of tensors by a class that is not known; empty where nothing was."""
    for found in _inside(content):
        if isinstance(found, StandIn) and any(isinstance(part, Tensor) for part in _inside(found.given)):
            return found.named
    return ""


def holds_arrays(content: Any) -> bool:
    """Whether a file's contents hold NumPy arrays, which nothing is made of here."""
    return any(
        isinstance(found, StandIn) and found.named.endswith("multiarray._reconstruct") for found in _inside(content)
    )


def _is_module(found: StandIn) -> bool:
    return any(isinstance(state, Mapping) and "_modules" in state for state in found.given)


def _inside(content: Any) -> Iterator[Any]:
    """Everything a file's contents hold, each object once; not by recursion, as a file may nest without end."""
    seen: set[int] = set()
    stack = [content]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, Mapping):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        elif isinstance(value, StandIn):
            stack.append(value.given)
