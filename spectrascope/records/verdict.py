"""What a gate is asked and what it answers: records, standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from spectrascope.records.comparison import Change, Difference, Value
from spectrascope.records.values import SCHEMA_VERSION, Missing

__all__ = [
    "Action",
    "Condition",
    "Direction",
    "Finding",
    "GatePolicy",
    "Limit",
    "Mark",
    "Outcome",
    "Rule",
    "Verdict",
]


class Outcome(str, Enum):
    """How a gate ends."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """Of the command line: 0 pass, 1 fail, 3 inconclusive."""
        return {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}[self]


class Mark(str, Enum):
    """How one check came out; only ``failed`` and ``inconclusive`` ones count."""

    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    INFORMATIONAL = "informational"
    PASSED = "passed"


class Action(str, Enum):
    """What a gate does about a layer that cannot be compared."""

    FAIL = "fail"
    INFORM = "inform"
    IGNORE = "ignore"


class Limit(str, Enum):
    """Kinds of limit a condition sets, as spelled in a rule."""

    AMOUNT = "amount"
    PERCENT = "%"
    STDERR = "stderr"
    NOISE = "noise"
    MIN = "min"
    MAX = "max"
    SAME = "same"


class Direction(str, Enum):
    """Which changes a condition limits: both ways, a rise or a fall."""

    BOTH = "+-"
    RISE = "+"
    FALL = "-"


@dataclass(frozen=True, slots=True)
class Condition:
    """One limit: on a change (amount, %, stderr, noise), on the value itself (min, max), or on any change (same)."""

    limit: Limit
    amount: float = 0.0
    direction: Direction = Direction.BOTH


@dataclass(frozen=True, slots=True)
class Rule:
    """What one number of the layers that match a glob may do.

    With ``all_of`` every condition must hold, else one is enough. No conditions: anything goes (``any``).
    ``text`` is the rule as written.
    """

    number: str
    layers: str
    conditions: tuple[Condition, ...]
    all_of: bool
    informational: bool
    text: str


@dataclass(frozen=True, slots=True)
class GatePolicy:
    """What a gate insists on.

    Of several rules on one number the last that matches a layer counts. ``false_alarms`` is the probability that
    noise of the batch alone breaks any of the ``noise`` conditions of the whole report. ``layers`` and
    ``exclude`` are globs on the layers the gate looks at.
    """

    rules: tuple[Rule, ...]
    false_alarms: float = 0.01
    missing: Action = Action.FAIL
    failed: Action = Action.FAIL
    new: Action = Action.FAIL
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    source: str = "default policy"

    def __post_init__(self) -> None:
        if not 0 < self.false_alarms < 1:
            raise ValueError(f"false_alarms must lie between 0 and 1, got {self.false_alarms}")


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: a number of a layer (or of the whole report) against a rule, or a layer that cannot be compared.

    ``allowed`` is the largest change the rule lets pass, or the bound on the value; ``severity`` the change in
    units of it (1 is the limit), or Missing where a check has no size. ``rule`` is the rule as written, or what of
    the policy speaks here (``missing = fail``).
    """

    mark: Mark
    layer: str
    number: str
    rule: str
    message: str
    before: Value
    after: Value
    change: float | Missing
    allowed: float | Missing
    severity: float | Missing


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says of a report against its baseline.

    ``findings`` holds every check, the worst first: failed, inconclusive, informational, passed, each by
    severity. ``differences`` is how the two reports were made differently; ``forced`` says that some of these
    would have refused the comparison. ``paired`` says that both saw the same samples, so that noise is judged on
    the differences of sample groups. ``headlines`` are the numbers of the whole reports that the bottom line speaks of.
    """

    outcome: Outcome
    summary: str
    report: str
    baseline: str
    policy: GatePolicy
    findings: tuple[Finding, ...]
    differences: tuple[Difference, ...]
    forced: bool
    paired: bool
    n_noise_checks: int
    headlines: tuple[Change, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def count(self, mark: Mark) -> int:
        """Return the number of checks that came out so."""
        return sum(finding.mark is mark for finding in self.findings)
