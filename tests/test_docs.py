"""The documents run: README's Python, its commands' names, the examples."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_readme_python_runs_as_printed(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=_env(), check=False
    )
    assert run.returncode == 0, run.stderr
    assert "1.weight ok" in run.stdout
    assert (tmp_path / "report.json").read_text().startswith("{")


def test_readme_has_exactly_two_set_up_commands() -> None:
    section = README.split("## Set-up")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.S)
    assert len(blocks) == 2
    assert all(len(block.strip().splitlines()) == 1 for block in blocks)
    assert "spectrascope probe" in blocks[0]
    assert "pytest" in blocks[1]


def test_ci_runs_the_readme_test_command() -> None:
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_command_and_option_in_the_readme_exists() -> None:
    import typer.main

    from spectrascope.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^spectrascope .*$", README, re.M)
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line, comments=True)
        known = {option for parameter in commands[words[1]].params for option in parameter.opts}
        for word in words[2:]:
            if word.startswith("-"):
                assert word in known, f"{word} in {line!r}"


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 200
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))]
    assert len(links) > 15
    for link in links:
        assert (ROOT / link).exists(), link
    anchors = {
        re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", README, re.M)
    }
    assert {link[1:] for link in re.findall(r"\]\((#[^)]+)\)", README)} <= anchors


def test_every_command_is_in_the_readme() -> None:
    import typer.main

    from spectrascope.cli.app import app

    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"spectrascope {name}" in README


def test_exit_codes_in_the_readme_are_those_of_the_errors() -> None:
    from spectrascope import errors

    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    raised = {getattr(errors, name).exit_code for name in errors.__all__}
    assert raised <= documented
    assert {0, 70, 130} <= documented


@pytest.mark.parametrize("name", ["probe_your_model.py"])
def test_example_runs(name: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=_env(),
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("β = ") == 3
    assert "gauss-newton" in run.stdout


def test_monitor_example_runs(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "monitor_training.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env=_env(),
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "(budget 25 %)" in run.stdout
    steps = re.findall(r"^step (\d+): median β \d", run.stdout, re.M)
    assert len(list((tmp_path / "reports").iterdir())) == len(steps)


def _env() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
