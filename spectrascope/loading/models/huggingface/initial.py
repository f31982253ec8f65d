"""Loading by transformers' own classes, without what they initialise along the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["one_at_a_time", "without_initial_weights", "without_storage"]

# Methods by which transformers gives weights that a file lacks random values.
_INITIALISING = (
    "_move_missing_keys_from_meta_to_device", "_initialize_missing_keys", "initialize_weights", "init_weights",
)  # fmt: skip


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Have transformers convert tensors as it comes to them; its threads convert all that are still to be stacked."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def without_storage(cls: Any) -> Any:
    """A subclass whose loading initialises nothing and leaves everything on the meta device, whatever a file lacks.

    Else a header that fits badly costs the memory and the time of a whole random network before it is refused.
    """
    members = {name: lambda self, *args, **kwargs: None for name in _INITIALISING if hasattr(cls, name)}
    return type(cls.__name__, (cls,), {**members, "__module__": cls.__module__})


def without_initial_weights(cls: Any) -> Any:
    """A subclass whose loading initialises buffers, but no parameter that came from a file.

    Transformers knows which tensors it has loaded and leaves them alone, but not views of them: some classes zero
    the padding token's row of an embedding that way, after it was read.
    """
    if not hasattr(cls, "_initialize_missing_keys"):
        return cls

    def initialise(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _Unwritten(self):
            return super(inner, self)._initialize_missing_keys(*args, **kwargs)

    inner: Any = type(cls.__name__, (cls,), {"_initialize_missing_keys": initialise, "__module__": cls.__module__})
    return inner


class _Unwritten(TorchFunctionMode):
    """Drop what is written into a network's parameters, or into any part of them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.kept = {p.untyped_storage().data_ptr() for p in network.parameters() if not p.is_meta and p.numel()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if writes and args and isinstance(args[0], Tensor) and self._is_kept(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))

    def _is_kept(self, tensor: Tensor) -> bool:
        return not tensor.is_meta and tensor.untyped_storage().data_ptr() in self.kept
