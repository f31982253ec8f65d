"""Pruned, weight-normalised and spectrally normalised networks: the effective weight, from memory and from a file."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import spectrascope
from spectrascope.loading.models.open import load_model
from spectrascope.loading.zoo.resnet_cifar import cifar_resnet

X = torch.randn(32, 2, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (32,), generator=torch.Generator().manual_seed(1))
FACTORY = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.ConvTranspose1d(3, 2, 2), nn.Flatten(), nn.Linear(10, 4))
"""


def network() -> nn.Sequential:
    scope: dict = {}
    exec(FACTORY, scope)
    torch.manual_seed(0)
    return scope["build"]()


def _pruned_twice(module: nn.Module) -> None:
    prune.random_unstructured(module, "weight", 0.3)
    prune.l1_unstructured(module, "weight", 0.3)


KINDS = {
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "pruned by rows": lambda m: prune.ln_structured(m, "weight", 0.4, n=2, dim=0),
    "pruned twice": _pruned_twice,
    "weight norm": weight_norm,
    "weight norm of columns": lambda m: weight_norm(m, dim=1),
    "weight norm of all": lambda m: weight_norm(m, dim=None),
    "spectral norm": spectral_norm,
    "weight norm, parametrized": parametrizations.weight_norm,
    "spectral norm, parametrized": parametrizations.spectral_norm,
}


def made(kind: str) -> nn.Sequential:
    net = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in (net[0], net[2], net[4]):
            KINDS[kind](module)
    net(X)  # spectral norm iterates, hooks evaluate
    return net.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_numbers_are_those_of_the_effective_weights(kind, tmp_path):
    net, plain = made(kind), network()
    net(X)
    before, output = {name: value.clone() for name, value in net.state_dict().items()}, net(X)
    with torch.no_grad():
        for module, bare in zip(net, plain, strict=True):
            if isinstance(getattr(bare, "weight", None), nn.Parameter):
                bare.weight.copy_(module.weight)
                bare.bias.copy_(module.bias)
    expected = spectrascope.probe(plain, (X, Y), top_k=2)
    found = spectrascope.probe(net, (X, Y), top_k=2)
    assert "parametrized weights" in " ".join(found.provenance.notes)
    (tmp_path / "own.py").write_text(FACTORY)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    loaded = load_model(str(tmp_path / "a.pt"), arch=f"{tmp_path / 'own.py'}:build").model
    from_file = spectrascope.probe(loaded, (X, Y), top_k=2)
    for report in (found, from_file):
        assert [row.info.name for row in report.layers] == ["0.weight", "2.weight", "4.weight"]
        for row, right in zip(report.layers, expected.layers, strict=True):
            assert row.measurement.sigma == pytest.approx(right.measurement.sigma, rel=1e-4)
            assert row.measurement.h == pytest.approx(right.measurement.h, rel=1e-3, abs=1e-6)
    for road, same in ((net, plain), (net.state_dict(), plain.state_dict())):
        rows, tails = spectrascope.weights(road, top_k=4).rows, spectrascope.weights(same, top_k=4).rows
        assert [row.info.name for row in rows] == [row.info.name for row in tails]
        assert [row.spectral_norm for row in rows] == pytest.approx([row.spectral_norm for row in tails], rel=1e-5)
    assert torch.equal(net(X), output)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_pruned_checkpoint_of_a_known_network_is_recognised(tmp_path):
    torch.manual_seed(0)
    net = cifar_resnet(20)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.5)
    torch.save(net.state_dict(), tmp_path / "pruned.pt")
    loaded = load_model(str(tmp_path / "pruned.pt"))
    assert loaded.info.architecture == "cifar-resnet20"
    assert torch.equal(loaded.model.conv1.weight, net.conv1.weight)
    assert float((loaded.model.conv1.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_a_factory_that_normalises_of_its_own_is_filled_as_it_is(tmp_path):
    net = made("weight norm, parametrized")
    wrap = "\nfrom torch.nn.utils.parametrizations import weight_norm\ndef own():\n    net = build()\n"
    (tmp_path / "own.py").write_text(FACTORY + wrap + "    [weight_norm(net[i]) for i in (0, 2, 4)]\n    return net\n")
    torch.save(net.state_dict(), tmp_path / "a.pt")
    loaded = load_model(str(tmp_path / "a.pt"), arch=f"{tmp_path / 'own.py'}:own").model
    assert loaded.state_dict().keys() == net.state_dict().keys()


def test_parts_that_only_look_like_it_stay(tmp_path):
    from spectrascope.network.effective import effective_tensors

    tensors = {
        "a.weight_orig": torch.ones(3, 3), "b.weight_g": torch.ones(2), "b.weight_v": torch.ones(3, 3),
        "c.weight": torch.ones(2, 2), "c.weight_orig": torch.ones(2, 2), "c.weight_mask": torch.ones(2, 2),
        "d.parametrizations.weight.original": torch.ones(2, 2), "d.parametrizations.weight.0.base": torch.ones(2, 2),
        "query_u": torch.ones(4, 2), "query_v": torch.ones(2, 4),
    }  # fmt: skip
    found = effective_tensors(tensors)
    assert list(found) == list(tensors)
    assert all(found[name] is value for name, value in tensors.items())
