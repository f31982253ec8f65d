"""Unreadable samples: named and counted, fatal unless they may be left out."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectrascope.errors import DataError
from spectrascope.loading.data import images as room
from spectrascope.loading.data.images import DecodedImages
from spectrascope.records.values import Task
from tests.support.data_networks import images, load, reader, refusal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("0", "1"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.jpg")
    return tmp_path


def spoil(path: Path, how: int) -> None:
    content = path.read_bytes()
    path.write_bytes([b"", b"not an image", content[: len(content) // 2], content[:3] + bytes(50)][how])


def test_a_bad_image_fails_the_run_and_says_how_to_go_on(folder: Path) -> None:
    spoil(folder / "0" / "2.jpg", 2)
    text = refusal("1 of 12 image files cannot be read: ", f"folder:{folder}", images(2), num_samples=99)
    assert str(folder / "0" / "2.jpg") in text
    assert "--skip-bad" in text


@pytest.mark.parametrize("keep", [0, 10**9])
def test_bad_images_are_replaced_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    monkeypatch.setattr(room, "KEEP_BYTES", keep)
    order = [sorted(folder.rglob("*.jpg"))[i] for i in np.random.default_rng(0).permutation(12)]
    whole = load(f"folder:{folder}", images(2), 12).source.fetch(0, 12)
    for how, i in enumerate((0, 2, 3, 7)):
        spoil(order[i], how)
    data = load(f"folder:{folder}", images(2), 6, skip_bad=True)
    kept = [1, 4, 5, 6, 8, 9]
    assert (data.info.n, data.info.n_available) == (6, 12)
    inputs, targets = data.source.fetch(0, 6)
    assert torch.equal(inputs, whole[0][kept])
    assert torch.equal(targets, whole[1][kept])
    (note,) = data.notes
    assert note.startswith("4 of 10 image files could not be read and were left out: ")
    assert all(str(order[i]) in note for i in (0, 2, 3, 7))
    everything = load(f"folder:{folder}", images(2), 99, skip_bad=True)
    assert everything.info.n == 8
    assert torch.equal(everything.source.fetch(0, 6)[0], inputs)  # a smaller batch begins a larger one


def test_all_bad(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        spoil(path, 1)
    refusal("none of the 12 image files can be read", f"folder:{folder}", images(2), num_samples=3, skip_bad=True)


def test_large_batches_are_verified_before_anything_is_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "KEEP_BYTES", 0)
    spoil(folder / "1" / "4.jpg", 2)
    refusal("1 of 12 image files cannot be read", f"folder:{folder}", images(2), num_samples=99)
    data = load(f"folder:{folder}", images(2), 99, skip_bad=True)
    assert isinstance(data.source, DecodedImages)
    assert data.info.n == 11
    (folder / "1" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.jpg: could be read at first, but not any more"):
        data.source.fetch(0, 11)


def test_long_lists_are_cut(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "0" / f"b{i}.jpg")
        spoil(folder / "0" / f"b{i}.jpg", 1)
    (note,) = load(f"folder:{folder}", images(2), 99, skip_bad=True).notes
    assert note.startswith("20 of 32 ")
    assert note.endswith("… (10 more)")


def test_odd_file_names_stay_on_one_line(folder: Path) -> None:
    (folder / "0" / "a\nb\x1b[31m.jpg").write_bytes(b"junk")
    text = refusal("cannot be read", f"folder:{folder}", images(2), num_samples=99)
    assert text.isprintable()


@pytest.mark.parametrize("side", [10_000, 100_000])  # PIL warns of the one and refuses the other
def test_a_decompression_bomb_is_an_unreadable_image(folder: Path, side: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (folder / "0" / "bomb.png").write_bytes(png)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        refusal(r"1 of 13 .*bomb\.png", f"folder:{folder}", images(2), num_samples=99)
    assert not seen


def test_texts_that_are_no_text(tmp_path: Path) -> None:
    for name, content in (("0/a", b"fine words"), ("0/b", b"\xff\xfe"), ("1/a", b"more words"), ("1/b", b"")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_bytes(content)
    net = reader(Task.SEQUENCE_CLASSIFICATION, 300, 8, lambda text: [ord(c) for c in text], 2, pad_id=0)
    refusal("2 of 4 text files cannot be read", f"folder:{tmp_path}", net)
    data = load(f"folder:{tmp_path}", net, skip_bad=True)
    assert data.info.n == 2
    assert data.notes[0].startswith("2 of 4 text files could not be read and were left out")
