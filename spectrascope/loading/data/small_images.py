"""The digits shipped with the package, and CIFAR as torchvision stores it."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch

from spectrascope.errors import DataError
from spectrascope.loading.data.images import StoredImages, array_pictures, read_images
from spectrascope.loading.data.labels import CIFAR10, CIFAR100, DIGITS
from spectrascope.loading.data.sampling import Batch, choose, describe, shown
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.downloads import downloading, reason
from spectrascope.loading.loaded import LoadedModel

__all__ = ["CIFAR", "SHIPPED_DIGITS"]


def _digits(spec: str, request: DataRequest) -> LoadedData:
    """The 1797 digits of 8×8 pixels shipped with the package."""
    request.require_classes("digits", 10)
    loaded, preprocessing = request.loaded, request.preprocessing
    packed = resources.files("spectrascope.data").joinpath("digits.npz")
    with packed.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, targets = arrays["images"], arrays["targets"].astype(np.int64)
    if preprocessing.input_shape in (None, (1, *images.shape[1:])) and preprocessing.channels == 1:
        chosen = choose(request, len(images), targets)
        pixels = torch.from_numpy(images[chosen.indices]).unsqueeze(1)
        stored = StoredImages(pixels, torch.from_numpy(targets[chosen.indices]), preprocessing, 16.0)
        batch = Batch(stored, len(images), preprocessing.description, chosen.notes)
    else:  # another size or colours: through an ordinary 8-bit image
        eight_bit = np.round(images * (255 / 16)).astype(np.uint8)
        batch = read_images(request, array_pictures(eight_bit, "digit"), targets)
    trained = "; digits-cnn was trained on 1297 of the 1797 images" if loaded.default_dataset == "digits" else ""
    return describe(
        request,
        "digits",
        batch,
        n_classes=10,
        label_order=_own_order("the digit shown, 0 … 9", DIGITS, loaded),
        preprocessing=batch.preprocessing + trained,
    )


def _own_order(order: str, names: tuple[str, ...], loaded: LoadedModel) -> str:
    """State a dataset's numbering, and say so where the network's classes have other names."""
    if loaded.class_names is None or loaded.class_names == names:
        return order
    return f"{order}; the network's own classes are {', '.join(loaded.class_names[:3])}, …"


def _cifar(spec: str, request: DataRequest) -> LoadedData:
    """The test set of CIFAR-10 or CIFAR-100 from torchvision's files.

    Raises:
        DataError: the files are not there, damaged, or could not be downloaded.
    """
    folder, file, archive, n_classes, names = {
        "cifar10": ("cifar-10-batches-py", "test_batch", "cifar-10-python.tar.gz", 10, CIFAR10),
        "cifar100": ("cifar-100-python", "test", "cifar-100-python.tar.gz", 100, CIFAR100),
    }[spec]
    request.require_classes(spec, n_classes)
    root = request.data_root
    wanted = shown(root / folder / file)
    if not request.download and not (root / folder / file).exists():
        raise DataError(
            f"{spec}: no {wanted}; expected torchvision's files there, point --data-root at the folder that "
            f"holds {folder}, or fetch them with --download"
        )
    try:
        from torchvision.datasets import CIFAR10 as TorchvisionCifar10
        from torchvision.datasets import CIFAR100 as TorchvisionCifar100

        kind = TorchvisionCifar10 if spec == "cifar10" else TorchvisionCifar100
        with downloading():  # checks the files' md5 before unpickling them
            dataset = kind(str(root), train=False, download=request.download)
    except Exception as error:  # no network, a full disk, a wrong checksum, a torchvision that does not import
        if request.download:
            raise DataError(
                f"{spec}: could not be downloaded ({reason(error)}); expected {wanted}, unpack "
                f"https://www.cs.toronto.edu/~kriz/{archive} into {shown(root)}"
            ) from None
        raise DataError(
            f"{spec}: cannot be read from {shown(root)} ({reason(error)}); expected an intact {wanted}, delete what "
            f"is there and use --download"
        ) from None
    targets = np.array(dataset.targets, dtype=np.int64)
    batch = read_images(request, array_pictures(dataset.data, f"{spec} image"), targets)
    return describe(
        request,
        spec,
        batch,
        n_classes=n_classes,
        label_order=_own_order("as torchvision numbers the classes", names, request.loaded),
        preprocessing=f"test set; {batch.preprocessing}",
    )


SHIPPED_DIGITS = DataSource(("digits",), _digits, images=True)

CIFAR = DataSource(("cifar10", "cifar100"), _cifar, images=True)
