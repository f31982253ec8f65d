"""A network gives the same rows and the same numbers from memory and from every way it can be saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

import spectrascope
from spectrascope.cli import main
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.losses import CausalLM
from spectrascope.records.report import LayerReport, Report, SkippedLayer
from spectrascope.records.values import Missing
from spectrascope.reports.read import read_report
from tests.support import hf_networks

N = 8
TOKENS, LENGTH = 40, 6

USERS_CODE = """
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

def net():
    torch.manual_seed(7)
    twice = nn.Linear(6, 6)
    first, last = weight_norm(nn.Linear(4, 6)), weight_norm(nn.Linear(6, 3))
    return nn.Sequential(first, nn.ReLU(), twice, nn.Tanh(), twice, last)
"""


@dataclass(frozen=True)
class Family:
    """A network's constructor, samples for it, and what else it takes to load a bare file of it again."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    classes: int | None  # a language model where there is none
    arch: str | None = None
    layers: tuple[str, ...] = ()

    def batch(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            inputs = self.inputs()
        if self.classes is not None:
            return inputs, torch.arange(N) % self.classes
        labels = torch.where(torch.arange(LENGTH) % 2 == 0, inputs, -100) if self.arch == BERT else inputs
        return {"input_ids": inputs, "labels": labels}


def zoo(name: str, classes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network = load_model(f"{name}@none", num_classes=classes, seed=5).model
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(9)
            for key, value in network.state_dict().items():  # running statistics and gains of a trained network
                if key.endswith(("running_mean", "bias")):
                    value.normal_(0.0, 0.1)
                elif key.endswith("running_var") or (value.dim() == 1 and value.is_floating_point()):
                    value.uniform_(0.5, 1.5)
        return network

    return make


def images(channels: int, size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, channels, size, size)


def tokens() -> Tensor:
    return torch.randint(3, TOKENS, (N, LENGTH))


def users_network() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(USERS_CODE, scope)  # what the file of the same text is loaded as
    network: nn.Module = scope["net"]()
    return network


BERT = "tests.support.hf_networks:bert_masked"
PLAIN = {
    "cifar-resnet20": Family(zoo("cifar-resnet20", 7), images(3, 12), 7),
    "mlp": Family(zoo("mlp:48-10-6", 6), images(3, 4), 6),
    "shufflenet": Family(zoo("shufflenet_v2_x0_5", 5), images(3, 40), 5, layers=("stage3.*", "fc.weight")),
}
HF = {
    "gpt2": Family(lambda: hf_networks.build("gpt2"), tokens, None, "tests.support.hf_networks:gpt2"),
    "llama": Family(lambda: hf_networks.build("llama"), tokens, None, "tests.support.hf_networks:llama"),
    "mixtral": Family(lambda: hf_networks.build("mixtral"), tokens, None, "tests.support.hf_networks:mixtral"),
    "bert-masked": Family(lambda: hf_networks.build("bert-masked"), tokens, None, BERT),
    "bert-classifier": Family(
        lambda: hf_networks.build("bert-classifier"), tokens, 3, "tests.support.hf_networks:bert_classifier"
    ),
    "vit": Family(lambda: hf_networks.build("vit"), images(3, 16), 5, "tests.support.hf_networks:vit"),
}
OWN = {"weight-norm": Family(users_network, lambda: torch.randn(N, 4), 3)}
FAMILIES = PLAIN | HF | OWN


def measure(family: Family, network: nn.Module, **options: Any) -> Report:
    usual = {"top_k": 2, "groups": 4, "layers": family.layers, "self_check": False, "device": "cpu"}
    return spectrascope.probe(network, family.batch(), **{**usual, **options})


@cache
def from_memory(name: str, dtype: torch.dtype = torch.float32) -> Report:
    """The report on a network that was never saved; with ``dtype`` after rounding its weights to that precision."""
    network = FAMILIES[name].make().eval()
    report = measure(FAMILIES[name], network.to(dtype).float())
    measured = [row for row in report.layers if isinstance(row, LayerReport)]
    assert len(measured) >= 2
    assert all(row.measurement.sigma[0] > 0 for row in measured)
    assert all(max(map(abs, row.measurement.h)) > 0 for row in measured)
    return report


def require_same(found: Report, expected: Report) -> None:
    assert [row.info for row in found.layers] == [row.info for row in expected.layers]
    assert found.provenance.loss_name == expected.provenance.loss_name
    assert found.provenance.loss == pytest.approx(expected.provenance.loss, rel=1e-5)
    assert found.provenance.data.digest == expected.provenance.data.digest
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, SkippedLayer) or isinstance(theirs, SkippedLayer):
            assert ours == theirs
            continue
        a, b = ours.measurement, theirs.measurement
        assert (a.engine, a.engine_reason, a.exact) == (b.engine, b.engine_reason, b.exact), ours.info.name
        assert (a.rank, a.full_rank, a.group_sizes) == (b.rank, b.full_rank, b.group_sizes), ours.info.name
        for x, y in ((a.sigma, b.sigma), (a.h, b.h)):
            assert x == pytest.approx(y, rel=0, abs=1e-4 * max(map(abs, y))), ours.info.name


# --- ways to save a state dict ---


def save_shards(state: dict[str, Tensor], folder: Path, kind: str = "safetensors") -> Path:
    """Three shards and their index, under the names Hugging Face gives them."""
    folder.mkdir()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = list(state)
    places = {name: f"{stem}-{i % 3 + 1:05}-of-00003.{kind}" for i, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: state[name].contiguous() for name in names if places[name] == file}
        if kind == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    index = folder / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def to_file(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def to_safetensors(network: nn.Module, path: Path) -> Path:
    save_model(network, str(path))  # tied weights once, their other names in the header
    return path


def lightning(network: nn.Module) -> dict[str, Any]:
    return {
        "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.4.0", "callbacks": {}, "loops": {},
        "state_dict": {f"model.{key}": value for key, value in network.state_dict().items()},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}],
        "hyper_parameters": {"lr": 0.1, "name": "net"},
    }  # fmt: skip


