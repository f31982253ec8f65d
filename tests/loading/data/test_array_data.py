"""Arrays in .npz and PyTorch files: used as they are, or as images or tokens; and every refusal."""

from __future__ import annotations

import os
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spectrascope.errors import DataError
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.records.values import LossName, Task
from tests.support.data_networks import images, load, reader, refusal

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3, 4)).astype(np.float32)
Y = np.arange(20) % 10


def write(path: Path, kind: str, **arrays: Any) -> str:
    if kind == "npz":
        np.savez(path / "a.npz", **arrays)
        return f"npz:{path}/a.npz"
    torch.save({key: torch.as_tensor(value) for key, value in arrays.items()}, path / "a.pt")
    return f"pt:{path}/a.pt"


@pytest.mark.parametrize("kind", ["npz", "pt"])
@pytest.mark.parametrize("names", [("x", "y"), ("inputs", "targets"), ("images", "labels")])
def test_floats_are_used_as_they_are(tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    net = images(preprocessing=Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.1,) * 3))
    data = load(write(tmp_path, kind, **{names[0]: X, names[1]: Y}), net, 15)
    chosen = np.random.default_rng(0).permutation(20)[:15]
    inputs, targets = data.source.fetch(0, 15)
    assert torch.equal(inputs, torch.from_numpy(X[chosen]))
    assert targets.tolist() == Y[chosen].tolist()
    assert targets.dtype == torch.int64
    assert (data.info.n, data.info.n_available, data.info.n_classes) == (15, 20, 10)
    assert data.info.preprocessing == "x as in the file, not normalised"


def test_a_pair_in_a_pytorch_file(tmp_path: Path) -> None:
    torch.save((torch.from_numpy(X), torch.from_numpy(Y)), tmp_path / "a.pt")
    assert load(f"pt:{tmp_path}/a.pt", images(), 20).info.n == 20


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "nhw", "nhw1"])
def test_8_bit_images_are_preprocessed(tmp_path: Path, layout: str) -> None:
    pixels = RNG.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    grey = layout.startswith("nhw") and layout != "nhwc"
    stored = {"nhwc": pixels, "nchw": pixels.transpose(0, 3, 1, 2), "nhw": pixels[..., 0], "nhw1": pixels[..., :1]}
    net = images(
        preprocessing=Preprocessing((8, 8), 1 if grey else 3, (0.5,) * (1 if grey else 3), (0.25,) * (1 if grey else 3))
    )
    data = load(write(tmp_path, "npz", x=stored[layout], y=Y), net, 5)
    chosen = np.random.default_rng(0).permutation(20)[:5]
    expected = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2)[:, : 1 if grey else 3].float() / 255
    assert torch.allclose(data.source.fetch(0, 5)[0], (expected - 0.5) / 0.25, atol=1e-6)
    assert data.info.preprocessing.startswith("8-bit images; ")


def test_targets_by_loss(tmp_path: Path) -> None:
    many = RNG.integers(0, 2, (20, 4))
    net = images(4)
    spec = write(tmp_path, "npz", x=X, y=many)
    assert load(spec, net, loss=LossName.BCE).source.fetch(0, 8)[1].dtype == torch.float32
    spec = write(tmp_path, "npz", x=X, y=many.astype(bool))
    assert load(spec, net, loss=LossName.BCE).source.fetch(0, 8)[1].shape == (8, 4)
    spec = write(tmp_path, "npz", x=X, y=Y % 4)
    data = load(spec, net, loss=LossName.MSE)
    assert data.source.fetch(0, 8)[1].argmax(1).tolist() == load(spec, net).source.fetch(0, 8)[1].tolist()
    assert "as vectors of 4" in data.info.label_order
    spec = write(tmp_path, "npz", x=X, y=Y)
    assert load(spec, images(1), loss=LossName.MSE).source.fetch(0, 8)[1].dtype == torch.float32
    refusal("label 9 does not fit a model with 4 outputs", spec, net)
    refusal("outputs", spec, net, loss=LossName.BCE)
    spec = write(tmp_path, "npz", x=X, y=X[:, 0, 0])
    refusal("expects whole class numbers", spec, net)
    refusal("outside 0 … 1", spec, net, loss=LossName.BCE)
    assert load(spec, images(1), loss=LossName.MSE).info.n == 8


