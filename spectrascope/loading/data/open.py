"""One dataset string to a fixed, seeded, ordered batch of samples."""

from __future__ import annotations

from pathlib import Path

from spectrascope.errors import DataError
from spectrascope.loading.data.arrays import array_file
from spectrascope.loading.data.folders import folder_of_images, folder_of_texts
from spectrascope.loading.data.hub import hub_dataset
from spectrascope.loading.data.imagenet import imagenet
from spectrascope.loading.data.sampling import DataRequest, LoadedData, shown
from spectrascope.loading.data.small_images import cifar, digits
from spectrascope.loading.data.synthetic import synthetic
from spectrascope.loading.data.text import LM_TASKS, text_file
from spectrascope.loading.data.tiny_imagenet import tiny_imagenet
from spectrascope.loading.loaded import LoadedModel
from spectrascope.records.values import LossName

__all__ = ["CHOICES", "LoadedData", "load_dataset"]

CHOICES = (
    "digits, folder:PATH, cifar10, cifar100, imagenet[:PATH], tiny-imagenet[:PATH], npz:PATH, pt:PATH, text:FILE, "
    "hf:NAME or synthetic"
)

_OF_IMAGES = ("digits", "cifar10", "cifar100", "imagenet", "tiny-imagenet", "tiny-imagenet-train")


def load_dataset(
    spec: str | None,
    loaded: LoadedModel,
    *,
    num_samples: int,
    seed: int,
    data_root: Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    block_size: int | None = None,
    balanced: bool = False,
    skip_bad: bool = False,
    loss: LossName = LossName.AUTO,
) -> LoadedData:
    """Load ``num_samples`` samples in an order fixed by ``seed``, prepared for the network.

    A smaller batch with the same seed is the beginning of a larger one. Fewer available samples are all used.

    Args:
        spec: one of ``CHOICES``, or ``None`` for the dataset the network implies.
        loaded: the network: input size and normalisation, class names and their number, its tokenizer.
        num_samples: at least 1.
        seed: of the choice and order of samples (and of the noise of ``synthetic`` and the masked tokens).
        data_root: where dataset files are; ``data`` when ``None``.
        download: fetch what is not there.
        image_size: square inputs of this many pixels instead of the network's usual ones.
        block_size: tokens per sample of text; 128, or what the network takes if that is less.
        balanced: as many samples of each class as there are.
        skip_bad: leave unreadable images and texts out, with a note, instead of failing.
        loss: what will be measured; decides the form of the targets.

    Raises:
        DataError: no dataset named and none implied, nothing to read, samples that cannot be read, classes
            that do not match the network's, or data of a kind it does not take.
    """
    if num_samples < 1:
        raise DataError(f"{num_samples} samples asked for; expected at least 1")
    if image_size is not None and image_size < 1:
        raise DataError(f"--image-size {image_size}: expected at least 1 pixel")
    spec = loaded.default_dataset if spec is None else spec
    if spec is None:
        raise DataError(f"no dataset named, and {loaded.info.id} implies none; pass --dataset {CHOICES}")
    preprocessing = loaded.preprocessing
    if image_size is not None:
        preprocessing = preprocessing.with_image_size(image_size)
    request = DataRequest(
        loaded,
        preprocessing,
        num_samples,
        seed,
        data_root or Path("data"),
        download,
        block_size,
        balanced,
        skip_bad,
        loss,
    )
    try:
        return _load(spec, request)
    except OSError as error:  # folders that may not be listed, a disk that fails, a name too long
        reason = error.strerror or type(error).__name__
        raise DataError(f"{shown(spec)[:200]}: cannot be read ({reason}); expected files that may be read") from None


def _load(spec: str, request: DataRequest) -> LoadedData:
    kind, colon, rest = spec.partition(":")
    if kind in _OF_IMAGES and request.loaded.text is not None:
        raise DataError(f"{kind} has images, but {request.network} reads tokens; expected {_texts_for(request)}")
    if spec == "digits":
        return digits(request)
    if spec in ("cifar10", "cifar100"):
        return cifar(spec, request)
    if spec == "synthetic":
        return synthetic(request)
    if kind == "imagenet":
        return imagenet(spec, request)
    if kind in ("tiny-imagenet", "tiny-imagenet-train"):
        return tiny_imagenet(spec, request)
    if colon and rest:
        path = Path(rest).expanduser()
        if kind == "folder":
            return _folder(path, request)
        if kind == "text":
            return text_file(path, request)
        if kind in ("npz", "pt"):
            return array_file(spec, request)
        if kind == "hf":
            return hub_dataset(spec, request)
    raise DataError(f"no dataset named {shown(spec)!r}; expected {CHOICES}{_hint(spec)}")


def _folder(path: Path, request: DataRequest) -> LoadedData:
    if request.loaded.text is None:
        return folder_of_images(path, request)
    if request.loaded.info.task in LM_TASKS:
        raise DataError(
            f"folder:{shown(path)} has classes, but {request.network} is a language model; expected "
            f"{_texts_for(request)}"
        )
    return folder_of_texts(path, request)


def _texts_for(request: DataRequest) -> str:
    if request.loaded.info.task in LM_TASKS:
        return "text:FILE, npz:PATH, pt:PATH, hf:NAME or synthetic"
    return "folder:PATH with .txt files, npz:PATH, pt:PATH, hf:NAME or synthetic"


def _hint(spec: str) -> str:
    path = Path(spec).expanduser()
    try:
        if path.is_dir():
            return f"; did you mean folder:{shown(spec)}?"
        kind = {".npz": "npz", ".pt": "pt", ".pth": "pt", ".txt": "text"}.get(path.suffix)
        return f"; did you mean {kind}:{shown(spec)}?" if kind is not None and path.is_file() else ""
    except OSError:  # a name too long for the file system
        return ""
