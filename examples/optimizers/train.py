"""Compare SpectralNewton with AdamW, SGD, Muon and the paper's negative control on real data.

    python examples/optimizers/train.py digits
    python examples/optimizers/train.py cifar --data FOLDER     # one sub-folder of images per class
    python examples/optimizers/train.py text --data FILE        # a mini GPT-2 on characters
    python examples/optimizers/train.py cifar --data FOLDER --full --device cuda   # 30 epochs

Everyone gets the same budget of steps, the same batches, one cosine schedule and a grid of three learning rates, tried
on a seed of its own; the best of each then trains on three fresh seeds. Exponents for "SN, suggested β" come from one
``spectrascope.probe`` after a warm-up by AdamW of a third of the budget, whose network is thrown away.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import tasks
import torch
from contenders import CONTENDERS, Contender, Measured
from torch import nn

import spectrascope
from spectrascope.advice.advise import advise
from spectrascope.records.report import LayerReport
from spectrascope.records.values import PowerFit

TUNING_SEED = 0


@dataclass(frozen=True)
class Result:
    """One contender on one task: scores over seeds at its best learning rate, and seconds per run."""

    contender: str
    rate: float
    scores: tuple[float, ...]
    seconds: float
    tuning: dict[str, float]


def train(
    task: tasks.Task, contender: Contender, rate: float, measured: Measured, seed: int, device: str
) -> tuple[float, float]:
    """Train once; returns the score (NaN when it diverged) and the seconds of training."""
    torch.manual_seed(seed)
    model = task.make_model().to(device).train()
    optimizer = contender.make(model, rate, measured)
    began = time.perf_counter()
    finite = run_steps(task, model, optimizer, task.steps(), seed, device)
    seconds = time.perf_counter() - began
    return (task.score(model, device) if finite else math.nan), seconds


def run_steps(
    task: tasks.Task, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int, device: str
) -> bool:
    """Take some steps under a cosine schedule; stops early, and says so, when the loss is no longer finite."""
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    order: list[torch.Tensor] = []
    for _ in range(steps):
        if not order:
            order = list(torch.randperm(len(task.train[1]), generator=generator).split(task.batch))
            order = [index for index in order if len(index) == task.batch]
        index = order.pop()
        x, y = task.train[0][index], task.train[1][index]
        if task.flip:
            mirrored = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
        optimizer.zero_grad()
        loss = tasks.loss_of(model(x.to(device)), y.to(device))
        if not bool(torch.isfinite(loss)):
            return False
        loss.backward()
        optimizer.step()
        schedule.step()
    return True


def measure(task: tasks.Task, device: str) -> Measured:
    """Warm up with AdamW, probe, and take the advice."""
    torch.manual_seed(TUNING_SEED)
    model = task.make_model().to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    run_steps(task, model, optimizer, max(1, task.steps() // 3), TUNING_SEED, device)
    n = task.probe_samples
    samples = (task.train[0][:n], task.train[1][:n])
    report = spectrascope.probe(model, samples, tasks.loss_of, top_k=task.top_k, device=device)
    advice = advise(report, train_batch=task.batch, momentum=0.95)
    alpha_h = {
        row.info.name: row.analysis.alpha_h.value
        for row in report.layers
        if isinstance(row, LayerReport) and isinstance(row.analysis.alpha_h, PowerFit)
    }
    named = dict(model.named_parameters())
    head = [name for name in advice.adamw if name in named and named[name].dim() >= 2]
    if head == [] and task.higher_is_better:  # probe does not know a Python network's classes
        head = [next(name for name, p in reversed(named.items()) if p.dim() == 2)]
    exponents = [e for e in advice.parameters if e.name not in head]
    for e in exponents:
        print(f"  {e.name:<32} β {e.beta:5.2f}  damping {e.relative_damping:.2g}")
    return Measured(exponents, alpha_h, head)


def compare(task: tasks.Task, measured: Measured, seeds: int, device: str, only: list[str]) -> list[Result]:
    """Tune every contender on one seed and train it on the others."""
    results = []
    for contender in CONTENDERS:
        if only and contender.name not in only:
            continue
        sign = 1 if task.higher_is_better else -1
        tuning = {rate: train(task, contender, rate, measured, TUNING_SEED, device)[0] for rate in contender.rates}
        rate = max(tuning, key=lambda r: -math.inf if math.isnan(tuning[r]) else sign * tuning[r])
        runs = [train(task, contender, rate, measured, TUNING_SEED + 1 + i, device) for i in range(seeds)]
        seconds = statistics.mean(run[1] for run in runs)
        scores = tuple(run[0] for run in runs)
        results.append(Result(contender.name, rate, scores, seconds, {f"{r:g}": s for r, s in tuning.items()}))
        print(f"  {line(results[-1])}   tuning {results[-1].tuning}", flush=True)
    return results


def line(result: Result) -> str:
    """One row of the printed table."""
    deviation = statistics.stdev(result.scores) if len(result.scores) > 1 else 0.0
    mean = statistics.mean(result.scores)
    return f"{result.contender:<28}lr {result.rate:<7g}{mean:9.3f} ± {deviation:.3f}{result.seconds:9.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "cifar", "text"])
    parser.add_argument("--data", type=Path, help="folder of images (cifar) or text file (text)")
    parser.add_argument("--full", action="store_true", help="the size for a GPU")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, help="instead of the size's own number")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="contenders by name")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()
    if options.task != "digits" and options.data is None:
        parser.error(f"{options.task} needs --data")
    torch.set_num_threads(options.threads)
    made = {"cifar": tasks.cifar, "text": tasks.text}
    task = tasks.digits(options.full) if options.task == "digits" else made[options.task](options.data, options.full)
    if options.epochs is not None:
        task = tasks.Task(**{**task.__dict__, "epochs": options.epochs})
    size = f"{len(task.train[1]):,} training samples, batch {task.batch}, {task.steps()} steps"
    print(f"{task.name}: {size}, {options.seeds} seeds; {task.score_name}, mean ± standard deviation, seconds per run")
    began = time.perf_counter()
    measured = measure(task, options.device)
    print(f"  warm-up and probe {time.perf_counter() - began:.1f} s")
    results = compare(task, measured, options.seeds, options.device, options.only)
    print(f"{task.name}: {time.perf_counter() - began:.0f} s in all")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
