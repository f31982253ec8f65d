"""Losses that compare entry by entry and add up: squared errors, binary cross-entropies, Huber's and the like.

Their second derivative is one number per entry, so the forms of all tangents are weighted inner products, and samples
stay apart although the output is a single number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from spectrascope.curvature.claims import bare_name
from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.pointwise import PointwiseStep, derivatives
from spectrascope.curvature.tangent.rule import Pushed, TangentRule, Tangents, argument
from spectrascope.curvature.tangent.within import Within

__all__ = ["COMPARING_RULES", "adds_up_samples"]

_PLACES = {
    "mse_loss": 2,
    "smooth_l1_loss": 2,
    "huber_loss": 2,
    "soft_margin_loss": 2,
    "binary_cross_entropy": 3,
    "binary_cross_entropy_with_logits": 4,
}
"""Where each takes how its entries are put together: 0 not at all, 1 as their mean, 2 as their sum."""


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The entries' own comparison, and the factor with which they are added up; ``None`` where they are not."""

    entries: PointwiseStep
    factor: float | None

    def push(self, z: Tangents, *, outputs: bool, within: Within | None) -> tuple[Pushed, Tensor | None]:
        """Push through every entry, then add up."""
        pushed, bent = self.entries.push(z, outputs=outputs, within=within)
        if self.factor is None or not outputs:
            return pushed, bent
        (out,) = pushed
        assert isinstance(out, Tensor)
        return (out.flatten(1).sum(1) * self.factor,), bent

    def splits(self, samples: int) -> bool:
        """Entry by entry, samples stay apart."""
        return True


def adds_up_samples(node: Node) -> bool:
    """Whether the one number that comes out is made of entries each of which is one sample's."""
    return node.name in COMPARING_RULES and _accepts(node)


def _make(node: Node, adjoints: Sequence[Tensor | None]) -> _Comparison:
    how = _reduction(node)
    apart = _apart(node)
    shape = tuple(apart.outs[0].shape)
    factor = None if how == 0 else 1.0 / max(apart.outs[0].numel(), 1) if how == 1 else 1.0
    adjoint = adjoints[0]
    if adjoint is not None and factor is not None:
        adjoint = (adjoint * factor).expand(shape)
    return _Comparison(PointwiseStep(derivatives(apart, second=adjoint is not None), adjoint, shape), factor)


def _reduction(node: Node) -> int:
    return int(argument(node, _PLACES[bare_name(node.name)], "reduction", 1))


def _apart(node: Node) -> Node:
    """The same comparison of every entry, not added up; of what comes out the shape alone is known, and wanted."""
    place = _PLACES[bare_name(node.name)]
    kwargs: dict[str, Any] = dict(node.kwargs)
    args = list(node.args)
    if len(args) > place:
        args[place] = 0
    else:
        kwargs["reduction"] = 0
    return replace(node, args=tuple(args), kwargs=kwargs, outs=(node.tensors()[0].detach(),))


def _accepts(node: Node) -> bool:
    first, second = node.tensors()[:2]
    return set(node.inputs) <= {0, 1} and first.shape == second.shape


COMPARING_RULES: dict[str, TangentRule] = {f"aten.{name}": TangentRule(_make, _accepts) for name in _PLACES}
