"""Networks that differentiate inside their forward pass: energies and forces, physics residuals, derivatives by jvp."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spectrascope
from tests.support import oracles
from tests.support.cases import Net


def _tower(first: nn.Module) -> nn.Sequential:
    inner = [layer for _ in range(5) for layer in (nn.Linear(8, 8), nn.SiLU())]
    return nn.Sequential(nn.Linear(6, 8), first, *inner, nn.Linear(8, 1))


def _with_forces(energy: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        found = energy(net, x)
        (forces,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        return torch.cat([found, forces], 1)

    return run


def _saves_outputs(net: nn.Module, x: Tensor) -> Tensor:
    hidden = torch.exp(-net.a(torch.sin(x)).softmax(1)).sqrt()
    return net.b(hidden).sigmoid()


def _by_jvp(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat(torch.func.jvp(net.a, (x,), (torch.ones_like(x),)), 1)


def _energy_of_towers(net: nn.Module, x: Tensor) -> Tensor:
    return net.a(x) + net.b(x)


class _Sigmoid(torch.autograd.Function):
    """A function of the user's own that saves its output."""

    @staticmethod
    def forward(ctx, x):
        y = torch.sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)


def _forces_by_func(net: nn.Module, x: Tensor) -> Tensor:
    forces = torch.func.vmap(torch.func.grad(lambda one: net.b(torch.tanh(net.a(one))).sum()))
    return torch.cat([net.b(torch.tanh(net.a(x))), forces(x)], 1)


def _energy_of_pairs(net: nn.Module, x: Tensor) -> Tensor:
    """Of two atoms in space, by the distance between them, spread over Gaussians."""
    distance = (x[:, :3] - x[:, 3:]).square().sum(1, keepdim=True).sqrt()
    gaussians = torch.exp(-(distance - torch.linspace(0, 3, 6, dtype=x.dtype)).square())
    return net.b(F.softplus(net.a(gaussians))) * torch.sigmoid(net.c(gaussians))


NETWORKS = {
    "two towers": lambda: Net(_with_forces(_energy_of_towers), a=_tower(nn.Tanh()), b=_tower(nn.SiLU())),
    "grad mode of its own": lambda: Net(
        torch.enable_grad()(_with_forces(_energy_of_towers)), a=_tower(nn.Tanh()), b=_tower(nn.SiLU())
    ),
    "exp, softmax, sqrt, sigmoid": lambda: Net(_with_forces(_saves_outputs), a=nn.Linear(6, 8), b=nn.Linear(8, 1)),
    "piecewise linear": lambda: Net(
        _with_forces(lambda s, x: s.b(F.relu(s.a(x))) + s.a(x).square().sum(1, keepdim=True)),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 1),
    ),
    "atoms": lambda: Net(_with_forces(_energy_of_pairs), a=nn.Linear(6, 8), b=nn.Linear(8, 1), c=nn.Linear(6, 1)),
    "func.grad": lambda: Net(_forces_by_func, a=nn.Linear(6, 8), b=nn.Linear(8, 1)),
    "saves its output": lambda: Net(
        _with_forces(lambda s, x: s.b(_Sigmoid.apply(s.a(x)))), a=nn.Linear(6, 8), b=nn.Linear(8, 1)
    ),
    "jvp": lambda: Net(_by_jvp, a=nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid())),
}


HANDED_ON = ("jvp", "saves its output")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_the_curvature_of_double_backprop(name, seed):
    torch.manual_seed(seed)
    net = NETWORKS[name]().double()
    x = torch.randn(12, 6, dtype=torch.float64)
    y = torch.randn_like(net(x))
    report = spectrascope.probe(net, (x, y), "mse", top_k=2)
    assert report.summary.n_ok == len([p for p in net.parameters() if p.dim() == 2])
    for layer in report.layers:
        weight = net.get_parameter(layer.info.name)
        gradient = torch.autograd.grad(F.mse_loss(net(x), y), weight)[0]
        _, left, right, _ = oracles.svd_directions(gradient, 2, 2**-52)
        along = [torch.outer(torch.from_numpy(u), torch.from_numpy(v)) for u, v in zip(left.T, right.T, strict=True)]
        (truth,) = oracles.curvature_of_weights(lambda: F.mse_loss(net(x), y), [weight], [along])
        found = torch.tensor(layer.measurement.h, dtype=torch.float64)
        assert found == pytest.approx(truth.diagonal(), abs=1e-8 * float(truth.abs().max())), layer.info.name
        assert layer.measurement.engine.value == ("double-backprop" if name in HANDED_ON else "tangent")


def test_what_hangs_on_inputs_alone_stays_a_constant():
    """Not every tensor that requires grad depends on a weight: tanh of coordinates does not."""
    net = Net(_with_forces(lambda s, x: s.b(F.silu(s.a(torch.tanh(x))))), a=nn.Linear(6, 8), b=nn.Linear(8, 1)).double()
    x = torch.randn(6, 6, dtype=torch.float64)
    report = spectrascope.probe(net, (x, torch.randn_like(net(x))), "mse", top_k=2)
    assert report.provenance.engines == {"tangent": 2}
