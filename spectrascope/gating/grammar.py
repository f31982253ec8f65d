"""Rules as people write them: ``beta @ layer3.*: +-0.1 or noise``."""

from __future__ import annotations

import re

from spectrascope.errors import PolicyError
from spectrascope.gating.numbers import canonical, require_known
from spectrascope.records.verdict import Condition, Direction, Limit, Rule

__all__ = ["parse_rule"]

_INFORMATIONAL = re.compile(r"\s*\(informational\)\s*$")
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_SIGN = r"\+-|\+/-|±|\+|-"
_CHANGE = re.compile(rf"(?P<sign>{_SIGN})?\s*(?:(?P<amount>{_NUMBER})\s*(?P<unit>%|stderrs?|)|(?P<noise>noise))")
_BOUND = re.compile(rf"(?P<kind>min|max)\s*(?P<value>[+-]?{_NUMBER})")
_SIGNS = {None: Direction.BOTH, "+-": Direction.BOTH, "+/-": Direction.BOTH, "±": Direction.BOTH}

_FORMS = "+-0.15, +20%, -5%, 3 stderr, noise, min 0.9, max 2.5, same or any"


def parse_rule(text: str) -> Rule:
    """Read one rule, ``NUMBER [@ GLOB]: CONDITION [or CONDITION … | and CONDITION …] [(informational)]``.

    ============== ======================================================================================
    condition      what it allows
    ============== ======================================================================================
    ``+-0.15``     a change of at most 0.15 either way; ``+0.15`` limits a rise only, ``-0.15`` a fall only
    ``+-20%``      the same, in percent of the baseline's absolute value
    ``3 stderr``   a change of at most three standard errors of what sampling alone changes
    ``noise``      what sampling alone changes in any of all the checks, but for ``false_alarms`` of times
    ``min 0.9``    a value of at least 0.9, whatever the baseline's; ``max 2.5`` likewise
    ``same``       the same value, up to rounding; rank models that tie are the same
    ``any``        anything: takes these layers out of an earlier rule
    ============== ======================================================================================

    Raises:
        PolicyError: not of that form, or a number that no report holds; the message says which and what to try.

    >>> rule = parse_rule("beta @ layer3.*: +-0.1 or noise")
    >>> rule.number, rule.layers, [c.limit.value for c in rule.conditions], rule.all_of
    ('beta', 'layer3.*', ['amount', 'noise'], False)
    """
    body, informational = _INFORMATIONAL.subn("", text)
    head, colon, allowed = body.rpartition(":")
    if not colon or not head.strip() or not allowed.strip():
        raise _malformed(text, "expected NUMBER: CONDITION, such as 'beta: +-0.15'")
    number, at, layers = (part.strip() for part in head.partition("@"))
    if at and not layers:
        raise _malformed(text, "no layers after '@', expected a glob such as layer3.*")
    require_known(number, of_layers=bool(at), rule=text)
    words = re.split(r"\s+(or|and)\s+", allowed.strip())
    connectives = set(words[1::2])
    if len(connectives) > 1:
        raise _malformed(text, "'or' and 'and' cannot be mixed in one rule")
    conditions = tuple(_parse_condition(word, text) for word in words[::2]) if allowed.strip() != "any" else ()
    return Rule(
        number=canonical(number),
        layers=layers or "*",
        conditions=conditions,
        all_of=connectives == {"and"},
        informational=bool(informational),
        text=" ".join(text.split()),
    )


def _parse_condition(text: str, rule: str) -> Condition:
    if text == "same":
        return Condition(Limit.SAME)
    if bound := _BOUND.fullmatch(text):
        return Condition(Limit(bound["kind"]), float(bound["value"]))
    change = _CHANGE.fullmatch(text)
    if change is None:
        raise _malformed(rule, f"{text!r} is none of {_FORMS}")
    direction = _SIGNS.get(change["sign"]) or Direction(change["sign"])
    if change["noise"]:
        return Condition(Limit.NOISE, direction=direction)
    amount, unit = float(change["amount"]), change["unit"]
    if unit.startswith("stderr"):
        return Condition(Limit.STDERR, amount, direction)
    if change["sign"] is None:
        raise _malformed(rule, f"{text!r} lacks a sign: +-{text} limits a change, min or max {text} the value")
    if unit == "%":
        return Condition(Limit.PERCENT, amount, direction)
    return Condition(Limit.AMOUNT, amount, direction)


def _malformed(rule: str, why: str) -> PolicyError:
    return PolicyError(f"gate rule {rule!r}: {why}")
