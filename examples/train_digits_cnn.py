"""Train the network of spectrascope's embedded default and save its weights, after ten epochs and at the end.

    python examples/train_digits_cnn.py [FOLDER]

Reproduces ``digits_cnn_early.safetensors`` and ``digits_cnn.safetensors`` of ``spectrascope/data`` (up to the last bits
of another machine's arithmetic) in under a minute on one core. After ten epochs most directions of its gradient are
signal, at the end few are. Weight decay and few epochs are on purpose: a network trained to a loss of 1e-6 has next to
no curvature left to look at.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model

SEED = 0
N_TRAIN = 1297
EPOCHS = 20
EARLY = 10  # epochs
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 5e-2


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy."""
    logits = model(inputs)
    return F.cross_entropy(logits, targets).item(), (logits.argmax(1) == targets).float().mean().item()


def main(folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the sum order, and so the weights, do not depend on the number of cores
    loaded = load_model("digits-cnn@none", seed=SEED)
    source = load_dataset("digits", loaded, num_samples=1797, seed=SEED).source
    inputs, targets = source.fetch(0, source.n)
    train, test = (inputs[:N_TRAIN], targets[:N_TRAIN]), (inputs[N_TRAIN:], targets[N_TRAIN:])

    model = loaded.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-N_TRAIN // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(1, EPOCHS + 1):
        for index in torch.randperm(N_TRAIN).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(train[0][index]), train[1][index]).backward()
            optimizer.step()
            schedule.step()
        if epoch in (EARLY, EPOCHS):
            name = "digits_cnn_early" if epoch == EARLY else "digits_cnn"
            step = str(epoch * steps // EPOCHS)
            save(model.eval(), folder / f"{name}.safetensors", step, {"train": train, "test": test})
            model.train()


def save(model: nn.Module, output: Path, step: str, parts: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Write the weights, with loss and accuracy on every part in the file's metadata."""
    results = {"step": step}
    for name, (x, y) in parts.items():
        loss, accuracy = evaluate(model, x, y)
        results |= {f"{name}_loss": f"{loss:.4f}", f"{name}_accuracy": f"{accuracy:.4f}"}
        print(f"step {step:>3} {name:5} n {len(y):4}  loss {loss:.4f}  accuracy {accuracy:.4f}")
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, output, metadata={"architecture": "digits-cnn", "trained_on": "digits", **results})
    print(f"saved {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
