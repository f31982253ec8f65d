"""Momentum of an optimizer in a checkpoint, found by name or by order, and the directions it gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import LoadError, OptionError
from spectrascope.loading.checkpoints.momentum import momentum_of, read_momentum
from spectrascope.records.report import LayerReport
from spectrascope.records.signal import HeldOut
from spectrascope.records.values import Missing
from tests.support import oracles


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))


def trained(kind: str, grouped: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}] if grouped else model.parameters()
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups) if kind == "adamw" else torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.randint(5, (16,), generator=generator)).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("grouped", [False, True], ids=["one group", "vectors apart"])
@pytest.mark.parametrize("key", ["optimizer", "optimizer_states", "beside"])
def test_every_buffer_finds_its_weight(tmp_path: Path, kind: str, grouped: bool, key: str) -> None:
    model, optimizer = trained(kind, grouped)
    file = tmp_path / "checkpoint.pt"
    if key == "beside":
        torch.save(model.state_dict(), file)
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    else:
        state = optimizer.state_dict()
        torch.save({"model": model.state_dict(), key: [state] if key == "optimizer_states" else state}, file)
    found = read_momentum(file, model)
    expected = momentum_of(optimizer, model)
    assert set(found) == {name for name, _ in model.named_parameters()} == set(expected)
    for name, buffer in found.items():
        assert torch.equal(buffer, expected[name])


def test_buffers_that_fit_two_ways_are_not_guessed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    parts = [[model[2].weight], [model[0].weight, *model[1].parameters()]]  # an order of the user's own
    optimizer = torch.optim.SGD([{"params": part} for part in parts], lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(LoadError, match="save its state with names"):
        read_momentum(tmp_path / "checkpoint.pt", model)


def test_names_saved_by_the_optimizer_win(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    optimizer = torch.optim.SGD([("1.weight", model[1].weight), ("0.weight", model[0].weight)], lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    if "param_names" not in optimizer.state_dict()["param_groups"][0]:
        pytest.skip("this torch does not save names")
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint.pt")
    found = read_momentum(tmp_path / "checkpoint.pt", model)
    assert torch.equal(found["0.weight"], momentum_of(optimizer, model)["0.weight"])


@pytest.mark.parametrize("content", ["weights", "adagrad", "two", "other"])
def test_what_is_not_there_is_said(tmp_path: Path, content: str) -> None:
    model, optimizer = trained("sgd")
    file, message = tmp_path / "checkpoint.pt", ""
    if content == "weights":
        torch.save(model.state_dict(), file)
        message = "no optimizer's state found"
    elif content == "adagrad":
        other = torch.optim.Adagrad(model.parameters())
        other.step()
        torch.save(other.state_dict(), file)
        message = "keeps no exp_avg or momentum_buffer"
    elif content == "two":
        torch.save([optimizer.state_dict(), optimizer.state_dict()], file)
        message = "the states of 2 optimizers"
    else:
        torch.save(optimizer.state_dict(), file)
        model = nn.Linear(3, 3)
        message = "does not say which of the network's 2"
    with pytest.raises(LoadError, match=message):
        read_momentum(file, model)


def test_directions_are_the_momentums_and_every_sample_is_held_out() -> None:
    model, optimizer = trained("adamw")
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(64, 6, generator=generator), torch.randint(5, (64,), generator=generator)
    report = spectrascope.probe(model, data, "cross-entropy", top_k=4, momentum=optimizer, dtype="float64")
    for row in report.layers:
        assert isinstance(row, LayerReport)
        buffer = momentum_of(optimizer, model)[row.info.name].double()
        u, sigma, vt = torch.linalg.svd(buffer)
        np.testing.assert_allclose(row.measurement.sigma, sigma[:4], rtol=1e-6)
        wide = network().double()
        wide.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
        gradient = oracles.gradient_of(wide, row.info.name, data[0].double(), data[1], nn.functional.cross_entropy)
        expected = torch.einsum("mk,mn,kn->k", u[:, :4], gradient, vt[:4])
        assert isinstance(row.held_out, HeldOut)
        np.testing.assert_allclose(row.held_out.slopes, expected, atol=1e-7)
        assert row.held_out.n_folds == 0
        assert row.held_out.h == row.measurement.h
        assert isinstance(row.null, Missing)
        assert "momentum" in row.null.reason


def test_momentum_without_an_optimizer_is_refused() -> None:
    model, _ = trained("sgd")
    with pytest.raises(OptionError, match="pass momentum="):
        spectrascope.probe(model, (torch.randn(8, 6), torch.zeros(8, dtype=torch.int64)), gradient="momentum")
