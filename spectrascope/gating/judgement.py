"""From two reports and a policy to a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from spectrascope.gating.changes import headline_changes
from spectrascope.gating.conditions import Evidence, Judged, judge_rule, needs_baseline
from spectrascope.gating.layers import LayerPair, check_layers, pair_layers
from spectrascope.gating.noise import NoiseMeter
from spectrascope.gating.numbers import Undetermined, is_of_report, layer_value, report_value
from spectrascope.gating.policy import DEFAULT_RULES
from spectrascope.gating.provenance import find_differences, is_same_batch, name_report
from spectrascope.records.comparison import WHOLE_REPORT, Difference, Value
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import NOT_HELD_OUT
from spectrascope.records.values import Missing, RankComparison
from spectrascope.records.verdict import Action, Finding, GatePolicy, Limit, Mark, Outcome, Rule, Verdict
from spectrascope.reports.select import keep_layers
from spectrascope.text import matches

__all__ = ["judge"]

_MARK_OF = {Action.FAIL: Mark.FAILED, Action.INFORM: Mark.INFORMATIONAL, Action.IGNORE: Mark.PASSED}
_WORST_FIRST = (Mark.FAILED, Mark.INCONCLUSIVE, Mark.INFORMATIONAL, Mark.PASSED)


def judge(report: Report, baseline: Report, policy: GatePolicy, *, force: bool = False) -> Verdict:
    """Hold a report to its baseline.

    Reports that were made differently (other samples, precision, window, loss, or an estimate against an exact
    engine) are not compared unless forced: the verdict is then inconclusive. So is one whose checks could not be
    made, or a gate without any check: only a check that was made can pass. A step exponent that one side leaves
    undetermined cannot be checked. The default policy's rules on what is signal are skipped, with a note, where the
    baseline holds none of it: it is older, or was measured without.

    ``noise`` conditions share the policy's ``false_alarms`` equally (Bonferroni), which holds however the layers of
    one network depend on each other.

    Args:
        report: what is judged.
        baseline: what it is held to.
        policy: the rules.
        force: compare in spite of differences that forbid it; the verdict says so.

    Returns:
        The verdict with every finding, the worst first.

    Cost: milliseconds, and about a second per 1000 layers whose changes need a sampling error.
    """
    baseline, report = (keep_layers(item, policy.layers, policy.exclude) for item in (baseline, report))
    differences = find_differences(baseline, report)
    forbidding = [difference for difference in differences if difference.forbids]
    paired = is_same_batch(baseline, report)
    if forbidding and not force:
        return _verdict(report, baseline, policy, Outcome.INCONCLUSIVE, _refusal(forbidding), differences)
    pairs = pair_layers(baseline, report)
    checks = [*_plan(pairs, policy.rules, baseline, report)]
    n_noise = sum(_may_alarm(check.rule) for check in checks)
    meter = NoiseMeter(baseline, report, paired=paired)
    probability = policy.false_alarms / max(n_noise, 1)
    judged = [(check, _find(check, meter, probability, policy)) for check in checks]
    findings = [
        *check_layers(pairs, policy),
        *_idle_rules(policy.rules, pairs),
        *(finding for _, finding in judged),
    ]
    findings.sort(key=_badness)
    anything = any(
        finding.mark is Mark.PASSED and not check.rule.informational and not _is_default_loss(check.rule)
        for check, finding in judged
    )
    outcome = _decide(findings, anything)
    return _verdict(
        report,
        baseline,
        policy,
        outcome,
        _summarise(outcome, findings, pairs),
        differences,
        findings=findings,
        forced=bool(forbidding),
        paired=paired,
        n_noise=n_noise,
    )


@dataclass(frozen=True, slots=True)
class _Check:
    """One number of one pair of layers (or of the reports), and the rule that speaks of it."""

    rule: Rule
    layer: str
    before: Value
    after: Value
    rows: tuple[LayerReport, LayerReport] | None


def _plan(pairs: Sequence[LayerPair], rules: Sequence[Rule], baseline: Report, report: Report) -> Iterable[_Check]:
    of_report = {rule.number: rule for rule in rules if is_of_report(rule.number)}
    for number, rule in of_report.items():
        if rule.conditions:
            yield _Check(rule, WHOLE_REPORT, report_value(baseline, number), report_value(report, number), None)
    of_layers = [rule for rule in rules if not is_of_report(rule.number)]
    for pair in pairs:
        if pair.comparable is None:
            continue
        before, after = pair.comparable
        last = {rule.number: rule for rule in of_layers if matches(rule.layers, pair.name)}
        for number, rule in last.items():
            if rule.conditions:
                yield _Check(rule, pair.name, layer_value(before, number), layer_value(after, number), (before, after))


def _may_alarm(rule: Rule) -> bool:
    """Whether noise alone can make this rule fail the gate."""
    return not rule.informational and any(condition.limit is Limit.NOISE for condition in rule.conditions)


def _find(check: _Check, meter: NoiseMeter, probability: float, policy: GatePolicy) -> Finding:
    before, after, rule = check.before, check.after, check.rule
    if needs_baseline(rule) and (isinstance(before, Missing) or isinstance(after, Missing)):
        return _find_missing(check, policy)
    if check.rows is None:
        stderr = partial(meter.of_report, rule.number)
    else:
        stderr = partial(meter.of_layer, *check.rows, rule.number)
    numbers = [float(value) for value in (before, after) if isinstance(value, (int, float))]
    rounding = meter.rounding(numbers[0], numbers[-1]) if numbers else 0.0
    evidence = Evidence(before, after, stderr, probability, rounding, _is_tied(check))
    judged = judge_rule(rule, evidence)
    if isinstance(judged.holds, Missing):
        mark, message = Mark.INCONCLUSIVE, f"cannot be judged: {judged.holds.reason}"
    elif judged.holds:
        mark, message = Mark.PASSED, "within the rule"
    else:
        mark, message = Mark.FAILED, _describe(check, judged, evidence.change)
        if _is_default_loss(rule) and not meter.paired:
            mark, message = Mark.INFORMATIONAL, f"{message}; on other samples chance alone may do that"
    if rule.informational and mark is not Mark.PASSED:
        mark = Mark.INFORMATIONAL
    return Finding(
        mark, check.layer, rule.number, rule.text, message, before, after, evidence.change, judged.allowed,
        judged.severity,
    )  # fmt: skip


def _is_default_loss(rule: Rule) -> bool:
    """Whether this is the default policy's rule on the loss, which alone is no gate on curvature."""
    return rule.number == "loss" and rule.text in DEFAULT_RULES


