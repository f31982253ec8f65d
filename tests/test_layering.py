"""The house keeps its floors: imports only point down, and what reads reports never needs torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "spectrascope"

# A module may import its own room, or anything on a lower floor.
FLOORS = {
    "errors": 0, "text": 0, "records": 0,
    "numerics": 1, "losses": 1, "config": 1, "optim": 1, "data": 1,
    "reports": 2, "workload": 2,
    "advice": 3, "gating": 3, "network": 3,
    "curvature": 4, "loading": 4,
    "measure": 5,
    "api": 6,
    "integrations": 7,
    "cli": 8,
    "__main__": 9,
}  # fmt: skip
ROOMS = {
    "records", "numerics", "network", "curvature", "measure", "loading", "advice", "gating", "reports", "optim",
    "integrations", "cli", "losses", "api",
}  # fmt: skip
FILES = {"config.py", "errors.py", "text.py", "workload.py"}
TORCH_FREE = ("errors", "text", "records", "config", "advice", "gating", "reports")
TORCH_MODULES = {"torch", "torchvision", "transformers", "safetensors"}


def _module_name(path: Path) -> str:
    parts = ["spectrascope", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(module: str) -> str:
    """The room of ``spectrascope.room.module``."""
    return module.split(".")[1]


MODULES = sorted(ROOT.rglob("*.py"))
NAMES = {_module_name(path) for path in MODULES}


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & NAMES
            found |= whole or {node.module or ""}
    return found


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(ROOT)) for p in MODULES])
def test_imports_point_down(path: Path) -> None:
    name = _module_name(path)
    if name == "spectrascope":
        return  # only re-exports, lazily
    room = _room(name)
    for imported in _imports(path):
        if imported.startswith("spectrascope."):
            other = _room(imported)
            assert other == room or FLOORS[other] < FLOORS[room], (
                f"{name} (floor {FLOORS[room]}) imports {imported} (floor {FLOORS[other]})"
            )
        assert imported != "spectrascope", f"{name} imports the package's own __init__"


def test_modules_import_each_other_in_no_circle() -> None:
    edges = {_module_name(path): _imports(path) & NAMES for path in MODULES}
    seen: dict[str, bool] = {}  # True while on the path from the start

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert not seen.get(name, False), f"a circle: {' -> '.join((*way, name))}"
        if name in seen:
            return
        seen[name] = True
        for other in sorted(edges[name]):
            visit(other, (*way, name))
        seen[name] = False

    for name in sorted(NAMES - {"spectrascope"}):  # its names are imported when they are asked for
        visit(name, ())


def test_no_class_name_stands_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(_module_name(path))
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_no_room_hides_a_public_function() -> None:
    """Importing ``spectrascope.x.y`` binds the room to ``spectrascope.x``, over a function of that name."""
    import spectrascope

    commands = {"probe", "triangle", "decompose", "weights", "gate", "compare", "suggest", "trajectory", "inspect"}
    assert not (ROOMS | {f.removesuffix(".py") for f in FILES}) & (commands | set(spectrascope.__all__))


def test_top_of_the_house() -> None:
    found = {p.name for p in ROOT.iterdir() if p.suffix in ("", ".py") and p.name != "__pycache__"}
    assert found == ROOMS | FILES | {"__init__.py", "__main__.py", "data"}


@pytest.mark.parametrize("path", MODULES, ids=[str(p.relative_to(ROOT)) for p in MODULES])
def test_report_readers_never_name_torch(path: Path) -> None:
    if _module_name(path) != "spectrascope" and _room(_module_name(path)) in TORCH_FREE:
        assert not {i.split(".")[0] for i in _imports(path)} & TORCH_MODULES


def test_reading_rooms_import_without_torch() -> None:
    code = (
        "import sys, spectrascope, spectrascope.reports.render, spectrascope.reports.refit, spectrascope.cli.app;"
        "import spectrascope.gating, spectrascope.config, spectrascope.reports.junit;"
        "import spectrascope.advice.advise;"
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


def test_nothing_stands_at_the_top_of_the_repository_but_what_its_owner_put_there() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    found = {name.split("/")[0] for name in tracked.stdout.split("\0") if name}
    expected = {"pyproject.toml", "spectrascope", "tests", "examples", "README.md", "LICENSE"}
    assert {name for name in found if not name.startswith(".")} == expected
