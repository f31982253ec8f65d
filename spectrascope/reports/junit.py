"""A gate's verdict as JUnit XML, which CI services show as tests."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from spectrascope.records.verdict import Finding, Mark, Outcome, Verdict
from spectrascope.reports.views.verdict import format_value
from spectrascope.text import printable

__all__ = ["verdict_to_junit"]

_SUITE = "spectrascope gate"
_WHOLE = "whole report"


def verdict_to_junit(verdict: Verdict) -> str:
    """Write one test per check: a failed one as ``failure``, an inconclusive one as ``error``.

    A comparison that was refused is one test in error. Informational findings are passed tests with an output.
    """
    suite = ET.Element("testsuite", name=_SUITE)
    for finding in verdict.findings:
        _add(suite, finding)
    if verdict.outcome is Outcome.INCONCLUSIVE and not verdict.count(Mark.INCONCLUSIVE):
        case = ET.SubElement(suite, "testcase", classname=_WHOLE, name="comparable")
        lines = [f"{item.what}: baseline {item.before}; report {item.after}" for item in verdict.differences]
        ET.SubElement(case, "error", message=_text(verdict.summary)).text = _text("\n".join(lines))
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("errors", str(sum(case.find("error") is not None for case in cases)))
    root = ET.Element("testsuites")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode")


def _add(suite: ET.Element, finding: Finding) -> None:
    layer = finding.layer or _WHOLE
    case = ET.SubElement(suite, "testcase", classname=_text(layer), name=_text(finding.number or "status"))
    message = f"{layer} {finding.number}: {finding.message}"
    detail = (
        f"rule: {finding.rule}\nbaseline: {format_value(finding.before)}\nnow: {format_value(finding.after)}\n"
        f"change: {format_value(finding.change)}\nallowed: {format_value(finding.allowed)}"
    )
    if finding.mark is Mark.FAILED:
        ET.SubElement(case, "failure", message=_text(message)).text = _text(detail)
    elif finding.mark is Mark.INCONCLUSIVE:
        ET.SubElement(case, "error", message=_text(message)).text = _text(detail)
    elif finding.mark is Mark.INFORMATIONAL:
        ET.SubElement(case, "system-out").text = _text(f"{message}\n{detail}")


def _text(value: str) -> str:
    """Escape characters that XML cannot hold at all, such as a null byte in a layer's name."""
    return "\n".join(printable(line) for line in value.split("\n"))