def _is_tied(check: _Check) -> bool:
    """Whether one rank model does for both reports: the winner of each, or the runner-up of a tie."""
    if check.rows is None or check.rule.number != "rank_model":
        return False
    found = [row.analysis.rank_models for row in check.rows]
    good = [
        {item.best, item.runner_up} if item.tie else {item.best} for item in found if isinstance(item, RankComparison)
    ]
    return len(good) == 2 and bool(good[0] & good[1])


def _find_missing(check: _Check, policy: GatePolicy) -> Finding:
    """A number that is there on one side only, or on neither."""
    before, after, rule = check.before, check.after, check.rule
    nothing = Missing("not measured in both reports")
    if isinstance(before, Missing) and _of_signal(rule) and rule.text in DEFAULT_RULES:
        mark, why, message = Mark.INFORMATIONAL, rule.text, f"skipped, the baseline has no value: {before.reason}"
    elif NOT_HELD_OUT in (before, after):
        mark = Mark.INFORMATIONAL if rule.text in DEFAULT_RULES else Mark.INCONCLUSIVE
        which = "baseline" if before == NOT_HELD_OUT else "report"
        why, message = rule.text, f"cannot be judged by this {which}: {NOT_HELD_OUT.reason}"
    elif isinstance(before, Missing) and isinstance(after, Missing):
        mark, why, message = Mark.INFORMATIONAL, rule.text, f"measured in neither report: {after.reason}"
    elif isinstance(before, Undetermined) or isinstance(after, Undetermined):
        which, found = ("report", after) if isinstance(after, Undetermined) else ("baseline", before)
        assert isinstance(found, Undetermined)
        mark, why, message = Mark.INCONCLUSIVE, rule.text, f"cannot be judged, in the {which} it is {found.reason}"
    elif isinstance(after, Missing):
        mark, why = _MARK_OF[policy.failed], f"failed = {policy.failed.value}"
        message = f"not measured any more: {after.reason}"
    else:
        assert isinstance(before, Missing)
        mark, why = _MARK_OF[policy.new], f"new = {policy.new.value}"
        message = f"the baseline has no value to judge by ({before.reason}): renew it"
    if rule.informational and mark is not Mark.PASSED:
        mark = Mark.INFORMATIONAL
    return Finding(mark, check.layer, rule.number, why, message, before, after, nothing, nothing, nothing)


