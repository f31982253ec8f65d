"""A stranger's path: from the README's first command to a gated checkpoint of their own, with what each command prints.

python -m tests.support.path        # runs every command and writes the page's outputs anew
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "spectrascope/data/explain/guides/start.md"
WIDTH = 100
NOTHING = "(nothing: the results are in the two files)\n"


@dataclass(frozen=True)
class Step:
    """A command of the page, what it printed there, and the exit code it ends with."""

    command: str
    output: str
    code: int


def steps() -> list[Step]:
    """The commands of the page in order."""
    found = re.findall(r"```sh\n(spectrascope[^\n]*)\n```\n\n```\n(.*?)```", PLACE.read_text(encoding="utf-8"), re.S)
    return [
        Step(command, "" if output == NOTHING else output, 1 if "# exit code 1" in command else 0)
        for command, output in found
    ]


def prepare(folder: Path) -> None:
    """A checkpoint of the stranger's own and the next one: the embedded networks under other names."""
    data = resources.files("spectrascope.data")
    for source, name in (
        ("digits_cnn.safetensors", "mine.safetensors"),
        ("digits_cnn_early.safetensors", "next.safetensors"),
    ):
        with resources.as_file(data.joinpath(source)) as path:
            shutil.copy(path, folder / name)


def words_of(step: Step) -> list[str]:
    """What follows the program's name."""
    return shlex.split(step.command, comments=True)[1:]


def run(step: Step, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder as the page has it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(WIDTH), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "spectrascope", *words_of(step)],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def skeleton(text: str) -> list[str]:
    """The words, without numbers, their units, profiles and where lines end, which differ between machines."""
    bare = re.sub(r"(?<=[\d ])(?:[KMG]iB|ms|s|min)\b", "", text)
    return re.sub(r"[^A-Za-zα-ωΑ-Ω_]+", " ", bare).split()


def main() -> None:
    """Write what the commands print now."""
    page = PLACE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for step in steps():
            done = run(step, folder)
            assert done.returncode == step.code, (step.command, done.stderr)
            command = f"```sh\n{step.command}\n```\n\n```\n"
            shown = f"{done.stdout.rstrip()}\n" if done.stdout.strip() else NOTHING
            page = page.replace(f"{command}{step.output or NOTHING}```", f"{command}{shown}```")
    PLACE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
