"""Rules as written: what they mean, and one clear line where they mean nothing."""

import pytest

from spectrascope.errors import PolicyError
from spectrascope.gating.grammar import parse_rule
from spectrascope.gating.policy import DEFAULT_RULES, add_rules, default_policy, policy_from_table
from spectrascope.records.verdict import Action, Condition, Direction, Limit

BOTH, RISE, FALL = Direction.BOTH, Direction.RISE, Direction.FALL


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("beta: +-0.15", [Condition(Limit.AMOUNT, 0.15, BOTH)]),
        ("beta: ±.15", [Condition(Limit.AMOUNT, 0.15, BOTH)]),
        ("beta: +/- 1e-3", [Condition(Limit.AMOUNT, 0.001, BOTH)]),
        ("beta: 3 stderr", [Condition(Limit.STDERR, 3.0, BOTH)]),
        ("beta: +1 stderr", [Condition(Limit.STDERR, 1.0, RISE)]),
        ("pr_h: +20%", [Condition(Limit.PERCENT, 20.0, RISE)]),
        ("pr_h: -5 %", [Condition(Limit.PERCENT, 5.0, FALL)]),
        ("r2: min 0.9", [Condition(Limit.MIN, 0.9)]),
        ("beta: max -2.5", [Condition(Limit.MAX, -2.5)]),
        ("rank_model: same", [Condition(Limit.SAME)]),
        ("beta: noise", [Condition(Limit.NOISE, 0.0, BOTH)]),
        ("beta: -noise", [Condition(Limit.NOISE, 0.0, FALL)]),
        ("beta: any", []),
        ("beta: +-0.1 or noise", [Condition(Limit.AMOUNT, 0.1, BOTH), Condition(Limit.NOISE, 0.0, BOTH)]),
        ("beta: min 1 and max 2", [Condition(Limit.MIN, 1.0), Condition(Limit.MAX, 2.0)]),
    ],
)
def test_conditions(text: str, conditions: list) -> None:
    rule = parse_rule(text)
    assert list(rule.conditions) == conditions
    assert rule.all_of == (" and " in text)
    assert (rule.layers, rule.informational) == ("*", False)


def test_layers_and_information() -> None:
    rule = parse_rule("  alpha_g @  h.*.attn.c_attn.weight[q] :  +-0.1   (informational) ")
    assert (rule.number, rule.layers, rule.informational) == ("alpha_g", "h.*.attn.c_attn.weight[q]", True)
    assert rule.text == "alpha_g @ h.*.attn.c_attn.weight[q] : +-0.1 (informational)"
    assert parse_rule("beta @ a:b: +-1").layers == "a:b"


@pytest.mark.parametrize("name", ["beta", "beta.value"])
def test_one_number_has_one_name(name: str) -> None:
    assert parse_rule(f"{name}: +-1").number == "beta"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("beta", "expected NUMBER: CONDITION"),
        ("beta:", "expected NUMBER: CONDITION"),
        (": +-1", "expected NUMBER: CONDITION"),
        ("beta @: +-1", "no layers after '@'"),
        ("beta: 0.15", r"'0.15' lacks a sign: \+-0.15 limits a change, min or max 0.15 the value"),
        ("beta: 20%", "lacks a sign"),
        ("beta: about 3", "'about 3' is none of"),
        ("beta: +-nan", "is none of"),
        ("beta: +-1 or", "is none of"),
        ("beta: min 1 and +-1 or noise", "cannot be mixed"),
        ("bta: +-1", "no report holds a number 'bta'; did you mean beta"),
        ("sigma: +-1", "no report holds a number 'sigma'"),
        ("summary.foo.beta_median: +-1", "no report holds"),
        ("rank_models.bic.cubic: +-1", "no report holds"),
        ("loss @ fc*: +-1", "loss belongs to the whole report"),
        ("held_out.bta: +-1", "did you mean held_out.beta"),
        ("step_exponnt: +-1", "did you mean step_exponent"),
        ("summary.signal.n_resolvd: -1", "did you mean summary.signal.n_resolved"),
        ("summary.signal.n_resolved @ fc*: -1", "belongs to the whole report"),
    ],
)
def test_malformed_rules(text: str, match: str) -> None:
    with pytest.raises(PolicyError, match=match) as caught:
        parse_rule(text)
    assert repr(text) in str(caught.value)


def test_a_table_becomes_a_policy() -> None:
    policy = policy_from_table({"extend-rules": ["beta: any"], "false-alarms": 0.05, "missing": "inform"}, "p.toml")
    assert [rule.text for rule in policy.rules] == [*DEFAULT_RULES, "beta: any"]
    assert (policy.false_alarms, policy.missing, policy.new) == (0.05, Action.INFORM, Action.FAIL)
    replaced = policy_from_table({"rules": ["beta: any"], "layers": ["a*"]}, "p.toml")
    assert ([rule.text for rule in replaced.rules], replaced.layers) == (["beta: any"], ("a*",))
    more = add_rules(replaced, ["r2: min 0.5"])
    assert (len(more.rules), more.source) == (2, "p.toml and --rule")
    assert default_policy().source == "default policy"


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"rule": []}, r"p\.toml: unknown key 'rule' of the gate policy; did you mean rules\?"),
        ({"zzz": 1}, "expected rules, extend-rules"),
        ({"rules": "beta: any"}, r"p\.toml: rules must be a list of strings"),
        ({"rules": [1]}, "rules must be a list of strings"),
        ({"rules": ["beta"]}, r"p\.toml: gate rule 'beta'"),
        ({"false-alarms": 2}, "false-alarms must be a number between 0 and 1"),
        ({"false-alarms": True}, "false-alarms must be a number between 0 and 1"),
        ({"new": "warn"}, "new must be one of fail, inform, ignore, found 'warn'"),
    ],
)
def test_malformed_tables(table: dict, match: str) -> None:
    with pytest.raises(PolicyError, match=match):
        policy_from_table(table, "p.toml")
