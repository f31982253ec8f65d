"""Balanced batches: as many samples of each class as there are, fixed by the seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from spectrascope.loading.models.open import load_model
from tests.support.data_networks import images, load, reader, refusal


def write(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (4, 4), (number, i, 0)).save(root / name / f"{i}.png")
    return root


def test_equally_many_of_each_class() -> None:
    loaded = load_model(None)
    data = load("digits", loaded, 100, balanced=True)
    _, targets = data.source.fetch(0, 100)
    assert torch.bincount(targets).tolist() == [10] * 10
    assert data.notes == ()
    assert "equally many samples of each class" in data.info.preprocessing
    counts = torch.bincount(load("digits", loaded, 103, balanced=True).source.fetch(0, 103)[1])
    assert sorted(counts.tolist()) == [10] * 7 + [11] * 3
    first = load("digits", loaded, 30, balanced=True).source.fetch(0, 30)[1].view(3, 10)
    assert len({tuple(row) for row in first.tolist()}) == 3  # the classes take turns in no fixed order
    assert load("digits", loaded, 100).info.digest != data.info.digest


def test_fixed_by_the_seed_and_begun_alike() -> None:
    loaded = load_model(None)
    small, large, other = (load("digits", loaded, n, seed, balanced=True) for n, seed in ((37, 0), (90, 0), (37, 1)))
    assert torch.equal(small.source.fetch(0, 37)[0], large.source.fetch(0, 37)[0])
    assert small.info.digest == load("digits", loaded, 37, balanced=True).info.digest != other.info.digest


def test_a_class_that_runs_out_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, {"0": 2, "1": 9, "2": 9})
    data = load(f"folder:{root}", images(3), 12, balanced=True)
    assert torch.bincount(data.source.fetch(0, 12)[1]).tolist() == [2, 5, 5]
    assert data.notes == ("not balanced for lack of samples: class 0 has 2, where others have up to 5",)
    assert load(f"folder:{root}", images(3), 6, balanced=True).notes == ()


def test_bad_images_are_replaced_within_their_class(tmp_path: Path) -> None:
    root = write(tmp_path, {"0": 8, "1": 8})
    for i in range(4):
        (root / "0" / f"{i}.png").write_bytes(b"junk")
    data = load(f"folder:{root}", images(2), 8, balanced=True, skip_bad=True)
    assert torch.bincount(data.source.fetch(0, 8)[1]).tolist() == [4, 4]
    data = load(f"folder:{root}", images(2), 16, balanced=True, skip_bad=True)
    assert torch.bincount(data.source.fetch(0, 16)[1]).tolist() == [4, 8]
    assert data.notes[0].startswith("4 of 16 image files could not be read")
    assert "class 0 has 4" in data.notes[1]


@pytest.mark.parametrize("keep", [0, 10**9])
def test_every_image_keeps_its_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    from spectrascope.loading.data import images as room

    monkeypatch.setattr(room, "KEEP_BYTES", keep)
    root = write(tmp_path, {"0": 7, "1": 5, "2": 3})
    for bad in ("0/1", "1/0", "2/0", "2/1"):
        (root / f"{bad}.png").write_bytes(b"junk")
    data = load(f"folder:{root}", images(3), 10, balanced=True, skip_bad=True)
    inputs, targets = data.source.fetch(0, data.source.n)
    assert len(targets) == 10
    assert torch.equal((inputs[:, 0, 0, 0] * 255).round().long(), targets)
    assert len({tuple(sample[:2, 0, 0].tolist()) for sample in inputs}) == 10  # no image twice


def test_nothing_to_balance(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc" * 500)
    refusal("no class labels to balance; leave --balanced out", f"text:{tmp_path}/a.txt", reader(), balanced=True)
    refusal("random labels are balanced on average", "synthetic", images(), balanced=True)
