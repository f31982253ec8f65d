"""What a user types: real images for networks of 200 and 1000 classes, and every downloader without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spectrascope.cli import main

START = "import sys; from spectrascope.cli import main; sys.exit(main())"


def probe(output: Path, *arguments: str) -> dict:
    assert main(["probe", *arguments, "--top-k", "2", "--json", "-q", "-o", str(output)]) == 0
    return json.loads(output.read_text())


# --- Tiny-ImageNet ---


@pytest.mark.parametrize(
    ("model", "extra", "order"),
    [
        (
            "cifar-resnet20@none",
            ("--num-classes", "200", "--image-size", "32", "--layers", "linear.weight"),
            "wnids.txt",
        ),
        ("squeezenet1_1@none", ("--layers", "classifier.1.weight", "--image-size", "64"), "WordNet"),
    ],
    ids=["200", "1000"],
)
def test_tiny_imagenet(model: str, extra: tuple[str, ...], order: str, shared: Path, tmp_path: Path) -> None:
    root = shared / "data"
    data = ("--dataset", "tiny-imagenet", "--data-root", str(root), "--num-samples", "24")
    report = probe(tmp_path / "r.json", model, *data, *extra)
    found = report["provenance"]["data"]
    assert (found["n"], found["n_available"], found["synthetic"]) == (24, 2400, False)
    assert order in found["label_order"]
    assert sum(row["status"] == "ok" for row in report["layers"]) == 1


def test_labels_of_both_numberings_mean_the_same_words(shared: Path) -> None:
    """Label by label, against the data set's own word list and torchvision's category names."""
    torchvision = pytest.importorskip("torchvision")
    from spectrascope.loading.data.open import load_dataset
    from spectrascope.loading.models.open import load_model

    root = shared / "data" / "tiny-imagenet-200"
    ids = (root / "wnids.txt").read_text().split()
    words = dict(line.split("\t", 1) for line in (root / "words.txt").read_text().splitlines())
    categories = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    few, many = (
        load_dataset("tiny-imagenet", load_model(name, num_classes=n), num_samples=2400, seed=0,
                     data_root=root.parent, image_size=8).source.fetch(0, 2400)[1].tolist()
        for name, n in (("cifar-resnet20@none", 200), ("resnet18@none", None))
    )  # fmt: skip
    assert len(few) == len(many) == 2400
    assert len(set(few)) == len(set(many)) == 200
    for label, category in zip(few, many, strict=True):
        synonyms = {word.strip().lower() for word in words[ids[label]].split(",")}
        assert categories[category].lower() in synonyms, (ids[label], categories[category])


# --- without a network ---


@pytest.fixture
def offline(tmp_path: Path) -> dict[str, str]:
    """Empty caches, and a proxy that refuses: also on a machine with a network."""
    closed = "http://127.0.0.1:9"
    caches = {name: str(tmp_path / name) for name in ("TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME", "HOME")}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), closed)
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {**kept, **caches, **proxies, "no_proxy": "", "HF_HUB_DISABLE_TELEMETRY": "1"}


CASES = {
    "torchvision": (["resnet18", "--dataset", "synthetic"], ("resnet18", ".pth")),
    "hub model": (["hf:org/name", "--dataset", "synthetic"], ("org/name",)),
    "timm": (["timm:resnet18", "--dataset", "synthetic"], ("timm", "resnet18")),
    "cifar10": (["cifar-resnet20@none", "--dataset", "cifar10"], ("cifar-10", "--download")),
    "cifar10 download": (["cifar-resnet20@none", "--dataset", "cifar10", "--download"], ("cifar-10",)),
    "cifar100": (["cifar-resnet20@none", "--num-classes", "100", "--dataset", "cifar100"], ("cifar-100", "--download")),
    "tiny-imagenet": (
        ["cifar-resnet20@none", "--num-classes", "200", "--dataset", "tiny-imagenet"],
        ("tiny-imagenet-200", "--download"),
    ),
    "tiny-imagenet download": (
        ["cifar-resnet20@none", "--num-classes", "200", "--dataset", "tiny-imagenet", "--download"],
        ("tiny-imagenet-200",),
    ),
    "imagenet": (["resnet18@none", "--dataset", "imagenet"], ("imagenet",)),
    "hub data": (["cifar-resnet20@none", "--dataset", "hf:org/data", "--download"], ("org/data",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_offline_in_one_line(name: str, offline: dict[str, str], tmp_path: Path) -> None:
    arguments, words = CASES[name]
    if name == "timm":
        pytest.importorskip("timm")
    if name == "hub data":
        pytest.importorskip("datasets")
    run = subprocess.run(
        [sys.executable, "-c", START, "probe", *arguments, "--data-root", str(tmp_path / "data"), "-q"],
        capture_output=True, text=True, encoding="utf-8", env=offline, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("error: ")
    for word in words:
        assert word in run.stderr, run.stderr


# --- options ---


def test_a_factory_with_its_own_loss_and_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def build():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))\n"
        "    batch = (torch.randn(12, 4), torch.randn(12, 2))\n"
        "    return net, batch, torch.nn.functional.mse_loss\n"
    )
    spec = f"{tmp_path / 'mine.py'}:build"
    report = probe(tmp_path / "r.json", spec, "--seed", "1")
    assert report["provenance"]["loss_name"] == "mse_loss"
    assert report["provenance"]["data"]["n"] == 12
    assert main(["probe", spec, "--loss", "mse", "-q"]) == 2
    assert "--loss goes with --dataset" in capsys.readouterr().err


def test_losses_and_label_smoothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("mlp:12-6-3@none", "--dataset", "synthetic", "--num-samples", "16")
    names = {}
    for loss in ("auto", "cross-entropy", "bce", "mse"):
        names[loss] = probe(tmp_path / "r.json", *base, "--loss", loss)["provenance"]["loss_name"]
    assert names["auto"] == names["cross-entropy"] == "cross-entropy"
    assert len(set(names.values())) == 3
    smooth = probe(tmp_path / "r.json", *base, "--label-smoothing", "0.1")["provenance"]["loss_name"]
    assert "0.1" in smooth
    assert main(["probe", *base, "--loss", "mse", "--label-smoothing", "0.1", "-q"]) == 2
    assert "--label-smoothing goes with cross-entropy" in capsys.readouterr().err


def test_inspect_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-q"]) == 0
    assert "conv1.weight" in capsys.readouterr().out
    assert main(["inspect", "resnet18@none", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["loaded"], document["n_measured"]) == ("headers", 21)
    assert main(["inspect", "resnet18@none", "--format", "csv", "-q"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("name,kind,role,M,N")
    assert main(["inspect", str(tmp_path / "gone.pt"), "-q"]) == 3
    assert "no such file" in capsys.readouterr().err


def test_inspect_takes_samples_from_arrays_where_only_they_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Last(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.rnn, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.rnn(x)[0][:, -1])\n"
    )
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 5, 4), np.float32), y=np.arange(9) % 3)
    spec = f"{tmp_path / 'mine.py'}:Last"
    assert main(["inspect", spec, "--dataset", f"npz:{tmp_path / 'd.npz'}", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["inputs"] == "5×4"
    assert {row["info"]["name"]: row["engine"] for row in document["weights"] if row["measured"]} == {
        "rnn.weight_ih_l0": "tangent", "rnn.weight_hh_l0": "tangent", "head.weight": "gauss-newton",
    }  # fmt: skip
    assert document["cost"]["total_passes"] > 0
    assert main(["inspect", spec, "--json", "-q"]) == 0  # listed all the same
    document = json.loads(capsys.readouterr().out)
    assert (document["n_measured"], "--image-size" in document["inputs"]["missing"]) == (3, True)
    assert main(["inspect", spec, "--dataset", f"npz:{tmp_path / 'gone.npz'}", "-q"]) == 3
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("tokenizer", [False, True])
def test_inspect_of_a_masked_language_model(
    tokenizer: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run reads no tokenizer, and needs no mask token."""
    from tests.support import hf_networks

    folder = hf_networks.save(hf_networks.build("bert-masked"), tmp_path / "bert")
    if tokenizer:
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]))
    assert main(["inspect", str(folder), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["inputs"] == "16"
    assert document["n_measured"] == 14
    assert document["cost"]["total_passes"] > 0
    output = tmp_path / "r.json"
    data = probe(output, str(folder), "--dataset", "synthetic", "--num-samples", "4", "--layers", "*layer.0.*query*")
    order = data["provenance"]["data"]["label_order"]
    assert ("hidden by token 0" in order) is not tokenizer


def test_inspect_refuses_a_quantised_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where its files hold plain numbers: listing weights to be measured would mislead."""
    from tests.support import hf_networks

    folder = hf_networks.save(hf_networks.build("llama"), tmp_path / "net")
    hf_networks.edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    capsys.readouterr()  # transformers' progress of saving
    assert main(["inspect", str(folder), "-q"]) == 3
    streams = capsys.readouterr()
    assert (streams.out, streams.err.count("\n")) == ("", 1)
    assert "quantised (bitsandbytes)" in streams.err
