"""Indices of shards, folders, places inside a file, names shared by tied weights."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.models.open import load_model
from spectrascope.records.values import Missing

WIDTHS = "mlp:6-5-4-3"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return load_model(f"{WIDTHS}@none").model.state_dict()


def write_shards(folder: Path, weights: dict[str, Tensor], suffix: str = "safetensors", n: int = 3) -> Path:
    """Write ``weights`` round robin over ``n`` shards, and their index."""
    places = {}
    for i in range(n):
        part = {name: value for j, (name, value) in enumerate(weights.items()) if j % n == i}
        file = f"part-{i}.{suffix}"
        if suffix == "safetensors":
            save_file(part, folder / file, {"format": "pt"})
        else:
            torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{name}.index.json"
    order = {key: places[key] for key in weights}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": order}))
    return index


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)


def refusal(path: object) -> str:
    with pytest.raises(LoadError) as caught:
        read_checkpoint(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read ---


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("by", ["index", "folder"])
def test_shards_by_index_and_by_folder(tmp_path: Path, weights, suffix: str, by: str) -> None:
    index = write_shards(tmp_path, weights, suffix)
    checkpoint = read_checkpoint(index if by == "index" else tmp_path)
    assert same(checkpoint.state_dict, weights)
    assert checkpoint.path == index
    assert checkpoint.format == ("safetensors" if suffix == "safetensors" else "pytorch") + ", 3 shards"
    lines = [f"{p.name}:{hashlib.sha256(p.read_bytes()).hexdigest()}" for p in sorted(tmp_path.glob("part-*"))]
    assert checkpoint.sha256 == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_network_from_shards_is_the_network_from_one_file(tmp_path: Path, weights) -> None:
    (tmp_path / "one").mkdir()
    save_file(weights, tmp_path / "one" / "net.safetensors")
    index = write_shards(tmp_path, weights)
    for spec in (str(index), str(tmp_path), str(tmp_path / "one"), str(tmp_path / "one" / "net.safetensors")):
        loaded = load_model(spec)
        assert loaded.info.architecture == WIDTHS
        assert same(loaded.model.state_dict(), weights)


def test_the_order_of_an_index_means_nothing(tmp_path: Path) -> None:
    widths = "mlp:" + "-".join(str(n) for n in range(16, 2, -1))
    weights = load_model(f"{widths}@none").model.state_dict()
    index = write_shards(tmp_path, dict(sorted(weights.items())))
    loaded = load_model(str(index))
    assert loaded.info.architecture == widths
    assert same(loaded.model.state_dict(), weights)


def test_which_file_of_a_folder(tmp_path: Path, weights) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    (tmp_path / "README.md").write_text("text")
    assert read_checkpoint(tmp_path).path == tmp_path / "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    assert read_checkpoint(tmp_path).path == tmp_path / "pytorch_model.bin"
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "last.pt")
    assert read_checkpoint(tmp_path).path == tmp_path / "last.pt"
    torch.save(weights, tmp_path / "best.pt")
    assert "holds 2 checkpoints (best.pt, last.pt); name the one you mean" in refusal(tmp_path)


def test_names_that_safetensors_dropped_are_put_back(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    save_model(net, str(tmp_path / "net.safetensors"))
    found = read_checkpoint(tmp_path / "net.safetensors").state_dict
    assert set(found) == {"0.weight", "2.weight"}
    assert found["0.weight"] is found["2.weight"]


@pytest.mark.parametrize("headers_only", [False, True])
def test_a_place_in_a_file(tmp_path: Path, weights, headers_only: bool) -> None:
    averaged = {key: value + 1 for key, value in weights.items()}
    file = tmp_path / "ckpt.pt"
    torch.save({"epoch": 3, "model": weights, "ema": {"decay": 0.9, "state_dict": averaged}}, file)
    plain = read_checkpoint(file, headers_only=headers_only)
    assert plain.format == "pytorch, under 'model' ('ema' also there)"
    chosen = read_checkpoint(f"{file}::ema.state_dict", headers_only=headers_only)
    assert chosen.format == "pytorch, under 'ema.state_dict'"
    if not headers_only:
        assert same(plain.state_dict, weights)
        assert same(chosen.state_dict, averaged)
        assert same(read_checkpoint(f"{file}::ema").state_dict, averaged)
        assert same(load_model(f"{file}::ema").model.state_dict(), averaged)
    assert "has nothing at 'emma': expected one of 'epoch', 'model', 'ema'" in refusal(f"{file}::emma")
    assert "holds a int at 'epoch'" in refusal(f"{file}::epoch")


def test_names_with_dots_on_the_way(tmp_path: Path, weights) -> None:
    torch.save({"runs.best": {"net": weights}, "runs": {"best": 1}}, tmp_path / "c.pt")
    assert same(read_checkpoint(f"{tmp_path / 'c.pt'}::runs.best.net").state_dict, weights)


# --- what is refused ---


def test_a_missing_shard_is_named_with_what_it_holds(tmp_path: Path, weights) -> None:
    index = write_shards(tmp_path, weights)
    (tmp_path / "part-1.safetensors").unlink()
    text = refusal(index)
    assert "1 of 3 shards are missing, with 2 tensors (part-1.safetensors)" in text
    assert f"expected them in {tmp_path}" in text


def test_shards_that_do_not_fit_their_index(tmp_path: Path, weights) -> None:
    index = write_shards(tmp_path, weights)
    document = json.loads(index.read_text())
    first = next(iter(weights))
    document["weight_map"]["ghost"] = "part-0.safetensors"
    index.write_text(json.dumps(document))
    assert (
        "part-0.safetensors lacks 1 of the 3 tensors that model.safetensors.index.json says it has, e.g. 'ghost'"
        in (refusal(index))
    )
    del document["weight_map"]["ghost"], document["weight_map"][first]
    index.write_text(json.dumps(document))
    assert f"holds {first!r}, which model.safetensors.index.json does not list in it" in refusal(index)


@pytest.mark.parametrize(
    "place",
    [
        "../part-0.safetensors",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "a\\b",
        "c:x",
        "x\0y",
        "x" * 300,
        3,
        None,
        ["x"],
        {},
    ],
)
def test_a_shard_must_be_a_file_beside_the_index(tmp_path: Path, weights, place: object) -> None:
    index = write_shards(tmp_path, weights)
    document = json.loads(index.read_text())
    document["weight_map"]["layers.0.weight"] = place
    index.write_text(json.dumps(document))
    assert "expected the name of a file beside the index" in refusal(index)


def test_an_index_of_indices(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": index.name}}))
    assert "another index" in refusal(index)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "what should be JSON is not"),
        ("{", "what should be JSON is not"),
        ("[1]", "is not an index of shards"),
        ("{}", "is not an index of shards"),
        ('{"weight_map": {}}', "is not an index of shards"),
        ('{"weight_map": []}', "is not an index of shards"),
        ('{"weight_map": {"a": "x.bin", "a": "y.bin"}}', "names 'a' twice"),
        ("[" * 100_000, "what should be JSON is not"),
        ("\udcff", "what should be JSON is not"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert words in refusal(index)


def test_a_shard_that_is_a_training_checkpoint(tmp_path: Path, weights) -> None:
    index = write_shards(tmp_path, weights, "bin")
    torch.save({"model": torch.load(tmp_path / "part-0.bin"), "epoch": 1}, tmp_path / "part-0.bin")
    assert "holds its tensors under 'model'; expected a shard" in refusal(index)
    assert "which hold tensors and no places; drop ::model" in refusal(f"{index}::model")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["__0_0.distcp", ".metadata"], "torch.distributed"),
        (["zero_to_fp32.py", "latest"], "DeepSpeed"),
        (["saved_model.pb"], "TensorFlow"),
        (["meta.pt", "__0_0.distcp", ".metadata"], "format_utils dcp_to_torch"),
        (["checkpoint", "model.ckpt-5.index", "model.ckpt-5.data-00000-of-00001"], "tf.train.load_checkpoint(PREFIX)"),
        (["manifest.ocdbt", "_METADATA", "_sharding"], "an Orbax checkpoint (JAX)"),
        (["_CHECKPOINT_METADATA", "default/manifest.ocdbt"], "an Orbax checkpoint (JAX)"),
        (["flax_model.msgpack", "README.md"], "holds flax_model.msgpack, Flax weights"),
        (["iter_0001000/mp_rank_00/model_optim_rng.pt"], "a Megatron-LM checkpoint"),
        (["global_step10/mp_rank_00_model_states.pt"], "a DeepSpeed checkpoint"),
        (["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"], "a Core ML model"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "accelerate merge-weights"),
        (["notes.txt"], "holds no checkpoint; expected a .index.json file"),
    ],
)
def test_folders_that_are_something_else(tmp_path: Path, files: list[str], words: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "inside", "words"),
    [
        (
            "net.keras",
            ["config.json", "metadata.json", "model.weights.h5"],
            "is a Keras model; with KERAS_BACKEND",
        ),
        ("net.zip", ["readme.txt", "net.pt"], "is a zip archive with net.pt in it; unpack it first"),
        ("net.mar", ["MAR-INF/MANIFEST.json", "net.pth"], "is a zip archive with net.pth in it"),
        ("net.pt", ["a.txt", "b.txt"], "is a zip archive without a checkpoint in it (it holds a.txt, b.txt)"),
        ("net.pt", [], "without a checkpoint in it (it holds nothing)"),
        ("net.bin", ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"], "is a Core ML model"),
    ],
)
def test_zip_archives_of_others(name: str, inside: list[str], words: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member in inside:
            archive.writestr(member, b"x")
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "words"), [("net.nemo", "pass its model_weights.ckpt"), ("net.pt", "tar -xf FILE first")]
)
def test_tar_archives(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "model_weights.ckpt").write_bytes(b"x")
    with tarfile.open(tmp_path / name, "w") as archive:
        archive.add(tmp_path / "model_weights.ckpt", "./model_weights.ckpt")
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize("text", ["Entry not found", "Invalid username or password.\n", "Internal Server Error"])
def test_text_saved_in_a_files_place_is_quoted(text: str, tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_text(text)
    assert f"is text ({text.strip()!r}), perhaps an error message" in refusal(tmp_path / "net.bin")


@pytest.mark.parametrize("name", ["net.onnx", "net.h5", "net.pb", "net.msgpack", "net"])
def test_what_torch_wrote_is_read_whatever_it_is_called(name: str, tmp_path: Path, weights) -> None:
    for zipped in (True, False):
        torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert list(read_checkpoint(tmp_path / name).state_dict) == list(weights)


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("w.h5", b"\x89HDF\r\n\x1a\n", "KERAS_BACKEND=torch"),
        ("w.bin", b"\x89HDF\r\n\x1a\n", "KERAS_BACKEND=torch"),
        ("w.bin", b"GGUF\3\0\0\0", "GGUF"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("w.pt", b"\x1f\x8b\x08", "unpack it first"),
        ("w.pt", b"<!DOCTYPE html>", "a web page"),
        ("w.pt", b'{"a": 1}', "JSON text"),
        ("w.msgpack", b"\x82\xa6", "Flax weights"),
        ("w.onnx", b"\x08\x07", "an ONNX graph"),
        ("w.bin", b"\n\n <!doctype HTML><title>404</title>", "a web page"),
        ("w.bin", b"\xef\xbb\xbf<html lang=en>", "a web page"),
        (
            "w.safetensors",
            b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>',
            "a web page, perhaps a",
        ),
        ("w.tflite", b"\x1c\0\0\0TFL3", "a TensorFlow Lite graph"),
        ("w.bin", b"\x1c\0\0\0TFL3", "a TensorFlow Lite graph"),
        ("w.mlmodel", b"\x08\x01\x12", "a Core ML model"),
        ("w.engine", b"ftrt\0\0", "a TensorRT engine"),
        ("w.plan", b"\0\0\0\0", "a TensorRT engine"),
        ("w.pdparams", b"\x80\x04\x95", "paddle.load"),
        ("w.npy", b"\x93NUMPY", "a NumPy array"),
        ("w.mat", b"MATLAB 5.0 MAT-file", "scipy.io.loadmat"),
        ("w.bin", b"7z\xbc\xaf\x27\x1c", "unpack it first"),
        ("model.ckpt-100.data-00000-of-00001", b"\0\0", "tf.train.load_checkpoint(PREFIX)"),
        ("model.ckpt-100.index", b"\0\0", "tf.train.load_checkpoint(PREFIX)"),
        ("model.ckpt.meta", b"\n\xa0", "tf.train.load_checkpoint(PREFIX)"),
        ("w.so", b"\x7fELF\2", "a compiled library"),
    ],
)
def test_other_formats_are_named(tmp_path: Path, name: str, head: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(head + b"x" * 100)
    assert words in refusal(tmp_path / name)


def test_numpy_archives_and_compressed_ones(tmp_path: Path, weights) -> None:
    import numpy as np

    np.savez(tmp_path / "w.npz", a=np.ones(3))
    assert "is a NumPy archive; with ARRAYS = numpy.load(FILE)" in refusal(tmp_path / "w.npz")
    torch.save(weights, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as old,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert "its archive is compressed" in refusal(tmp_path / "c.pt")


def test_optimizer_states_are_no_weights(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    assert "holds an optimizer's state" in refusal(tmp_path / "o.pt")
    torch.save({"step": 1, "inner": optimizer.state_dict()}, tmp_path / "o.pt")
    assert "holds no weights" in refusal(tmp_path / "o.pt")
    torch.save({"shadow_params": [torch.ones(2, 2)], "decay": 0.9}, tmp_path / "o.pt")
    assert "averaged weights without their names" in refusal(tmp_path / "o.pt")


@pytest.mark.parametrize("name", ["fc.qweight", "fc.weight.absmax", "fc.SCB", "fc.weight_scale_inv"])
def test_quantised_weights_by_their_companions(tmp_path: Path, name: str) -> None:
    save_file({"fc.weight": torch.ones(2, 2), name: torch.ones(2)}, tmp_path / "q.safetensors")
    assert "quantised weights have no second derivatives" in refusal(tmp_path / "q.safetensors")


def test_headers_say_so(tmp_path: Path, weights) -> None:
    assert read_checkpoint(write_shards(tmp_path, weights), headers_only=True).sha256 == Missing(
        "only headers were read"
    )