def test_balanced_arrays(tmp_path: Path) -> None:
    y = np.array([0] * 15 + [1] * 5)
    data = load(write(tmp_path, "npz", x=X, y=y), images(2), balanced=True)
    assert torch.bincount(data.source.fetch(0, 8)[1]).tolist() == [4, 4]


def test_tokens(tmp_path: Path) -> None:
    tokens = RNG.integers(0, 40, (20, 6))
    spec = write(tmp_path, "npz", x=tokens.astype(np.uint16), y=tokens)
    inputs, targets = load(spec, reader(vocab_size=40)).source.fetch(0, 8)
    assert inputs.dtype == torch.int64
    assert torch.equal(inputs, targets)
    spec = write(tmp_path, "npz", input_ids=tokens)
    alone = load(spec, reader(vocab_size=40)).source.fetch(0, 8)
    assert isinstance(alone[0], dict)
    assert torch.equal(alone[0]["input_ids"], alone[1])
    refusal("does not fit net with its vocabulary of 30", spec, reader(vocab_size=30))
    refusal(r"tokens of shape \(20, 6\); expected \(n, t\) with t at most 5", spec, reader(max_length=5))
    refusal("expected arrays x and y", spec, reader(Task.MASKED_LM))
    spec = write(tmp_path, "npz", x=tokens, y=tokens[:, :5])
    refusal("expects a token number for each input token", spec, reader())
    spec = write(tmp_path, "npz", x=tokens, y=Y)
    refusal("net reads images; expected 8-bit images", spec, images())


@pytest.mark.parametrize("nested", [False, True])
def test_inputs_by_name(tmp_path: Path, nested: bool) -> None:
    inputs = {"input_ids": torch.randint(0, 40, (20, 6)), "attention_mask": torch.ones(20, 6, dtype=torch.int64)}
    labels = torch.from_numpy(Y % 3)
    torch.save({"inputs": inputs, "labels": labels} if nested else {**inputs, "labels": labels}, tmp_path / "a.pt")
    net = reader(Task.SEQUENCE_CLASSIFICATION, 40, num_classes=3)
    found, _ = load(f"pt:{tmp_path}/a.pt", net).source.fetch(0, 8)
    assert isinstance(found, dict)
    chosen = np.random.default_rng(0).permutation(20)[:8]
    assert torch.equal(found["input_ids"], inputs["input_ids"][chosen])
    assert set(found) == set(inputs)


def test_arrays_that_were_not_used_are_named(tmp_path: Path) -> None:
    assert load(write(tmp_path, "npz", x=X, y=Y, weather=Y), images()).notes == ("not used: weather",)


NAN = X.copy()
NAN[3, 1, 2] = np.nan
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "lengths": ({"x": X, "y": Y[:-1]}, "x has 20 samples and y 19"),
    "nan": ({"x": NAN, "y": Y}, "x holds 1 values that are NaN or infinite"),
    "infinite target": ({"x": X, "y": np.full(20, np.inf)}, "y holds 20 values"),
    "flat": ({"x": X[:, 0, 0], "y": Y}, "expected samples along its first axis"),
    "number": ({"x": X, "y": np.array(3)}, r"y has shape \(\); expected samples"),
    "no samples": ({"x": X[:0], "y": Y[:0]}, "expected at least one sample"),
    "no y": ({"x": X}, "holds x; expected arrays x and y"),
    "no x": ({"y": Y}, "holds y; expected arrays x and y"),
    "nothing": ({}, "holds nothing; expected"),
    "two": ({"x": X, "inputs": X, "y": Y}, "both x and inputs"),
    "objects": ({"x": X, "y": np.array([{"a": 1}] * 20, dtype=object)}, "cannot be read .*without pickled objects"),
    "strings": ({"x": X, "y": np.array(["a"] * 20)}, "y holds <U1; expected plain numbers"),
    "complex": ({"x": X.astype(complex), "y": Y}, "x holds complex128"),
    "negative": ({"x": X, "y": Y - 5}, "label -5 does not fit a model with 10 outputs"),
    "real targets": ({"x": X, "y": X[:, 0]}, r"that are no probabilities .* use --loss mse, or --loss bce"),
    "several labels": ({"x": X, "y": np.ones((20, 10))}, "that are no probabilities"),
    "image layout": ({"x": np.zeros((20, 5, 5, 5), np.uint8), "y": Y}, r"8-bit images of shape .* told apart"),
    "image targets": ({"x": np.zeros((20, 5, 5), np.uint8), "y": X[:, 0]}, "not one class number each"),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_arrays(tmp_path: Path, case: str) -> None:
    arrays, match = CASES[case]
    refusal(match, write(tmp_path, "npz", **arrays), images())