def _of_signal(rule: Rule) -> bool:
    return rule.number.startswith("summary.signal.")


def _describe(check: _Check, judged: Judged, change: float | Missing) -> str:
    if isinstance(change, Missing) or isinstance(judged.allowed, Missing):
        return f"{_word(check.before)} became {_word(check.after)}"
    if not needs_baseline(check.rule):
        return f"{_word(check.after)} is beyond the bound {judged.allowed:.4g}"
    return f"changed by {change:+.4g}, allowed {judged.allowed:.4g}"


def _word(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _idle_rules(rules: Sequence[Rule], pairs: Sequence[LayerPair]) -> Iterable[Finding]:
    """Rules about layers there are none of: a misspelt glob would otherwise pass for ever."""
    for rule in rules:
        if rule.layers != "*" and not any(matches(rule.layers, pair.name) for pair in pairs):
            nothing = Missing("no such layer")
            mark = Mark.INFORMATIONAL if rule.informational else Mark.INCONCLUSIVE
            message = f"no layer matches {rule.layers!r}"
            yield Finding(
                mark, rule.layers, rule.number, rule.text, message, nothing, nothing, nothing, nothing, nothing
            )


def _badness(finding: Finding) -> tuple[int, float]:
    size = math.inf if isinstance(finding.severity, Missing) else finding.severity
    return _WORST_FIRST.index(finding.mark), -size


def _decide(findings: Sequence[Finding], anything: bool) -> Outcome:
    """Failed, or inconclusive also where not ``anything`` that could have failed was looked at."""
    marks = {finding.mark for finding in findings}
    if Mark.FAILED in marks:
        return Outcome.FAIL
    return Outcome.INCONCLUSIVE if Mark.INCONCLUSIVE in marks or not anything else Outcome.PASS


def _refusal(forbidding: Sequence[Difference]) -> str:
    what = ", ".join(difference.what for difference in forbidding)
    return f"not compared: the reports were made differently ({what}); --force compares all the same"


def _summarise(outcome: Outcome, findings: Sequence[Finding], pairs: Sequence[LayerPair]) -> str:
    counts = {mark: sum(finding.mark is mark for finding in findings) for mark in Mark}
    n_layers = sum(pair.comparable is not None for pair in pairs)
    if outcome is Outcome.INCONCLUSIVE and not counts[Mark.INCONCLUSIVE]:
        return "nothing was compared: no binding rule met a number that both reports hold"
    parts = [f"{counts[mark]} {mark.value}" for mark in _WORST_FIRST if counts[mark]]
    layers = "1 layer" if n_layers == 1 else f"{n_layers} layers"
    return f"{sum(counts.values())} checks on {layers}: {', '.join(parts)}"


def _verdict(
    report: Report,
    baseline: Report,
    policy: GatePolicy,
    outcome: Outcome,
    summary: str,
    differences: tuple[Difference, ...],
    *,
    findings: Sequence[Finding] = (),
    forced: bool = False,
    paired: bool = False,
    n_noise: int = 0,
) -> Verdict:
    return Verdict(
        outcome=outcome,
        summary=summary,
        report=name_report(report),
        baseline=name_report(baseline),
        policy=policy,
        findings=tuple(findings),
        differences=differences,
        forced=forced,
        paired=paired,
        n_noise_checks=n_noise,
        headlines=headline_changes(baseline, report),
    )
