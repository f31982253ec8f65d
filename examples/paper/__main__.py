"""Measure what the paper claims and write one page and one table.

    python -m examples.paper                       # embedded data, some minutes; goes on where it broke off
    python -m examples.paper --shared ../shared --results ../shared/paper/results

``paper.html`` and ``paper.md`` are written into ``--out``; trained networks and reports stay in ``--runs``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from examples.paper.arrays import Arrays, checks
from examples.paper.lab import Lab
from examples.paper.page import markdown, page, summary_line
from examples.paper.rows import OPTIMIZERS, claim_rows, comparison_rows, open_rows, optimizer_rows
from spectrascope.reports.write import write_text_atomically


def main() -> None:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder with data/, text/ and checkpoints/ of real data")
    parser.add_argument("--results", type=Path, help="folder of the paper's released results_*.json")
    parser.add_argument("--runs", type=Path, default=Path("paper-runs"), help="what was trained and measured already")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for paper.html and paper.md")
    parser.add_argument("--samples", type=int, default=512, help="measured of every network")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of training")
    parser.add_argument("--seeds", type=int, default=5, help="of the optimizers; 0 leaves them out")
    parser.add_argument("--full", action="store_true", help="a GPU's size: 4 096 samples, 20 times the steps")
    given = parser.parse_args()
    samples, scale = (4096, 20.0) if given.full else (given.samples, given.scale)
    lab, arrays = Lab(given.runs, given.shared, samples, scale), Arrays(given.results)
    rows = [*claim_rows(lab, arrays), *comparison_rows(lab), *optimizer_rows(_trained(given)), *open_rows()]
    data = "the embedded digits and pages" if given.shared is None else f"the data in {given.shared.name}"
    setting = f"Measured on {data}, {samples} samples a network, training steps × {scale:g}, {given.seeds} seeds."
    given.out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(given.out / "paper.html", page(rows, checks(arrays), setting))
    write_text_atomically(given.out / "paper.md", markdown(rows, checks(arrays), setting))
    print(summary_line(rows))
    print(given.out / "paper.html")


def _trained(given: argparse.Namespace) -> dict[str, Any] | None:
    """The comparison of optimizers on the digits, by its own script."""
    if given.seeds < 1:
        return None
    summary = given.runs / "optimizers.json"
    script = Path(__file__).parents[1] / "optimizers" / "train.py"
    wanted = list(dict.fromkeys(["Muon", *(name for row in OPTIMIZERS for name in row[-2:])]))
    command = [sys.executable, str(script), "digits", "--seeds", str(given.seeds), "--summary", str(summary)]
    command += ["--runs", str(given.runs / "optimizers"), "--only", *wanted]
    subprocess.run([*command, *(["--full"] if given.full else [])], check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
