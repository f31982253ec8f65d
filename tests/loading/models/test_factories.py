"""Users' own networks: what factories may return, and files loaded into them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from spectrascope.cli import main
from spectrascope.errors import LoadError
from spectrascope.loading.models.open import load_model
from spectrascope.records.values import Task

SOURCE = """
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from spectrascope.workload import TensorSource, Workload

def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))

def pair():
    return torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)

def half_loss(output, targets):
    return 0.5 * nn.functional.cross_entropy(output, targets)

def workload():
    return Workload(net().train(), TensorSource(*pair()), half_loss, torch.device("cpu"), torch.float32, n_classes=2)

def double():
    return Workload(net().double(), TensorSource(*pair()), half_loss, torch.device("cpu"), torch.float64)

def triple():
    return net(), [pair(), pair()], half_loss

def named():
    return net(), pair(), "mse"

def unknown_loss():
    return net(), pair(), "huber"

def loss_is_number():
    return net(), pair(), 3

def no_samples():
    return net(), [], half_loss

def loader_fails():
    def batches():
        raise OSError("disk\\nis gone")
        yield
    return net(), batches(), half_loss

def two():
    return net(), pair()

def lazy():
    return nn.LazyLinear(3)

def wrapped():
    return nn.DataParallel(net())

def half():
    return net().half()

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, x):
        return self.head(self.embed(x))

class TinyForCausalLM(Tied):
    pass

def tied():
    return Tied()

def language_model():
    return TinyForCausalLM()

def normed():
    return nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(SOURCE)
    return tmp_path / "own.py"


def test_a_workload_brings_its_loss_and_data(source: Path) -> None:
    loaded = load_model(f"{source}:workload")
    assert loaded.workload is not None
    assert loaded.workload.model is loaded.model
    assert not loaded.model.training
    assert (loaded.num_classes, loaded.workload.source.n) == (2, 6)
    inputs, targets = loaded.workload.fetch(0, 6)
    plain = torch.nn.functional.cross_entropy(loaded.model(inputs), targets)
    assert torch.allclose(loaded.workload.loss(inputs, targets), 0.5 * plain)
    assert load_model(f"{source}:net").workload is None


def test_a_workload_keeps_the_precision_it_asks_for(source: Path) -> None:
    loaded = load_model(f"{source}:double")
    assert loaded.workload is not None
    assert loaded.workload.dtype == torch.float64 == loaded.model[0].weight.dtype


def test_a_triple_becomes_a_workload(source: Path) -> None:
    workload = load_model(f"{source}:triple").workload
    assert workload is not None
    assert (workload.source.n, workload.dtype, workload.device) == (12, torch.float32, torch.device("cpu"))
    assert workload.loss_fn.__name__ == "half_loss"
    named = load_model(f"{source}:named").workload
    assert named is not None
    assert named.loss_fn.label == "mse"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("unknown_loss", r"loss 'huber': expected one of auto, cross-entropy"),
        ("loss_is_number", r"the loss is a int; expected a function"),
        ("no_samples", r"no samples found"),
        ("loader_fails", r"raised OSError: disk is gone$"),
        ("two", r"returned a tuple \(Sequential, tuple\); expected a torch\.nn\.Module, a Workload, or a tuple"),
        ("pair", r"returned a tuple \(Tensor, Tensor\); expected"),
        ("lazy", r"'weight' has no shape yet"),
    ],
)
def test_bad_returns_in_one_line(source: Path, factory: str, message: str) -> None:
    with pytest.raises(LoadError, match=message) as error:
        load_model(f"{source}:{factory}")
    assert "\n" not in str(error.value)


