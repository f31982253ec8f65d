"""One dataset string to a fixed, seeded, ordered batch of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spectrascope.errors import DataError
from spectrascope.loading.images import FileImages, StoredImages, decode_files, image_suffixes, to_pixels
from spectrascope.loading.labels import CIFAR10, CIFAR100, DIGITS, match_labels
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.records import DataInfo, Missing
from spectrascope.workload import SampleSource, shape_of

__all__ = ["CHOICES", "LoadedData", "load_dataset"]

CHOICES = "digits, folder:PATH, cifar10, cifar100 or synthetic"

# Above this, images are decoded again at every pass rather than kept: peak memory must not grow with the
# batch.
_KEEP_BYTES = 512 * 2**20


@dataclass(frozen=True)
class LoadedData:
    """A fixed batch and what the report says about it."""

    source: SampleSource
    info: DataInfo


def load_dataset(
    spec: str | None,
    loaded: LoadedModel,
    *,
    num_samples: int,
    seed: int,
    data_root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
) -> LoadedData:
    """Load ``num_samples`` samples in an order fixed by ``seed``, prepared for the network.

    A smaller batch with the same seed is the beginning of a larger one. Fewer available samples are all used.

    Args:
        spec: ``digits``, ``folder:PATH`` with one folder per class, ``cifar10``, ``cifar100``, ``synthetic``,
            or ``None`` for the dataset the network implies.
        loaded: the network: input size and normalisation, class names and their number.
        num_samples: at least 1.
        seed: of the choice and order of samples (and of the noise of ``synthetic``).
        data_root: where torchvision's dataset files are; ``data`` when ``None``.
        download: fetch CIFAR where it is not there.
        image_size: square inputs of this many pixels instead of the network's usual ones.

    Raises:
        DataError: no dataset named and none implied, nothing to read, images that cannot be read, classes
            that do not match the network's.
    """
    if num_samples < 1:
        raise DataError(f"{num_samples} samples asked for; expected at least 1")
    spec = loaded.default_dataset if spec is None else spec
    if spec is None:
        raise DataError(f"no dataset named, and {loaded.info.id} implies none; pass --dataset {CHOICES}")
    preprocessing = loaded.preprocessing
    if image_size is not None:
        preprocessing = preprocessing.with_image_size(image_size)
    if spec != "synthetic" and preprocessing.channels not in (1, 3):
        raise DataError(
            f"{loaded.info.id} takes {preprocessing.channels} channels, which image files do not have; pass "
            f"your own samples through the Python API"
        )
    if spec == "digits":
        return _digits(loaded, preprocessing, num_samples, seed)
    if spec.startswith("folder:"):
        return _folder(Path(spec.removeprefix("folder:")).expanduser(), loaded, preprocessing, num_samples, seed)
    if spec in ("cifar10", "cifar100"):
        return _cifar(spec, loaded, preprocessing, num_samples, seed, root=data_root or Path("data"), download=download)
    if spec == "synthetic":
        return _synthetic(loaded, preprocessing, num_samples, seed)
    hint = f"; did you mean folder:{spec}?" if Path(spec).is_dir() else ""
    raise DataError(f"no dataset named {spec!r}; expected {CHOICES}{hint}")


def _choose(n_available: int, num_samples: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).permutation(n_available)[:num_samples]


def _require_classes(name: str, n_classes: int, loaded: LoadedModel) -> None:
    if loaded.num_classes is not None and loaded.num_classes != n_classes:
        raise DataError(
            f"{name} has {n_classes} classes, but {loaded.info.id} has {loaded.num_classes} outputs; "
            f"expected as many of both, pass the data the network was trained on"
        )


def _describe(
    spec: str,
    source: SampleSource,
    *,
    n_available: int | Missing,
    n_classes: int | Missing,
    preprocessing: str,
    label_order: str,
    synthetic: bool = False,
) -> LoadedData:
    shape = shape_of(source.fetch(0, 1)[0])
    info = DataInfo(
        id=spec, n=source.n, n_available=n_available, digest=source.digest(), input_shape=shape,
        n_classes=n_classes, preprocessing=preprocessing, label_order=label_order, synthetic=synthetic,
    )  # fmt: skip
    return LoadedData(source, info)


def _pixels_from_arrays(
    images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], preprocessing: Preprocessing
) -> Tensor:
    """Prepare uint8 images held in memory, (n, h, w) or (n, h, w, 3)."""
    from PIL import Image

    return torch.stack([to_pixels(Image.fromarray(image), preprocessing) for image in images])


def _digits(loaded: LoadedModel, preprocessing: Preprocessing, num_samples: int, seed: int) -> LoadedData:
    _require_classes("digits", 10, loaded)
    digits = resources.files("spectrascope.data").joinpath("digits.npz")
    with digits.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, targets = arrays["images"], arrays["targets"]
    chosen = _choose(len(images), num_samples, seed)
    if preprocessing.input_shape in (None, (1, *images.shape[1:])) and preprocessing.channels == 1:
        pixels, white = torch.from_numpy(images[chosen]).unsqueeze(1), 16.0
    else:  # another size or colours: through an ordinary 8-bit image
        eight_bit = np.round(images[chosen] * (255 / 16)).astype(np.uint8)
        pixels, white = _pixels_from_arrays(eight_bit, preprocessing), 255.0
    source = StoredImages(pixels, torch.from_numpy(targets[chosen].astype(np.int64)), preprocessing, white)
    trained = "; digits-cnn was trained on 1297 of the 1797 images" if loaded.default_dataset == "digits" else ""
    return _describe(
        "digits",
        source,
        n_available=len(images),
        n_classes=10,
        preprocessing=preprocessing.description + trained,
        label_order=_own_order("the digit shown, 0 … 9", DIGITS, loaded),
    )


def _own_order(order: str, names: tuple[str, ...], loaded: LoadedModel) -> str:
    """State a dataset's numbering, and say so where the network's classes have other names."""
    if loaded.class_names is None or loaded.class_names == names:
        return order
    return f"{order}; the network's own classes are {', '.join(loaded.class_names[:3])}, …"


def _cifar(
    spec: str,
    loaded: LoadedModel,
    preprocessing: Preprocessing,
    num_samples: int,
    seed: int,
    *,
    root: Path,
    download: bool,
) -> LoadedData:
    folder, file, n_classes, names = {
        "cifar10": ("cifar-10-batches-py", "test_batch", 10, CIFAR10),
        "cifar100": ("cifar-100-python", "test", 100, CIFAR100),
    }[spec]
    _require_classes(spec, n_classes, loaded)
    wanted = root / folder / file
    if not download and not wanted.exists():
        raise DataError(
            f"{spec}: no {wanted}; expected torchvision's files there, point --data-root at the folder that "
            f"holds {folder}, or fetch them with --download"
        )
    try:
        from torchvision.datasets import CIFAR10 as TorchvisionCifar10
        from torchvision.datasets import CIFAR100 as TorchvisionCifar100

        kind = TorchvisionCifar10 if spec == "cifar10" else TorchvisionCifar100
        dataset = kind(str(root), train=False, download=download)  # checks the files' md5 before unpickling them
    except Exception as error:  # no network, a full disk, a wrong checksum, a torchvision that does not import
        detail = " ".join(str(error).split())[:150]
        raise DataError(
            f"{spec}: cannot be read from {root} ({detail}); expected an intact {wanted}, delete what is "
            f"there and use --download"
        ) from None
    chosen = _choose(len(dataset.data), num_samples, seed)
    pixels = _pixels_from_arrays(dataset.data[chosen], preprocessing)
    targets = torch.tensor([dataset.targets[i] for i in chosen], dtype=torch.int64)
    return _describe(
        spec,
        StoredImages(pixels, targets, preprocessing),
        n_available=len(dataset.data),
        n_classes=n_classes,
        preprocessing=f"test set; {preprocessing.description}",
        label_order=_own_order("as torchvision numbers the classes", names, loaded),
    )


def _folder(root: Path, loaded: LoadedModel, preprocessing: Preprocessing, num_samples: int, seed: int) -> LoadedData:
    if not root.is_dir():
        raise DataError(f"folder:{root}: no such folder; expected one with a sub-folder of images per class")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(f"folder:{root} has no sub-folders; expected one sub-folder of images per class")
    files: list[tuple[Path, str]] = []
    for name in classes:
        found = [p for p in (root / name).rglob("*") if p.suffix.lower() in image_suffixes() and p.is_file()]
        files += [(p, name) for p in sorted(found, key=lambda p: p.relative_to(root).as_posix())]
    if not files:
        raise DataError(
            f"folder:{root}: no images in its {len(classes)} sub-folders; expected files such as .png or .jpg in them"
        )
    numbers, order = _number_classes(root, classes, loaded)
    chosen = _choose(len(files), num_samples, seed)
    paths = tuple(files[i][0] for i in chosen)
    targets = torch.tensor([numbers[files[i][1]] for i in chosen], dtype=torch.int64)
    shape = preprocessing.input_shape or decode_files(paths[:1], preprocessing).shape[1:]
    source: SampleSource
    if math.prod(shape) * len(paths) <= _KEEP_BYTES:
        source = StoredImages(decode_files(paths, preprocessing), targets, preprocessing)
    else:
        source = FileImages(paths, targets, preprocessing)
    return _describe(
        f"folder:{root}",
        source,
        n_available=len(files),
        n_classes=len(classes),
        preprocessing=preprocessing.description,
        label_order=order,
    )


def _number_classes(root: Path, classes: list[str], loaded: LoadedModel) -> tuple[dict[str, int], str]:
    """Give each class folder the number of the network's output for it, and say how in words."""
    count = loaded.num_classes
    if loaded.class_names is not None:
        matched = match_labels(classes, loaded.class_names)
        numbers = {name: number for name, number in matched.items() if number is not None}
        if len(numbers) == len(classes):
            if len(set(numbers.values())) < len(classes):
                raise DataError(f"folder:{root}: two folders name the same class of the network; expected one each")
            return numbers, f"folder names matched to the network's {len(loaded.class_names)} class names"
        if numbers:
            strange = [name for name in classes if name not in numbers]
            raise DataError(
                f"folder:{root}: {len(numbers)} of {len(classes)} folders name classes of {loaded.info.id}, "
                f"but not {', '.join(strange[:3])}{', …' if len(strange) > 3 else ''}; expected all or "
                f"none, rename or remove these"
            )
    if count is not None and len(classes) != count:
        raise DataError(
            f"folder:{root} has {len(classes)} class folders, but {loaded.info.id} has {count} outputs, and "
            f"the names do not tell which is which; expected one folder per output"
        )
    if all(name.isdecimal() for name in classes) and sorted(map(int, classes)) == list(range(len(classes))):
        return {name: int(name) for name in classes}, "folder names are the class numbers"
    why = "the network has no class names" if loaded.class_names is None else "no folder is named as a class"
    return {name: i for i, name in enumerate(classes)}, f"sorted folder names, a guess ({why})"


