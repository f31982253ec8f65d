"""Measure a network you hold in memory, print β per weight, and leave the network as it was."""

from __future__ import annotations

import torch
from torch import nn

import spectrascope
from spectrascope.records.report import LayerReport
from spectrascope.records.values import Missing


def main() -> None:
    """Train a small network for a moment on a made-up task, then probe it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    inputs = torch.randn(1024, 20)
    labels = (inputs @ torch.randn(20, 5)).argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    report = spectrascope.probe(model, (inputs, labels), top_k=10)

    for row in report.layers:
        if not isinstance(row, LayerReport):
            print(f"{row.info.name}: {row.status.value}, {row.reason}")
            continue
        beta = row.analysis.beta
        text = (
            beta.reason if isinstance(beta, Missing) else f"β = {beta.value:.2f} ± {beta.stderr:.2f}, R² {beta.r2:.3f}"
        )
        print(f"{row.info.name}: {text} ({row.measurement.engine.value})")


if __name__ == "__main__":
    main()
