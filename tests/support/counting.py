"""What makes work slow, counted: the counts are the same on an idle machine and on a busy one.

No test asserts seconds (``tests/test_no_seconds.py``). Where speed matters, a test bounds what causes it.
"""

from __future__ import annotations

import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn


def calls_of(action: Callable[[], object]) -> int:
    """Count the functions called while ``action`` runs, Python's and C's."""
    count = 0

    def see(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def lines_of(action: Callable[[], object]) -> int:
    """Count the lines of Python run while ``action`` runs: sees loops that call nothing; ten times as slow."""
    count = 0

    def see(_: Any, event: str, __: Any) -> Any:
        nonlocal count
        count += event == "line"
        return see

    before = sys.gettrace()
    sys.settrace(see)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def bytes_read() -> int:
    """Bytes this process, and those it has waited for, have read so far; mapped pages count as memory instead."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip(f"needs {counters}, where Linux counts the bytes that a process reads")
    return int(counters.read_text().split("rchar: ")[1].split()[0])


@contextmanager
def parameters_made() -> Iterator[list[str]]:
    """List the parameters that layers register, by name: how much of how many networks is built."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    made: list[str] = []

    def see(_: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            made.append(name)

    handle = register_module_parameter_registration_hook(see)
    try:
        yield made
    finally:
        handle.remove()


@contextmanager
def elements_made() -> Iterator[list[int]]:
    """List the sizes of tensors that operations return with storage (not on the meta device)."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    made: list[int] = []

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            made.extend(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor) and not t.is_meta)
            return out

    with See():
        yield made


@contextmanager
def connections() -> Iterator[list[Any]]:
    """List the addresses that sockets are connected to, or tried to be."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def see(self: socket.socket, address: Any) -> None:
        tried.append(address)
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", see)
        yield tried


@contextmanager
def operations() -> Iterator[list[str]]:
    """List the tensor operations dispatched, by name: on a device each is a launch, or costs as much on the host."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with See():
        yield names


class Alive:
    """Bytes of tensor storage alive, of those made since counting began: ``now``, and ``peak`` the most at once."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: set[int] = set()

    def see(self, tensor: Any) -> None:
        """Count what a tensor lies in, until it is given back."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def bytes_alive() -> Iterator[Alive]:
    """Count the bytes that operations return and that are alive at once."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode

    alive = Alive()

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, Tensor):
                    alive.see(tensor)
            return out

    with See():
        yield alive
