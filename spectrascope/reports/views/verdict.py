"""A gate's verdict and a comparison as documents, for the terminal and for a CI summary."""

from __future__ import annotations

from collections.abc import Sequence

from spectrascope.records.comparison import Change, Comparison, Difference, Value
from spectrascope.records.values import Missing
from spectrascope.records.verdict import Finding, Mark, Outcome, Verdict
from spectrascope.reports.fields import RANK_MODEL_NAMES
from spectrascope.reports.figures import format_count, format_percent
from spectrascope.reports.order import ChangeOrder, sort_changes
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone

__all__ = ["build_comparison", "build_verdict", "format_value", "say_comparison", "say_verdict"]

_TONES = {
    Mark.FAILED: Tone.ALARM,
    Mark.INCONCLUSIVE: Tone.WARNING,
    Mark.INFORMATIONAL: Tone.QUIET,
    Mark.PASSED: Tone.PLAIN,
}
_WORDS = {Outcome.PASS: "PASSED", Outcome.FAIL: "FAILED", Outcome.INCONCLUSIVE: "INCONCLUSIVE"}
_CLOSING = {Outcome.PASS: Tone.PLAIN, Outcome.FAIL: Tone.ALARM, Outcome.INCONCLUSIVE: Tone.WARNING}
_WHOLE = "(whole report)"
_MODELS = {model.value: name for model, name in RANK_MODEL_NAMES.items()}
_RARE = 3.0
_SPOKEN = {
    "summary.beta_median": "published β",
    "summary.signal.step_exponent": "step exponent",
    "summary.signal.n_resolved": "directions resolved",
    "summary.signal.step_exponent.decrease": "held-out decrease",
}


def build_verdict(verdict: Verdict, *, every: bool = False) -> Document:
    """The verdict in a word, what fails first, and how the reports were made differently.

    Args:
        verdict: what a gate answered.
        every: list checks that passed too.
    """
    shown = [finding for finding in verdict.findings if every or finding.mark is not Mark.PASSED]
    sheets = [_findings_sheet(shown)] if shown else []
    if verdict.differences:
        sheets.append(_differences_sheet(verdict.differences, "baseline", "report"))
    return Document(
        title=f"spectrascope gate: {_WORDS[verdict.outcome]}",
        facts=(
            ("report", verdict.report),
            ("baseline", verdict.baseline),
            ("policy", verdict.policy.source),
            ("checks", verdict.summary),
        ),
        sheets=tuple(sheets),
        closing=_conclude(verdict),
    )


def build_comparison(comparison: Comparison, sort: ChangeOrder = ChangeOrder.ORDER) -> Document:
    """What changed, number by number, and how the reports were made differently."""
    sheets = [_differences_sheet(comparison.differences, "before", "after")] if comparison.differences else []
    if comparison.changes:
        sheets.append(_changes_sheet(sort_changes(comparison.changes, sort), paired=comparison.paired))
    n_changed = comparison.n_compared - comparison.n_unchanged
    lines = [(f"{n_changed} of {format_count(comparison.n_compared, 'number')} changed.", Tone.PLAIN)]
    if not comparison.comparable:
        lines.append(("The reports were made differently: changes need not come from the network.", Tone.WARNING))
    lines.append((say_comparison(comparison), Tone.PLAIN))
    return Document(
        title="spectrascope compare",
        facts=(("before", comparison.before), ("after", comparison.after)),
        sheets=tuple(sheets),
        closing=tuple(lines),
    )


def format_value(value: Value) -> str:
    """Write a reported number or word for a cell of a table.

    >>> format_value(1.98765), format_value(True), format_value("lognormal"), format_value(12345678.0)
    ('1.988', 'yes', 'log-normal', '1.235e+07')
    """
    if isinstance(value, Missing):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else _MODELS.get(str(value), str(value))


def _conclude(verdict: Verdict) -> tuple[tuple[str, Tone], ...]:
    lines = []
    if verdict.n_noise_checks:
        share = format_percent(verdict.policy.false_alarms)
        sampling = "on the same samples, so their noise is shared" if verdict.paired else "on different samples"
        lines.append(
            (
                f"Noise: {format_count(verdict.n_noise_checks, 'check')} share a false-alarm probability of {share}; "
                f"the reports were measured {sampling}.",
                Tone.PLAIN,
            )
        )
    if verdict.forced:
        forbidding = [difference.what for difference in verdict.differences if difference.forbids]
        verb = "differs" if len(forbidding) == 1 else "differ"
        lines.append((f"Compared by force: {', '.join(forbidding)} {verb}.", Tone.WARNING))
    if not verdict.findings:
        advice = [item.advice for item in verdict.differences if item.forbids and item.advice]
        lines += [(f"To compare: {text}.", Tone.PLAIN) for text in advice]
    said = say_verdict(verdict)
    lines.append((f"{_WORDS[verdict.outcome]}: {said[0].lower()}{said[1:]}", _CLOSING[verdict.outcome]))
    return tuple(lines)


