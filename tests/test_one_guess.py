"""Where is …? One guess each: the file exists, and what was asked for is defined there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ANSWERS = [
    ("where is beta fitted?", "numerics/fits.py", "fit_beta"),
    ("where does a .pt get opened?", "loading/checkpoints/read.py", "read_checkpoint"),
    ("the tangent rule for softmax, in attention?", "curvature/tangent/attention.py", "ATTENTION_RULES"),
    ("the tangent rule for softmax, by itself?", "curvature/tangent/normalise.py", "_softmax"),
    ("which engine, and why?", "curvature/choose.py", "choose_engines"),
    ("which weights?", "network/layers.py", "find_layers"),
    ("a fused weight, seen how?", "network/fused.py", "fused_blocks"),
    ("the order of work?", "measure/run.py", "run_probe"),
    ("the gate's default policy?", "gating/policy.py", "default_policy"),
    ("a column of the table?", "reports/fields.py", "Field"),
    ("what is recommended, and why?", "advice/advise.py", "advise"),
    ("what does a report hold?", "records/report.py", "Report"),
]


@pytest.mark.parametrize(("question", "file", "name"), ANSWERS, ids=[question for question, _, _ in ANSWERS])
def test_the_first_guess_is_right(question: str, file: str, name: str) -> None:
    path = ROOT / "spectrascope" / file
    assert path.is_file(), f"{question} {file}, which is not there"
    defined: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert name in defined, f"{question} {file}, but {name} is not defined there"


def test_contributing_gives_the_same_answers() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    table = text.split("## One guess")[1].split("\n## ")[0]
    named = set(re.findall(r"`spectrascope/([^`]+)`", table))
    assert named == {file for _, file, _ in ANSWERS} - {"advice/advise.py"} | {"advice/"}
