"""How many samples curvature needs: intervals of held-out exponents over N samples for slopes and M for curvature.

python examples/benchmarks/curvature_samples.py OUT.json --samples 512 2048 --seeds 2 -- MODEL --dataset DATA ...
python examples/benchmarks/curvature_samples.py --table OUT.json ...

Every (N, M, seed) is one run of ``spectrascope probe`` with the options after ``--``. What is there already is kept, so
that a run that was stopped goes on. Widths are of 95 % intervals; costs in forward passes of one sample, as ``inspect``
foretells them. The rule for the default of ``--curvature-samples``: the least M at which the network's step exponent
has, in the mean over N and seeds, an interval at most a tenth wider than at M = N.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

FEWEST = 128
WITHIN = 1.10
HELD_OUT = ("--estimate", "held-out", "--null-draws", "0")


def main() -> None:
    """Measure, or print tables of what was measured."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON to write, or with --table to read")
    parser.add_argument("--samples", nargs="+", type=int, default=[512, 2048], help="N")
    parser.add_argument("--fewest", type=int, default=FEWEST, help="least M; it doubles up to N")
    parser.add_argument("--seeds", type=int, default=1, help="draws of the samples")
    parser.add_argument("--table", action="store_true", help="print what files hold")
    asked = parser.parse_args(sys.argv[1:split])
    if asked.table:
        for file in asked.files:
            print(table(json.loads(file.read_text(encoding="utf-8"))))
    else:
        measure(asked.files[0], sys.argv[split + 1 :], asked.samples, asked.fewest, range(asked.seeds))


def measure(file: Path, command: list[str], samples: list[int], fewest: int, seeds: range) -> None:
    """Fill in what the file lacks, point by point."""
    found: dict[str, Any] = {"command": command, "points": []}
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    done = {(p["n"], p["m"], p["seed"]) for p in found["points"]}
    for n, seed in itertools.product(samples, seeds):
        for m in sizes(fewest, n):
            if (n, m, seed) in done:
                continue
            options = ("--num-samples", str(n), "--curvature-samples", str(m), "--seed", str(seed), *HELD_OUT)
            report = spectrascope("probe", *command, *options, "--self-check", "off")
            cost = spectrascope("inspect", *command, *options)["cost"]
            found["points"].append({"n": n, "m": m, "seed": seed, **widths(report), **passes(cost, n)})
            found |= {key: report["provenance"][key] for key in ("model", "data", "versions", "device", "dtype")}
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def sizes(fewest: int, n: int) -> list[int]:
    """M for N: doubling, N itself last.

    >>> sizes(128, 600)
    [128, 256, 512, 600]
    """
    return [*itertools.takewhile(lambda m: m < n, (fewest << i for i in itertools.count())), n]


def spectrascope(command: str, *arguments: str) -> dict[str, Any]:
    """What a command answers."""
    from spectrascope.cli import main as run

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        if run([command, *arguments, "-q", "--output", str(file)]):
            sys.exit(1)
        answer: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return answer


def widths(report: dict[str, Any]) -> dict[str, Any]:
    """The network's step exponent and the width of its interval, and over weights the medians of two widths."""
    whole = report["summary"]["signal"]["step_exponent"]
    held_out = [layer["held_out"] for layer in report["layers"] if "slopes" in (layer.get("held_out") or {})]
    steps = [width(h["step_exponent"].get("interval")) for h in held_out]
    betas = [width(h["beta"].get("ci95"), h["beta"].get("jackknife_ci95")) for h in held_out]
    return {
        "step_exponent": whole.get("value"),
        "step_width": width(whole.get("interval")),
        "weights": len(held_out),
        "step_width_of_a_weight": median(steps),
        "beta_width_of_a_weight": median(betas),
    }


def width(*intervals: Any) -> float | None:
    """Width of the widest interval that is there."""
    known = [interval[1] - interval[0] for interval in intervals if isinstance(interval, list)]
    return max(known) if known else None


def median(values: list[float | None]) -> float | None:
    """Median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def passes(cost: dict[str, Any], n: int) -> dict[str, float]:
    """Forward passes of one sample: of the gradient, and of all."""
    return {"gradient_passes": cost["gradient_passes"] * n, "total_passes": cost["total_passes"] * n}


def enough(points: list[dict[str, Any]]) -> dict[int, float]:
    """By M: the mean over N and seeds of the width of the step exponent's interval, in that at M = N."""
    whole = {(p["n"], p["seed"]): p["step_width"] for p in points if p["m"] == p["n"]}
    ratios: dict[int, list[float]] = {}
    for p in points:
        best = whole.get((p["n"], p["seed"]))
        if best and p["step_width"] and p["m"] < p["n"]:
            ratios.setdefault(p["m"], []).append(p["step_width"] / best)
    return {m: statistics.mean(found) for m, found in sorted(ratios.items())}


def table(found: dict[str, Any]) -> str:
    """A Markdown table: one row per (N, M), means over seeds."""
    lines = [
        f"{found['model']['id']}, {found['data']['id']}",
        "",
        "| N | M | step exponent | its interval's width | of a weight | β of a weight | forward passes |",
        "|---|---|---|---|---|---|---|",
    ]
    for (n, m), group in itertools.groupby(
        sorted(found["points"], key=lambda p: (p["n"], p["m"])), key=lambda p: (p["n"], p["m"])
    ):
        points = list(group)
        names = ("step_exponent", "step_width", "step_width_of_a_weight", "beta_width_of_a_weight")
        cells = [[p[name] for p in points if p[name] is not None] for name in names]
        shown = [f"{statistics.mean(cell):.2f}" if cell else "–" for cell in cells]
        lines.append(f"| {n:,} | {m:,} | {' | '.join(shown)} | {points[0]['total_passes']:,.0f} |")
    ratios = enough(found["points"])
    said = ", ".join(f"{m:,}: {ratio:.2f}" for m, ratio in ratios.items())
    least = next((m for m, ratio in ratios.items() if ratio <= WITHIN), None)
    verdict = "none" if least is None else f"{least:,}"
    return "\n".join([*lines, "", f"Width at M in that at M = N: {said}; least M within a tenth: {verdict}.", ""])


if __name__ == "__main__":
    main()
