"""ImageNet's validation images in one folder per WordNet id."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectrascope.errors import DataError
from spectrascope.loading.data.images import FilePictures, image_suffixes, read_images
from spectrascope.loading.data.labels import imagenet_wnids
from spectrascope.loading.data.sampling import DataRequest, LoadedData, describe, listed, shown

__all__ = ["IMAGENET_ORDER", "imagenet", "require_imagenet_names"]

IMAGENET_ORDER = "networks number them by sorted id"

_WHERE = "ILSVRC2012_img_val.tar from https://image-net.org (registration needed)"


def imagenet(spec: str, request: DataRequest) -> LoadedData:
    """``imagenet`` in the data folder, or ``imagenet:PATH``: ``val/<wnid>/*.JPEG``.

    Raises:
        DataError: the images are not there or in another layout, or the network has other classes.
    """
    given = spec.removeprefix("imagenet").removeprefix(":")
    root = Path(given).expanduser() if given else request.data_root / "imagenet"
    if request.loaded.num_classes != len(imagenet_wnids()):
        count = request.loaded.num_classes
        outputs = "does not say how many outputs it has" if count is None else f"has {count} outputs"
        raise DataError(
            f"imagenet has 1000 classes, but {request.network} {outputs}; expected a network of 1000, give "
            f"--num-classes if it is one"
        )
    require_imagenet_names("imagenet", request)
    paths, wnids = _files(_find(root, request), root)
    number = {wnid: i for i, wnid in enumerate(imagenet_wnids())}
    labels: NDArray[np.int64] = np.array([number[wnid] for wnid in wnids], dtype=np.int64)
    batch = read_images(request, FilePictures(paths), labels, "image files")
    present = len(set(wnids))
    notes = (f"images of {present} of ImageNet's 1000 classes are there",) if present < len(number) else ()
    return describe(
        request,
        "imagenet",
        batch.source,
        n_available=len(paths),
        n_classes=len(number),
        preprocessing=f"validation set; {request.preprocessing.description}",
        label_order=f"by WordNet id; {IMAGENET_ORDER}",
        notes=notes + batch.notes,
    )


def require_imagenet_names(name: str, request: DataRequest) -> None:
    """Refuse a network of 1000 classes whose names, where it has any of its own, are not ImageNet's in order.

    Raises:
        DataError: fewer than half the names agree.
    """
    own = request.loaded.class_names
    if own is None or all(re.fullmatch(r"(LABEL_)?\d+", output) for output in own):
        return
    from torchvision.models import ResNet18_Weights

    usual_names = ResNet18_Weights.DEFAULT.meta["categories"]
    agreeing = sum(
        bool(_words(output) & _words(usual)) or output == wnid
        for output, usual, wnid in zip(own, usual_names, imagenet_wnids(), strict=False)
    )
    if agreeing < len(own) // 2:
        raise DataError(
            f"{name}: {request.network} has 1000 classes, but only {agreeing} are named as ImageNet's are at the same "
            f"place (its first is {shown(own[0])!r}); expected a network of ImageNet-1k in the usual order"
        )


def _words(text: str) -> set[str]:
    return {" ".join(part.replace("_", " ").casefold().split()) for part in text.split(",")}


def _find(root: Path, request: DataRequest) -> Path:
    """The folder that holds one folder per WordNet id."""
    known = set(imagenet_wnids())
    arrange = "sort the images into val/<WordNet id>/ folders, as the valprep.sh script in circulation does"
    for folder in (root / "val", root):
        if not folder.is_dir():
            continue
        entries = list(folder.iterdir())
        if any(entry.name in known and entry.is_dir() for entry in entries):
            return folder
        if any(entry.suffix.lower() in image_suffixes() for entry in entries):
            raise DataError(
                f"imagenet: the images in {shown(folder)} are not sorted into classes; expected "
                f"{shown(root / 'val' / 'n01440764')} and so on, {arrange}"
            )
    fetch = "it cannot be downloaded automatically: " if request.download else ""
    raise DataError(
        f"imagenet: no {shown(root / 'val' / 'n01440764')}; expected val/<WordNet id>/*.JPEG in {shown(root)}; "
        f"{fetch}get {_WHERE} and {arrange}, or pass imagenet:PATH or --data-root"
    )


def _files(folder: Path, root: Path) -> tuple[list[Path], list[str]]:
    known = set(imagenet_wnids())
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    strange = [name for name in classes if name not in known and (folder != root or re.fullmatch(r"n\d{8}", name))]
    if strange:
        raise DataError(
            f"imagenet: {len(strange)} folders in {shown(folder)} are no ImageNet-1k classes: {listed(strange)}; "
            f"expected WordNet ids of the 1000 classes only, or use folder:{shown(folder)}"
        )
    paths: list[Path] = []
    wnids: list[str] = []
    for wnid in classes:
        if wnid in known:
            found = sorted(p for p in (folder / wnid).iterdir() if p.suffix.lower() in image_suffixes() and p.is_file())
            paths += found
            wnids += [wnid] * len(found)
    if not paths:
        raise DataError(
            f"imagenet: no images in the {len(classes)} folders of {shown(folder)}; expected .JPEG files in them"
        )
    return paths, wnids
