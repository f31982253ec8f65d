"""Tiny ImageNet and ImageNet: labels by WordNet id, for networks of 200 and of 1000 classes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from spectrascope.loading.data.images import StoredImages
from spectrascope.loading.data.labels import imagenet_wnids
from spectrascope.loading.models.open import load_model
from spectrascope.loading.preprocessing import Preprocessing
from tests.support.data_networks import images, load, refusal


@pytest.fixture(scope="module")
def categories() -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


@pytest.fixture(scope="module")
def wnids() -> list[str]:
    return list(imagenet_wnids()[3::5])[::-1]  # 200 of them, not in sorted order


@pytest.fixture
def tiny(tmp_path: Path, wnids: list[str]) -> Path:
    """The official layout with two validation images of each of three classes; the red channel tells the class."""
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    lines = []
    for i in range(6):
        Image.new("RGB", (64, 64), (20 * (i % 3), 0, 0)).save(root / "val" / "images" / f"val_{i}.JPEG", quality=95)
        lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def classes_shown(source: object) -> list[int]:
    assert isinstance(source, StoredImages)
    return [round(value / 20) for value in source.pixels[:, 0].float().mean((1, 2)).tolist()]


def test_200_classes_in_the_order_of_the_list(tiny: Path) -> None:
    data = load(f"tiny-imagenet:{tiny}", images(200))
    assert data.source.fetch(0, 6)[1].tolist() == classes_shown(data.source)
    assert (data.info.n, data.info.n_available, data.info.n_classes) == (6, 6, 200)
    assert data.info.input_shape == (3, 64, 64)
    assert data.info.label_order.startswith("as in wnids.txt")
    assert data.info.id == "tiny-imagenet"
    assert load("tiny-imagenet", images(200), data_root=tiny.parent).info == data.info
    assert load(f"tiny-imagenet:{tiny.parent}", images(200)).info == data.info
    assert load(f"tiny-imagenet:{tiny}", images(200), image_size=32).info.input_shape == (3, 32, 32)


def test_1000_classes_by_wordnet_id(tiny: Path, wnids: list[str]) -> None:
    data = load(f"tiny-imagenet:{tiny}", images(1000))
    expected = [imagenet_wnids().index(wnids[i]) for i in classes_shown(data.source)]
    assert data.source.fetch(0, 6)[1].tolist() == expected
    assert "by WordNet id" in data.info.label_order


def test_the_networks_own_names_decide(tiny: Path, wnids: list[str]) -> None:
    named = images(200, class_names=tuple(sorted(wnids)))
    data = load(f"tiny-imagenet:{tiny}", named)
    assert data.source.fetch(0, 6)[1].tolist() == [sorted(wnids).index(wnids[i]) for i in classes_shown(data.source)]
    (tiny / "words.txt").write_text("".join(f"{wnid}\tthing {wnid}, gadget {wnid}\n" for wnid in wnids))
    spoken = images(200, class_names=tuple(f"Gadget_{wnid}" for wnid in sorted(wnids)))
    assert torch.equal(load(f"tiny-imagenet:{tiny}", spoken).source.fetch(0, 6)[1], data.source.fetch(0, 6)[1])
    generic = images(200, class_names=tuple(f"LABEL_{i}" for i in range(200)))
    assert load(f"tiny-imagenet:{tiny}", generic).info.label_order.startswith("as in wnids.txt (0 of 200")
    half = images(200, class_names=(*sorted(wnids)[:100], *(f"x{i}" for i in range(100))))
    refusal("in another order than in wnids.txt", f"tiny-imagenet:{tiny}", half)


def test_networks_of_other_classes(tiny: Path, categories: tuple[str, ...]) -> None:
    refusal(r"200 classes, but net has 10 outputs; expected a network of 200", f"tiny-imagenet:{tiny}", images(10))
    refusal("does not say how many outputs", f"tiny-imagenet:{tiny}", images(None))
    load(f"tiny-imagenet:{tiny}", images(1000, class_names=categories))
    shuffled = images(1000, class_names=categories[::-1])
    refusal(r"only \d+ are named as ImageNet's are", f"tiny-imagenet:{tiny}", shuffled)


def test_listed_images_that_are_absent_are_counted(tiny: Path) -> None:
    (tiny / "val" / "images" / "val_2.JPEG").unlink()
    data = load(f"tiny-imagenet:{tiny}", images(200))
    assert data.notes == ("1 of 6 images in val_annotations.txt are not there and were left out",)
    assert (data.info.n, data.info.n_available) == (5, 5)
    shutil.rmtree(tiny / "val" / "images")
    refusal("none of the 6 files that .* lists is in", f"tiny-imagenet:{tiny}", images(200))


@pytest.mark.parametrize(
    "line",
    [
        f"../images/val_0.JPEG\t{imagenet_wnids()[3]}\t0",
        "val_0.JPEG",
        "val_0.JPEG\tn99999999\t0\t0",
        "val_0.JPEG n01443537",
    ],
)
def test_annotations_that_lead_elsewhere(tiny: Path, line: str) -> None:
    with (tiny / "val" / "val_annotations.txt").open("a") as file:
        file.write(line + "\n")
    refusal(r"1 of 7 lines of .* are not a file name and an id", f"tiny-imagenet:{tiny}", images(200))


def test_damaged_lists(tiny: Path, wnids: list[str]) -> None:
    strange = ["n99999999", *wnids[1:]]
    (tiny / "wnids.txt").write_text("\n".join(wnids[:-1]))
    refusal("names 199 classes in 199 lines; expected 200", f"tiny-imagenet:{tiny}", images(200))
    (tiny / "wnids.txt").write_bytes(b"\xff\xfe\x00")
    refusal("wnids.txt cannot be read; expected the official layout", f"tiny-imagenet:{tiny}", images(200))
    (tiny / "wnids.txt").write_text("\n".join(strange))
    refusal(r"no ImageNet-1k classes \(n99999999\)", f"tiny-imagenet:{tiny}", images(1000))
    (tiny / "val" / "val_annotations.txt").unlink()
    refusal(r"val_annotations.txt cannot be read", f"tiny-imagenet:{tiny}", images(200))


def test_training_split(tiny: Path, wnids: list[str]) -> None:
    refusal(r"no .*/train; expected the official layout", f"tiny-imagenet:{tiny}:train", images(200))
    for i in (0, 2):
        (tiny / "train" / wnids[i] / "images").mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (64, 64), (20 * i, 0, 0)).save(tiny / "train" / wnids[i] / "images" / f"{j}.JPEG")
    data = load(f"tiny-imagenet:{tiny}:train", images(200))
    assert data.source.fetch(0, 4)[1].tolist() == classes_shown(data.source)
    assert "198 of 200 classes have no images" in data.notes[0]
    assert data.info.preprocessing.startswith("training set")
    for spec in ("tiny-imagenet:train", "tiny-imagenet-train"):
        assert load(spec, images(200), data_root=tiny.parent).info == data.info


@pytest.mark.parametrize("count", [200, pytest.param(2400, marks=pytest.mark.slow)])
def test_every_shared_label_is_torchvisions_category(shared: Path, categories: tuple[str, ...], count: int) -> None:
    root = shared / "data" / "tiny-imagenet-200"
    words = dict(line.split("\t", 1) for line in (root / "words.txt").read_text().splitlines())
    wnids = (root / "wnids.txt").read_text().split()
    assert len(wnids) == 200
    big = load(f"tiny-imagenet:{root}", images(1000, class_names=categories), count)
    own = load(f"tiny-imagenet:{root}", images(200, class_names=None), count)
    labels = own.source.fetch(0, count)[1]
    pairs = set(zip(labels.tolist(), big.source.fetch(0, count)[1].tolist(), strict=True))
    assert len(pairs) == len(set(labels.tolist())) >= min(count // 2, 200)  # each class mapped to one output
    for small, large in pairs:  # no exceptions: all 200 categories are among their synset's words
        assert categories[large] in [word.strip() for word in words[wnids[small]].split(",")], wnids[small]
        assert imagenet_wnids()[large] == wnids[small]
    annotations = dict(line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines())
    assert big.info.n_available == len(annotations) == 2400
    assert torch.bincount(labels).max() <= 12  # so of all 2 400 images 12 of each of 200


def test_shared_images_through_a_weights_own_transform(shared: Path) -> None:
    from torchvision.models import ResNet18_Weights

    loaded = load_model("resnet18@none")
    root = shared / "data" / "tiny-imagenet-200"
    data = load(f"tiny-imagenet:{root}", loaded, 4)
    listing = [line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    import numpy as np

    inputs, targets = data.source.fetch(0, 4)
    for row, i in enumerate(np.random.default_rng(0).permutation(len(listing))[:4]):
        name, wnid = listing[i]
        with Image.open(root / "val" / "images" / name) as image:
            expected = ResNet18_Weights.DEFAULT.transforms()(image.convert("RGB"))
        assert torch.allclose(inputs[row], expected, atol=1e-6)
        assert imagenet_wnids()[int(targets[row])] == wnid


# --- ImageNet ---


def write_imagenet(root: Path, wnids: tuple[str, ...]) -> None:
    for i, wnid in enumerate(wnids):
        (root / "val" / wnid).mkdir(parents=True)
        Image.new("RGB", (40, 40), (20 * i, 0, 0)).save(root / "val" / wnid / "a.JPEG", quality=95)


def test_imagenet_folders(tmp_path: Path) -> None:
    net = images(1000, preprocessing=Preprocessing(size=(32, 32)))
    wnids = imagenet_wnids()
    write_imagenet(tmp_path / "imagenet", (wnids[7], wnids[0], wnids[999]))
    data = load("imagenet", net, data_root=tmp_path)
    assert data.source.fetch(0, 3)[1].tolist() == [(7, 0, 999)[i] for i in classes_shown(data.source)]
    assert data.notes == ("images of 3 of ImageNet's 1000 classes are there",)
    assert load(f"imagenet:{tmp_path}/imagenet", net).info == data.info
    assert load(f"imagenet:{tmp_path}/imagenet/val", net).info == data.info
    for litter in (f"{wnids[0]}/._a.JPEG", "__MACOSX/._a.JPEG"):
        (tmp_path / "imagenet" / "val" / litter).parent.mkdir(exist_ok=True)
        (tmp_path / "imagenet" / "val" / litter).write_bytes(b"no picture")
    assert load("imagenet", net, data_root=tmp_path).info == data.info
    refusal("imagenet has 1000 classes, but net has 10 outputs", "imagenet", images(10), data_root=tmp_path)
    (tmp_path / "imagenet" / "val" / "cat").mkdir()
    refusal("1 folders in .* are no ImageNet-1k classes: cat", "imagenet", net, data_root=tmp_path)


def test_imagenet_that_is_flat_or_absent(tmp_path: Path) -> None:
    net = images(1000)
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    text = refusal("imagenet: no .*n01440764; expected", "imagenet", net, data_root=tmp_path)
    assert "image-net.org" in text
    refusal("cannot be downloaded automatically", "imagenet", net, data_root=tmp_path, download=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG")
    text = refusal("are not sorted into classes; expected", "imagenet", net, data_root=tmp_path)
    assert re.search(r"val/<WordNet id>/ folders", text)
