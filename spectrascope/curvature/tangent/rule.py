"""What a rule makes of a recorded operation: a step that pushes tangents through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.values import Tangent, Zero
from spectrascope.curvature.tangent.within import Within

__all__ = ["LinearStep", "Pushed", "Step", "TangentRule", "Tangents", "argument"]

Tangents = Sequence["Tangent | None"]
"""One batch of tangents per tracked input, in the order of the node's ``inputs``; ``None`` where there is none."""

Pushed = Sequence["Tangent | Zero | None"]
"""One batch of tangents per output; ``None`` where the output is not followed."""


class Step(Protocol):
    """An operation with its constants: values and adjoints read off the recording."""

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        """Push tangents of any number of weights through; all of them arrive at the same inputs.

        Args:
            z: tangents of the tracked inputs.
            outputs: whether the outputs' tangents are wanted.
            within: which tangent belongs to which weight, where the second-order contribution is wanted.

        Returns:
            The outputs' tangents (empty if not wanted), and per sample group and weight the sums (G, W, K, K) of
            <delta, D²phi[z_k, z_j]> over the outputs, of which only the symmetric part means something; ``None`` for
            zero.
        """
        ...

    def splits(self, samples: int) -> bool:
        """Whether it can tell the contributions of so many samples apart, those of its outputs lying one by one.

        A sample counts once per round: those of (tokens, samples, width) as tokens × samples.
        """
        ...


@dataclass(frozen=True, slots=True)
class TangentRule:
    """How one operation behaves.

    ``make(node, adjoints)`` builds its step, ``adjoints`` being one per output, ``None`` where there is none.
    ``accepts`` says whether the rule covers this call, with tangents where they are.
    """

    make: Callable[[Node, Sequence[Tensor | None]], Step]
    accepts: Callable[[Node], bool] = lambda node: True


@dataclass(frozen=True, slots=True)
class LinearStep:
    """A step of an operation without second-order terms."""

    apply: Callable[[Tangents], Pushed]

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        """Apply the linear map."""
        return (self.apply(z) if outputs else ()), None

    def splits(self, samples: int) -> bool:
        """There is nothing to tell apart."""
        return True


def argument(node: Node, position: int, name: str, default: Any) -> Any:
    """An argument given by position, by name, or not at all."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)
