"""LaTeX of every document: only ASCII, every brace closed, names cannot become commands."""

from __future__ import annotations

import re

import pytest

from spectrascope.advice.advise import advise
from spectrascope.gating.judgement import judge
from spectrascope.gating.policy import default_policy
from spectrascope.records.report import Report
from spectrascope.reports.latex import escape_latex
from spectrascope.reports.render import Format, View, render
from tests.support.chart_cases import hostile_report


def _balanced(text: str) -> bool:
    bare = re.sub(r"\\\\|\\[{}$]", "", re.sub(r"^%.*$", "", text, flags=re.M))
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0 and bare.count("$") % 2 == 0


@pytest.mark.parametrize("view", list(View))
def test_a_report_is_tables_that_compile(report: Report, view: View) -> None:
    for shown in (report, hostile_report()):
        text = str(render(shown, Format.LATEX, view=view))
        assert text.isascii()
        assert _balanced(text)
        for table in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text, re.S):
            lines = [line for line in table[1].splitlines() if line.rstrip().endswith(r"\\\\")]
            assert all(len(re.findall(r"(?<!\\)&", line)) == len(table[0]) - 1 for line in lines)
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") >= 1


def test_every_other_answer_has_one(report: Report) -> None:
    for record in (advise(report), judge(report, report, default_policy())):
        text = str(render(record, Format.LATEX))
        assert text.isascii()
        assert _balanced(text)


def test_numbers_of_the_table_are_those_of_the_terminal(report: Report) -> None:
    row = next(row for row in report.layers if row.status.value == "ok")
    text = str(render(report, Format.LATEX))
    beta = f"{row.analysis.beta.value:.2f}"
    assert beta in text
    assert r"$\beta$" in text
    assert "\u2588" not in text


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        (r"\input{x}", r"\textbackslash{}input\{x\}"),
        ("a_b%c#d&e$f", r"a\_b\%c\#d\&e\$f"),
        ("w[q]~^", r"w{[}q{]}\textasciitilde{}\textasciicircum{}"),
        ("-0.5 a-1", r"$-$0.5 a-1"),
        ("skipped\u00b9\u00b2", r"skipped$^{12}$"),
        ("\u6f22", "?"),
    ],
)
def test_text_is_printed_as_it_is(text: str, latex: str) -> None:
    assert escape_latex(text) == latex
