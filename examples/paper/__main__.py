"""Measure what the paper claims and write one page and one table.

    python -m examples.paper                       # embedded data, some minutes; goes on where it broke off
    python -m examples.paper --shared ../shared --results ../shared/paper/results
    python -m examples.paper --full --data data    # a GPU: CIFAR-10, CIFAR-100 and Tiny-ImageNet, unpacked in data

``paper.html`` and ``paper.md`` are written into ``--out``; trained networks and reports stay in ``--runs``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from examples.paper.arrays import Arrays, checks
from examples.paper.claims import OPTIMIZERS
from examples.paper.full import require_data
from examples.paper.lab import Lab
from examples.paper.page import markdown, page, summary_line
from examples.paper.rows import claim_rows, comparison_rows, open_rows, optimizer_rows, triangle_rows
from spectrascope.reports.write import write_text_atomically

_TRAIN = Path(__file__).parents[1] / "optimizers" / "train.py"


def main() -> None:
    """Measure, judge, write."""
    given = _asked()
    samples, device = given.samples or (4096 if given.full else 512), given.device
    if given.full:
        require_data(given.data)
        if device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("--full is of a GPU's size, and torch finds no CUDA here: --device cpu takes days")
    lab = Lab(given.runs, given.shared, samples, given.scale, given.data if given.full else None, device)
    arrays = Arrays(given.results)
    rows = [*claim_rows(lab, arrays), *comparison_rows(lab)]
    rows += [row for summary in _trained(given) for row in optimizer_rows(summary)]
    rows += open_rows(lab)
    whole = "whole CIFAR-10, CIFAR-100 and Tiny-ImageNet" if given.full else "the embedded digits and pages"
    data = whole if given.shared is None else f"the data in {given.shared.name}"
    seeds = f"{given.seeds} seeds of optimizers" if given.seeds else "no optimizers"
    setting = f"Measured on {data}, up to {samples} samples a network, training steps × {given.scale:g}, {seeds}."
    setting += " Beside a figure: its 95 % interval, and of how many weights or seeds it is."
    setting += " Step exponents on held-out samples are looked for from 0 to 3."
    triangle = triangle_rows(lab, arrays)
    given.out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(given.out / "paper.html", page(rows, checks(arrays), triangle, setting))
    write_text_atomically(given.out / "paper.md", markdown(rows, checks(arrays), triangle, setting))
    print(summary_line(rows))
    print(given.out / "paper.html")


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="folder with data/, text/ and checkpoints/ of real data")
    parser.add_argument("--results", type=Path, help="folder of the paper's released results_*.json")
    parser.add_argument("--runs", type=Path, default=Path("paper-runs"), help="what was trained and measured already")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for paper.html and paper.md")
    parser.add_argument("--samples", type=int, help="measured of every network: 512, or 4 096 with --full")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of training")
    parser.add_argument("--seeds", type=int, default=5, help="of the optimizers; 0 leaves them out")
    parser.add_argument("--epochs", type=float, help="of the optimizers, instead of each task's own")
    parser.add_argument("--full", action="store_true", help="networks and data of the paper's size, for a GPU")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where --full finds whole datasets")
    parser.add_argument("--device", help="cpu, or cuda with --full")
    given = parser.parse_args()
    given.device = given.device or ("cuda" if given.full else "cpu")
    return given


def _trained(given: argparse.Namespace) -> list[dict[str, Any] | None]:
    """Comparisons of optimizers by their own script, one a task, with equal steps."""
    if given.seeds < 1:
        return [None]
    tasks = {"digits": ["--epochs", "30"]}
    if given.full:
        whole = ["--data", str(given.data), "--full", "--device", given.device]
        tasks = {"cifar10": whole, "cifar100": whole}
    elif given.shared is not None:
        tasks["cifar"] = ["--data", str(given.shared / "data" / "cifar10-test"), "--epochs", "1"]
    return [_compared(given, task, options) for task, options in tasks.items()]


def _compared(given: argparse.Namespace, task: str, options: list[str]) -> dict[str, Any]:
    summary = given.runs / f"optimizers-{task}.json"
    wanted = list(dict.fromkeys(["Muon", *(name for row in OPTIMIZERS for name in row[-2:])]))
    command = [sys.executable, str(_TRAIN), task, *options, "--seeds", str(given.seeds), "--summary", str(summary)]
    command += ["--epochs", str(given.epochs)] if given.epochs is not None else []
    command += ["--budgets", "steps", "--runs", str(given.runs / "optimizers"), "--only", *wanted]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
