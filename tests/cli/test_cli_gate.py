"""``gate`` and ``compare`` as commands: a network measured as its baseline was, every form, what is refused."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from spectrascope.cli import main
from spectrascope.records.report import ProbeOptions, Report
from spectrascope.reports import report_from_json, report_to_json
from tests.support.fixtures import Calls
from tests.support.made_up_reports import big_report, mixed_report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """The saved report with one beta moved far, in a layer whose name looks like markup."""
    base = mixed_report()
    rows = list(base.layers)
    rows[1] = replace(rows[1], analysis=replace(rows[1].analysis, beta=replace(rows[1].analysis.beta, value=3.5)))
    path = tmp_path / "changed.json"
    path.write_text(report_to_json(replace(base, layers=tuple(rows))))
    return path


def _run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_every_form_tells_the_same(saved: Path, changed: Path, capsys) -> None:
    command = ("gate", changed, "--baseline", saved)
    for form in ("table", "markdown", "csv", "json"):
        code, out, _ = _run(capsys, *command, "--format", form)
        assert code == 1
        assert out.endswith("\n")
        if form == "table":
            assert "spectrascope gate: FAILED" in out
            line = next(line for line in out.splitlines() if line.startswith("a[red]b|c") and " beta " in line)
            assert line.split()[-5:] == ["beta:", "+-0.1", "or", "noise", "failed"]
        if form == "markdown":
            assert "| a\\[red\\]b\\|c | beta | 1.64 | 3.5 |" in out
        if form == "csv":
            first = next(csv.DictReader(io.StringIO(out)))
            assert (first["outcome"], first["layer"], first["number"]) == ("failed", "a[red]b|c", "beta")
            assert float(first["now"]) == 3.5
        if form == "json":
            document = json.loads(out)
            assert list(document)[:2] == ["schema_version", "outcome"]
            assert document["findings"][0]["after"] == 3.5


def test_passed_checks_are_listed_on_request(saved: Path, capsys) -> None:
    code, short, _ = _run(capsys, "gate", saved, "--baseline", saved)
    assert code == 0
    assert "conv1.weight" not in short
    _, long, _ = _run(capsys, "gate", saved, "--baseline", saved, "--all")
    assert "conv1.weight" in long


def test_junit_and_markdown_beside_the_result(saved: Path, changed: Path, tmp_path: Path, capsys) -> None:
    junit, markdown, out = (tmp_path / name for name in ("gate.xml", "gate.md", "gate.json"))
    copies = ("--junit", junit, "--markdown", markdown, "--json", "-o", out)
    code, printed, _ = _run(capsys, "gate", changed, "--baseline", saved, *copies)
    assert (code, printed) == (1, "")
    verdict = json.loads(out.read_text())
    suite = ET.parse(junit).getroot().find("testsuite")
    marks = [finding["mark"] for finding in verdict["findings"]]
    assert suite.get("tests") == str(len(marks))
    assert suite.get("failures") == str(marks.count("failed")) != "0"
    assert suite.get("errors") == "0"
    cases = suite.findall("testcase")
    assert (cases[0].get("classname"), cases[0].get("name")) == ("a[red]b|c", "beta")
    assert "rule: beta: +-0.1 or noise" in cases[0].find("failure").text
    assert sum(case.find("system-out") is not None for case in cases) == marks.count("informational")
    assert markdown.read_text().startswith("## spectrascope gate: FAILED\n")


def test_a_refused_comparison_is_one_test_in_error(saved: Path, tmp_path: Path, capsys) -> None:
    other = mixed_report()
    other = replace(other, provenance=replace(other.provenance, dtype="float64"))
    path = tmp_path / "other.json"
    path.write_text(report_to_json(other))
    code, out, _ = _run(capsys, "gate", path, "--baseline", saved, "--junit", tmp_path / "gate.xml")
    assert code == 3
    assert "To compare: measure with --dtype float32." in out
    suite = ET.parse(tmp_path / "gate.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")
    assert "dtype: baseline float32; report float64" in suite.find("testcase/error").text


def test_a_network_is_measured_as_its_baseline_was(
    saved: Path, calls: Calls, report: Report, tmp_path: Path, capsys
) -> None:
    kept = tmp_path / "new.json"
    base = replace(
        report,
        options=ProbeOptions(num_samples=77, top_k=20, layers=("*",), seed=5, groups=9, dtype="float32"),
    )
    saved.write_text(report_to_json(base))
    command = ("gate", "net.pt", "--baseline", saved, "--device", "cpu", "--save-report", kept)
    code, _, err = _run(capsys, *command, "--dataset", "digits", "--rule", "beta: +-1")
    assert code == 0
    assert "spectrascope: gradient" in err
    options = calls.seen["run_probe"][0][0].options
    assert options == replace(base.options, device="cpu")
    assert calls.seen["load_dataset"][1]["num_samples"] == 77
    assert report_from_json(kept.read_text()) == report
    code, _, _ = _run(capsys, *command, "--num-samples", "12", "-q")
    assert calls.seen["run_probe"][0][0].options.num_samples == 12


def test_a_slip_costs_no_measurement(saved: Path, calls: Calls, tmp_path: Path, capsys) -> None:
    (tmp_path / "p.toml").write_text("rules = [1]")
    (tmp_path / "bad.toml").write_text("rules = [")
    (tmp_path / "other.toml").write_text("[tool.black]\n")
    for code, options, says in (
        (2, ("--rule", "bta: +-1"), "did you mean beta"),
        (2, ("--policy", tmp_path / "p.toml"), "rules must be a list of strings"),
        (2, ("--policy", tmp_path / "bad.toml"), "not TOML"),
        (2, ("--policy", tmp_path / "no.toml"), "no such file"),
        (2, ("--policy", tmp_path / "other.toml"), "no [tool.spectrascope.gate] table"),
        (2, ("--junit", tmp_path / "no" / "x.xml"), "does not exist"),
        (2, ("--save-report", tmp_path), "it is a folder"),
        (3, ("--baseline", tmp_path / "no.json"), "no such file"),
    ):
        baseline = () if "--baseline" in options else ("--baseline", saved)
        found, out, err = _run(capsys, "gate", "net.pt", *baseline, *options)
        assert (found, out) == (code, "")
        assert err.startswith("error: ")
        assert says in err
    assert not calls.seen


def test_no_baseline(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, "gate", saved)
    assert code == 2
    assert "no baseline: pass --baseline BASE.json" in err
    assert len(err.splitlines()) == 1


def test_options_without_effect_on_a_report(saved: Path, tmp_path: Path, capsys) -> None:
    options = ("--dataset", "digits", "--save-report", tmp_path / "x.json")
    code, _, err = _run(capsys, "gate", saved, "--baseline", saved, *options)
    assert code == 2
    assert "--dataset, --save-report has no effect on the saved report" in err


def test_both_are_fitted_again(saved: Path, capsys) -> None:
    code, out, _ = _run(capsys, "gate", saved, "--baseline", saved, "--top-k", "8", "--json", "--all")
    assert code == 0
    code, _, err = _run(capsys, "gate", saved, "--baseline", saved, "--top-k", "21")
    assert code == 2
    assert "more directions than the 20" in err
    assert json.loads(out)["outcome"] == "pass"


def test_compare_in_every_form(saved: Path, changed: Path, tmp_path: Path, capsys) -> None:
    code, table, _ = _run(capsys, "compare", saved, changed)
    assert code == 0
    assert re.search(r"\b1 of \d+ numbers changed\.", table)
    code, text, _ = _run(capsys, "compare", saved, changed, "--json")
    (change,) = json.loads(text)["changes"]
    assert (change["layer"], change["number"], change["after"]) == ("a[red]b|c", "beta", 3.5)
    code, text, _ = _run(capsys, "compare", saved, changed, "--format", "csv", "--all")
    assert len(list(csv.DictReader(io.StringIO(text)))) > 46
    code, text, _ = _run(capsys, "compare", saved, changed, "--format", "markdown", "-o", tmp_path / "c.md")
    assert (code, text) == (0, "")
    assert "| a\\[red\\]b\\|c | beta | 1.64 | 3.5 |" in (tmp_path / "c.md").read_text()
    assert _run(capsys, "compare", saved, changed, "--number", "zzz")[0] == 2
    assert _run(capsys, "compare", saved, tmp_path / "no.json")[0] == 3


def test_gate_and_compare_are_light(tmp_path: Path) -> None:
    """300 layers without torch, with a few thousand calls each."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(report_to_json(big_report()))
    rows = tuple(
        replace(row, analysis=replace(row.analysis, beta=replace(row.analysis.beta, value=3.0)))
        for row in big_report().layers
    )
    other.write_text(report_to_json(replace(big_report(), layers=rows)))
    code = (
        "import sys; from spectrascope.cli import main; from tests.support.counting import calls_of\n"
        "codes = []; calls = calls_of(lambda: codes.append(main(sys.argv[1:])))\n"
        "print(codes[0], 'torch' in sys.modules, calls, file=sys.stderr)"
    )
    for arguments, expected, most in (
        (["gate", str(other), "--baseline", str(one)], "1 False", 12_000),
        (["compare", str(one), str(other)], "0 False", 12_000),
        (["show", str(one)], "0 False", 6_000),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, cwd=ROOT
        )
        found, _, calls = done.stderr.strip().rpartition(" ")
        assert found == expected
        assert int(calls) < 300 * most, arguments[0]
        assert "transformer.h.299.attention" in done.stdout
