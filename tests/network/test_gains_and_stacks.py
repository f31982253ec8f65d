"""Gains stored in several dimensions are no matrices, and stacks of matrices are no convolutions, on either road."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.network.layers import find_layers, find_vectors
from spectrascope.optim import SpectralNewton, parameter_groups
from spectrascope.records.report import SkippedLayer


class LayerNorm2d(nn.Module):
    """With a gain (c, 1, 1), as written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x - x.mean(1, keepdim=True))


class NormedLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 4, 6))
        self.conv = nn.Conv1d(4, 6, 3)


GAINS = {
    "layer norm over two": (nn.LayerNorm((4, 6)), {"weight", "bias"}),
    "rms norm over three": (nn.RMSNorm((2, 4, 6)), {"weight"}),
    "by hand": (LayerNorm2d(), {"gain"}),
}


@pytest.mark.parametrize("kind", GAINS)
def test_a_gain_in_several_dimensions_is_no_matrix(kind):
    norm, names = GAINS[kind]
    net = nn.Sequential(norm, nn.Linear(6, 4))
    assert [layer.info.name for layer in find_layers(net)] == ["1.weight"]
    skipped = {row.info.name: row.reason for row in find_vectors(net)}
    assert all("acts entry by entry" in skipped[f"0.{name}"] for name in names)
    groups = parameter_groups(net)
    assert [[tuple(p.shape) for p in group["params"]] for group in groups[:-1]] == [[(4, 6)]]
    assert {id(p) for p in norm.parameters()} < {id(p) for p in groups[-1]["params"]}


def test_it_is_not_measured_from_memory_and_a_matrix_called_norm_is():
    net = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.LayerNorm((2, 3)), nn.Flatten(), nn.Linear(6, 4))
    report = spectrascope.probe(net, (torch.randn(16, 6), torch.randint(0, 4, (16,))), top_k=1)
    assert [row.info.name for row in report.layers if not isinstance(row, SkippedLayer)] == ["3.weight"]
    assert [layer.info.name for layer in find_layers(NormedLinear())] == ["weight"]
    assert len(parameter_groups(NormedLinear())) == 1


@pytest.mark.parametrize("default", [None, 1.0])
def test_a_stack_is_stepped_as_its_matrices(default):
    torch.manual_seed(0)
    net = Experts()
    groups = parameter_groups(net, None if default is None else [], default_beta=default)
    (stacked,) = [group for group in groups if group.get("layout") == "stacked"]
    assert [tuple(p.shape) for p in stacked["params"]] == [(2, 4, 6)]
    alone = [nn.Parameter(part.detach().clone()) for part in net.up]
    options = {"lr": 0.1, "beta": 1.0}
    gradient = torch.randn(2, 4, 6)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    net.up.grad = gradient
    for part, g in zip(alone, gradient, strict=True):
        part.grad = g.clone()
    more = {key: value for key, value in stacked.items() if key not in ("params", "layout")}
    SpectralNewton(groups, **options).step()
    SpectralNewton([{"params": alone, **more}], **options).step()
    assert torch.allclose(net.up, torch.stack(list(alone)), atol=1e-5)