def say_verdict(verdict: Verdict) -> str:
    """Say the bottom line of a gate in a sentence: what has changed, and what the whole reports say."""
    failed = [finding for finding in verdict.findings if finding.mark is Mark.FAILED]
    if failed:
        worst = failed[0]
        what = f"{worst.number or 'status'} of {worst.layer or 'the whole report'}"
        why = worst.message
        text = f"Curvature is not what it was: {format_count(len(failed), 'check')} failed, the worst {what}: {why}"
    elif verdict.outcome is Outcome.PASS:
        text = "Nothing has changed by more than the rules allow or the samples explain"
    else:
        text = "Nothing is said of the network: what was to be checked could not be"
    return f"{text}; {_sides(verdict.headlines)}." if verdict.headlines else f"{text}."


def say_comparison(comparison: Comparison) -> str:
    """Say the bottom line of a comparison in a sentence: what moved beyond its noise, and the reports' headlines."""
    known = [change.stderrs for change in comparison.changes if not isinstance(change.stderrs, Missing)]
    beyond = sum(abs(stderrs) > _RARE for stderrs in known)
    if known:
        text = f"{beyond} of {format_count(len(known), 'change')} with a known error {_exceeds(beyond)} 3 of it"
    else:
        text = "No change has a known sampling error"
    return f"{text}; {_sides(comparison.headlines)}." if comparison.headlines else f"{text}."


def _exceeds(n: int) -> str:
    return "exceeds" if n == 1 else "exceed"


def _sides(changes: Sequence[Change]) -> str:
    return ", ".join(_side_by_side(change) for change in changes)


def _side_by_side(change: Change) -> str:
    """One number of both reports, as ``step exponent 1.15 to 1.02 (z -2.1)``."""
    name = _SPOKEN.get(change.number, change.number)
    one, other = (_spoken_value(value) for value in (change.before, change.after))
    both = one if one == other else f"{one} to {other}"
    stderrs = "" if isinstance(change.stderrs, Missing) else f" (z {_signed(change.stderrs, '.1f')})"
    return f"{name} {both}{stderrs}"


def _spoken_value(value: Value) -> str:
    if isinstance(value, Missing):
        return "undetermined" if value.reason.startswith("undetermined") else "not known"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _findings_sheet(findings: Sequence[Finding]) -> Sheet:
    columns = (
        Column("layer", right=False),
        Column("number", right=False),
        Column("baseline"),
        Column("now"),
        Column("change", drop_order=2),
        Column("allowed", drop_order=1),
        Column("rule", right=False, drop_order=3),
        Column("finding", right=False, strong=True),
    )
    notes = Footnotes()
    rows = tuple(Row(_finding_cells(finding, notes), _TONES[finding.mark]) for finding in findings)
    return Sheet("Findings, the worst first", columns, rows, notes.lines())


def _finding_cells(finding: Finding, notes: Footnotes) -> tuple[str, ...]:
    explained = isinstance(finding.severity, Missing) and finding.mark is not Mark.PASSED
    mark = finding.mark.value
    return (
        finding.layer or _WHOLE,
        finding.number or "status",
        format_value(finding.before),
        format_value(finding.after),
        _signed(finding.change),
        format_value(finding.allowed),
        finding.rule,
        notes.mark(mark, finding.message) if explained else mark,
    )


def _changes_sheet(changes: Sequence[Change], *, paired: bool) -> Sheet:
    about = (
        f"the change over its own standard error, for two batches of {'the same' if paired else 'different'} samples"
    )
    if all(isinstance(change.stderrs, Missing) for change in changes):
        about = "the change over its own standard error, which is known for none of these numbers"
    columns = (
        Column("layer", right=False),
        Column("number", right=False),
        Column("before"),
        Column("after"),
        Column("change", strong=True, drop_order=1),
        Column("change %", drop_order=2),
        Column("z", about=f"{about}; beyond ±3 is rare"),
    )
    notes = Footnotes()
    rows = tuple(Row(_change_cells(change, notes)) for change in changes)
    return Sheet("Numbers", columns, rows, notes.lines())


def _change_cells(change: Change, notes: Footnotes) -> tuple[str, ...]:
    values = [notes.missing(v) if isinstance(v, Missing) else format_value(v) for v in (change.before, change.after)]
    relative = DASH
    if not isinstance(change.change, Missing) and isinstance(change.before, (int, float)) and change.before:
        relative = _signed(100 * change.change / abs(change.before), ".1f")
    stderrs = _signed(change.stderrs, ".1f")
    return change.layer or _WHOLE, change.number, *values, _signed(change.change), relative, stderrs


def _signed(value: float | Missing, form: str = ".4g") -> str:
    """Write a change with its sign, unless nothing is left of it: ``0.0``, not ``-0.0``."""
    if isinstance(value, Missing):
        return DASH
    text = format(value, f"+{form}")
    return text if float(text) else text[1:]


def _differences_sheet(differences: Sequence[Difference], before: str, after: str) -> Sheet:
    columns = (
        Column("made differently", right=False),
        Column(before, right=False),
        Column(after, right=False),
        Column("counts as", right=False, drop_order=1),
    )
    rows = tuple(
        Row(
            (item.what, item.before, item.after, "not comparable" if item.forbids else "noted"),
            Tone.WARNING if item.forbids else Tone.QUIET,
        )
        for item in differences
    )
    return Sheet("How the reports were made", columns, rows)
