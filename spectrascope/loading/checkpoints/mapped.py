"""Tensors that lie in a memory-mapped file: each is copied once, where it is going to stay.

A checkpoint that is read whole before it is put into a network takes twice the network's memory, in every process of a
job. Mapped, its pages belong to the file, are shared by all processes, and go when memory is short. But they must not
outlive loading: whoever overwrites the file meanwhile would change the numbers that are measured, and whoever cuts it
short would have the system end the process.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["in_memory", "keep_in_memory"]


def in_memory(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor in memory of this process, a floating-point one in ``dtype``; itself where it is so already.

    >>> stored = torch.ones(3)
    >>> in_memory(stored) is stored, in_memory(stored, torch.float64).dtype
    (True, torch.float64)
    """
    other = dtype is not None and tensor.is_floating_point() and tensor.dtype is not dtype
    if other or tensor.is_meta:
        return tensor.to(dtype) if other else tensor
    return tensor if _is_torchs(tensor) else tensor.clone()


def keep_in_memory(network: nn.Module) -> None:
    """Copy those parameters and buffers that lie in a file, one after the other; shared ones stay shared."""
    for module in network.modules():
        for held in (*module._parameters.values(), *module._buffers.values()):
            if held is not None:
                held.data = in_memory(held.data)


def _is_torchs(tensor: Tensor) -> bool:
    """Whether torch has allocated a tensor's memory; what it takes over, of a file or another library, is fixed."""
    return tensor.layout is not torch.strided or tensor.untyped_storage().resizable()
