"""Losses that read the network's weights themselves, beside its outputs: a penalty on weights, a residual of its own.

What such a loss holds is the network its owner has. A copy in another format or on another device has other weights,
which the loss never sees: measured on one, it would be a constant.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from spectrascope.errors import UnsupportedModelError
from spectrascope.workload import Workload

__all__ = ["with_weights_in_loss_seen"]


def with_weights_in_loss_seen(workload: Workload, given: nn.Module) -> Workload:
    """Find out on two samples whether the loss reads weights of the network; the same workload where it does not.

    Args:
        workload: the network held still.
        given: the network as its owner holds it.

    Raises:
        UnsupportedModelError: it does, and what is measured is a copy.
    """
    inputs, targets = workload.fetch(0, min(2, workload.source.n))
    with torch.no_grad():
        output = workload.forward(inputs)
    with torch.enable_grad():
        loss = workload.loss_fn(output, targets)
    names = {id(p): name for name, p in given.named_parameters()}
    read = [names[id(leaf)] for leaf in _leaves(loss) if id(leaf) in names]
    if not read:
        return workload
    if workload.model is not given:
        raise UnsupportedModelError(
            f"the loss reads the network's own weights ({read[0]!r}), and what is measured in "
            f"{str(workload.dtype).removeprefix('torch.')} on {workload.device.type} is a copy that it does not see: "
            "convert and move the network itself first, and measure it as it is, or have the network return what the "
            "loss needs"
        )
    return replace(workload, loss_reads_weights=True)


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that a result hangs on and that nothing computed."""
    left, seen, found = [loss.grad_fn], set(), []
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.append(variable)
        left.extend(before for before, _ in node.next_functions)
    return found
