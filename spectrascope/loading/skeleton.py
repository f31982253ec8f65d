"""Networks without storage: names and shapes of an architecture at almost no cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Difference", "Skeleton", "build_skeleton", "compare", "skeleton_of"]

# A number of classes no architecture has as a width, so that head dimensions give themselves away.
_PROBE_CLASSES = 1237

_INITIALISERS = {
    Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.erfinv_,
    Tensor.mul_, Tensor.add_, Tensor.clamp_,
}  # fmt: skip


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
        return func(*args, **(kwargs or {}))


def build_skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Run a constructor without allocating or initialising parameters; the RNG is left as found."""
    with torch.random.fork_rng(devices=[]), _WithoutStorage():
        return build()


@dataclass(frozen=True, slots=True)
class Skeleton:
    """Shapes of an architecture's state dict; ``head`` gives the axis of the number of classes, by key."""

    shapes: dict[str, tuple[int, ...]]
    head: dict[str, int]
    optional: frozenset[str]


def skeleton_of(build: Callable[[int], nn.Module]) -> Skeleton:
    """Names and shapes of the network ``build(num_classes)`` makes."""
    network = build_skeleton(lambda: build(_PROBE_CLASSES))
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
class Difference:
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


def compare(skeleton: Skeleton, shapes: dict[str, tuple[int, ...]]) -> tuple[int | None, Difference]:
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
    return num_classes, Difference(tuple(missing), tuple(unexpected), tuple(reshaped))
