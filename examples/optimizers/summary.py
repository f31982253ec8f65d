"""From the files of single runs to a table: means, and differences to a reference paired by seed, with intervals."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrascope.numerics.vectors import interval_about


@dataclass(frozen=True)
class Row:
    """One contender under one budget; ``difference`` is to the reference on the same seeds, better is positive."""

    contender: str
    budget: str
    rate: float
    seeds: tuple[int, ...]
    scores: tuple[float | None, ...]
    seconds: float | None
    difference: float | None
    interval: tuple[float, float] | None
    predicted: float | None
    realised: float | None
    at_best_length: float | None
    best_length: float | None
    along: tuple[tuple[int, float, float], ...] = ()
    """Step, predicted and realised decrease of it, in medians over seeds."""

    def line(self) -> str:
        """The row as text."""
        found = [s for s in self.scores if s is not None]
        mean = f"{statistics.mean(found):8.3f}" if len(found) == len(self.scores) else "diverged"
        spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
        apart = ""
        if self.difference is not None and self.interval is not None:
            apart = f"{self.difference:+.3f} ({self.interval[0]:+.3f} to {self.interval[1]:+.3f})"
        seconds = f"{self.seconds:7.1f} s" if self.seconds is not None else ""
        what = f"{self.contender:<16}{self.budget:<6} lr {self.rate:<8g}"
        return f"{what}{mean}{spread:<9}{seconds:<10}{apart:<28}{self.steps()}"

    def steps(self) -> str:
        """What its steps promised and kept, in medians over the steps that were watched."""
        values = (self.predicted, self.realised, self.at_best_length, self.best_length)
        if any(value is None for value in values):
            return ""
        return " ".join(f"{value:9.2g}" for value in values)


@dataclass(frozen=True)
class Summary:
    """All rows of a task, and where the grids ended."""

    reference: str
    rows: tuple[Row, ...]
    tuning: dict[str, dict[str, float | None]]

    def lines(self) -> list[str]:
        """The table, ready to print."""
        apart = f"better than {self.reference} (95 %)"
        head = f"{'':<16}{'equal':<6}{'':<12}{'mean ± sd':<17}{'CPU':>9} {apart:<28}"
        return [f"{head}predicted  realised at best   best length", *(row.line() for row in self.rows)]


def summarise(folder: Path, reference: str, higher_is_better: bool, tuning_seed: int = 0) -> Summary:
    """Read the runs of a task. The reference under equal steps is the reference under equal time."""
    runs = [json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("* seed *.json"))]
    tuning: dict[str, dict[str, float | None]] = {}
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for run in runs:
        if run["seed"] == tuning_seed:
            tuning.setdefault(run["contender"], {})[f"{run['rate']:g}"] = run["score"]
        else:
            found.setdefault((run["contender"], run["budget"]), {})[run["seed"]] = run
    base = {seed: run["score"] for seed, run in found.get((reference, "steps"), {}).items()}
    sign = 1 if higher_is_better else -1
    rows = [_row(*key, by_seed, base if key != (reference, "steps") else {}, sign) for key, by_seed in found.items()]
    rows.sort(key=lambda row: (row.budget, row.contender != reference, row.contender))
    ordered = {name: dict(sorted(scores.items(), key=lambda item: float(item[0]))) for name, scores in tuning.items()}
    return Summary(reference, tuple(rows), ordered)


def _row(
    contender: str,
    budget: str,
    by_seed: dict[int, dict[str, Any]],
    base: dict[int, float | None],
    sign: int,
) -> Row:
    seeds = tuple(sorted(by_seed))
    scores = tuple(by_seed[seed]["score"] for seed in seeds)
    pairs = [
        (score, other)
        for seed, score in zip(seeds, scores, strict=True)
        if (other := base.get(seed)) is not None and score is not None
    ]
    difference, interval = _paired([sign * (a - b) for a, b in pairs])
    watched = [step for run in by_seed.values() for step in run["watched"]]
    seconds = [run["seconds"] for run in by_seed.values() if run["seconds"]]
    return Row(
        contender, budget, by_seed[seeds[0]]["rate"], seeds, scores, min(seconds, default=None), difference, interval,
        _median([step["slope"] - step["curvature"] / 2 for step in watched]),
        _median([step["realised"] for step in watched]),
        _median([step["at_best_length"] for step in watched]),
        _median([step["best_length"] for step in watched]), _along(watched),
    )  # fmt: skip


def _along(watched: list[dict[str, float]]) -> tuple[tuple[int, float, float], ...]:
    """By step of the training: what it promised and kept."""
    found: dict[int, list[tuple[float, float]]] = {}
    for step in watched:
        found.setdefault(int(step["step"]), []).append((step["slope"] - step["curvature"] / 2, step["realised"]))
    return tuple(
        (step, statistics.median(p for p, _ in pairs), statistics.median(r for _, r in pairs))
        for step, pairs in sorted(found.items())
    )


def _paired(differences: list[float]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean difference and its 95 % interval by Student's t over seeds."""
    if len(differences) < 2:
        return None, None
    mean, n = statistics.mean(differences), len(differences)
    found = interval_about(mean, statistics.stdev(differences) / math.sqrt(n), dof=n - 1)
    return mean, (found.low, found.high)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.median(known) if known else None
