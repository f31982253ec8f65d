"""Weights that stay in the host's memory and are on a device only while operations there read them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spectrascope.curvature.operations import storage_of, tensors_of
from spectrascope.network.formats import replace_tensors

__all__ = ["Streamed"]

_AT_A_TIME = 4
"""How many tensors of the largest one's size are on the device together: an operation reads two or three."""


@dataclass
class _Weight:
    """A tensor of the device, whose memory comes and goes, and its numbers in the host's memory."""

    there: Tensor
    here: Tensor
    changed: bool = False

    @property
    def nbytes(self) -> int:
        return self.here.untyped_storage().nbytes()


class Streamed(TorchDispatchMode):
    """While this is entered, what reads a weight that is not on the device has it brought there first.

    The network holds tensors of the device throughout, so nothing that runs it, differentiates it or follows it need
    know. Only their memory comes and goes, in the order of use; what was written is brought back.

    Args:
        weights: parameters and buffers that stay in the host's memory.
        network: that holds them, where they are replaced.
        device: on which they are read.
    """

    def __init__(self, weights: Iterable[Tensor], network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._weights: dict[int, _Weight] = {}
        self._there: OrderedDict[int, None] = OrderedDict()  # the longest unused first
        self._taken = 0
        self._lock = threading.RLock()  # autograd runs one thread for each device
        replaced: dict[int, Tensor] = {}
        for tensor in weights:
            if id(tensor) not in replaced and tensor.device != device:
                replaced[id(tensor)] = self._take(tensor, device)
        replace_tensors(network, replaced)
        self._room = _AT_A_TIME * max((w.nbytes for w in self._weights.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes in the host's memory."""
        return sum(weight.nbytes for weight in self._weights.values())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        strided = (tensor for tensor in tensors_of(args, kwargs) if tensor.layout is torch.strided)
        read = [key for key in map(storage_of, strided) if key in self._weights]
        if not read:
            return func(*args, **kwargs)
        with self._lock:
            self._bring(read)
            if func._schema.is_mutable:
                for key in read:
                    self._weights[key].changed = True
            return func(*args, **kwargs)

    def _take(self, tensor: Tensor, device: torch.device) -> Tensor:
        here = tensor.detach().contiguous()
        there = torch.empty_like(here, device=device)
        if device.type == "cuda":
            here = here.pin_memory()
        # ``.data`` has a count of changes of its own: bringing numbers back is no change to autograd.
        self._weights[storage_of(there)] = _Weight(there.data, here)
        there.untyped_storage().resize_(0)
        return there

    def _bring(self, keys: list[int]) -> None:
        missing = sum(self._weights[key].nbytes for key in {*keys} - self._there.keys())
        for key in [key for key in self._there if key not in keys]:
            if self._taken + missing <= self._room:
                break
            self._send_back(key)
        for key in keys:
            weight = self._weights[key]
            if key not in self._there:
                weight.there.untyped_storage().resize_(weight.nbytes)
                weight.there.copy_(weight.here, non_blocking=True)
                self._taken += weight.nbytes
            self._there[key] = None
            self._there.move_to_end(key)

    def _send_back(self, key: int) -> None:
        weight = self._weights[key]
        if weight.changed:
            weight.here.copy_(weight.there)
            weight.changed = False
        weight.there.untyped_storage().resize_(0)
        del self._there[key]
        self._taken -= weight.nbytes
