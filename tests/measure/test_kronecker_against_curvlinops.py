"""Factors against curvlinops' K-FAC (3.0.1), up to its documented scale.

curvlinops' ``expand`` C_A is Σ a aᵀ / (N·T), ours Σ a aᵀ / N; its gradient covariance is Σ delta deltaᵀ / N of the sum over
the loss's own reduction, ours that over T. So A_ours = T · A_theirs, and the products differ by what these two leave.
"""

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.decomposition import Decomposition

curvlinops = pytest.importorskip("curvlinops", reason="a test extra: pip install curvlinops-for-pytorch")


def network(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)).double(), torch.randn(8, 6).double()
    conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)).double()
    return model, torch.randn(8, 2, 6, 6).double()


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_factors_are_curvlinops(kind: str) -> None:
    model, x = network(kind)
    y = torch.arange(8) % 3
    weight = model[0].weight
    kfac = curvlinops.KFACLinearOperator(
        model, nn.CrossEntropyLoss(), [weight], [(x, y)], fisher_type="type-2", kfac_approx="expand",
        check_deterministic=False,
    )  # fmt: skip
    theirs_a, theirs_delta = factors_of(kfac)
    report = spectrascope.decompose(model, (x, y), "cross-entropy", layers=["0.weight"], top_k=4, self_check=False)
    (found,) = [row.decomposition for row in report.layers if isinstance(getattr(row, "decomposition", 0), Decomposition)]
    k = len(found.factors.rayleigh_a)
    for ours, matrix in ((found.factors.a, theirs_a), (found.factors.delta, theirs_delta)):
        values = torch.linalg.eigvalsh(matrix).flip(0)[:k]
        scale = float(values[0]) / ours.eigenvalues[0]
        assert values.tolist() == pytest.approx([scale * value for value in ours.eigenvalues], rel=1e-8)
    positions = found.factors.positions
    product = float(torch.linalg.eigvalsh(theirs_a)[-1] * torch.linalg.eigvalsh(theirs_delta)[-1])
    ours = found.factors.a.eigenvalues[0] * found.factors.delta.eigenvalues[0]
    assert product == pytest.approx(ours, rel=1e-8), (product / ours, positions)


def factors_of(kfac) -> tuple[torch.Tensor, torch.Tensor]:
    """C_A and C_delta of the one layer, whatever container this release keeps them in."""
    operators = [kfac]
    matrices: list[torch.Tensor] = []
    seen = set()
    while operators:
        item = operators.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            if item.dim() == 2 and item.shape[0] == item.shape[1]:
                matrices.append(item)
            continue
        if isinstance(item, dict):
            operators += list(item.values())
        elif isinstance(item, (list, tuple)):
            operators += list(item)
        elif type(item).__module__.startswith("curvlinops"):
            operators += list(vars(item).values())
    raise AssertionError(f"found {[tuple(m.shape) for m in matrices]}")
