"""The main job as a user runs it, on the embedded network."""

import json
from pathlib import Path

import jsonschema

from spectrascope.reports.schema import report_schema


def test_probe_show_and_triangle(tmp_path: Path, run_command) -> None:
    path = tmp_path / "report.json"
    done = run_command("probe", "--num-samples", "96", "--top-k", "6", "--json", "--output", str(path))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    document = json.loads(path.read_text())
    jsonschema.Draft202012Validator(report_schema()).validate(document)
    assert document["provenance"]["command"].startswith("spectrascope probe --num-samples 96 --top-k 6 --json")
    assert {"import", "load"} <= set(document["provenance"]["seconds"])
    assert document["summary"]["n_ok"] >= 3
    shown = run_command("show", str(path))
    assert shown.returncode == 0
    for layer in document["layers"]:
        assert layer["name"] in shown.stdout
    assert "null β" in shown.stdout
    triangle = run_command("triangle", str(path), "--top-k", "5")
    assert triangle.returncode == 0
    assert "verdict" in triangle.stdout
