"""What held-out slopes promise against fresh images: the shared ResNet-20, a third set of samples as the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from spectrascope.curvature.engine import Target
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.measure.run import run_probe
from spectrascope.network.guards import held_still
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.numerics.directions import top_directions
from spectrascope.records.report import LayerReport, ProbeOptions
from spectrascope.records.signal import HeldOut
from spectrascope.workload import PickedSamples, Run, Workload

N, FRESH, K = 768, 512, 12
LAYERS = ("layer3.0.conv2.weight", "layer3.1.conv2.weight", "layer3.2.conv1.weight", "layer3.2.conv2.weight")


def decrease(exponent: float, sigma: np.ndarray, slopes: np.ndarray, matrix: np.ndarray) -> float:
    transfer = (sigma / sigma[0]) ** (1 - exponent)
    return max(float(transfer @ slopes), 0.0) ** 2 / (2 * float(transfer @ matrix @ transfer))


def test_predictions_hold_on_fresh_images_where_those_of_the_same_samples_do_not(shared: Path) -> None:
    loaded = load_model(str(shared / "checkpoints" / "resnet20-12fca82f.th"))
    data = load_dataset(f"folder:{shared / 'data' / 'cifar10-test'}", loaded, num_samples=N + FRESH, seed=0)
    measured = PickedSamples(data.source, tuple(range(N)))
    fresh = PickedSamples(data.source, tuple(range(N, N + FRESH)))
    options = ProbeOptions(num_samples=N, top_k=K, layers=LAYERS, self_check=False)
    report = run_probe(Run(loaded.model, measured, None, options, loaded.info, replace(data.info, n=N)))

    model = loaded.model.eval()
    layers = [layer for layer in find_layers(model, LAYERS, ()) if isinstance(layer, WeightLayer)]
    inputs, labels = measured.fetch(0, N)
    gradients = [torch.zeros(layer.parameter.shape, dtype=torch.float64) for layer in layers]
    for i in range(0, N, 64):  # of all weights at once, in slices that a cache holds
        loss = torch.nn.functional.cross_entropy(model(inputs[i : i + 64]), labels[i : i + 64], reduction="sum") / N
        parts = torch.autograd.grad(loss, [layer.parameter for layer in layers])
        gradients = [total + part for total, part in zip(gradients, parts, strict=True)]
    targets = [
        Target(layer, top_directions(layer.matrix(gradient), K))
        for layer, gradient in zip(layers, gradients, strict=True)
    ]
    workload = Workload(model, fresh, torch.nn.functional.cross_entropy, torch.device("cpu"), torch.float32)
    with held_still(workload, [layer.parameter for layer in layers]):
        truths = GaussNewton().measure(workload, targets, groups=1)

    rows = {row.info.name: row for row in report.layers if isinstance(row, LayerReport)}
    held_out, same = [], []
    for layer, truth in zip(layers, truths, strict=True):
        row = rows[layer.name]
        assert isinstance(row.held_out, HeldOut)
        sigma = np.array(row.measurement.sigma)
        for exponent in (0.0, 1.0, 2.0):
            true = decrease(exponent, sigma, truth.group_sigma[0].numpy(), truth.matrix.numpy())
            predicted = decrease(
                exponent, sigma, np.array(row.held_out.slopes), np.array(row.held_out.curvature_matrix)
            )
            flattered = decrease(exponent, sigma, sigma, np.array(row.measurement.curvature_matrix))
            held_out.append(predicted / true)
            same.append(flattered / true)
    assert 0.5 < np.median(held_out) < 1.4
    assert np.median(same) > 1.5 * np.median(held_out)
    assert np.median(same[2::3]) > 2  # Newton's step looks twice as good as it is, or more
