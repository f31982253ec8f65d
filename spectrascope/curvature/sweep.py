"""Backward over a tape: columns of cotangents from the output to every use of every weight."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from spectrascope.curvature.columns import Columns
from spectrascope.curvature.recorder import Tape, WeightUse

__all__ = ["sweep_back"]


def sweep_back(tape: Tape, number: int, columns: Tensor, on_use: Callable[[WeightUse, Columns], None]) -> None:
    """Pull cotangents (c, *output.shape) of value ``number`` back through the tape.

    Args:
        tape: a finished recording; it may be swept any number of times.
        number: value number of the output.
        columns: consumed; its memory may be reused.
        on_use: called at each use of a weight with the cotangents (c, *shape) of that operation's output. They may
            carry a channel scale, and must not be changed.
    """
    grads: dict[int, Columns] = {number: Columns(columns)}
    for node in reversed(tape.nodes):
        outs = [None if o is None else grads.pop(o, None) for o in node.outputs]
        if all(o is None for o in outs):
            continue
        if node.use is not None and outs[0] is not None:
            on_use(node.use, outs[0])
        if not node.inputs:
            continue
        positions = tuple(node.inputs)
        assert node.rule is not None
        for value, back in zip(node.inputs.values(), node.rule.vjp(node.saved, outs, positions), strict=True):
            if back is not None:
                grads[value] = grads[value].plus(back) if value in grads else back
