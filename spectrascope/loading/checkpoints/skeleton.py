"""Networks without storage: names and shapes of an architecture at almost no cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.mapped import in_memory

__all__ = [
    "KeyDifference",
    "Skeleton",
    "assign_tensors",
    "build_if_shapes_fit",
    "build_skeleton",
    "compare",
    "kinds_of",
    "meta_copy",
    "skeleton_from",
    "skeleton_of",
]

Kinds: TypeAlias = "Counter[tuple[str, tuple[int, ...]]]"

# A number of classes no architecture has as a width, so that head dimensions give themselves away.
_PROBE_CLASSES = 1237

_INITIALISERS = {
    Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.erfinv_,
    Tensor.mul_, Tensor.add_, Tensor.clamp_,
}  # fmt: skip
# Those that come here whole, and would fill a meta tensor below, for which torch imports its compiler (seconds).
_INIT_FUNCTIONS = {nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_}


class _WithoutStorage(TorchFunctionMode):
    """Put parameters, which layers create with ``torch.empty``, on the meta device and do not fill them.

    Not ``torch.device("meta")``: that also moves the small tensors some constructors compute with, and RegNet
    and Swin then fail to build. Buffers stay real, so those a file does not hold keep their values.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.empty:
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        if func in _INITIALISERS and args[0].is_meta:
            return args[0]
        if func in _INIT_FUNCTIONS and kwargs and kwargs["tensor"].is_meta:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _build_without_storage(build: Callable[[], nn.Module]) -> nn.Module:
    with _WithoutStorage():
        return build()


def build_skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Run a constructor without allocating or initialising parameters; the RNG is left as found.

    Constructors that cannot do without their parameters' values (some try a layer out) are run in full.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return _build_without_storage(build)
        except (RuntimeError, LoadError):  # LoadError: what doors to other libraries make of it
            return build()


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Shapes of an architecture's state dict; ``head`` gives the axis of the number of classes, by key."""

    shapes: dict[str, tuple[int, ...]]
    head: dict[str, int]
    optional: frozenset[str]


class _OtherShapesError(BaseException):
    """Ends a constructor; not an ``Exception``, which the constructor might catch."""


def kinds_of(shapes: Mapping[str, tuple[int, ...]]) -> Kinds:
    """How many tensors of each name (without the module's) and shape there are."""
    return Counter((key.rpartition(".")[2], shape) for key, shape in shapes.items())


def build_if_shapes_fit(build: Callable[[int], nn.Module], held: Kinds, spare: int = 0) -> nn.Module | None:
    """Build a skeleton, or give up at the first parameters that a file, which holds tensors ``held``, does not have.

    Most of a library's thousand constructors are left after a layer or two, which makes trying all of them cheap.
    ``spare`` parameters may be too many, as some constructors make layers that they throw away.
    """
    left = held.copy()

    def check(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal spare
        if parameter is None or _PROBE_CLASSES in parameter.shape:
            return
        kind = name, tuple(parameter.shape)
        left[kind] -= 1
        spare -= left[kind] < 0
        if spare < 0:
            raise _OtherShapesError

    handle = register_module_parameter_registration_hook(check)
    try:
        with torch.random.fork_rng(devices=[]):
            return _build_without_storage(lambda: build(_PROBE_CLASSES))
    except _OtherShapesError:
        return None
    finally:
        handle.remove()


def assign_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Make these tensors the network's own, floats in float32, mapped ones copied; what it shares stays shared.

    Not ``load_state_dict``: some modules convert what they take for an older version of themselves there, by a
    version number that safetensors files do not have. The tensors' names and shapes are known to fit.
    """
    places = [
        (f"{prefix}.{name}" if prefix else name, store, name, old)
        for prefix, module in network.named_modules(remove_duplicate=False)
        for store in (module._parameters, module._buffers)
        for name, old in store.items()
        if old is not None
    ]
    new: dict[int, Tensor] = {}
    for key, _, _, old in places:
        if key in tensors and id(old) not in new:  # either name of a shared parameter will do
            value = in_memory(tensors[key], torch.float32)
            new[id(old)] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    for _, store, name, old in places:
        if id(old) in new:
            store[name] = new[id(old)]
    return network


def meta_copy(network: nn.Module) -> nn.Module:
    """Move parameters to the meta device in place, shared ones staying shared (``Module.to`` would part them)."""
    moved: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, old in module._parameters.items():
            if old is not None and not old.is_meta:
                empty = torch.empty_like(old, device="meta")
                module._parameters[name] = moved.setdefault(
                    id(old), nn.Parameter(empty, requires_grad=old.requires_grad)
                )
    return network


def skeleton_of(build: Callable[[int], nn.Module]) -> Skeleton:
    """Names and shapes of the network ``build(num_classes)`` makes."""
    return skeleton_from(build_skeleton(lambda: build(_PROBE_CLASSES)))


def skeleton_from(network: nn.Module) -> Skeleton:
    """Names and shapes of a network; its head is found if it was built by this module's functions."""
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    head = {key: shape.index(_PROBE_CLASSES) for key, shape in shapes.items() if _PROBE_CLASSES in shape}
    # Step counters of BatchNorm came with torch 0.4.1; older files lack them and nothing depends on them.
    optional = frozenset(key for key in shapes if key.endswith("num_batches_tracked"))
    return Skeleton(shapes, head, optional)


def _readable(key: str) -> str:
    """Keep a key from a damaged file on one line, and short."""
    key = key if key.isprintable() else repr(key)
    return key if len(key) <= 80 else f"{key[:79]}…"


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """How a state dict differs from an architecture's; ``reshaped`` is (key, expected, got)."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Number of keys that do not fit; 0 is an exact fit."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        parts = []
        for keys, what in ((self.missing, "missing"), (self.unexpected, "unexpected")):
            if keys:
                shown = ", ".join(_readable(key) for key in keys[:2]) + (", …" if len(keys) > 2 else "")
                parts.append(f"{len(keys)} {what} ({shown})")
        if self.reshaped:
            key, expected, got = self.reshaped[0]
            parts.append(f"{len(self.reshaped)} of another shape ({_readable(key)}: expected {expected}, got {got})")
        return ", ".join(parts) or "no difference"


def compare(skeleton: Skeleton, shapes: dict[str, tuple[int, ...]]) -> tuple[int | None, KeyDifference]:
    """Compare a state dict's shapes with an architecture's.

    Returns:
        The number of classes read off the head (``None`` where the architecture or the file has none) and the
        difference that remains with a head of that size.
    """
    num_classes = None
    for key, axis in reversed(skeleton.head.items()):  # the main head is registered last, after auxiliary ones
        if key in shapes and len(shapes[key]) == len(skeleton.shapes[key]):
            num_classes = shapes[key][axis]
            break
    missing, reshaped = [], []
    for key, shape in skeleton.shapes.items():
        expected = shape
        if num_classes is not None and key in skeleton.head:
            axis = skeleton.head[key]
            expected = (*shape[:axis], num_classes, *shape[axis + 1 :])
        if key not in shapes:
            if key not in skeleton.optional:
                missing.append(key)
        elif shapes[key] != expected:
            reshaped.append((key, expected, shapes[key]))
    unexpected = [key for key in shapes if key not in skeleton.shapes and not key.endswith("num_batches_tracked")]
    return num_classes, KeyDifference(tuple(missing), tuple(unexpected), tuple(reshaped))