class _Noise(SampleSource):
    """Gaussian inputs and uniform labels, drawn per sample so that any range can be drawn on demand."""

    def __init__(self, n: int, shape: tuple[int, ...], n_classes: int, seed: int) -> None:
        self._n, self._shape, self._seed = n, shape, seed
        self._targets = torch.from_numpy(np.random.default_rng([seed, 1]).integers(0, n_classes, n))

    @property
    def n(self) -> int:
        """Number of samples."""
        return self._n

    def fetch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Draw samples ``start … stop−1``."""
        rows = [
            np.random.default_rng([self._seed, 0, i]).standard_normal(self._shape, dtype=np.float32)
            for i in range(start, min(stop, self._n))
        ]
        return torch.from_numpy(np.stack(rows)), self._targets[start:stop]


def _synthetic(loaded: LoadedModel, preprocessing: Preprocessing, num_samples: int, seed: int) -> LoadedData:
    shape = preprocessing.input_shape
    if shape is None:
        raise DataError(f"synthetic: {loaded.info.id} does not say which image size it takes; give --image-size")
    if loaded.num_classes is None:
        raise DataError(f"synthetic: {loaded.info.id} does not say how many classes it has; give --num-classes")
    return _describe(
        "synthetic (random noise)",
        _Noise(num_samples, shape, loaded.num_classes, seed),
        n_available=Missing("noise is drawn on demand"),
        n_classes=loaded.num_classes,
        preprocessing="independent standard normal values, not images",
        label_order="random labels, independent of the inputs",
        synthetic=True,
    )
