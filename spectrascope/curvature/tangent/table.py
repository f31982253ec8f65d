"""The rule of a recorded operation."""

from __future__ import annotations

from spectrascope.curvature.claims import Kind, read_claim
from spectrascope.curvature.recorder import Node
from spectrascope.curvature.tangent.attention import ATTENTION_RULES
from spectrascope.curvature.tangent.compared import COMPARING_RULES
from spectrascope.curvature.tangent.generic import GENERIC_RULE
from spectrascope.curvature.tangent.linear import LINEAR_RULES
from spectrascope.curvature.tangent.normalise import NORMALISING_RULES
from spectrascope.curvature.tangent.pointwise import POINTWISE_RULES
from spectrascope.curvature.tangent.products import PRODUCT_RULES
from spectrascope.curvature.tangent.rule import TangentRule

__all__ = ["find_rule", "is_pointwise", "kind_of"]

_STRAIGHT = (LINEAR_RULES, POINTWISE_RULES)
_OTHERS = (POINTWISE_RULES, PRODUCT_RULES, NORMALISING_RULES, ATTENTION_RULES, COMPARING_RULES)


def kind_of(node: Node) -> Kind:
    """What is claimed of this call; for tangents what may jump is straight as well."""
    kind = read_claim(node.name, node.args, node.kwargs, node.inputs, len(node.tensors())).kind
    return Kind.STRAIGHT if kind is Kind.JUMPING else kind


def find_rule(node: Node, kind: Kind) -> TangentRule:
    """The rule for this call; the generic one where none is known to cover it."""
    for name in (node.name, node.name.removesuffix("_")):
        for table in _STRAIGHT if kind is Kind.STRAIGHT else _OTHERS:
            rule = table.get(name)
            if rule is not None and rule.accepts(node):
                return rule
    return GENERIC_RULE


def is_pointwise(node: Node) -> bool:
    """Whether the operation works entry by entry, so that chains of such operations collapse into one."""
    return node.name in POINTWISE_RULES or node.name.removesuffix("_") in POINTWISE_RULES
