"""The GitHub action as it stands: its steps run in bash, with the files and variables a runner gives them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from spectrascope.reports.json import report_to_json
from tests.support.gate_reports import network, with_signal

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "examples/ci/action/action.yml").read_text(encoding="utf-8"))

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    (tmp_path / "base.json").write_text(report_to_json(with_signal(network(1), 1)), encoding="utf-8")
    (tmp_path / "less.json").write_text(report_to_json(with_signal(network(1), 3, resolved=2)), encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "spectrascope").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m spectrascope "$@"\n')
    (commands / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    return tmp_path


def _run(runner: Path, **inputs: str) -> tuple[int, str, str]:
    """The gate's step with these inputs: its exit code, outcome and summary."""
    (step,) = (step for step in ACTION["runs"]["steps"] if step.get("id") == "gate")
    given = {name: found.get("default", "") for name, found in ACTION["inputs"].items()} | inputs
    env = {name: given[value.split("inputs.")[1].split(" ")[0]] for name, value in step["env"].items()}
    files = {"GITHUB_OUTPUT": runner / "output", "GITHUB_STEP_SUMMARY": runner / "summary"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],  # as GitHub's runners call it
        cwd=runner,
        env={
            **os.environ,
            **env,
            **{name: str(path) for name, path in files.items()},
            "PATH": f"{runner / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, files["GITHUB_OUTPUT"].read_text(), files["GITHUB_STEP_SUMMARY"].read_text()


def test_it_passes_and_fails(runner: Path) -> None:
    code, outcome, summary = _run(runner, model="base.json", baseline="base.json")
    assert (code, outcome) == (0, "outcome=pass\n")
    assert "PASS" in summary
    (runner / "output").unlink()
    code, outcome, summary = _run(runner, model="less.json", baseline="base.json")
    assert (code, outcome) == (1, "outcome=fail\n")
    assert "FAILED" in summary


def test_rules_and_arguments_reach_the_gate_and_nothing_is_run_from_them(runner: Path) -> None:
    code, outcome, summary = _run(
        runner,
        model="base.json",
        baseline="base.json",
        rules="beta: max 0.01\nr2: min 0.1 (informational)\n",
        arguments="--all",
    )
    assert (code, outcome) == (1, "outcome=fail\n")
    assert "max 0.01" in summary
    _run(runner, model="$(touch stolen)", baseline="base.json", rules="`touch stolen`", arguments="'$(touch stolen)'")
    assert not (runner / "stolen").exists()


def test_what_cannot_be_judged_is_said(runner: Path) -> None:
    code, outcome, summary = _run(runner, model="missing.json", baseline="base.json")
    assert (code, outcome) == (3, "outcome=inconclusive\n")
    assert "could not judge (exit code 3)" in summary


def test_inputs_are_never_spliced_into_a_script() -> None:
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    assert "pull_request" in ACTION["runs"]["steps"][-1]["if"]