def test_why_a_file_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[:300])
    refusal("truncated or damaged", f"npz:{path}", images())
    path.write_bytes(b"")
    refusal("the file is empty", f"npz:{path}", images())
    torch.save({"x": X, "y": Y}, tmp_path / "a.pt")
    text = refusal(r"it pickles numpy\.\S*_reconstruct.*, not tensors alone", f"pt:{tmp_path}/a.pt", images())
    assert "Weights only load failed" not in text


def test_unsigned_labels_are_numbers_as_others_are(tmp_path: Path) -> None:
    spec = write(tmp_path, "npz", x=X, y=Y.astype(np.uint64))
    assert load(spec, images(), num_samples=20).source.fetch_targets(0, 20).dtype == torch.int64
    refusal("y holds uint64", write(tmp_path, "npz", x=X, y=Y.astype(np.uint64) + (1 << 63)), images())


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x04junk"])
@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_files_that_are_none(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "a").write_bytes(content)
    refusal("cannot be read", f"{kind}:{tmp_path}/a", images())
    refusal("no such file", f"{kind}:{tmp_path}/b", images())
    refusal("no such file", f"{kind}:{tmp_path}", images())


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_nothing_in_a_file_runs(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    if kind == "npz":
        np.savez(tmp_path / "a", x=X, y=np.array([Payload(victim)], dtype=object))
    else:
        torch.save({"x": torch.from_numpy(X), "y": Payload(victim)}, tmp_path / "a.pt")
    refusal("cannot be read", f"{kind}:{tmp_path}/a.{kind}", images())
    assert not victim.exists()


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_corrupt_files_end_in_one_line(tmp_path: Path, kind: str) -> None:
    path = Path(write(tmp_path, kind, x=X, y=Y).partition(":")[2])
    whole = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        if rng.random() < 0.4:
            del content[rng.randrange(len(content)) :]
        for _ in range(rng.randrange(1, 4)):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            load(f"{kind}:{path}", images())
            continue
        except DataError as error:
            text = str(error)
        assert re.search(r"a\.(npz|pt): ", text)
        assert "\n" not in text
        refused += 1
    assert refused > 50


def test_a_network_of_ones_own_may_read_integers(tmp_path: Path) -> None:
    spec = write(tmp_path, "npz", x=RNG.integers(0, 9, (20, 5)), y=Y)
    info = images().info
    unknown = LoadedModel(
        nn.Identity(), type(info)(*[getattr(info, f) for f in info.__slots__][:-1]), Preprocessing(None), None, None, 10
    )
    assert load(spec, unknown).source.fetch(0, 8)[0].dtype == torch.int64


def test_class_probabilities_are_targets_of_cross_entropy(tmp_path: Path) -> None:
    shares = RNG.dirichlet(np.ones(10), 20)
    for y in (shares, shares.astype(np.float16)):
        targets = load(write(tmp_path, "npz", x=X, y=y), images(), 20).source.fetch(0, 20)[1]
        assert targets.shape == (20, 10)
        assert float(targets.double().sum()) == pytest.approx(20, abs=0.05)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    """One value spread over a terabyte, and an archive that unpacks to more than it is."""
    torch.save({"x": torch.zeros(1).expand(2**38, 3), "y": torch.zeros(8)}, tmp_path / "spread.pt")
    torch.save({"x": torch.zeros(3_000_000, 3), "y": torch.zeros(8)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as old,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    for name, says in (("spread", "in a file of"), ("bomb", "compressed or claims")):
        with pytest.raises(DataError, match=says):
            load(f"pt:{tmp_path / name}.pt", images(), 4)
