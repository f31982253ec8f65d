"""Which policy a gate follows: the default, or what a TOML table says."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from spectrascope.errors import PolicyError
from spectrascope.gating.grammar import parse_rule
from spectrascope.records.verdict import Action, GatePolicy

__all__ = ["DEFAULT_RULES", "POLICY_KEYS", "add_rules", "default_policy", "policy_from_table"]

DEFAULT_RULES = (
    "beta: +-0.1 or noise",
    "alpha_g: +-0.1 or noise",
    "h[1]: +50% or +noise",
    "summary.beta_median: +-0.05 or noise",
    "summary.signal.n_resolved: -20% or -noise",
    "summary.signal.n_signal: -20% or -noise",
    "summary.signal.step_exponent.decrease: -20% or -noise",
    "pr_h: +-20% or noise (informational)",
    "beta.r2: -0.1 (informational)",
    "rank_model: same (informational)",
    "loss: +50%",
)
"""A change counts if it is both larger than anyone should mind and more than the samples explain.

What is signal is judged by totals over all layers, and by its fall: fewer directions that noise would not give, and a
step that promises less, are what the published beta does not show. The loss on the same samples may rise by half; on
other samples, where no sampling error is known for it, its rise is reported only.
"""

POLICY_KEYS = ("rules", "extend-rules", "false-alarms", "missing", "failed", "new", "layers", "exclude")
"""Keys of a policy table."""


def default_policy() -> GatePolicy:
    """Return the policy of a gate that is told nothing.

    >>> len(default_policy().rules) == len(DEFAULT_RULES)
    True
    """
    return GatePolicy(tuple(parse_rule(text) for text in DEFAULT_RULES))


def policy_from_table(table: Mapping[str, Any], source: str) -> GatePolicy:
    """Build a policy from a TOML table.

    ``rules`` takes the place of the default rules, ``extend-rules`` comes after whatever rules there are.

    Args:
        table: keys of :data:`POLICY_KEYS`.
        source: where it comes from, for messages and the verdict.

    Raises:
        PolicyError: an unknown key, a value of the wrong type, or a malformed rule; the message names the source.

    >>> policy_from_table({"rules": ["beta: +-0.2"], "new": "inform"}, "p.toml").new.value
    'inform'
    """
    for key in table:
        if key not in POLICY_KEYS:
            close = difflib.get_close_matches(key, POLICY_KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected {', '.join(POLICY_KEYS)}"
            raise PolicyError(f"{source}: unknown key {key!r} of the gate policy; {hint}")
    try:
        rules = _strings(table, "rules", DEFAULT_RULES) + _strings(table, "extend-rules", ())
        return GatePolicy(
            rules=tuple(parse_rule(text) for text in rules),
            false_alarms=_fraction(table),
            missing=_action(table, "missing"),
            failed=_action(table, "failed"),
            new=_action(table, "new"),
            layers=_strings(table, "layers", ()),
            exclude=_strings(table, "exclude", ()),
            source=source,
        )
    except PolicyError as error:
        raise PolicyError(f"{source}: {error}") from None


def add_rules(policy: GatePolicy, rules: Sequence[str]) -> GatePolicy:
    """Return the policy with rules after its own, so that they win.

    Raises:
        PolicyError: a malformed rule.
    """
    if not rules:
        return policy
    return replace(
        policy, rules=(*policy.rules, *(parse_rule(text) for text in rules)), source=f"{policy.source} and --rule"
    )


def _strings(table: Mapping[str, Any], key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = table.get(key, default)
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise PolicyError(f"{key} must be a list of strings, found {value!r}")
    return tuple(value)


def _fraction(table: Mapping[str, Any]) -> float:
    value = table.get("false-alarms", 0.01)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise PolicyError(f"false-alarms must be a number between 0 and 1, such as 0.01, found {value!r}")
    return float(value)


def _action(table: Mapping[str, Any], key: str) -> Action:
    value = table.get(key, Action.FAIL.value)
    known = [action.value for action in Action]
    if value not in known:
        raise PolicyError(f"{key} must be one of {', '.join(known)}, found {value!r}")
    return Action(value)