WAYS: dict[str, Callable[[nn.Module, Path], Path]] = {
    "pt": lambda net, here: to_file(net.state_dict(), here / "net.pt"),
    "safetensors": lambda net, here: to_safetensors(net, here / "net.safetensors"),
    "index": lambda net, here: save_shards(net.state_dict(), here / "shards"),
    "folder of shards": lambda net, here: save_shards(net.state_dict(), here / "shards").parent,
    "index of pickles": lambda net, here: save_shards(net.state_dict(), here / "shards", "bin"),
    "compiled": lambda net, here: to_file(torch.compile(net).state_dict(), here / "net.pt"),
    "data parallel": lambda net, here: to_file(nn.DataParallel(net).state_dict(), here / "net.pth"),
    "compiled, data parallel": lambda net, here: to_file(
        {"model": nn.DataParallel(torch.compile(net)).state_dict(), "epoch": 2}, here / "net.bin"
    ),
    "lightning": lambda net, here: to_file(lightning(net), here / "net.ckpt"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PLAIN)
def test_recognised_from_a_file(name: str, way: str, tmp_path: Path) -> None:
    place = WAYS[way](FAMILIES[name].make().eval(), tmp_path)
    loaded = load_model(str(place))
    assert loaded.num_classes == FAMILIES[name].classes
    require_same(measure(FAMILIES[name], loaded.model), from_memory(name))


@pytest.mark.parametrize("way", ["pt", "safetensors", "index of pickles", "compiled", "data parallel", "lightning"])
@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bert-classifier"])
def test_put_into_a_factorys_network(name: str, way: str, tmp_path: Path) -> None:
    """The state dict alone of a network that only its class can build."""
    place = WAYS[way](FAMILIES[name].make().eval(), tmp_path)
    loaded = load_model(str(place), arch=FAMILIES[name].arch)
    require_same(measure(FAMILIES[name], loaded.model), from_memory(name))


@pytest.mark.parametrize("layout", ["safetensors", "shards", "bin"])
@pytest.mark.parametrize("name", HF)
def test_a_hugging_face_folder(name: str, layout: str, tmp_path: Path) -> None:
    folder = hf_networks.save(FAMILIES[name].make(), tmp_path / "net", layout)
    assert (layout == "shards") == (len(list(folder.glob("*.safetensors"))) > 1)
    loaded = load_model(str(folder))
    assert loaded.num_classes == FAMILIES[name].classes
    require_same(measure(FAMILIES[name], loaded.model), from_memory(name))


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_a_file_or_an_index_in_a_hugging_face_folder(name: str, tmp_path: Path) -> None:
    for layout, file in (("safetensors", "model.safetensors"), ("shards", "model.safetensors.index.json")):
        folder = hf_networks.save(FAMILIES[name].make(), tmp_path / layout, layout)
        require_same(measure(FAMILIES[name], load_model(str(folder / file)).model), from_memory(name))


@pytest.mark.parametrize("name", ["gpt2", "bert-classifier"])
def test_a_hugging_face_folder_saved_from_a_wrapped_network(name: str, tmp_path: Path) -> None:
    """The folder's pickle written by a training script that wrapped the network, in one file and in shards."""
    for at, (wrap, kind) in enumerate([(torch.compile, "one"), (nn.DataParallel, "one"), (nn.DataParallel, "shards")]):
        network = FAMILIES[name].make().eval()
        folder = hf_networks.save(network, tmp_path / str(at), "bin")
        state = wrap(network).state_dict()
        assert all(key.startswith(("module.", "_orig_mod.")) for key in state)
        (folder / "pytorch_model.bin").unlink()
        if kind == "shards":
            for file in save_shards(state, tmp_path / f"shards-{at}", "bin").parent.iterdir():
                file.rename(folder / file.name)
        else:
            torch.save(state, folder / "pytorch_model.bin")
        headers = load_model(str(folder), headers_only=True)
        loaded = load_model(str(folder))
        assert headers.info.n_parameters == loaded.info.n_parameters
        require_same(measure(FAMILIES[name], loaded.model), from_memory(name))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
@pytest.mark.parametrize("name", ["gpt2", "shufflenet"])
def test_a_wrapped_network_in_memory(name: str, wrap: Callable[[nn.Module], nn.Module]) -> None:
    require_same(measure(FAMILIES[name], wrap(FAMILIES[name].make().eval())), from_memory(name))


def test_a_tied_head_is_one_row_everywhere(tmp_path: Path) -> None:
    """GPT-2 saved with both names of the tied weight and with one."""
    network = FAMILIES["gpt2"].make().eval()
    (row,) = [row for row in from_memory("gpt2").layers if row.info.tied_names]
    assert {row.info.name, *row.info.tied_names} == {"transformer.wte.weight", "lm_head.weight"}
    state = network.state_dict()
    for missing in row.info.tied_names:
        half = {key: value for key, value in state.items() if key != missing}
        loaded = load_model(str(to_file(half, tmp_path / "one.pt")), arch=FAMILIES["gpt2"].arch)
        require_same(measure(FAMILIES["gpt2"], loaded.model), from_memory("gpt2"))


# --- a user's own network, with weights that are computed from others ---


@pytest.fixture
def users_file(tmp_path: Path) -> str:
    (tmp_path / "mynet.py").write_text(USERS_CODE)
    return f"{tmp_path}/mynet.py:net"


def test_a_users_factory(users_file: str) -> None:
    expected = from_memory("weight-norm")
    require_same(measure(OWN["weight-norm"], load_model(users_file).model), expected)
    names = [row.info.name for row in expected.layers]
    assert len(names) == 3  # two effective weights, and the shared one once
    assert [row.info.tied_names for row in expected.layers if row.info.tied_names] == [("4.weight",)]


@pytest.mark.parametrize("way", ["pt", "safetensors", "compiled", "data parallel", "lightning"])
def test_a_file_for_a_users_factory(way: str, users_file: str, tmp_path: Path) -> None:
    network = users_network().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.25)  # other weights than the factory makes
    expected = measure(OWN["weight-norm"], network)
    loaded = load_model(str(WAYS[way](network, tmp_path)), arch=users_file)
    require_same(measure(OWN["weight-norm"], loaded.model), expected)