def test_a_file_goes_into_the_workloads_network(source: Path, tmp_path: Path) -> None:
    weights = {"0.weight": torch.randn(3, 4), "0.bias": torch.randn(3)}
    weights |= {"2.weight": torch.randn(2, 3), "2.bias": torch.randn(2)}
    torch.save(weights, tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"), arch=f"{source}:workload")
    assert loaded.workload is not None
    assert torch.equal(loaded.workload.model[0].weight, weights["0.weight"])
    assert loaded.info.source == "checkpoint"


def test_wrappers_are_taken_off_and_narrow_weights_widened(source: Path, tmp_path: Path) -> None:
    loaded = load_model(f"{source}:wrapped")
    assert next(name for name, _ in loaded.model.named_parameters()) == "0.weight"
    weights = {f"module.{key}": value for key, value in loaded.model.state_dict().items()}
    torch.save(weights, tmp_path / "net.pt")
    wide = load_model(str(tmp_path / "net.pt"), arch=f"{source}:half")  # not rounded to the factory's precision
    assert torch.equal(wide.model[0].weight, loaded.model[0].weight)
    torch.save({key: value.bfloat16() for key, value in weights.items()}, tmp_path / "net.pt")
    narrow = load_model(str(tmp_path / "net.pt"), arch=f"{source}:net")
    assert narrow.model[0].weight.dtype == torch.float32
    assert narrow.info.weights == "checkpoint (bfloat16, converted to float32)"


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
def test_tied_weights_under_either_name(source: Path, tmp_path: Path, kept: str) -> None:
    value = torch.randn(7, 3)
    torch.save({kept: value}, tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"), arch=f"{source}:tied")
    assert loaded.model.head.weight is loaded.model.embed.weight
    assert torch.equal(loaded.model.head.weight, value)
    assert loaded.info.n_parameters == 21


def test_tied_weights_that_differ_are_refused(source: Path, tmp_path: Path) -> None:
    torch.save({"embed.weight": torch.ones(7, 3), "head.weight": torch.zeros(7, 3)}, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"'embed\.weight' and 'head\.weight' differ, but are one tied parameter"):
        load_model(str(tmp_path / "net.pt"), arch=f"{source}:tied")
    torch.save({"embed.bias": torch.ones(7, 3)}, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"2 missing \(embed\.weight, head\.weight\)"):
        load_model(str(tmp_path / "net.pt"), arch=f"{source}:tied")


@pytest.mark.parametrize("old", [False, True])
def test_weight_norm_in_its_new_and_old_spelling(source: Path, tmp_path: Path, old: bool) -> None:
    first = load_model(f"{source}:normed", seed=5)
    weights = dict(first.model.state_dict())
    if old:
        weights["0.weight_g"] = weights.pop("0.parametrizations.weight.original0")
        weights["0.weight_v"] = weights.pop("0.parametrizations.weight.original1")
    torch.save(weights, tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"), arch=f"{source}:normed", seed=6)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.model(x), first.model(x))


def test_the_class_name_states_the_task(source: Path) -> None:
    assert load_model(f"{source}:language_model").info.task is Task.CAUSAL_LM
    assert load_model(f"{source}:tied").info.task is Task.UNKNOWN


LANGUAGE = """
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self, rows=300, scores=300):
        super().__init__()
        self.places, self.table, self.head = nn.Embedding(64, 8), nn.Embedding(rows, 8), nn.Linear(8, scores)

    def forward(self, tokens):
        return self.head(self.table(tokens) + self.places(torch.arange(tokens.shape[1])))

def few():
    return Reader(40, 40)

def tabular():
    return Reader(300, 2)
"""


@pytest.mark.parametrize(("factory", "says"), [("Reader", "bytes as tokens"), ("few", "characters")])
def test_a_language_model_of_the_users_own_reads_text(factory: str, says: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.py").write_text(LANGUAGE)
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the hat " * 40)
    model, data = f"{tmp_path / 'mine.py'}:{factory}", f"text:{tmp_path / 'a.txt'}"
    options = ["--block-size", "8", "--top-k", "2", "--num-samples", "32", "--quiet", "--json"]
    assert main(["probe", model, "--dataset", data, "--loss", "causal-lm", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert says in report["provenance"]["data"]["preprocessing"]
    assert report["summary"]["n_ok"] == 1
    assert main(["probe", model, "--dataset", data, *options]) == 3
    assert "expected --loss causal-lm or masked-lm" in capsys.readouterr().err


def test_a_table_of_categories_is_no_language_model(tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.py").write_text(LANGUAGE)
    (tmp_path / "a.txt").write_text("the cat sat " * 40)
    assert main(["probe", f"{tmp_path / 'mine.py'}:tabular", "--dataset", f"text:{tmp_path / 'a.txt'}"]) == 3
    assert "reads images or plain numbers" in capsys.readouterr().err
