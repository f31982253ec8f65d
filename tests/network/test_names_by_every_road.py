"""Wrappers and compiled submodules change neither names nor numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import spectrascope
from spectrascope.network.effective import unwrapped


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 5), nn.ReLU()), nn.Linear(5, 4))


def _compiled_child(net):
    net[2] = torch.compile(net[2])
    net[0] = torch.compile(net[0])
    return net


def _compiled_in_place(net):
    net[2].compile()
    return net


ROADS = {
    "average": AveragedModel,
    "average of a compiled network": lambda net: AveragedModel(torch.compile(net)),
    "compiled children": _compiled_child,
    "compiled in place": _compiled_in_place,
}


@pytest.mark.parametrize("road", ROADS)
def test_names_and_numbers_are_those_of_the_plain_network(road, monkeypatch):
    x, y = torch.randn(12, 6), torch.randint(0, 4, (12,))
    plain = spectrascope.probe(_net(), (x, y), top_k=2)
    net = ROADS[road](_net())
    calls = []
    monkeypatch.setattr(torch._dynamo.eval_frame._TorchDynamoContext, "__call__", lambda *a, **k: calls.append(a))
    modules, training = copy.copy(dict(net.named_modules())), [m.training for m in net.modules()]
    found = spectrascope.probe(net, (x, y), top_k=2)
    assert [layer.info.name for layer in found.layers] == [layer.info.name for layer in plain.layers]
    for a, b in zip(found.layers, plain.layers, strict=True):
        assert a.measurement.h == pytest.approx(b.measurement.h, rel=1e-5)
    names = [row.info.name for row in spectrascope.weights(net).rows]
    assert names == [row.info.name for row in spectrascope.weights(_net()).rows]
    assert dict(net.named_modules()) == modules
    assert [m.training for m in net.modules()] == training
    assert not calls


def test_a_network_without_wrappers_is_itself():
    net = _net()
    assert unwrapped(net) is net
