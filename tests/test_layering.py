"""The house keeps its floors: imports only point down, and what reads reports never needs torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "spectrascope"

# Longest prefix wins. A module may import its own floor's room, or anything on a lower floor.
FLOORS = {
    "spectrascope.records": 0,
    "spectrascope.errors": 0,
    "spectrascope.inspection": 0.5,
    "spectrascope.bench_records": 0.5,
    "spectrascope.comparison": 0.5,
    "spectrascope.verdict": 0.6,
    "spectrascope.configuration": 1,
    "spectrascope.history": 0.5,
    "spectrascope.suggestion": 0.5,
    "spectrascope.weight_records": 0.5,
    "spectrascope.decomposition": 0.5,
    "spectrascope.numerics": 1,
    "spectrascope.optim": 1,
    "spectrascope.losses": 0.5,
    "spectrascope.workload": 1,
    "spectrascope.data": 1,
    "spectrascope.measure": 2,
    "spectrascope.loading": 2,
    "spectrascope.reports": 2,
    "spectrascope.gate": 2.5,
    "spectrascope.trajectory": 2,
    "spectrascope.evidence": 1.5,
    "spectrascope.advice": 2,
    "spectrascope.pipeline": 3,
    "spectrascope.inspector": 3.5,
    "spectrascope.validation": 3.5,
    "spectrascope.weight_tails": 3.6,
    "spectrascope.decomposer": 3.5,
    "spectrascope.bench": 3,
    "spectrascope.api": 4,
    "spectrascope.integrations": 4.5,
    "spectrascope.cli": 5,
    "spectrascope.__main__": 6,
}
TORCH_FREE = (
    "spectrascope.records", "spectrascope.errors", "spectrascope.reports", "spectrascope.comparison",
    "spectrascope.verdict", "spectrascope.configuration", "spectrascope.gate", "spectrascope.numerics.replicates",
    "spectrascope.history", "spectrascope.trajectory", "spectrascope.suggestion", "spectrascope.evidence",
    "spectrascope.advice", "spectrascope.weight_records", "spectrascope.decomposition",
)  # fmt: skip
TORCH_MODULES = {"torch", "torchvision", "transformers", "safetensors"}


def _module_name(path: Path) -> str:
    parts = ["spectrascope", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _place(module: str) -> str | None:
    found = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return max(found, key=len, default=None)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(node.module or "")
    return found


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(ROOT)) for p in MODULES])
def test_imports_point_down(path: Path) -> None:
    name = _module_name(path)
    if name == "spectrascope":
        return  # only re-exports, lazily
    place = _place(name)
    assert place is not None, f"{name} has no floor: add it to FLOORS"
    for imported in _imports(path):
        if imported == "spectrascope" or not imported.startswith("spectrascope"):
            continue
        other = _place(imported)
        if other is None:
            assert imported == "spectrascope.__version__", f"{name} imports {imported}, which has no floor"
            continue
        assert other == place or FLOORS[other] < FLOORS[place] or name.startswith(("spectrascope.bench",)), (
            f"{name} (floor {FLOORS[place]}) imports {imported} (floor {FLOORS[other]})"
        )


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(ROOT)) for p in MODULES])
def test_report_readers_never_name_torch(path: Path) -> None:
    if _module_name(path).startswith(TORCH_FREE):
        assert not {i.split(".")[0] for i in _imports(path)} & TORCH_MODULES


def test_reading_rooms_import_without_torch() -> None:
    code = (
        "import sys, spectrascope, spectrascope.reports.render, spectrascope.reports.refit, spectrascope.cli.app;"
        "import spectrascope.gate, spectrascope.configuration, spectrascope.reports.junit;"
        "import spectrascope.advice;"
        "assert not {'torch', 'torchvision', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_every_public_name_resolves() -> None:
    import importlib

    for path in MODULES:
        module = importlib.import_module(_module_name(path))
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.__all__ names {name!r}"


def test_no_file_has_outgrown_its_room() -> None:
    long = {str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 520}
    assert not long
