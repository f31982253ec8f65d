"""Everything a measurement could move, taken down before it and compared after: for any network and any way to end."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_globals
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_LEAF = (int, float, complex, bool, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType)
_FOREIGN = ("torch.", "numpy.", "logging", "threading", "weakref", "_weakref", "builtins", "functools")
GRADIENT_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@contextlib.contextmanager
def left_as_found(*objects: object) -> Iterator[None]:
    """Fail if anything is other after the block than before, however it ends.

    Args:
        objects: networks, losses, loaders, optimizers, generators: all that can be reached from them is compared, and
            the settings of torch, NumPy and Python themselves.
    """
    before = take_down(*objects)
    try:
        yield
    finally:
        after = take_down(*objects)
        found = differences(before, after)
        assert not found, "not left as found:\n" + "\n".join(found[:20])


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """What was lost, is new, or has another value."""
    lost = [f"lost: {name}" for name in before if name not in after]
    new = [f"new: {name} = {str(after[name])[:80]}" for name in after if name not in before]
    changed = [
        f"{name}: {str(before[name])[:80]} -> {str(after[name])[:80]}"
        for name in before
        if name in after and before[name] != after[name]
    ]
    return lost + new + changed


def take_down(*objects: object) -> dict[str, object]:
    """A line for each thing that can be compared; tensors by identity, place, version and a digest of their bits."""
    found = settings()
    found |= random_states()
    seen: dict[int, str] = {}
    stack: list[tuple[str, Any]] = [(f"#{i}", each) for i, each in reversed(list(enumerate(objects)))]
    while stack:
        name, value = stack.pop()
        if isinstance(value, _LEAF):
            found[name] = value if not isinstance(value, type | types.FunctionType) else id(value)
        elif id(value) in seen:
            found[name] = f"the same as {seen[id(value)]}"
        else:
            seen[id(value)] = name
            found[name] = (type(value).__qualname__, id(type(value)), id(value))
            stack += reversed(_inside(name, value, found))
    return found


def _inside(name: str, value: Any, found: dict[str, object]) -> list[tuple[str, Any]]:
    if isinstance(value, Tensor):
        return _tensor(name, value, found)
    if isinstance(value, torch.Generator):
        found[f"{name} state"] = _digest(value.get_state())
        return []
    if isinstance(value, np.random.Generator):
        found[f"{name} state"] = str(value.bit_generator.state)
        return []
    if isinstance(value, random.Random):
        found[f"{name} state"] = hash(value.getstate())
        return []
    if isinstance(value, np.ndarray):
        found[f"{name} values"] = hashlib.sha256(value.tobytes()).hexdigest()
        return []
    if isinstance(value, dict):
        return [(f"{name}[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        found[f"{name} items"] = sorted(map(str, value))
        return []
    if isinstance(value, types.MethodType):
        return [(f"{name}.self", value.__self__)]
    foreign = f"{type(value).__module__}.".startswith(_FOREIGN)
    known = isinstance(value, (nn.Module, torch.optim.Optimizer, torch.utils.data.DataLoader, torch.utils.data.Sampler))
    if (known or not foreign) and hasattr(value, "__dict__"):
        return [(f"{name}.{key}", item) for key, item in vars(value).items()]
    return []


def _tensor(name: str, value: Tensor, found: dict[str, object]) -> list[tuple[str, Any]]:
    found[f"{name} flags"] = (
        value.requires_grad,
        value.is_leaf,
        str(value.dtype),
        str(value.device),
        str(value.layout),
    )
    found[f"{name} hooks"] = [
        None if (hooks := getattr(value, kind, None)) is None else (id(hooks), [id(hook) for hook in hooks.values()])
        for kind in GRADIENT_HOOKS
    ]
    if not value.is_inference():
        found[f"{name} version"] = value._version
    if value.layout is torch.strided and not value.is_meta:
        found[f"{name} place"] = (tuple(value.shape), value.stride(), value.storage_offset(), value.data_ptr())
        found[f"{name} bits"] = _digest(value)
    elif value.layout is torch.sparse_coo:
        found[f"{name} bits"] = _digest(value.detach().to_dense())
    return [(f"{name}.grad", value.grad)] if value.is_leaf else []


def _digest(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"").hexdigest()[:16]


def random_states() -> dict[str, object]:
    """Of torch on every device, NumPy and Python."""
    states: dict[str, object] = {
        "random of torch": _digest(torch.get_rng_state()),
        "random of numpy": hashlib.sha256(str(np.random.get_state()).encode()).hexdigest(),
        "random of numpy, words": hashlib.sha256(np.random.get_state()[1].tobytes()).hexdigest(),
        "random of python": hash(random.getstate()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for i, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"random of cuda:{i}"] = _digest(state)
    return states


def settings() -> dict[str, object]:
    """Of torch, NumPy, Python and the process."""
    backends: Any = torch.backends
    cpu_dtype = torch.get_autocast_dtype("cpu")
    found: dict[str, object] = {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast dtypes": [str(cpu_dtype), str(torch.get_autocast_dtype("cuda"))],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "autocast class": id(torch.amp.autocast_mode.autocast.__enter__),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic, warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill uninitialised": torch.utils.deterministic.fill_uninitialized_memory,
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "anomaly mode": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "multithreading": torch.autograd.is_multithreading_enabled(),
        "view replay": torch.autograd.is_view_replay_enabled(),
        "fast path": backends.mha.get_fastpath_enabled(),
        "mkldnn": backends.mkldnn.enabled,
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic),
        "attention kernels": [
            getattr(backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math", "cudnn")
        ],
        "function modes": len(_get_current_function_mode_stack()),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "printing": str(vars(torch._tensor_str.PRINT_OPTS)),
        "hooks on all modules": [
            (name, list(hooks)) for name, hooks in vars(module_globals).items() if name.startswith("_global_") and hooks
        ],
        "safe globals": sorted(map(str, torch.serialization.get_safe_globals())),
        "warnings": [str(item) for item in warnings.filters],
        "showwarning": id(warnings.showwarning),
        "logging": (logging.root.manager.disable, logging.root.level, len(logging.root.handlers)),
        "numpy errors": np.geterr(),
        "numpy printing": str(np.get_printoptions()),
        "recursion": sys.getrecursionlimit(),
        "garbage": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "trace": (sys.gettrace() is None, sys.getprofile() is None),
        "path": list(sys.path),
        "hooks of python": (id(sys.excepthook), id(sys.displayhook), id(sys.stdout), id(sys.stderr)),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }
    if threading.current_thread() is threading.main_thread():
        found["signals"] = [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    found |= {f"precision {name}": value for name, value in _precisions()}
    return found


def _precisions() -> Iterator[tuple[str, object]]:
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        yield "matmul", torch.get_float32_matmul_precision()
        yield "tf32", (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32)
        return
    try:
        yield "word", torch.get_float32_matmul_precision()
    except RuntimeError:
        yield "word", "contradicted by other switches"
    places = {"cuda": backends.cuda.matmul, "cudnn": backends.cudnn, "mkldnn": backends.mkldnn}
    for name, place in places.items():
        for part in ("", "conv", "rnn", "matmul"):
            owner = getattr(place, part, None) if part else place
            if hasattr(owner, "fp32_precision"):
                yield f"{name} {part}", owner.fp32_precision
