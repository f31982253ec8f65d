"""The pipelines in examples/ci: what they run works as printed, and its exit codes mean what they say."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from spectrascope.cli import main

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / "examples" / "ci"


def _github() -> dict:
    return yaml.safe_load((CI / "github-actions.yml").read_text())


def _gitlab() -> dict:
    return yaml.safe_load((CI / "gitlab-ci.yml").read_text())["curvature gate"]


def _github_runs() -> list[str]:
    return [step["run"] for step in _github()["jobs"]["gate"]["steps"] if "run" in step]


def test_both_run_the_same_gate() -> None:
    gates = [
        [line for line in lines if line.startswith("spectrascope ")] for lines in (_github_runs(), _gitlab()["script"])
    ]
    assert gates[0] == gates[1]
    assert len(gates[0]) == 1


def test_files_are_kept_whatever_the_verdict() -> None:
    """The verdict must reach the reader of a failed pipeline too."""
    names = {"verdict.json", "report.json", "gate.xml", "gate.md"}
    job = _gitlab()
    assert job["artifacts"]["when"] == "always"
    assert {*job["artifacts"]["paths"], job["artifacts"]["reports"]["junit"]} == names
    assert job["allow_failure"] == {"exit_codes": 3}
    steps = _github()["jobs"]["gate"]["steps"]
    after = steps[1 + next(i for i, step in enumerate(steps) if step.get("run", "").startswith("spectrascope")) :]
    assert len(after) == 2
    assert all(step["if"] == "always()" for step in after)


def test_the_gate_passes_fails_and_shows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "curvature").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.spectrascope]\ndataset = "digits"\n')
    weights = next(p for p in files("spectrascope").joinpath("data").iterdir() if p.name.endswith(".safetensors"))
    shutil.copy(str(weights), tmp_path / "checkpoints" / "model.safetensors")
    environment = {**os.environ, "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}

    def run(command: str) -> int:
        return main(shlex.split(command.replace("model.pt", "model.safetensors"))[1:])

    monkeypatch.chdir(tmp_path)
    gate, show = (line for line in _github_runs() if not line.startswith("pip"))
    assert (
        run("spectrascope probe checkpoints/model.pt --num-samples 96 --top-k 6 --json -o curvature/baseline.json") == 0
    )
    assert run(gate) == 0
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["outcome"] == "pass"
    assert verdict["paired"]
    suite = ET.parse(tmp_path / "gate.xml").getroot().find("testsuite")
    assert int(suite.get("tests")) == len(verdict["findings"]) > 20
    (tmp_path / "summary.md").write_text("before\n")
    subprocess.run(["bash", "-c", show], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "summary.md").read_text().startswith("before\n## spectrascope gate: PASSED\n")

    # The report it saved is the next baseline; as one of another network it would have failed.
    baseline = tmp_path / "curvature" / "baseline.json"
    document = json.loads((tmp_path / "report.json").read_text())
    document["layers"][1]["beta"]["value"] += 5.0
    baseline.write_text(json.dumps(document))
    assert run(f"spectrascope gate report.json --baseline {baseline}") == 1


def test_false_alarms_and_power_can_be_measured(tmp_path: Path) -> None:
    command = [
        *(sys.executable, str(CI / "measure_false_alarms.py"), "digits-cnn", "digits", "--batch", "360"),
        *("--layer", "conv2.weight", "--noise", "1", "--keep", str(tmp_path)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alarms, power = done.stdout.splitlines()
    assert alarms.startswith("false alarms: 0 of 6 pairs of disjoint batches of 360 samples (at most 39.3 %")
    assert power.startswith("noise 1 in conv2.weight: caught on 4 of 4 batches")
    assert len(list(tmp_path.iterdir())) == 8
