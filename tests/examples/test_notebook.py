"""The notebook in ``examples`` runs from top to bottom, each cell showing what a reader would see."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def _cells() -> list[str]:
    return ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


def _run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a kernel does; the value of its last expression."""
    tree = ast.parse(source)
    *body, last = tree.body
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas", reason="the notebook shows a frame")
    pytest.importorskip("matplotlib", reason="the notebook draws")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [_run(cell.replace("num_samples=1024", "num_samples=256"), names) for cell in _cells()]
    pictures = [item for item in shown if hasattr(item, "_repr_png_")]
    tables = [item for item in shown if hasattr(item, "_repr_html_") and not hasattr(item, "_repr_png_")]
    assert len(tables) >= 6
    assert len(pictures) == 2
    assert sum("<table" in item._repr_html_() for item in tables) >= len(tables) - 1  # a gate that passes has none
    assert all(item._repr_png_().startswith(b"\x89PNG") for item in pictures)
    assert bool(names["verdict"])
    assert (tmp_path / "step_exponents.pdf").stat().st_size > 1000


def test_the_notebook_is_stored_without_paths_of_a_machine() -> None:
    text = NOTEBOOK.read_text()
    assert "/work/" not in text
    assert "/home/" not in text
    assert "Traceback" not in text
