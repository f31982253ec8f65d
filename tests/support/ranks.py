"""Measure small networks in processes of their own: several ranks, or one that is killed on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.measure.decompose import run_decompose
from spectrascope.measure.division import WHOLE, Division
from spectrascope.measure.ranks import Ranks, join_ranks
from spectrascope.measure.run import run_probe
from spectrascope.measure.run_folder import RunFolder
from spectrascope.records.decomposition import DecomposeOptions
from spectrascope.records.report import DataInfo, ModelInfo, ProbeOptions, Report
from spectrascope.records.values import Missing
from spectrascope.reports.json import report_to_json
from spectrascope.workload import Run, TensorSource

N = 40  # 16 sample groups of 2 and 3
PATIENCE = 120.0  # seconds that no process here takes


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "class factors":
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(),
            nn.Linear(8, 5),
        )  # fmt: skip
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 12), nn.GELU(), nn.LayerNorm(12), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5)
    )


def make_run(kind: str, dtype: str = "float32", **options: Any) -> Run:
    """A network with one of the two exact engines, on random samples."""
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(N, 1, 6, 6, generator=generator), torch.randint(0, 5, (N,), generator=generator)
    none = Missing("in memory")
    return Run(
        network(kind),
        TensorSource(inputs, labels),
        None,
        ProbeOptions(**{"num_samples": N, "top_k": 3, "dtype": dtype, "micro_batch": 2, **options}),
        ModelInfo(kind, kind, "python", none, none, "in memory", 1),
        DataInfo("random", N, N, "digest", (1, 6, 6), 5, "none", "none", synthetic=True),
        command="spectrascope probe",
    )


def numbers_of(report: Report) -> dict[str, Any]:
    """All of a report but timings, who measured it, and which packages were loaded there."""
    found: dict[str, Any] = json.loads(report_to_json(report))
    for name in ("seconds", "created", "ranks", "versions"):
        found["provenance"].pop(name, None)
    return found


def count_samples(run: Run) -> tuple[Run, list[int]]:
    """Have the samples counted that go forward through the network, or through a copy of it."""
    seen, kind = [0], type(run.model)

    def forward(self: nn.Module, inputs: Tensor) -> Tensor:
        seen[0] += len(inputs)
        return kind.forward(self, inputs)

    run.model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return run, seen


@dataclass
class Outcome:
    """What one rank said in the end."""

    report: Report | None
    error: str
    samples: int


Job = Callable[[Ranks], Report | None]


def probe_job(ranks: Ranks, *, run: partial[Run], folder: str = "", fails: int | None = None) -> Report | None:
    measured = run()
    if fails == ranks.index:

        def complain(stage: str, done: float, total: int) -> None:
            if stage == "curvature":
                raise ValueError(f"rank {ranks.index} cannot go on")

        measured = replace(measured, on_progress=complain)
    kept = RunFolder(Path(folder)) if folder else None
    return run_probe(measured, Division(ranks, kept))


def decompose_job(ranks: Ranks, *, run: partial[Run], asked: DecomposeOptions, folder: str) -> Report:
    return run_decompose(run(), asked, Division(ranks, RunFolder(Path(folder))))


def _rank(index: int, count: int, store: str, job: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    counted = [0]
    original = nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, nn.Sequential) and args:
            counted[0] += len(args[0])
        return original(self, *args, **kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        with join_ranks(index, count, init_method=f"file://{store}") as ranks, ranks.together():
            report = job(ranks)
        answers.put((index, Outcome(report, "", counted[0])))
    except Exception as error:
        answers.put((index, Outcome(None, f"{type(error).__name__}: {error}", counted[0])))


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")  # a fresh process, in which torch is imported once for all
    context.set_forkserver_preload(["tests.support.ranks"])
    return context


def on_ranks(count: int, job: Job, folder: Path) -> list[Outcome]:
    """Run a job on gloo ranks; what each of them said, in order."""
    context = _context()
    answers = context.Queue()
    store = folder / f"store-{time.monotonic_ns()}"
    processes = [
        context.Process(target=_rank, args=(i, count, str(store), job, answers), daemon=True) for i in range(count)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=PATIENCE) for _ in processes)
    for process in processes:
        process.join(PATIENCE)
    return [found[i] for i in range(count)]


def _alone(job: Any) -> None:
    torch.set_num_threads(1)
    job(WHOLE.ranks)


def kill_when(job: Job, ready: Callable[[], bool]) -> bool:
    """Run a job in a process that is killed as soon as ``ready``; whether it was still at work."""
    process = _context().Process(target=_alone, args=(job,), daemon=True)
    process.start()
    ends = time.monotonic() + PATIENCE
    while process.is_alive() and not ready() and time.monotonic() < ends:
        time.sleep(0.001)
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE)
    return process.exitcode == -signal.SIGKILL


def kill_at_random(jobs: Sequence[Job], seed: int) -> list[bool]:
    """Run the first two jobs to their ends, and kill each of the others within as long; which were still at work.

    The first makes the process that all others are forked from, which takes longer than any job.
    """
    kill_when(jobs[0], lambda: False)
    moments, began = random.Random(seed), time.monotonic()
    kill_when(jobs[1], lambda: False)
    whole, killed = time.monotonic() - began, []
    for job in jobs[2:]:
        ends = time.monotonic() + moments.random() * whole
        killed.append(kill_when(job, lambda ends=ends: time.monotonic() > ends))
    return killed
