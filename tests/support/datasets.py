"""CIFAR-10, CIFAR-100 and Tiny-ImageNet in their official layouts, with a few random images."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def whole_datasets(root: Path) -> None:
    """Write all three: 4 images a file of CIFAR-10, 20 of CIFAR-100, one image a class of Tiny-ImageNet."""
    rng = np.random.default_rng(0)

    def pictures(folder: str, file: str, key: str, n: int, classes: int) -> None:
        data = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        content = {"data": data, key: rng.integers(0, classes, n).tolist()}
        (root / folder).mkdir(exist_ok=True)
        (root / folder / file).write_bytes(pickle.dumps(content))

    for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pictures("cifar-10-batches-py", file, "labels", 4, 10)
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    for file in ("train", "test"):
        pictures("cifar-100-python", file, "fine_labels", 20, 100)
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(i) for i in range(100)]}))

    tiny = root / "tiny-imagenet-200"
    wnids = [f"n{i:08d}" for i in range(200)]
    (tiny / "val" / "images").mkdir(parents=True)
    (tiny / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (tiny / "words.txt").write_text("".join(f"{wnid}\tthing {i}\n" for i, wnid in enumerate(wnids)))
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    lines = []
    for i, wnid in enumerate(wnids):
        (tiny / "train" / wnid / "images").mkdir(parents=True)
        image.save(tiny / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        image.save(tiny / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (tiny / "val" / "val_annotations.txt").write_text("".join(lines))
