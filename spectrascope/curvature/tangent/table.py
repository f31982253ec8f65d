"""The rule of a recorded operation."""

from __future__ import annotations

from spectrascope.curvature.tangent.attention import ATTENTION_RULES
from spectrascope.curvature.tangent.generic import GENERIC_RULE
from spectrascope.curvature.tangent.linear import LINEAR_RULES
from spectrascope.curvature.tangent.normalise import NORMALISING_RULES
from spectrascope.curvature.tangent.pointwise import POINTWISE_RULES
from spectrascope.curvature.tangent.products import PRODUCT_RULES
from spectrascope.curvature.tangent.recording import Node
from spectrascope.curvature.tangent.rule import TangentRule

__all__ = ["find_rule", "is_pointwise"]

_TABLES = (LINEAR_RULES, POINTWISE_RULES, PRODUCT_RULES, NORMALISING_RULES, ATTENTION_RULES)


def find_rule(node: Node) -> TangentRule:
    """The rule for this call; the generic one where none is known to cover it."""
    for name in (node.name, node.name.removesuffix("_")):
        for table in _TABLES:
            rule = table.get(name)
            if rule is not None and rule.accepts(node):
                return rule
    return GENERIC_RULE


def is_pointwise(node: Node) -> bool:
    """Whether the operation works entry by entry, so that chains of such operations collapse into one."""
    return node.name in POINTWISE_RULES or node.name.removesuffix("_") in POINTWISE_RULES
