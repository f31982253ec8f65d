"""Train a small network on handwritten digits, probe it as it trains, and print how its curvature changed.

    python examples/monitor_training.py [FOLDER]

One report per probe is left in FOLDER/reports: ``spectrascope trajectory FOLDER/reports/*.json`` shows them again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from spectrascope.integrations.loggers import JsonLinesLog
from spectrascope.integrations.monitor import CurvatureMonitor
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model

STEPS, EVERY, BUDGET = 600, 100, 0.25


def main(folder: Path) -> None:
    torch.manual_seed(0)
    loaded = load_model("digits-cnn@none", seed=0)
    images, labels = load_dataset("digits", loaded, num_samples=1797, seed=0).source.fetch(0, 1797)
    model = loaded.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=5e-2)
    monitor = CurvatureMonitor(
        model,
        (images[1297:], labels[1297:]),  # held out
        F.cross_entropy,
        every=EVERY,
        budget=BUDGET,  # probes may take a quarter as long as the training, as its steps are so short
        logs=[JsonLinesLog(folder / "curvature.jsonl")],
        reports=folder / "reports",
        top_k=10,
        num_samples=128,
        self_check=False,
    )
    for _ in range(STEPS):
        index = torch.randint(0, 1297, (256,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()
        report = monitor.step()
        if report is not None:
            print(f"step {report.extra['step']}: median β {report.summary.overall.beta_median:.2f}")
    monitor.close()
    print(monitor.describe())
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    print(f"weights: {weights.double().sum().item()!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("monitored"))
