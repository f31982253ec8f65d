"""What a dataset string loads: fixed, seeded, normalised, in the network's label order; and its refusals."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spectrascope.errors import DataError
from spectrascope.loading.data import images
from spectrascope.loading.data.folders import number_classes
from spectrascope.loading.data.images import DecodedImages, StoredImages, to_pixels
from spectrascope.loading.data.labels import CIFAR10
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.open import load_model
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.records.values import Missing


@pytest.fixture(scope="module")
def digits_cnn() -> LoadedModel:
    return load_model(None)


@pytest.fixture(scope="module")
def cifar_net() -> LoadedModel:
    return load_model("cifar-resnet20@none")


def nameless(loaded: LoadedModel, num_classes: int | None) -> LoadedModel:
    return dataclasses.replace(loaded, class_names=None, num_classes=num_classes)


def write_images(root: Path, classes: list[str], per_class: int = 3, size=(32, 32), suffix="png") -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.{suffix}")
    return root


def test_digits_are_fixed_seeded_and_normalised(digits_cnn: LoadedModel) -> None:
    full = load_dataset("digits", digits_cnn, num_samples=4000, seed=0)
    inputs, targets = full.source.fetch(0, full.source.n)
    assert inputs.shape == (1797, 1, 8, 8)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01
    assert torch.bincount(targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (full.info.n, full.info.n_available, full.info.n_classes) == (1797, 1797, 10)
    assert full.info.synthetic is False
    assert "1297 of the 1797" in full.info.preprocessing
    assert full.info.digest == full.source.digest()
    part = load_dataset(None, digits_cnn, num_samples=100, seed=0)
    assert torch.equal(part.source.fetch(0, 100)[0], inputs[:100])  # a smaller batch begins a larger one
    assert len(part.source.fetch(0, 100)[1].unique()) == 10  # mixed in class
    other = load_dataset(None, digits_cnn, num_samples=100, seed=1)
    assert other.info.digest != part.info.digest


def test_digest_is_stable(digits_cnn: LoadedModel) -> None:
    data = load_dataset("digits", digits_cnn, num_samples=64, seed=0)
    assert data.info.digest == "6d6340fe833963caa46996a2746825a032d2c206ae5636ea54787fef48be2d86"


def test_digits_for_a_network_of_another_size_and_colour() -> None:
    loaded = load_model("mlp:3072-16-10@none")
    data = load_dataset("digits", loaded, num_samples=4, seed=0)
    inputs, _ = data.source.fetch(0, 4)
    assert inputs.shape == (4, 3, 32, 32)
    assert torch.equal(inputs[:, 0], inputs[:, 2])
    assert "own classes are airplane" in data.info.label_order


def test_no_dataset_is_never_noise(cifar_net: LoadedModel) -> None:
    with pytest.raises(DataError, match=r"no dataset named.*--dataset digits, folder:PATH") as error:
        load_dataset(None, cifar_net, num_samples=8, seed=0)
    assert error.value.exit_code == 3
    with pytest.raises(DataError, match="no dataset named 'cifar'; expected digits, folder:PATH"):
        load_dataset("cifar", cifar_net, num_samples=8, seed=0)
    with pytest.raises(DataError, match="expected at least 1"):
        load_dataset("digits", cifar_net, num_samples=0, seed=0)


def test_a_path_without_folder_is_explained(cifar_net: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean folder:"):
        load_dataset(str(tmp_path), cifar_net, num_samples=8, seed=0)


# --- folders ---


def test_folder_names_are_matched_to_the_networks_order(cifar_net: LoadedModel, tmp_path: Path) -> None:
    names = ["Truck", "car", "plane", "BIRD"]
    data = load_dataset(f"folder:{write_images(tmp_path, names)}", cifar_net, num_samples=99, seed=0)
    _, targets = data.source.fetch(0, 99)
    assert sorted(set(targets.tolist())) == [0, 1, 2, 9]
    assert data.info.label_order == "folder names matched to the network's 10 class names"
    assert (data.info.n, data.info.n_available, data.info.n_classes) == (12, 12, 4)


def test_labels_follow_their_images(cifar_net: LoadedModel, tmp_path: Path) -> None:
    for i, name in enumerate(CIFAR10):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(tmp_path / name / "x.png")
    source = load_dataset(f"folder:{tmp_path}", cifar_net, num_samples=10, seed=3).source
    assert isinstance(source, StoredImages)
    assert torch.equal(source.pixels[:, 0, 0, 0].long(), 20 * source.targets)


def test_folder_order_does_not_depend_on_the_filesystem(
    cifar_net: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path, ["cat", "dog"], 5)
    first = load_dataset(f"folder:{root}", cifar_net, num_samples=6, seed=0).info.digest
    listing = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, p: reversed(list(listing(self, p))))
    assert load_dataset(f"folder:{root}", cifar_net, num_samples=6, seed=0).info.digest == first


def test_sorted_order_is_said_to_be_a_guess(cifar_net: LoadedModel, tmp_path: Path) -> None:
    root = write_images(tmp_path, [f"kind{i}" for i in range(10)], 1)
    data = load_dataset(f"folder:{root}", cifar_net, num_samples=99, seed=0)
    assert data.info.label_order == "sorted folder names, a guess (no folder is named as a class)"
    data = load_dataset(f"folder:{root}", nameless(cifar_net, 10), num_samples=99, seed=0)
    assert data.info.label_order == "sorted folder names, a guess (the network has no class names)"


def test_numbered_folders_are_not_sorted_as_text(cifar_net: LoadedModel, tmp_path: Path) -> None:
    root = write_images(tmp_path, [str(i) for i in range(12)], 1)
    data = load_dataset(f"folder:{root}", nameless(cifar_net, 12), num_samples=99, seed=0)
    numbers, _ = number_classes("folder:x", [str(i) for i in range(12)], nameless(cifar_net, 12))
    assert numbers["10"] == 10
    assert data.info.label_order == "folder names are the class numbers"


def test_class_counts_that_differ(cifar_net: LoadedModel, tmp_path: Path) -> None:
    root = write_images(tmp_path, ["a", "b", "c"], 1)
    with pytest.raises(DataError, match=r"has 3 class folders, but cifar-resnet20@none has 10 outputs"):
        load_dataset(f"folder:{root}", cifar_net, num_samples=9, seed=0)
    write_images(tmp_path, ["cat"], 1)
    with pytest.raises(DataError, match=r"1 of 4 folders name classes of .*, but not a, b, c"):
        load_dataset(f"folder:{root}", cifar_net, num_samples=9, seed=0)
    two = write_images(tmp_path / "two", ["car", "automobile"], 1)
    with pytest.raises(DataError, match="two folders name the same class"):
        load_dataset(f"folder:{two}", cifar_net, num_samples=9, seed=0)


def test_folders_that_cannot_be_listed(cifar_net: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with pytest.raises(DataError, match=r"no such folder|cannot be read"):
        load_dataset(f"folder:{'x' * 5000}", cifar_net, num_samples=9, seed=0)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); expected files that may be read"):
        load_dataset(f"folder:{tmp_path}", cifar_net, num_samples=9, seed=0)


def test_parts_of_a_dataset_are_no_classes(cifar_net: LoadedModel, tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / part / name / "a.png")
    with pytest.raises(
        DataError, match=f"train, val, which are parts of a dataset.*name one, as folder:{tmp_path}/val"
    ):
        load_dataset(f"folder:{tmp_path}", dataclasses.replace(cifar_net, num_classes=None), num_samples=2, seed=0)


def test_missing_and_empty_folders(cifar_net: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected one with a sub-folder"):
        load_dataset(f"folder:{tmp_path}/gone", cifar_net, num_samples=9, seed=0)
    with pytest.raises(DataError, match="has no sub-folders"):
        load_dataset(f"folder:{tmp_path}", cifar_net, num_samples=9, seed=0)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no images in its 1 sub-folders"):
        load_dataset(f"folder:{tmp_path}", cifar_net, num_samples=9, seed=0)


@pytest.mark.parametrize("keep", [0, 10**9])
def test_unreadable_images_are_counted_and_named(
    cifar_net: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    monkeypatch.setattr(images, "KEEP_BYTES", keep)
    root = write_images(tmp_path, ["cat", "dog"], 6, suffix="jpg")
    for i in range(4):
        (root / "cat" / f"{i}.jpg").write_bytes(b"not an image")
    truncated = root / "dog" / "0.jpg"
    truncated.write_bytes(truncated.read_bytes()[:200])
    with pytest.raises(DataError, match=r"5 of 12 image files cannot be read: .*\.jpg") as error:
        load_dataset(f"folder:{root}", cifar_net, num_samples=99, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_colour_mode(mode: str, channels: int) -> None:
    image = Image.new("I;16", (5, 4), 0xFF00) if mode == "I;16" else Image.new(mode, (5, 4))
    pixels = to_pixels(image, Preprocessing(size=None, channels=channels))
    assert (pixels.shape, pixels.dtype) == ((channels, 4, 5), torch.uint8)
    if mode == "I;16":
        assert pixels.unique().tolist() == [255]


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp", "ppm", "gif", "tif"])
def test_any_format(cifar_net: LoadedModel, tmp_path: Path, suffix: str) -> None:
    root = write_images(tmp_path, ["cat"], 2, suffix=suffix)
    assert load_dataset(f"folder:{root}", cifar_net, num_samples=9, seed=0).info.n == 2


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (256, 256), (97, 64)])
def test_pixels_equal_torchvisions_own_transforms(size: tuple[int, int]) -> None:
    from torchvision.models import ResNet18_Weights

    loaded = load_model("resnet18@none")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = StoredImages(to_pixels(image, loaded.preprocessing)[None], torch.zeros(1), loaded.preprocessing)
    expected = ResNet18_Weights.DEFAULT.transforms()(image)
    assert torch.allclose(ours.fetch(0, 1)[0][0], expected, atol=1e-6)


def test_images_decoded_on_demand_are_the_same(
    cifar_net: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_images(tmp_path, ["cat", "dog"], 4, size=(40, 30))
    kept = load_dataset(f"folder:{root}", cifar_net, num_samples=9, seed=0)
    monkeypatch.setattr(images, "KEEP_BYTES", 0)
    decoded = load_dataset(f"folder:{root}", cifar_net, num_samples=9, seed=0)
    assert isinstance(kept.source, StoredImages)
    assert isinstance(decoded.source, DecodedImages)
    assert kept.info == decoded.info
    assert torch.equal(kept.source.fetch(2, 5)[0], decoded.source.fetch(2, 5)[0])


def test_image_size(cifar_net: LoadedModel, tmp_path: Path) -> None:
    root = write_images(tmp_path, ["cat"], 2, size=(40, 30))
    data = load_dataset(f"folder:{root}", cifar_net, num_samples=2, seed=0, image_size=24)
    assert data.info.input_shape == (3, 24, 24)
    unknown = dataclasses.replace(cifar_net, preprocessing=Preprocessing(size=None))
    assert load_dataset(f"folder:{root}", unknown, num_samples=2, seed=0).info.input_shape == (3, 30, 40)
    write_images(root, ["dog"], 2)
    with pytest.raises(DataError, match=r"images differ in size .*--image-size"):
        load_dataset(f"folder:{root}", unknown, num_samples=9, seed=0)


def test_other_channels_are_refused(cifar_net: LoadedModel) -> None:
    loaded = dataclasses.replace(cifar_net, preprocessing=Preprocessing(size=(8, 8), channels=4))
    with pytest.raises(DataError, match="takes 4 channels, which image files do not have"):
        load_dataset("digits", loaded, num_samples=2, seed=0)


# --- CIFAR and noise ---


@pytest.mark.parametrize(
    ("name", "file"), [("cifar10", "cifar-10-batches-py/test_batch"), ("cifar100", "cifar-100-python/test")]
)
def test_cifar_that_is_not_there(tmp_path: Path, name: str, file: str) -> None:
    loaded = load_model("cifar-resnet20@none", num_classes=int(name.removeprefix("cifar")))
    with pytest.raises(DataError, match=rf"no {tmp_path}/{file}; expected .*--data-root .*--download"):
        load_dataset(name, loaded, num_samples=9, seed=0, data_root=tmp_path)


def test_cifar_for_another_number_of_classes(cifar_net: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar100 has 100 classes, but cifar-resnet20@none has 10 outputs"):
        load_dataset("cifar100", cifar_net, num_samples=9, seed=0, data_root=tmp_path)


def test_damaged_cifar(cifar_net: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"cifar10: cannot be read .*expected an intact"):
        load_dataset("cifar10", cifar_net, num_samples=9, seed=0, data_root=tmp_path)


def test_cifar_from_torchvisions_files(cifar_net: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10 as TorchvisionCifar10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    content = {"data": pixels, "labels": [i % 10 for i in range(20)]}
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10)}))
    monkeypatch.setattr(TorchvisionCifar10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(TorchvisionCifar10, "_load_meta", lambda self: None)
    data = load_dataset("cifar10", cifar_net, num_samples=7, seed=0, data_root=tmp_path)
    chosen = np.random.default_rng(0).permutation(20)[:7]
    inputs, targets = data.source.fetch(0, 7)
    assert targets.tolist() == [int(i) % 10 for i in chosen]
    expected = torch.from_numpy(pixels[chosen]).view(7, 3, 32, 32).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cifar_net.preprocessing.mean, cifar_net.preprocessing.std))
    assert torch.allclose(inputs, (expected - mean) / std, atol=1e-6)
    assert (data.info.n, data.info.n_available) == (7, 20)


def test_synthetic_is_labelled_and_seeded(cifar_net: LoadedModel) -> None:
    data = load_dataset("synthetic", cifar_net, num_samples=50, seed=2)
    assert data.info.synthetic is True
    assert data.info.id == "synthetic (random noise)"
    assert isinstance(data.info.n_available, Missing)
    inputs, targets = data.source.fetch(0, 50)
    assert inputs.shape == (50, 3, 32, 32)
    assert torch.equal(data.source.fetch(10, 20)[0], inputs[10:20])
    assert 0 <= targets.min() < targets.max() <= 9
    assert load_dataset("synthetic", cifar_net, num_samples=50, seed=2).info.digest == data.info.digest
    assert load_dataset("synthetic", cifar_net, num_samples=50, seed=3).info.digest != data.info.digest


def test_synthetic_needs_a_size_and_classes(cifar_net: LoadedModel) -> None:
    unknown = dataclasses.replace(cifar_net, preprocessing=Preprocessing(size=None))
    with pytest.raises(DataError, match="does not say which image size it takes; give --image-size"):
        load_dataset("synthetic", unknown, num_samples=2, seed=0)
    with pytest.raises(DataError, match="does not say how many classes"):
        load_dataset("synthetic", nameless(cifar_net, None), num_samples=2, seed=0)


def test_shared_images_have_a_fixed_digest_per_seed(shared: Path, cifar_net: LoadedModel) -> None:
    spec = f"folder:{shared}/data/cifar10-test"
    a, b, c = (load_dataset(spec, cifar_net, num_samples=32, seed=seed).info for seed in (0, 0, 1))
    assert a == b
    assert a.digest != c.digest
    assert (a.n, a.n_available, a.n_classes) == (32, 4200, 10)
