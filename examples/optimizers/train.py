"""Compare SpectralNewton with AdamW, SGD, Muon, SOAP and the paper's negative control on real data.

    python examples/optimizers/train.py digits
    python examples/optimizers/train.py cifar --data FOLDER     # one sub-folder of images per class
    python examples/optimizers/train.py text --data FILE        # a mini GPT-2 on characters
    python examples/optimizers/train.py cifar10 --data ROOT --full --device cuda   # ResNet-18, 30 epochs, cifar100 too

Everyone gets the same budget, the same batches and one cosine schedule. Learning rates a factor of two apart are tried
on a seed of their own, five to begin with and more wherever the best lies at the end of the grid; the best trains on
fresh seeds, with as many steps as everyone (``steps``), then with as many as take the CPU time of Muon's (``time``).
Exponents and dampings of "SN, held-out β" come from one probe along the momentum of a warm-up of a third of the budget,
whose network is thrown away. "SN, adaptive" starts as "SN, β = 1" and measures while it trains, for at most a quarter
of the training's forward passes; it takes a fifth fewer steps than everyone, so that the passes are equal.

Every run leaves one file in --runs, and is not repeated: what was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tasks
import torch
from contenders import CONTENDERS, DAMPING, Contender, Measured
from decrease import watch_step
from summary import summarise
from torch import nn

import spectrascope
from spectrascope.advice.advise import advise
from spectrascope.integrations.adaptive import AdaptiveExponents
from spectrascope.optim import SpectralNewton, parameter_groups
from spectrascope.records.advice import ParameterExponent
from spectrascope.records.report import LayerReport
from spectrascope.records.values import Missing, PowerFit

REFERENCE = "Muon"
ADAPTIVE_BUDGET = 0.25
WATCHED = 4
"""Steps of each run with equal steps on a fresh seed whose promise is compared with what they keep."""

BUDGETS = ("steps", "time")

_WIDEST = 6  # rates tried beyond either end of a grid


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share."""

    task: tasks.Task
    measured: Measured
    folder: Path
    device: str
    tuning_seed: int = 0
    budgets: tuple[str, ...] = BUDGETS
    rates: Mapping[str, float] = field(default_factory=dict)
    """Learning rates that were tuned before, by contender."""

    def run(self, contender: Contender, rate: float, seed: int, steps: int, budget: str) -> dict[str, Any]:
        """Train once, or read what came out when that was done before."""
        name = f"{contender.name} lr {rate:g} seed {seed} {budget}".replace("/", "-")
        file = self.folder / self.task.name / f"{name}.json"
        if file.exists():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if found["steps"] == steps:
                return found
        found = {"contender": contender.name, "rate": rate, "seed": seed, "budget": budget, "steps": steps}
        found |= train(self, contender, rate, seed, steps, watch=seed != self.tuning_seed and budget == "steps")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
        partial.replace(file)
        return found


def train(setting: Setting, contender: Contender, rate: float, seed: int, steps: int, *, watch: bool) -> dict[str, Any]:
    """Train once: the score (``None`` when it diverged), CPU seconds without what is only watched, and the watch."""
    task, device = setting.task, setting.device
    torch.manual_seed(seed)
    model = task.make_model().to(device).train()
    optimizer = contender.make(model, rate, setting.measured)
    adaptive = None
    if contender.adaptive and isinstance(optimizer, SpectralNewton):
        n, for_curvature, top_k, parts = task.adaptive
        samples = (task.train[0][-n:].to(device), task.train[1][-n:].to(device))
        adaptive = AdaptiveExponents(
            optimizer, model, samples, tasks.loss_of, train_batch=task.batch, every=steps // parts + 1,
            budget=ADAPTIVE_BUDGET, top_k=top_k, curvature_samples=for_curvature,
        )  # fmt: skip
    watched: list[dict[str, float]] = []
    after = adaptive.step if adaptive is not None else None
    seconds = run_steps(task, model, optimizer, steps, seed, device, after, watched if watch else None)
    found: dict[str, Any] = {"score": None, "seconds": seconds, "watched": watched}
    if math.isfinite(seconds):
        score = task.score(model, device)
        found["score"] = score if math.isfinite(score) else None
    else:
        found["seconds"] = None
    if adaptive is not None:
        betas = {n: optimizer.state[p].get("beta") for n, p in model.named_parameters() if p in optimizer.state}
        found |= {"measurements": adaptive.describe(), "betas": {n: b for n, b in betas.items() if b is not None}}
    return found


