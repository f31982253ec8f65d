"""Put back what a measurement moves: all that a network or a loss holds, torch's settings, the random generators."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import random
import signal
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from types import CellType, FunctionType, MethodType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from spectrascope.optim.precision import float32_precision_kept
from spectrascope.workload import SampleSource, source_from_batches

__all__ = ["GRADIENT_HOOKS", "fixed_source", "random_state_kept", "settings_kept", "state_kept"]

_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set, tuple)
_MOST_ITEMS = 10_000  # of longer containers the items are put back, but not looked into
_MISSING = object()

GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Of a tensor: what its owner has done to its gradient."""


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Restore at the end the random state of torch (every device), NumPy and Python as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Restore at the end settings of torch itself that a network or a loss changes in its forward pass."""
    before = [(read, write, read()) for read, write in _settings()]
    with float32_precision_kept():
        try:
            yield
        finally:
            for read, write, value in before:
                if read() != value:
                    write(*value)


_Setting: TypeAlias = tuple[Callable[[], tuple[Any, ...]], Callable[..., object]]
_SWITCHES = {
    "cudnn": ("enabled", "benchmark", "deterministic"),
    "mkldnn": ("enabled",),
    "cuda.matmul": ("allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"),
}


def _settings() -> Iterator[_Setting]:
    """How each setting is read, as arguments of what writes it."""
    backends: Any = torch.backends
    read = functools.partial
    yield read(_with, torch.is_grad_enabled), torch.set_grad_enabled
    yield read(_with, torch.get_default_dtype), torch.set_default_dtype
    yield read(_with, torch.get_num_threads), torch.set_num_threads
    yield (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda on, warns: torch.use_deterministic_algorithms(on, warn_only=warns),
    )
    yield (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        torch.autograd.set_detect_anomaly,
    )
    for kind in ("cpu", "cuda"):
        yield read(_with, torch.is_autocast_enabled, kind), torch.set_autocast_enabled
        yield read(_with, torch.get_autocast_dtype, kind), torch.set_autocast_dtype
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        yield read(_with, getattr(backends.cuda, f"{kind}_sdp_enabled")), getattr(backends.cuda, f"enable_{kind}_sdp")
    places = [(operator.attrgetter(place)(backends), name) for place, names in _SWITCHES.items() for name in names]
    for owner, name in (*places, (torch.utils.deterministic, "fill_uninitialized_memory")):
        yield read(_with, getattr, owner, name), setattr


def _with(function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """Arguments, and what the function says of them."""
    return *arguments, function(*arguments)


@contextlib.contextmanager
def state_kept(*objects: object, but_values_of: nn.Module | None = None) -> Iterator[None]:
    """Put back at the end all that networks and losses hold, also after an exception or Ctrl-C.

    Kept are attributes, containers and random generators at any depth, of modules and of the user's own objects beside
    them (those of a package that a module's class is from); of tensors the values bit for bit, storage, version
    counter, ``requires_grad``, ``.grad`` and hooks. Networks write all of these in forward:
    ``Embedding(max_norm=…)`` its table, batch normalisation its statistics, others counters and caches.

    Args:
        objects: modules; or functions, whose own module, closure and arguments are looked into.
        but_values_of: a network that nobody else holds: the values of its parameters and buffers need no copy.

    Cost: one copy of every tensor held.
    """
    keeper = _Keeper(() if but_values_of is None else (*but_values_of.parameters(), *but_values_of.buffers()))
    for each in objects:
        keeper.keep(each)
    try:
        yield
    finally:
        with _uninterrupted():
            keeper.put_back()


def fixed_source(batches: object, num_samples: int | None = None) -> SampleSource:
    """Read a user's data as ``source_from_batches`` does; a loader and random states stay as they are.

    A ``DataLoader`` is read through a shallow copy: one with persistent workers has a single iterator, which the
    training may be in the middle of.

    Raises:
        DataError: nothing was found, or the items are not pairs of tensors.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(random_state_kept())
        if isinstance(batches, DataLoader):
            batches = copy.copy(batches)
            batches._iterator = None
            inner = getattr(batches.batch_sampler, "sampler", None)
            for part in (batches, batches.sampler, batches.batch_sampler, inner, batches.dataset):
                stack.enter_context(_attributes_kept(part))
        return source_from_batches(batches, num_samples)


@contextlib.contextmanager
def _attributes_kept(owner: object) -> Iterator[None]:
    """Attributes and generators of an object, not what is inside them: a data set may be large."""
    keeper = _Keeper()
    held = getattr(owner, "__dict__", {})
    keeper.note_items(held)
    for value in list(held.values()):
        keeper.keep_generator(value)
    try:
        yield
    finally:
        with _uninterrupted():
            keeper.put_back()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    pressed: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: pressed.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed and callable(before):
            before(*pressed[0])


class _Keeper:
    """Remembers values as they are met, each object once."""

    def __init__(self, forgotten: Iterable[Tensor] = ()) -> None:
        self._forgotten = {id(tensor) for tensor in forgotten}
        self._undo: list[Callable[[], object]] = []
        self._seen: dict[int, object] = {}
        self._packages: set[str] = set()

    def put_back(self) -> None:
        """Undo every change; one that fails does not stop the others."""
        with contextlib.ExitStack() as stack:
            for undo in self._undo:
                stack.callback(undo)

    def keep(self, root: object) -> None:
        """Remember an object and what it holds; not by recursion, as networks nest."""
        stack = [root]
        while stack:
            value = stack.pop()
            if id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, Tensor):
                self._keep_tensor(value)
            elif isinstance(value, nn.Module):
                package = type(value).__module__.partition(".")[0]
                if package != "torch":
                    self._packages.add(package)
                stack += self.note_items(vars(value))
            elif type(value) in _CONTAINERS:
                stack += self.note_items(value)
            elif not self.keep_generator(value):
                stack += self._inside(value)

    def _inside(self, value: Any) -> list[Any]:
        if isinstance(value, functools.partial):
            return [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, MethodType):
            return [value.__self__]
        if isinstance(value, FunctionType):
            return list(value.__closure__ or ())
        if isinstance(value, CellType):
            try:
                return [value.cell_contents]
            except ValueError:  # not filled yet
                return []
        own = type(value).__module__.partition(".")[0] in self._packages and not isinstance(value, type)
        return self.note_items(vars(value)) if own and hasattr(value, "__dict__") else []

    def note_items(self, held: Any) -> list[Any]:
        """Remember which items a container holds; returns them."""
        if isinstance(held, dict):
            items = dict(held)
            self._undo.append(lambda: _put_back_items(held, items))
            found = list(items.values())
        else:
            found = list(held)
            if not isinstance(held, tuple):
                self._undo.append(lambda: _put_back_sequence(held, found))
        return found if len(found) <= _MOST_ITEMS else []

    def keep_generator(self, value: Any) -> bool:
        """Remember the state of a random generator; whether it is one."""
        if isinstance(value, torch.Generator):
            self._undo.append(functools.partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._undo.append(functools.partial(setattr, bits, "state", bits.state))
        elif isinstance(value, np.random.RandomState):
            self._undo.append(functools.partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._undo.append(functools.partial(value.setstate, value.getstate()))
        else:
            return False
        return True

    def _keep_tensor(self, tensor: Tensor) -> None:
        flag, grad = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
        hooks = [(name, getattr(tensor, name, None)) for name in GRADIENT_HOOKS]
        empty = tensor.is_meta or is_lazy(tensor) or id(tensor) in self._forgotten
        data, values = tensor.data, None if empty else tensor.detach().clone()
        # A backward pass of the training that is still to come compares it.
        version = None if tensor.is_inference() else _unsafe_preserve_version_counter(tensor)

        def undo() -> None:
            if tensor.is_leaf:
                if tensor.requires_grad is not flag:
                    tensor.requires_grad_(flag)
                tensor.grad = grad
            for name, before in hooks:
                if getattr(tensor, name, None) is not before:
                    setattr(tensor, name, before)
            if values is None:
                return
            if tensor.layout is torch.strided and tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if not _same_bits(tensor, values):
                tensor.data.copy_(values)
            if version is not None:
                version.__exit__(None, None, None)

        self._undo.append(undo)


def _put_back_items(held: dict[Any, Any], items: dict[Any, Any]) -> None:
    if list(held) != list(items):  # a new name, or another order
        held.clear()
        held.update(items)
        return
    for name, value in items.items():
        if held.get(name, _MISSING) is not value:
            held[name] = value


def _put_back_sequence(held: Any, items: list[Any]) -> None:
    if len(held) == len(items) and all(a is b for a, b in zip(held, items, strict=True)):
        return
    held.clear()
    held.update(items) if isinstance(held, set) else held.extend(items)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit: NaN equals itself, and zero has a sign."""
    if a.layout is not torch.strided:
        return a is b or (a.layout is b.layout and torch.equal(a.to_dense(), b.to_dense()))
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    if a.is_quantized:
        return torch.equal(a, b)
    a, b = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (a.detach(), b))
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.view(whole), b.view(whole))
