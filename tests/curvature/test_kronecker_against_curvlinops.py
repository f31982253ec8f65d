"""Factors against curvlinops' K-FAC (3.0.1), up to its scale.

Its ``expand`` divides the input covariance by the number of positions T and does not divide the gradient covariance,
ours the other way round: products agree. Its ``reduce`` averages inputs over positions and sums gradients; ours sums
both and divides by T²: products agree as well.
"""

import numpy as np
import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.records.report import LayerReport

curvlinops = pytest.importorskip("curvlinops", reason="a test extra: pip install curvlinops-for-pytorch")

NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
        ),
        (2, 6, 6),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_factors_are_curvlinops(kind: str, sharing: str) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[kind]
    model, x, y = build().double(), torch.randn(8, *shape).double(), torch.arange(8) % 3
    weight = model[0].weight
    kfac = curvlinops.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), [weight], [(x, y)], fisher_type="type-2", kfac_approx=sharing,
        check_deterministic=False,
    )  # fmt: skip
    dense = kfac @ torch.eye(weight.numel()).double()
    report = spectrascope.decompose(
        model, (x, y), "cross-entropy", layers=["0.weight"], top_k=4, sharing=sharing, self_check=False
    )
    (row,) = [row for row in report.layers if isinstance(row, LayerReport)]
    factors = row.decomposition.factors
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weight)
    u, _, vt = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    k = len(row.measurement.sigma)
    forms = []
    for one, other in zip(u.T[:k], vt[:k], strict=True):
        direction = torch.outer(one, other).reshape(-1)
        forms.append(float(direction @ dense @ direction))
    ours = np.array(factors.rayleigh_delta) * factors.rayleigh_a
    assert forms == pytest.approx(ours.tolist(), rel=1e-8)
    top = float(torch.linalg.eigvalsh((dense + dense.T) / 2)[-1])
    assert top == pytest.approx(factors.delta.eigenvalues[0] * factors.a.eigenvalues[0], rel=1e-8)
