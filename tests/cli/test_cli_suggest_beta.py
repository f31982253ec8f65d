"""``suggest-beta`` from the command line: saved reports, networks, emissions, steps taken for real, refusals."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from spectrascope.advice.advise import advise
from spectrascope.cli import main
from spectrascope.records.report import Report
from spectrascope.reports.emit import emit_torch
from tests.support.fixtures import START


def _suggest(capsys, *arguments: str) -> str:
    assert main(["suggest-beta", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_every_format_of_a_saved_report(saved: Path, capsys, form: str) -> None:
    text = _suggest(capsys, str(saved), "--format", form)
    assert "conv1.weight" in text
    assert text.endswith("\n")


def test_a_saved_report_needs_no_torch(saved: Path) -> None:
    code = f"import sys; sys.modules['torch'] = None; {START.replace('import sys; ', '')}"
    done = subprocess.run(
        [sys.executable, "-c", code, "suggest-beta", str(saved), "--emit", "yaml"],
        capture_output=True, text=True, check=False, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "conv1.weight" in yaml.safe_load(done.stdout)["parameters"]


def test_numbers_are_those_of_the_library(saved: Path, report: Report, capsys) -> None:
    expected = advise(report, train_batch=64)
    rows = list(csv.DictReader(io.StringIO(_suggest(capsys, str(saved), "--format", "csv", "--train-batch", "64"))))
    for row, layer in zip(rows, expected.layers, strict=True):
        if isinstance(layer.beta, float):
            assert float(row["beta"]) == layer.beta
            assert float(row["relative_damping"]) == layer.relative_damping
    assert _suggest(capsys, str(saved), "--emit", "torch").strip() == emit_torch(advise(report))


def test_another_window(saved: Path, capsys) -> None:
    layers = json.loads(_suggest(capsys, str(saved), "--json", "--top-k", "8", "--min-rank", "2"))["layers"]
    assert layers[0]["window"] == [2, 8]


def test_of_a_network(calls, capsys) -> None:
    text = _suggest(capsys, "net.pt", "--dataset", "digits", "--num-samples", "64", "-q")
    assert "conv1.weight" in text
    (run, *_), _ = calls.seen["run_probe"]
    assert run.options.num_samples == 64


def test_steps_taken_for_real_and_drawn(tmp_path: Path, capsys) -> None:
    picture = tmp_path / "steps.svg"
    arguments = ["--num-samples", "200", "--validate", "--top-k", "6", "--layers", "fc*", "--json", "-q"]
    arguments += ["--validate-plot", str(picture)]
    document = json.loads(_suggest(capsys, *arguments))
    found = document["validation"]
    assert (found["on"], found["n_measured"], found["n_checked"], found["n_layers"]) == ("held-out", 100, 100, 2)
    assert {step["layer"] for step in found["steps"]} == {"fc1.weight", "fc2.weight"}
    assert document["data"]["n"] == 100
    assert picture.read_text(encoding="utf-8").rstrip().endswith("</svg>")


def test_output_goes_to_a_file(saved: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "betas.yaml"
    assert _suggest(capsys, str(saved), "--emit", "yaml", "-o", str(target)) == ""
    assert "conv1.weight" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validate"], "--validate takes steps with the network: name it instead of the report"),
        (["--dataset", "digits"], "--dataset has no effect on the saved report"),
        (["--emit", "yaml", "--json"], "--emit is a form of its own"),
        (["--emit", "yaml", "--format", "csv"], "--emit is a form of its own"),
        (["--emit", "toml"], "'toml' is not one of 'torch', 'yaml'"),
        (["--train-batch", "0"], "must be at least 1"),
        (["--top-k", "50"], "more directions than the 20 that were measured"),
    ],
)
def test_refusals(saved: Path, capsys, arguments: list[str], message: str) -> None:
    assert main(["suggest-beta", str(saved), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1


def test_what_is_no_report(tmp_path: Path, capsys) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}", encoding="utf-8")
    assert main(["suggest-beta", str(path)]) == 3
    assert "not a spectrascope report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validate-on", "measured"], "--validate-on goes with --validate"),
        (["--validate-plot", "steps.png"], "--validate-plot goes with --validate"),
        (["--validate", "--validate-plot", "steps.jpg"], "expected a file ending in .png, .svg, .pdf"),
        (["--validate", "--validate-plot", "no/such/steps.png"], "no/such"),
    ],
)
def test_options_of_validate(arguments: list[str], message: str, calls, capsys) -> None:
    assert main(["suggest-beta", *arguments, "-q"]) == 2
    assert message in capsys.readouterr().err
    assert not calls.seen  # refused before anything is measured


def test_too_few_samples_to_halve(capsys) -> None:
    assert main(["suggest-beta", "--num-samples", "3", "--validate", "-q"]) == 3
    assert "cannot be halved for --validate" in capsys.readouterr().err
