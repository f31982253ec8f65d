"""LaTeX of every document: it compiles and fits a page, nothing is lost, names cannot become commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from spectrascope.advice.advise import advise
from spectrascope.gating.judgement import judge
from spectrascope.gating.policy import default_policy
from spectrascope.records.report import Report
from spectrascope.reports.latex import escape_latex
from spectrascope.reports.render import Format, View, render
from tests.support.chart_cases import hostile_report


def _without_comments(text: str) -> str:
    return re.sub(r"^%.*$", "", text, flags=re.M)


def _balanced(text: str) -> bool:
    bare = re.sub(r"\\\\|\\[{}$]", "", text)
    depth = 0
    for char in bare:
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return False
    return depth == 0 and bare.count("$") % 2 == 0


@pytest.mark.parametrize("view", list(View))
def test_a_report_is_tables_that_compile(report: Report, view: View) -> None:
    for shown in (report, hostile_report()):
        text = _without_comments(str(render(shown, Format.LATEX, view=view)))
        assert text.isascii()
        assert _balanced(text)
        for table in re.findall(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}(.*?)\\end\{tabular\}", text, re.S):
            lines = [line for line in table[1].splitlines() if line.rstrip().endswith(r"\\\\")]
            assert all(len(re.findall(r"(?<!\\)&", line)) == len(table[0]) - 1 for line in lines)
        assert text.count(r"\begin{table}") == text.count(r"\end{table}") >= 1


def test_every_other_answer_has_one(report: Report) -> None:
    for record in (advise(report), judge(report, report, default_policy())):
        text = _without_comments(str(render(record, Format.LATEX)))
        assert text.isascii()
        assert _balanced(text)
        assert "?" not in text, "a character of ours has no form in LaTeX"


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
        ("1-20", "1--20"),
        ("see --layers", "see -{}-layers"),
        ("h_Kron, r_eff \u221a2", r"$\mathrm{h}_{\mathrm{Kron}}$, $\mathrm{r}_{\mathrm{eff}}$ $\surd$2"),
    ],
)
def test_text_is_printed_as_it_is(text: str, latex: str) -> None:
    assert escape_latex(text) == latex


def _compile(folder: Path, *tables: object) -> str:
    """What LaTeX says of tables in an article of one column."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    head, body = r"\documentclass{article}\usepackage{booktabs,longtable}", "\n\n".join(map(str, tables))
    (folder / "all.tex").write_text(f"{head}\n\\begin{{document}}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


def test_it_compiles_and_fits_a_page(report: Report, tmp_path: Path) -> None:
    """With names of forty characters; a table of sixty weights goes over two pages."""
    named = [
        replace(row, info=replace(row.info, name=f"transformer.h.{i}.attention.c_attn.weight[q]"))
        for i, row in enumerate(report.layers * 20)
    ]
    short, long = (replace(report, layers=tuple(named[:n])) for n in (30, 60))
    records = [short, long, advise(short), judge(long, short, default_policy())]
    tables = [render(record, Format.LATEX) for record in records]
    said = _compile(tmp_path, *tables, *(render(short, Format.LATEX, view=view) for view in View))
    assert "too large" not in said
    wide = [int(points) for points in re.findall(r"Overfull .hbox \((\d+)", said)]
    assert max(wide, default=0) < 10


@pytest.mark.parametrize("view", list(View))
def test_hostile_names_compile(view: View, tmp_path: Path) -> None:
    _compile(tmp_path, render(hostile_report(), Format.LATEX, view=view))