def run_steps(
    task: tasks.Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    seed: int,
    device: str,
    after: Callable[[], object] | None = None,
    watched: list[dict[str, float]] | None = None,
) -> float:
    """Take some steps under a cosine schedule, call ``after`` each, and return the CPU seconds; infinity on NaN."""
    generator = torch.Generator().manual_seed(seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    held_out = (task.test[0][:128].to(device), task.test[1][:128].to(device))
    order: list[torch.Tensor] = []
    seconds = 0.0
    for step in range(steps):
        began = time.process_time()
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
            return math.inf
        loss.backward()
        if watched is not None and step % max(1, steps // WATCHED) == steps // (2 * WATCHED):
            seconds += time.process_time() - began
            taken = watch_step(model, held_out, tasks.loss_of, step, optimizer.step)
            watched.append({**asdict(taken), "best_length": taken.best_length, "at_best_length": taken.at_best_length})
            began = time.process_time()
        else:
            optimizer.step()
        schedule.step()
        if after is not None:
            after()
        seconds += time.process_time() - began
    return seconds


def measure(task: tasks.Task, device: str, seed: int) -> Measured:
    """Warm up with Muon's exponent, probe along the momentum, and take the advice."""
    torch.manual_seed(seed)
    model = task.make_model().to(device).train()
    optimizer = SpectralNewton(parameter_groups(model), 0.02, 1.0, DAMPING, scale_free=True, adamw_lr=3e-3)
    run_steps(task, model, optimizer, max(1, task.steps() // 3), seed, device)
    samples = (task.train[0][-task.probe_samples :], task.train[1][-task.probe_samples :])
    report = spectrascope.probe(
        model, samples, tasks.loss_of, top_k=task.top_k, device=device, gradient="momentum", momentum=optimizer,
        curvature_samples=min(task.curvature_samples, len(samples[1])),
    )  # fmt: skip
    advice = advise(report)
    alpha_h = {
        row.info.name: row.analysis.alpha_h.value
        for row in report.layers
        if isinstance(row, LayerReport) and isinstance(row.analysis.alpha_h, PowerFit)
    }
    named = dict(model.named_parameters())
    head = [name for name in advice.adamw if name in named and named[name].dim() >= 2]
    last = next(name for name, p in reversed(named.items()) if p.dim() == 2)
    if last not in head:  # probe does not know a Python network's task
        head.append(last)
    training = None if isinstance(advice.training_beta, Missing) else advice.training_beta
    return Measured([e for e in advice.parameters if e.name not in head], alpha_h, head, training)


def measured_once(task: tasks.Task, folder: Path, device: str, seed: int) -> Measured:
    """As :func:`measure`, kept in a file."""
    file = folder / task.name / "measured.json"
    if not file.exists():
        found = measure(task, device, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    kept = json.loads(file.read_text(encoding="utf-8"))
    return Measured(**{**kept, "exponents": [ParameterExponent(**e) for e in kept["exponents"]]})


def tune(setting: Setting, contender: Contender, steps: int) -> float:
    """Find the best learning rate on the tuning seed, one that does not lie at the end of what was tried."""
    scores: dict[float, float] = {}

    def score(rate: float) -> float:
        if rate not in scores:
            found = setting.run(contender, rate, setting.tuning_seed, steps, "steps")["score"]
            sign = 1 if setting.task.higher_is_better else -1
            scores[rate] = -math.inf if found is None else sign * found
        return scores[rate]

    for rate in contender.rates:
        score(rate)
    for _ in range(_WIDEST):
        rates = sorted(scores)
        best = max(rates, key=score)
        if best not in (rates[0], rates[-1]):
            break
        score(best / 2 if best == rates[0] else best * 2)
    return max(scores, key=score)


def compare(setting: Setting, seeds: int, only: list[str]) -> None:
    """Tune everyone on one seed; train on the others with equal steps, then with equal time."""
    muon_seconds = 0.0
    fresh = range(setting.tuning_seed + 1, setting.tuning_seed + 1 + seeds)
    for contender in CONTENDERS:
        if only and contender.name not in only:
            continue
        if not contender.installed:
            print(f"  {contender.name}: left out, pip install {contender.package}")
            continue
        whole = setting.task.steps()
        steps = round(whole / (1 + ADAPTIVE_BUDGET)) if contender.adaptive else whole
        rate = setting.rates.get(contender.name) or tune(setting, contender, steps)
        runs = [setting.run(contender, rate, seed, steps, "steps") for seed in fresh]
        seconds = min((run["seconds"] for run in runs if run["seconds"]), default=0.0)  # the least disturbed
        if contender.name == REFERENCE:  # it comes first; without it there is no equal time
            muon_seconds = seconds
        timed = "time" in setting.budgets and seconds and muon_seconds and contender.name != REFERENCE
        for seed in fresh if timed else ():
            setting.run(contender, rate, seed, max(2, round(steps * muon_seconds / seconds)), "time")
        print(f"  {contender.name}: lr {rate:g}", flush=True)


def own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="*", default=[], help="contenders by name")
    parser.add_argument("--runs", type=Path, default=Path("optimizer-runs"), help="folder of one file per run")
    parser.add_argument(
        "--tuning-seed",
        type=int,
        default=0,
        help="of warm-up and rates, one for a folder of runs",
    )
    parser.add_argument("--rates", type=Path, help="a --summary of before, whose learning rates are taken")
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=BUDGETS, help="equal in what")


def main() -> None:
    options = tasks.ask(__doc__, 5, own_options)
    task = tasks.make_task(options.task, options.data, options.full, options.epochs)
    size = f"{len(task.train[1]):,} training samples, batch {task.batch}, {task.steps()} steps"
    print(f"{task.name}: {size}, {options.seeds} seeds; {task.score_name}")
    measured = measured_once(task, options.runs, options.device, options.tuning_seed)
    for e in measured.exponents:
        print(f"  {e.name:<32} β {e.beta:5.2f}  damping {e.relative_damping:.2g}")
    print(f"  for a whole training: β {'undetermined' if measured.training is None else f'{measured.training:.2f}'}")
    before = json.loads(options.rates.read_text(encoding="utf-8"))["rows"] if options.rates else []
    rates = {row["contender"]: row["rate"] for row in before}
    given = (options.tuning_seed, tuple(options.budgets), rates)
    setting = Setting(task, measured, options.runs, options.device, *given)
    compare(setting, options.seeds, options.only)
    summary = summarise(options.runs / task.name, REFERENCE, task.higher_is_better, options.tuning_seed)
    print("\n".join(summary.lines()))
    if options.summary is not None:
        text = json.dumps({"task": task.name, "size": size, "score": task.score_name, **asdict(summary)}, indent=1)
        options.summary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
