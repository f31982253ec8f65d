"""Chains of pointwise operations with one root, collapsed into one step.

``x * sigmoid(1.702 x)`` and the eight operations of a spelled-out GELU are one pointwise function of x: its slope and
the sum of all second-order coefficients are computed once per recording, and a direction then costs two products.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from spectrascope.curvature.recorder import Node, Value
from spectrascope.curvature.tangent.pointwise import derivatives
from spectrascope.curvature.tangent.rule import Pushed, Tangents
from spectrascope.curvature.tangent.table import is_pointwise
from spectrascope.curvature.tangent.values import Tangent, dense
from spectrascope.curvature.tangent.within import Within

__all__ = ["Chain", "ChainStep", "Chains"]


@dataclass
class Chain:
    """A root value, the slopes of the values that follow from it, and its second-order coefficient."""

    root: int
    slopes: dict[int, Any] = field(default_factory=dict)
    bend: Tensor | None = None
    curved: int = 0  # bits of the weights that have second-order terms here


class Chains:
    """Finds chains while the nodes are walked in order."""

    def __init__(self, values: list[Value]) -> None:
        self._values = values
        self._chain_of: dict[int, Chain] = {}
        self.by_root: dict[int, Chain] = {}

    def take(self, node: Node, curved: int, adjoint: Tensor | None) -> bool:
        """Whether the node continues a chain (or starts one), and is thereby dealt with."""
        output = node.outputs[0]
        if output is None or not is_pointwise(node) or any(o is not None for o in node.outputs[1:]):
            return False
        roots = {self.root_of(n) for n in node.inputs.values()}
        if len(roots) != 1:
            return False
        (root,) = roots
        out, start = self._values[output], self._values[root]
        if out.shape != start.shape or out.dtype != start.dtype:
            return False
        if any(self._values[n].shape != out.shape for n in node.inputs.values()):
            return False
        chain = self.by_root.setdefault(root, Chain(root))
        found = derivatives(node, second=adjoint is not None)
        slopes = [self._slope(n) for n in node.inputs.values()]
        total: Any = None
        for first, slope in zip(found.first, slopes, strict=True):
            term = first * slope
            total = term if total is None else total + term
        if adjoint is not None:
            for (i, j), second in found.second.items():
                part = adjoint * second * slopes[i] * slopes[j]
                part = part if i == j else 2 * part
                chain.bend = part if chain.bend is None else chain.bend + part
                chain.curved |= curved
        chain.slopes[output] = total
        self._chain_of[output] = chain
        return True

    def root_of(self, number: int) -> int:
        """The root of the chain a value belongs to: itself where it belongs to none."""
        chain = self._chain_of.get(number)
        return number if chain is None else chain.root

    def _slope(self, number: int) -> Any:
        chain = self._chain_of.get(number)
        return 1.0 if chain is None else chain.slopes[number]


@dataclass(frozen=True, slots=True)
class ChainStep:
    """Multiplies the root's tangents by the slope of each value wanted, and adds all second-order terms at once."""

    slopes: tuple[Any, ...]
    coefficient: Tensor | None
    shape: tuple[int, ...]

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        """Scale the root's tangents once per value that leaves the chain."""
        (tangent,) = z
        assert tangent is not None
        if self.coefficient is None and all(isinstance(s, float) and s == 1.0 for s in self.slopes):
            return [tangent] * len(self.slopes), None
        x = dense(tangent)
        bent = None
        if within is not None and self.coefficient is not None:
            bent = within.weighted(x, self.coefficient)
        out: list[Tangent | None] = []
        if outputs:
            for slope in self.slopes:
                plain = isinstance(slope, float) and slope == 1.0
                out.append(x if plain else x * slope)
        return out, bent

    def splits(self, samples: int) -> bool:
        """Entry by entry, samples stay apart."""
        return True
