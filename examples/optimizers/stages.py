"""Whether steps keep what a measurement promises, by stage of training: ``suggest-beta --validate`` on checkpoints.

    python examples/optimizers/stages.py digits
    python examples/optimizers/stages.py text --data FILE
    python examples/optimizers/stages.py cifar --data FOLDER

A network is trained by Muon as in ``train.py`` (``--rate``: its best learning rate there) and kept at some shares of
the training. Each checkpoint is measured on training samples in random order; half of them choose the directions and
predict, the steps are taken for real, and the loss of the other half is followed. r is over weights and steps, of the
logarithms of predicted and measured gain over gradient descent: median and range of the seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from typing import Any

import tasks
import torch
from contenders import CONTENDERS, Measured
from torch import nn
from train import REFERENCE, run_steps

import spectrascope
from spectrascope.records.values import Missing

STAGES = (0.0, 0.1, 0.3, 0.6, 1.0)


def checkpoints(task: tasks.Task, stages: Sequence[float], rate: float, seed: int, device: str) -> list[nn.Module]:
    """Train once, and keep a copy of the network at each share of the training."""
    torch.manual_seed(seed)
    model = task.make_model().to(device).train()
    muon = next(c for c in CONTENDERS if c.name == REFERENCE)
    head = [n for n, p in model.named_parameters() if p.dim() == 2][-1]
    optimizer = muon.make(model, rate, Measured((), {}, [head]))
    steps = task.steps()
    wanted = [round(stage * steps) for stage in stages]
    kept = {0: copy.deepcopy(model)}
    taken = 0

    def keep() -> None:
        nonlocal taken
        taken += 1
        if taken in wanted:
            kept[taken] = copy.deepcopy(model)

    run_steps(task, model, optimizer, steps, seed, device, keep)
    return [kept[step].eval() for step in wanted]


def validate(task: tasks.Task, model: nn.Module, seed: int, device: str) -> dict[str, Any]:
    """Measure a checkpoint and take the steps."""
    order = torch.randperm(len(task.train[1]), generator=torch.Generator().manual_seed(seed))[: 2 * task.probe_samples]
    samples = (task.train[0][order], task.train[1][order])
    found = spectrascope.suggest(
        model, samples, tasks.loss_of, validate=True, top_k=task.top_k, device=device,
        curvature_samples=min(task.curvature_samples, len(order) // 2),
    ).validation  # fmt: skip
    if isinstance(found, Missing):
        return {"missing": found.reason}
    return {
        "loss": found.loss,
        "weights": found.n_layers,
        "agrees": found.best_agrees,
        "r_held_out": _known(found.correlation_held_out),
        "r_same": _known(found.correlation),
        "ratio_held_out": {name: _known(value) for name, value in found.ratio_held_out.items()},
        "ratio_same": {name: _known(value) for name, value in found.ratio.items()},
    }


def _known(value: float | Missing) -> float | None:
    return None if isinstance(value, Missing) else value


def middle(values: Sequence[float | None]) -> str:
    """Median and range of what is known.

    >>> middle([0.5, 0.7, None, 0.9]), middle([None])
    ('0.70 (0.50 to 0.90)', '-')
    """
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    spread = f" ({known[0]:.2f} to {known[-1]:.2f})" if len(known) > 1 else ""
    return f"{statistics.median(known):.2f}{spread}"


def table(by_stage: dict[str, list[dict[str, Any]]]) -> list[str]:
    """One line a stage."""
    lines = [f"{'stage':<7}{'loss':<8}{'r held out':<24}{'r same samples':<24}{'told/true at b=1':<24}best exponent"]
    for stage, runs in by_stage.items():
        good = [run for run in runs if "missing" not in run]
        if not good:
            lines.append(f"{stage:<7}{runs[0]['missing']}")
            continue
        r = [middle([run[key] for run in good]) for key in ("r_held_out", "r_same")]
        ratio = middle([run["ratio_held_out"].get("1") for run in good])
        hits, n = (sum(run[key] for run in good) for key in ("agrees", "weights"))
        loss = statistics.median(run["loss"] for run in good)
        lines.append(f"{stage:<7}{loss:<8.3f}{r[0]:<24}{r[1]:<24}{ratio:<24}{hits} of {n}")
    return lines


def own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=0.04, help="Muon's learning rate")


def main() -> None:
    options = tasks.ask(__doc__, 3, own_options)
    task = tasks.make_task(options.task, options.data, options.full, options.epochs)
    size = f"{task.steps()} steps, {task.probe_samples} samples measured, {options.seeds} seeds"
    print(f"{task.name}: {size}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {f"{100 * stage:.0f} %": [] for stage in STAGES}
    for seed in range(1, options.seeds + 1):
        kept = checkpoints(task, STAGES, options.rate, seed, options.device)
        for stage, model in zip(found, kept, strict=True):
            found[stage].append(validate(task, model, seed, options.device))
            if options.summary is not None:
                text = json.dumps({"task": task.name, "size": size, "stages": found}, indent=1)
                options.summary.write_text(text + "\n", encoding="utf-8")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
