"""``--num-samples all``: every sample of every source, none of what has no end, and memory that stays as it is."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectrascope.loading.data import text as text_room
from spectrascope.loading.models.open import load_model
from spectrascope.records.values import ALL_SAMPLES
from tests.support.data_networks import images, load, reader, refusal


def folder(root: Path, counts: tuple[int, ...], size: int = 4) -> Path:
    for label, count in enumerate(counts):
        (root / str(label)).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (size, size), (label, i % 256, i // 256)).save(root / str(label) / f"{i}.bmp")
    return root


def test_what_macos_and_notebooks_leave_behind_is_no_data(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", (3, 5))
    for litter in ("__MACOSX/._0.bmp", "0/._0.bmp", "1/.ipynb_checkpoints/0-checkpoint.bmp"):
        (root / litter).parent.mkdir(exist_ok=True)
        (root / litter).write_bytes(b"no picture")
    assert load(f"folder:{root}", images(2), ALL_SAMPLES).info.n == 8


def test_all_of_each_source(tmp_path: Path) -> None:
    assert load("digits", load_model(None), ALL_SAMPLES).info.n == 1797
    root = folder(tmp_path / "images", (3, 5))
    assert load(f"folder:{root}", images(2), ALL_SAMPLES).info.n == 8
    np.savez(tmp_path / "x.npz", x=np.zeros((7, 3, 4, 4), np.float32), y=np.arange(7) % 2)
    assert load(f"npz:{tmp_path / 'x.npz'}", images(2), ALL_SAMPLES).info.n == 7
    torch.save({"x": torch.zeros(6, 4, 4, dtype=torch.uint8), "y": torch.arange(6) % 2}, tmp_path / "x.pt")
    assert load(f"pt:{tmp_path / 'x.pt'}", images(2), ALL_SAMPLES).info.n == 6
    (tmp_path / "t.txt").write_text("word " * 100, encoding="utf-8")
    assert load(f"text:{tmp_path / 't.txt'}", reader(), ALL_SAMPLES, block_size=10).info.n == 50


def test_what_has_no_end_is_refused() -> None:
    for net in (images(2), reader()):
        refusal(
            "synthetic has no end, so there is no all of it: give a number", "synthetic", net, num_samples=ALL_SAMPLES
        )


def test_all_and_balanced_is_as_the_smallest_class_allows(tmp_path: Path) -> None:
    root = folder(tmp_path, (3, 9, 6))
    data = load(f"folder:{root}", images(3), ALL_SAMPLES, balanced=True)
    assert torch.bincount(data.source.fetch(0, data.info.n)[1]).tolist() == [3, 3, 3]
    assert data.notes == ()
    (root / "0" / "1.bmp").write_bytes(b"junk")
    data = load(f"folder:{root}", images(3), ALL_SAMPLES, balanced=True, skip_bad=True)
    assert torch.bincount(data.source.fetch(0, data.info.n)[1]).tolist() == [2, 2, 2]


def test_pieces_of_a_long_text_are_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {i} é\n" for i in range(300)) + "é" * 500
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    spec, points = f"text:{tmp_path / 't.txt'}", {"encode": lambda string: [ord(c) for c in string]}
    for net in (reader(), reader(**points), reader(vocab_size=64)):  # bytes, own tokenizer, characters
        whole = load(spec, net, ALL_SAMPLES, block_size=10)
        with monkeypatch.context() as patch:
            patch.setattr(text_room, "_PIECE", 101)
            pieces = load(spec, net, ALL_SAMPLES, block_size=10)
        assert pieces.info.digest == whole.info.digest
        assert "pieces cut at line ends" in pieces.info.preprocessing
        assert "pieces" not in whole.info.preprocessing
    monkeypatch.setattr(text_room, "_PIECE", 101)
    (tmp_path / "bad.txt").write_bytes(b"fine\n" * 50 + b"\xff")
    refusal("byte 250 is 0xff", f"text:{tmp_path / 'bad.txt'}", reader(**points))


def peak_of(spec: str, net: object, **options: object) -> int:
    tracemalloc.start()
    try:
        load(spec, net, ALL_SAMPLES, **options)  # type: ignore[arg-type]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_million_tokens_are_held_as_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_room, "_PIECE", 2**16, raising=False)
    (tmp_path / "t.txt").write_bytes(b"some text, line by line\n" * 43_000)
    size = (tmp_path / "t.txt").stat().st_size
    for net in (reader(), reader(encode=lambda string: [ord(c) for c in string[:1000]] * (len(string) // 1000))):
        peak = peak_of(f"text:{tmp_path / 't.txt'}", net, block_size=50)
        assert peak < 16 * size + 40 * 2**16  # the text, its tokens twice, and one piece as Python's integers


_GROWTH = """
import re, sys
from pathlib import Path

from spectrascope.loading.data import images as room
from tests.support.data_networks import images, load


def peak():  # of this program alone: ru_maxrss begins at what started it had
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


room.KEEP_BYTES = int(sys.argv[1])
load(f"folder:{sys.argv[2]}", images(2), 600, image_size=64)  # what is set up once, and two chunks of a digest
before = peak()
data = load(f"folder:{sys.argv[2]}", images(2), 2**62, image_size=64)
print(data.info.n, type(data.source).__name__, peak() - before)
"""


@pytest.mark.parametrize(("keep", "kind"), [(2**20, "DecodedImages"), (2**29, "StoredImages")])
def test_images_that_are_too_many_are_not_kept(tmp_path: Path, keep: int, kind: str) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, where Linux tells the peak of a program's memory")
    root = folder(tmp_path, (2500, 2500))
    command = [sys.executable, "-c", _GROWTH, str(keep), str(root)]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]).stdout
    n, source, grown = found.split()
    assert (n, source) == ("5000", kind)
    all_pixels = 5000 * 3 * 64 * 64 // 1024  # kibibytes, as the system counts
    if kind == "DecodedImages":
        assert int(grown) < all_pixels // 3
    else:
        assert int(grown) > all_pixels // 2  # so the measure sees what it should
