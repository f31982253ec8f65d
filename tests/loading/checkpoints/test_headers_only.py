"""Names and shapes without the data."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.headers import read_header
from spectrascope.loading.checkpoints.read import read_checkpoint
from tests.support.counting import bytes_read, lines_of

TENSORS = {
    "a.weight": torch.ones(3, 4),
    "b.weight": torch.ones(2, 3, 1, 1, dtype=torch.bfloat16),
    "c.steps": torch.ones((), dtype=torch.long),
    "d.empty": torch.ones(0, 4),
}


def write(path: Path, entries: object, data: bytes = b"") -> Path:
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("written", ["zip", "legacy", "safetensors"])
def test_names_shapes_and_dtypes(tmp_path: Path, written: str) -> None:
    path = tmp_path / ("net.safetensors" if written == "safetensors" else "net.pt")
    if written == "safetensors":
        save_file(TENSORS, path)
    else:
        torch.save({"state_dict": TENSORS}, path, _use_new_zipfile_serialization=written == "zip")
    found = read_checkpoint(path, headers_only=True).state_dict
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].is_meta
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)


def test_nan_is_not_looked_for(tmp_path: Path) -> None:
    save_file({"a.weight": torch.full((2, 2), float("nan"))}, tmp_path / "n.safetensors")
    assert read_checkpoint(tmp_path / "n.safetensors", headers_only=True).state_dict["a.weight"].is_meta


@pytest.mark.parametrize("written", ["zip", "safetensors"])
def test_the_data_are_not_read(tmp_path: Path, written: str) -> None:
    path = tmp_path / ("big.safetensors" if written == "safetensors" else "big.pt")
    rows = 4_000  # 64 MB
    if written == "safetensors":
        header = {"w.weight": {"dtype": "F32", "shape": [rows, 4000], "data_offsets": [0, rows * 16000]}}
        write(path, header)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + rows * 16000)
    else:
        torch.save({"w.weight": torch.zeros(rows, 4000)}, path)
    before, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, bytes_read()
    tensor = read_checkpoint(path, headers_only=True).state_dict["w.weight"]
    assert tuple(tensor.shape) == (rows, 4000)
    assert bytes_read() - read < 5_000_000  # the first use of a format imports code
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32_000  # kB


def entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (b"[]", "the header is not a JSON object"),
        (b'{"w"', "what should be JSON is not"),
        (b'{"w": 1, "w": 2}', "names 'w' twice"),
        (b"\xff\xfe", "what should be JSON is not"),
        (b'{"a":' * 50_000, "what should be JSON is not"),
        ({"w": 3}, "entry for 'w' is not a dtype"),
        ({"w": {"dtype": "F32"}}, "entry for 'w' is not a dtype"),
        (entry("F31"), "has the dtype 'F31'"),
        (entry(None), "has the dtype None"),
        (entry(["F32"]), "has the dtype"),
        (entry(shape=(2, -2)), "has the shape"),
        (entry(shape=(2, 2.0)), "has the shape"),
        (entry(shape=(2, True)), "has the shape"),
        (entry(shape=4), "has the shape"),
        (entry(shape=(0, 2**62, 2**62), offsets=(0, 0)), "has the shape"),
        (entry(shape=(1,) * 65), "has the shape"),
        (entry("F4"), "quantised weights have no second derivatives"),
        (entry(shape=(2**40, 4)), "does not fill"),
        (entry(shape=(2**62, 4)), "has the shape"),
        (entry(shape=(2, 3)), "does not fill its 16 bytes"),
        (entry(offsets=(16, 0)), "has the shape"),
        (entry(offsets=(0, 16, 32)), "has the shape"),
        (entry(offsets=(4, 20)), "starts at byte 4, where 0 was expected"),
        ({**entry(), "v": entry()["w"]}, "where 16 was expected"),
        (entry(shape=(2, 1), offsets=(0, 8)), "the tensors fill 8 bytes, but the file holds 16"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_headers_that_lie(tmp_path: Path, entries: object, words: str) -> None:
    path = write(tmp_path / "x.safetensors", entries, bytes(16))
    with pytest.raises(LoadError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(LoadError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (b"{" + b",".join(b'"n%d":1' % i for i in range(100_000)) + b',"n99999":1}', "names 'n99999' twice"),
        (entry(shape=(2**62,) * 100_000), "has the shape"),
        ({"w" * 100_000: 3}, "is not a dtype"),
    ],
    ids=["a name twice among many", "many dimensions", "a long name"],
)
def test_large_lies_are_refused_with_little_work_and_briefly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: object, words: str
) -> None:
    path = write(tmp_path / "x.safetensors", entries, bytes(16))
    prod = math.prod

    def product(values: Iterable[int]) -> int:
        values = list(values)
        assert len(values) <= 64, "the product of more dimensions than a tensor has takes minutes"
        return prod(values)

    def refuse() -> None:
        with pytest.raises(LoadError, match=words) as caught:
            read_checkpoint(path)
        assert len(str(caught.value)) < len(str(tmp_path)) + 400

    monkeypatch.setattr(math, "prod", product)
    assert lines_of(refuse) < 10 * 100_000  # a few for each name or dimension


@pytest.mark.parametrize("length", [0, 17, 2**31, 2**63, 2**64 - 1])
def test_header_lengths_that_lie(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(14))
    with pytest.raises(LoadError, match="not a readable safetensors file"):
        read_checkpoint(path)


@pytest.mark.parametrize("headers_only", [False, True])
def test_one_stored_value_in_many_tensors(tmp_path: Path, headers_only: bool) -> None:
    spread = torch.zeros(1).expand(400, 400)
    torch.save({f"layers.{i}.weight": spread for i in range(300)}, tmp_path / "x.pt")
    with pytest.raises(LoadError, match="its tensors take 192000000 bytes in a file of"):
        read_checkpoint(tmp_path / "x.pt", headers_only=headers_only)


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    torch.save({"w.weight": torch.zeros(1).expand(1_000_000, 1_000_000)}, tmp_path / "x.pt")
    with pytest.raises(LoadError, match="is larger than the whole file"):
        read_checkpoint(tmp_path / "x.pt")
