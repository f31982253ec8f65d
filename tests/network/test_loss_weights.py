"""Losses that read the network's weights themselves: measured where they see them, refused where they would not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spectrascope
from spectrascope.errors import UnsupportedModelError
from tests.support.as_found import left_as_found

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 4


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


def penalised(net: nn.Module) -> object:
    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, targets) + 0.1 * sum((p**2).sum() for p in net.parameters())

    return loss


@pytest.mark.parametrize("self_check", ["all", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_penalty_on_weights_adds_its_curvature(dtype: torch.dtype, self_check: str) -> None:
    net = network().to(dtype)
    loss = penalised(net)
    with left_as_found(net):
        report = spectrascope.probe(net, (X, Y), loss, top_k=3, self_check=self_check)
    net.double()
    total = loss(net(X.double()), Y)
    for row, weight in zip(report.layers, (net[0].weight, net[2].weight), strict=True):
        (gradient,) = torch.autograd.grad(total, weight, create_graph=True)
        left, _, right = torch.linalg.svd(gradient.detach(), full_matrices=False)
        for k, h in enumerate(row.measurement.h):
            direction = torch.outer(left[:, k], right[k])
            (product,) = torch.autograd.grad((gradient * direction).sum(), weight, retain_graph=True)
            assert h == pytest.approx(float((product * direction).sum()), rel=1e-4)


def test_a_copy_that_the_loss_does_not_see_is_refused() -> None:
    net = network()
    with (
        left_as_found(net),
        pytest.raises(UnsupportedModelError, match=r"the loss reads the network's own weights \('"),
    ):
        spectrascope.probe(net, (X, Y), penalised(net), dtype="float64")


def test_a_loss_with_weights_of_its_own_may_be_measured_on_a_copy() -> None:
    temperature = nn.Parameter(torch.tensor(2.0))
    report = spectrascope.probe(
        network(), (X, Y), lambda o, t: nn.functional.cross_entropy(o * temperature, t), dtype="float64"
    )
    assert {row.measurement.engine.value for row in report.layers} == {"gauss-newton"}
