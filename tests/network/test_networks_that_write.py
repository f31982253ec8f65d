"""Networks that write their own parameters in forward are handed back bit for bit."""

from __future__ import annotations

import copy
from contextlib import suppress

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import SelfCheckError
from tests.support.cases import Net


def _doubles(net, x):
    with torch.no_grad():
        net.a.weight.clamp_(-0.1, 0.1)
    return net.a(x)


def _by_data(net, x):
    net.a.weight.data = net.a.weight.data.clamp(-0.1, 0.1)
    return net.a(x)


NETWORKS = {
    "max_norm": lambda: nn.Sequential(nn.Embedding(20, 6, max_norm=1.0), nn.Flatten(), nn.Linear(18, 4)),
    "table measured": lambda: nn.Sequential(nn.Embedding(20, 6, max_norm=1.0), nn.Flatten(), nn.Linear(18, 4)),
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(20, 6, max_norm=0.5), nn.Tanh(), nn.Linear(6, 4)),
    "in place": lambda: Net(_doubles, a=nn.Linear(3, 4)),
    "another storage": lambda: Net(_by_data, a=nn.Linear(3, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_left_bit_for_bit(name):
    torch.manual_seed(0)
    net = NETWORKS[name]()
    tokens = torch.randint(0, 20, (12, 3))
    x = torch.randn(12, 3) if name in ("in place", "another storage") else tokens
    before = copy.deepcopy(net.state_dict())
    places = {n: p.data_ptr() for n, p in net.named_parameters()}
    layers = ("0.weight", "2.weight") if name == "table measured" else ()
    with suppress(SelfCheckError):  # a network that clamps its weights has no derivative there
        spectrascope.probe(net, (x, torch.randint(0, 4, (12,))), top_k=2, layers=layers)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert {n: p.data_ptr() for n, p in net.named_parameters()} == places


def test_a_probe_within_training_changes_no_step():
    def train(probed: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        net = NETWORKS["max_norm"]()
        x, y = torch.randint(0, 20, (12, 3)), torch.randint(0, 4, (12,))
        optimizer = torch.optim.Adam(net.parameters(), 0.1)
        for step in range(4):
            if probed and step % 2:
                spectrascope.probe(net, (torch.randint(0, 20, (8, 3)), y[:8]), top_k=1)
            torch.manual_seed(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[step:]), y[step:]).backward()
            optimizer.step()
        return net.state_dict()

    plain, probed = train(False), train(True)
    assert all(torch.equal(plain[key], probed[key]) for key in plain)