# --- half precision ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["mlp", "shufflenet"])
def test_half_precision_files_are_measured_as_their_values_in_float32(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    place = WAYS["safetensors"](FAMILIES[name].make().eval().to(dtype), tmp_path)
    loaded = load_model(str(place))
    assert str(dtype).removeprefix("torch.") in loaded.info.weights
    require_same(measure(FAMILIES[name], loaded.model), from_memory(name, dtype))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_half_precision_folders(name: str, tmp_path: Path) -> None:
    folder = hf_networks.save(FAMILIES[name].make(), tmp_path / "net", "bf16")
    require_same(measure(FAMILIES[name], load_model(str(folder)).model), from_memory(name, torch.bfloat16))


# --- with the self-check, and through the command line ---


@pytest.mark.parametrize("name", ["mlp", "gpt2"])
def test_the_self_check_agrees(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    if name in HF:
        loaded = load_model(str(hf_networks.save(family.make(), tmp_path / "net", "shards")))
    else:
        loaded = load_model(str(WAYS["index"](family.make().eval(), tmp_path)))
    report = measure(family, loaded.model, self_check=True)
    assert not isinstance(report.provenance.self_check, Missing)
    require_same(report, from_memory(name))


def probe_on_noise(path: Path, output: Path, *arguments: str) -> Report:
    code = main(
        ["probe", str(path), "--dataset", "synthetic", "--num-samples", str(N), "--top-k", "2", "--groups", "4", "-q",
         "--device", "cpu", "--json", "-o", str(output), *arguments]
    )  # fmt: skip
    assert code == 0
    return read_report(output)


@pytest.mark.parametrize(
    ("name", "ways", "arguments"),
    [
        ("mlp", ("pt", "safetensors", "folder of shards", "compiled"), ()),
        ("gpt2", ("safetensors", "shards", "bin"), ("--block-size", "8")),
        ("vit", ("safetensors", "shards"), ()),
    ],
)
def test_through_the_command_line(name: str, ways: tuple[str, ...], arguments: tuple[str, ...], tmp_path: Path) -> None:
    family = FAMILIES[name]
    for way in ways:
        (tmp_path / way).mkdir()
        if name in HF:
            place = hf_networks.save(family.make(), tmp_path / way, way)
        else:
            place = WAYS[way](family.make().eval(), tmp_path / way)
        found = probe_on_noise(place, tmp_path / f"{way}.json", *arguments)
        data = load_dataset("synthetic", load_model(str(place)), num_samples=N, seed=0, block_size=8)
        require_same(found, measure_source(family, data.source))


def measure_source(family: Family, source: Any) -> Report:
    loss = CausalLM() if family.classes is None else None
    return spectrascope.probe(
        family.make().eval(), source, loss, top_k=2, groups=4, self_check=False, device="cpu", num_samples=None
    )
