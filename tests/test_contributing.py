"""What contributors are told is there: paths that exist, links that lead somewhere, versions that CI can install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_layering import FLOORS, ROOMS

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
GUIDE = (GITHUB / "CONTRIBUTING.md").read_text()
PATHS = sorted(set(re.findall(r"`((?:spectrascope|tests|examples|\.ci|\.github)/[^` ]+)`", GUIDE)))


def test_the_guide_names_paths() -> None:
    assert len(PATHS) > 20


@pytest.mark.parametrize("path", PATHS)
def test_every_path_in_the_guide_exists(path: str) -> None:
    found = ROOT / path
    assert found.is_dir() if path.endswith("/") else found.is_file()


def test_floors_in_the_guide_are_those_that_are_held() -> None:
    section = GUIDE.split("## Rooms and floors")[1].split("\n## ")[0]
    told: dict[str, int] = {}
    for floors, rooms in re.findall(r"^\| ([\d, ]+) \| (.*) \|$", section, re.M):
        names = re.findall(r"(?:^|· )`(\w+)`", rooms)
        numbers = [int(floor) for floor in floors.split(", ")]
        told |= dict(zip(names, numbers if len(numbers) > 1 else numbers * len(names), strict=True))
    assert told == {room: floor for room, floor in FLOORS.items() if room != "__main__"}
    assert set(told) >= ROOMS


def test_the_glossary_is_a_table_of_words() -> None:
    words = re.findall(r"^\| (.+?) \| .+ \|$", GUIDE.split("## Words")[1], re.M)[1:]
    assert len(words) >= 25
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("file", sorted(GITHUB.rglob("*.md")), ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", file.read_text()):
        assert (file.parent / target).exists(), target


@pytest.mark.parametrize(
    "file", [*sorted(GITHUB.rglob("*.yml")), ROOT / ".pre-commit-config.yaml"], ids=lambda file: file.name
)
def test_settings_are_yaml(file: Path) -> None:
    assert yaml.safe_load(file.read_text())


def test_pre_commit_runs_the_commands_of_the_readme() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    command = (ROOT / "README.md").read_text().split("<!-- test command -->")[1]
    for hook in hooks:
        assert f".venv/bin/{hook['entry'].replace(' --force-exclude', '')}" in command


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML, as CI does, with Python 3.11")
def test_the_oldest_version_of_every_dependency_is_known() -> None:
    done = subprocess.run(
        [sys.executable, str(GITHUB / "oldest_dependencies.py")], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert {"torch==2.5", "timm==1.0.9", "transformers==5"} <= set(lines)
    assert all(re.fullmatch(r"[\w.-]+==\d[\d.]*", line) for line in lines)
