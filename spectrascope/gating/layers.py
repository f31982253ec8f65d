"""Layers of two reports side by side, and what it means when one of them is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.values import LayerStatus, Missing
from spectrascope.records.verdict import Action, Finding, GatePolicy, Mark

__all__ = ["LayerPair", "check_layers", "pair_layers"]

_MARKS = {Action.FAIL: Mark.FAILED, Action.INFORM: Mark.INFORMATIONAL, Action.IGNORE: Mark.PASSED}
_UNKNOWN = Missing("the layer cannot be compared")


@dataclass(frozen=True, slots=True)
class LayerPair:
    """The rows of one parameter name in two reports; at least one of them is there."""

    name: str
    before: LayerRow | None
    after: LayerRow | None

    @property
    def comparable(self) -> tuple[LayerReport, LayerReport] | None:
        """Both rows, if both were measured and have the same shape."""
        before, after = self.before, self.after
        if not isinstance(before, LayerReport) or not isinstance(after, LayerReport):
            return None
        return (before, after) if before.info.shape == after.info.shape else None


def pair_layers(baseline: Report, report: Report) -> tuple[LayerPair, ...]:
    """Pair layers by name: the baseline's in its order, then new ones."""
    before = {row.info.name: row for row in baseline.layers}
    after = {row.info.name: row for row in report.layers}
    return tuple(LayerPair(name, before.get(name), after.get(name)) for name in {**before, **after})


def check_layers(pairs: Sequence[LayerPair], policy: GatePolicy) -> Iterator[Finding]:
    """Find what became of layers that cannot be compared; layers left out on both sides are no finding."""
    for pair in pairs:
        found = _check(pair, policy)
        if found is None:
            continue
        mark, rule, message = found
        yield Finding(
            mark, pair.name, "", rule, message, _state(pair.before), _state(pair.after), _UNKNOWN, _UNKNOWN, _UNKNOWN
        )


def _check(pair: LayerPair, policy: GatePolicy) -> tuple[Mark, str, str] | None:
    before, after = pair.before, pair.after
    if isinstance(before, LayerReport) and isinstance(after, LayerReport):
        if before.info.shape == after.info.shape:
            return None
        shapes = ["×".join(map(str, row.info.shape)) for row in (before, after)]
        return Mark.FAILED, "same shape", f"another shape: {shapes[0]} became {shapes[1]}"
    if after is not None and after.status is LayerStatus.FAILED:
        if before is not None and before.status is LayerStatus.FAILED:
            return Mark.INFORMATIONAL, "failed in both", f"could not be measured in either report: {_reason(after)}"
        return _MARKS[policy.failed], f"failed = {policy.failed.value}", f"could not be measured: {_reason(after)}"
    if isinstance(after, LayerReport):
        why = "not in the baseline" if before is None else f"{before.status.value} in the baseline"
        message = f"new: {why}, nothing to judge it by; renew the baseline"
        return _MARKS[policy.new], f"new = {policy.new.value}", message
    if isinstance(before, LayerReport):
        why = "not in the report" if after is None else f"skipped ({_reason(after)})"
        return _MARKS[policy.missing], f"missing = {policy.missing.value}", f"missing: {why}"
    if before is not None and before.status is LayerStatus.FAILED:
        return (
            Mark.INFORMATIONAL,
            "failed in the baseline",
            "failed in the baseline, left out now",
        )
    return None


def _state(row: LayerRow | None) -> str | Missing:
    return Missing("no such layer") if row is None else row.status.value


def _reason(row: LayerRow) -> str:
    return "" if isinstance(row, LayerReport) else row.reason
