"""Of a file's tensors only those are judged that become parameters; the others may hold anything."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectrascope.cli import main
from spectrascope.errors import LoadError, NonFiniteError, QuantizedError
from spectrascope.loading.models.open import load_model

FACTORY = """
import torch
from torch import nn

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(9, 9), nn.Linear(9, 3)
        self.register_buffer("causal_mask", torch.zeros(9, 9))
        self.register_buffer("freqs_cis", torch.zeros(4, dtype=torch.complex64))
        self.register_buffer("bits", torch.zeros(9, dtype=torch.uint8))
    def forward(self, x):
        return self.b(self.a(x) * self.bits + self.causal_mask.exp().sum(1))
"""


def masked() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    own = {"a.weight": torch.randn(9, 9), "a.bias": torch.randn(9), "b.weight": torch.randn(3, 9)}
    own |= {"b.bias": torch.randn(3), "causal_mask": torch.full((9, 9), -math.inf).triu(1)}
    return {**own, "freqs_cis": torch.ones(4, dtype=torch.complex64), "bits": torch.ones(9, dtype=torch.uint8)}


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(FACTORY)
    return f"{tmp_path / 'nets.py'}:Masked"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_buffers_of_a_network_of_ones_own(suffix: str, factory: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / f"net{suffix}"
    torch.save(masked(), file) if suffix == ".pt" else save_file(masked(), file)
    network = load_model(str(file), arch=factory).model
    assert all(torch.equal(value, masked()[name]) for name, value in network.state_dict().items())
    torch.save((torch.randn(24, 9), torch.arange(24) % 3), tmp_path / "data.pt")
    arguments = ["probe", str(file), "--arch", factory, "--dataset", f"pt:{tmp_path / 'data.pt'}", "--top-k", "2"]
    assert main(arguments) == 0
    assert "a.weight" in capsys.readouterr().out


def test_the_same_file_without_its_network(tmp_path: Path, capsys) -> None:
    torch.save(masked(), tmp_path / "net.pt")
    assert main(["weights", str(tmp_path / "net.pt")]) == 0
    assert main(["inspect", str(tmp_path / "net.pt")]) == 0
    assert "a.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    "beside",
    [
        {"optimizer": {"state": {0: {"exp_avg": torch.full((3,), math.nan)}}, "param_groups": [{"params": [0]}]}},
        {"ema": {"layers.0.weight": torch.full((5, 6), math.nan)}},
        {"loss_history": torch.tensor([1.0, math.inf])},
        {"best": {"metric": torch.tensor(math.nan)}},
    ],
)
def test_tensors_beside_the_weights(beside: dict, tmp_path: Path) -> None:
    weights = load_model("mlp:6-5-3@none").model.state_dict()
    torch.save({"model": weights, **beside}, tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt")).model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_an_average_within_the_state_dict(tmp_path: Path) -> None:
    """As Lightning writes it: the average is another part of the same dict."""
    weights = load_model("mlp:6-5-3@none").model.state_dict()
    both = {f"net.{key}": value for key, value in weights.items()}
    both |= {f"ema.{key}": torch.full_like(value, math.nan) for key, value in weights.items()}
    torch.save({"state_dict": both}, tmp_path / "net.ckpt")
    loaded = load_model(str(tmp_path / "net.ckpt"))
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in weights.items())
    assert "ema" in loaded.info.weights


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda t: t.index_fill(0, torch.tensor([0]), math.nan), NonFiniteError, "9 of 81 values of 'a.weight'"),
        (lambda t: t.index_fill(0, torch.tensor([0]), -math.inf), NonFiniteError, "9 of 81 values of 'a.weight'"),
        (lambda t: t.to(torch.int8), QuantizedError, "'a.weight' is stored as int8"),
        (lambda t: t.to(torch.complex64), LoadError, "'a.weight' is a sparse or complex tensor"),
        (lambda t: t.to_sparse(), LoadError, "'a.weight' is a sparse or complex tensor"),
    ],
)
def test_what_becomes_a_parameter_is_judged(spoil, error: type, says: str, factory: str, tmp_path: Path) -> None:
    weights = masked()
    weights["a.weight"] = spoil(weights["a.weight"])
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(error, match=says) as caught:
        load_model(str(tmp_path / "net.pt"), arch=factory)
    assert "\n" not in str(caught.value)


def test_a_buffer_that_does_not_fit_its_place(factory: str, tmp_path: Path) -> None:
    torch.save({**masked(), "causal_mask": torch.eye(9).to_sparse()}, tmp_path / "net.pt")
    try:
        network: nn.Module = load_model(str(tmp_path / "net.pt"), arch=factory).model
        assert torch.equal(network.causal_mask, torch.eye(9))
    except LoadError as error:
        assert "'causal_mask' does not go into" in str(error)  # noqa: PT017 - torch may learn to copy it
