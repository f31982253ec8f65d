"""Hugging Face datasets in local files, and what is said where there are none."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spectrascope.loading.data.hub import HubName, parse_hub_name
from spectrascope.records.values import Task
from tests.support.data_networks import images, load, reader, refusal

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path, names: list[str], bad: int | None = None) -> Path:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    cells = [{"bytes": b"junk" if i == bad else png(20 * (i % len(names))), "path": None} for i in range(12)]
    rows = datasets.Dataset.from_dict({"image": cells, "label": [i % len(names) for i in range(12)]}, features=features)
    folder.mkdir(exist_ok=True)
    rows.to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return folder


def write_table(path: Path, columns: dict[str, Any], **features: Any) -> Path:
    rows = datasets.Dataset.from_dict(columns)
    for key, feature in features.items():
        rows = rows.cast_column(key, feature)
    rows.to_parquet(str(path))
    return path


def test_names() -> None:
    assert parse_hub_name("hf:org/name") == HubName("org/name", None, None)
    assert parse_hub_name("hf:name:plain") == HubName("name", "plain", None)
    assert parse_hub_name("hf:name:test[:5]") == HubName("name", None, "test[:5]")
    for wrong in ("hf:a:b:c:d", "hf:a::c"):
        refusal("expected hf:name", wrong, images())


def test_images_with_classes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "set", ["cat", "dog", "bird"])
    capfd.readouterr()
    data = load(f"hf:{folder}", images(3, class_names=("bird", "cat", "dog")), 99)
    inputs, targets = data.source.fetch(0, 12)
    shown = (inputs[:, 0, 0, 0] * 255 / 20).round().long()
    assert torch.equal(targets, torch.tensor([1, 2, 0])[shown])
    assert (data.info.n, data.info.n_classes, data.info.id) == (12, 3, f"hf:{folder}:test")
    assert load(f"hf:{folder}:test", images(3), 4).info.n == 4
    assert load(f"hf:{folder}:test[:50%]", images(3), 99).info.n == 6
    assert load(f"hf:{folder}", images(3), 6, balanced=True).source.fetch(0, 6)[1].bincount().tolist() == [2, 2, 2]
    refusal("no split 'train'; expected one of test", f"hf:{folder}:train", images(3))
    refusal("has 3 class labels, but net has 4 outputs", f"hf:{folder}", images(4))
    refusal("reads text, expected one", f"hf:{folder}", reader())
    assert capfd.readouterr() == ("", "")


def test_unreadable_images_are_rows(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", ["cat", "dog"], bad=5)
    refusal("1 of 12 images cannot be read: row 5", f"hf:{folder}", images(2), num_samples=99)
    assert load(f"hf:{folder}", images(2), 99, skip_bad=True).info.n == 11


def test_text_for_language_models(tmp_path: Path) -> None:
    lines = [f"line {i} of a story" for i in range(50)]
    path = write_table(tmp_path / "a.parquet", {"text": lines, "id": list(range(50))})
    data = load(f"hf:{path}", reader(), block_size=16)
    joined = "\n".join(lines)
    assert data.info.n_available == len(joined) // 16
    assert bytes(data.source.fetch(0, 1)[0][0].tolist()).decode() in joined
    refusal("no image columns among text, id", f"hf:{path}", images())


def test_texts_with_classes(tmp_path: Path) -> None:
    texts = ["bad one", "good one", "bad two", "good two"]
    path = write_table(
        tmp_path / "a.parquet",
        {"sentence": texts, "label": [0, 1, 0, 1]},
        label=datasets.ClassLabel(names=["no", "yes"]),
    )
    net = reader(Task.SEQUENCE_CLASSIFICATION, 300, 16, None, 2, ("yes", "no"), pad_id=0)
    data = load(f"hf:{path}", net)
    inputs, targets = data.source.fetch(0, 4)
    for row, target in zip(inputs["input_ids"], targets.tolist(), strict=True):
        assert bytes(row.tolist()).startswith(b"good" if target == 0 else b"bad")
    path = write_table(tmp_path / "b.parquet", {"sentence": texts, "label": [0, 1, -1, 1]})
    refusal("rows without a class number", f"hf:{path}", net)
    path = write_table(tmp_path / "c.parquet", {"sentence": texts, "label": [0, 1, 2, 1]})
    refusal("label 2 does not fit a model with 2 outputs", f"hf:{path}", net)


def test_saved_to_disk(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["some words"] * 30})
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "two"))
    assert load(f"hf:{tmp_path}/one", reader(), block_size=8).info.n == 8
    assert load(f"hf:{tmp_path}/two", reader(), block_size=8).info.id.endswith("two:test")


def test_damaged_and_absent(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 junk")
    refusal("cannot be read", f"hf:{tmp_path}/a.parquet", reader())
    (tmp_path / "empty").mkdir()
    refusal("cannot be read", f"hf:{tmp_path}/empty", reader())
    refusal("expected a folder or file of parquet", f"hf:{tmp_path}/none", reader())
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    refusal("cannot be read", f"hf:{tmp_path}/script", reader())
    assert not (tmp_path / "ran").exists()


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import socket

    asked: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    place = tmp_path / "cache" / "org___name"
    text = refusal("is not in the cache", "hf:org/name", images())
    assert str(place) in text
    assert text.endswith("or fetch it with --download")
    text = refusal("could not be downloaded", "hf:org/name", images(), download=True)
    assert str(place) in text
    assert len(asked) <= 6  # not again and again
    assert capfd.readouterr() == ("", "")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refusal(r"pip install 'spectrascope\[datasets\]'", "hf:org/name", images())


def test_old_versions_run_scripts_and_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    refusal("need version 4 or newer", "hf:org/name", images())


def test_digest_is_the_same_every_time(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", ["cat", "dog"])
    a, b, c = (load(f"hf:{folder}", images(2), 8, seed).info.digest for seed in (0, 0, 1))
    assert a == b != c
    assert np.unique([a, b, c]).size == 2
