"""ImageNet's validation images in one folder per WordNet id, and Tiny ImageNet in its official layout."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectrascope.errors import DataError
from spectrascope.loading.data.images import file_pictures, image_suffixes, is_litter, read_images
from spectrascope.loading.data.labels import imagenet_wnids
from spectrascope.loading.data.sampling import describe, listed, shown
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.downloads import fetch_archive, reason

__all__ = ["IMAGENET", "MD5", "TINY_IMAGENET", "URL"]

_ORDER = "networks number them by sorted id"

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"

_FOLDER = "tiny-imagenet-200"
_LAYOUT = "wnids.txt, val/val_annotations.txt and val/images"

_WHERE = "ILSVRC2012_img_val.tar from https://image-net.org (registration needed)"


def _imagenet(spec: str, request: DataRequest) -> LoadedData:
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
    _require_imagenet_names("imagenet", request)
    paths, wnids = _files(_find(root, request), root)
    number = {wnid: i for i, wnid in enumerate(imagenet_wnids())}
    labels: NDArray[np.int64] = np.array([number[wnid] for wnid in wnids], dtype=np.int64)
    batch = read_images(request, file_pictures(paths), labels, "image files")
    present = len(set(wnids))
    return describe(
        request,
        "imagenet",
        batch,
        n_classes=len(number),
        label_order=f"by WordNet id; {_ORDER}",
        preprocessing=f"validation set; {batch.preprocessing}",
        notes=(f"images of {present} of ImageNet's 1000 classes are there",) if present < len(number) else (),
    )


def _require_imagenet_names(name: str, request: DataRequest) -> None:
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
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not is_litter(p.name))
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
            found = sorted(p for p in (folder / wnid).iterdir() if _is_picture(p))
            paths += found
            wnids += [wnid] * len(found)
    if not paths:
        raise DataError(
            f"imagenet: no images in the {len(classes)} folders of {shown(folder)}; expected .JPEG files in them"
        )
    return paths, wnids


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in image_suffixes() and path.is_file() and not is_litter(path.name)


@dataclass(frozen=True)
class _WnidFiles:
    """Image files with the WordNet id of each, and what to say about them."""

    paths: list[Path]
    wnids: list[str]
    notes: tuple[str, ...] = ()


def _tiny_imagenet(spec: str, request: DataRequest) -> LoadedData:
    """Tiny ImageNet: ``tiny-imagenet[:PATH][:train]`` or ``tiny-imagenet-train[:PATH]``, else its validation images.

    A network of 200 classes numbers them as ``wnids.txt`` does (or as its own class names say), an ImageNet
    network of 1000 by WordNet id.

    Raises:
        DataError: the files are not there or not in the official layout, or the network has other classes.
    """
    name, split, given = _parse(spec)
    root = _find_tiny(name, given, request)
    wnids = _read_wnids(name, root)
    numbers, order = _number(name, wnids, root, request)
    if request.preprocessing.input_shape is None:
        request = replace(request, preprocessing=request.preprocessing.with_image_size(64))
    files = _training_files(name, root, wnids) if split == "train" else _validation_files(name, root, wnids)
    labels: NDArray[np.int64] = np.array([numbers[wnid] for wnid in files.wnids], dtype=np.int64)
    batch = read_images(request, file_pictures(files.paths), labels, "image files")
    return describe(
        request,
        name,
        batch,
        n_classes=len(wnids),
        label_order=order,
        preprocessing=f"{'training' if split == 'train' else 'validation'} set; {batch.preprocessing}",
        notes=files.notes,
    )


def _parse(spec: str) -> tuple[str, str, str | None]:
    """Name for the report, split, and the folder where one is given."""
    head, _, rest = spec.partition(":")
    split = "train" if head == "tiny-imagenet-train" else "val"
    for ending in ("train", "val"):
        if rest == ending or rest.endswith(f":{ending}"):
            split, rest = ending, rest[: -len(ending)].removesuffix(":")
    return "tiny-imagenet" + ("-train" if split == "train" else ""), split, rest or None


def _find_tiny(name: str, given: str | None, request: DataRequest) -> Path:
    """The folder that holds ``wnids.txt``, downloaded where that is asked for."""
    if given is not None:
        folder = Path(given).expanduser()
        for root in (folder, folder / _FOLDER):
            if (root / "wnids.txt").is_file():
                return root
        raise DataError(
            f"{name}: no {shown(folder / 'wnids.txt')}; expected the official layout there ({_LAYOUT}), as "
            f"{URL} unpacks to"
        )
    root = request.data_root / _FOLDER
    if not (root / "wnids.txt").is_file() and request.download:
        try:
            fetch_archive(URL, MD5, request.data_root)
        except Exception as error:  # no network, a full disk, a wrong checksum, a damaged archive
            raise DataError(
                f"{name}: could not be downloaded from {URL} ({reason(error)}); unpack that file to {shown(root)} "
                f"({_LAYOUT}), or pass tiny-imagenet:PATH"
            ) from None
    if not (root / "wnids.txt").is_file():
        raise DataError(
            f"{name}: no {shown(root / 'wnids.txt')}; expected the official layout there ({_LAYOUT}): point "
            f"--data-root at the folder that holds {_FOLDER}, pass tiny-imagenet:PATH, or fetch it with --download"
        )
    return root


def _lines(name: str, path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        raise DataError(
            f"{name}: {shown(path)} cannot be read; expected the official layout ({_LAYOUT}), as {URL} unpacks to"
        ) from None


def _read_wnids(name: str, root: Path) -> list[str]:
    wnids = [line.strip() for line in _lines(name, root / "wnids.txt")]
    if len(wnids) != 200 or len(set(wnids)) != 200:
        raise DataError(
            f"{name}: {shown(root / 'wnids.txt')} names {len(set(wnids))} classes in {len(wnids)} lines; expected 200, "
            f"one WordNet id a line"
        )
    return wnids


def _number(name: str, wnids: list[str], root: Path, request: DataRequest) -> tuple[dict[str, int], str]:
    """The network's output for each WordNet id, and how it was found in words."""
    count = request.loaded.num_classes
    if count == len(wnids):
        return _number_own(name, wnids, root, request)
    if count == len(imagenet_wnids()):
        _require_imagenet_names(name, request)
        number = {wnid: i for i, wnid in enumerate(imagenet_wnids())}
        strange = [wnid for wnid in wnids if wnid not in number]
        if strange:
            raise DataError(
                f"{name}: {len(strange)} of the ids in wnids.txt are no ImageNet-1k classes ({listed(strange)}); "
                f"expected the official wnids.txt, whose 200 ids all are"
            )
        return {wnid: number[wnid] for wnid in wnids}, f"by WordNet id, 200 of ImageNet's 1000 classes; {_ORDER}"
    outputs = "does not say how many outputs it has" if count is None else f"has {count} outputs"
    raise DataError(
        f"{name} has 200 classes, but {request.network} {outputs}; expected a network of 200 (in the order of "
        f"wnids.txt) or of ImageNet's 1000, give --num-classes if it is one"
    )


def _number_own(name: str, wnids: list[str], root: Path, request: DataRequest) -> tuple[dict[str, int], str]:
    usual = {wnid: i for i, wnid in enumerate(wnids)}
    own = request.loaded.class_names
    if own is None:
        return usual, "as in wnids.txt (the network has no class names)"
    named = _by_name(wnids, own, root / "words.txt")
    if len(named) == len(wnids) == len(set(named.values())):
        return named, "WordNet ids or words matched to the network's 200 class names"
    if any(number != usual[wnid] for wnid, number in named.items()):
        raise DataError(
            f"{name}: {len(named)} of 200 classes are found among the class names of {request.network}, in another "
            f"order than in wnids.txt; expected names for all 200 or for none"
        )
    return usual, f"as in wnids.txt ({len(named)} of 200 are found among the network's class names)"


def _by_name(wnids: list[str], own: tuple[str, ...], words: Path) -> dict[str, int]:
    """Outputs whose names are a WordNet id or its words; a name two classes share counts for neither."""
    synonyms: dict[str, list[str]] = {wnid: [wnid] for wnid in wnids}
    if words.is_file():
        for line in words.read_text("utf-8", errors="replace").splitlines():
            wnid, _, text = line.partition("\t")
            if wnid in synonyms:
                synonyms[wnid] += [text, *text.split(",")]
    index: dict[str, int | None] = {}
    for i, output in enumerate(own):
        key = _plain(output)
        index[key] = None if key in index else i
    found: dict[str, int] = {}
    for wnid, names in synonyms.items():
        matches = {number for text in names if (number := index.get(_plain(text))) is not None}
        if len(matches) == 1:
            found[wnid] = matches.pop()
    return found


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").casefold().split())


def _validation_files(name: str, root: Path, wnids: list[str]) -> _WnidFiles:
    annotations, known = root / "val" / "val_annotations.txt", set(wnids)
    if not annotations.is_file() and any((root / "val" / wnid).is_dir() for wnid in wnids):
        return _class_folders(name, root / "val", wnids)  # sorted into folders, as many scripts do
    listing = [line.split("\t") for line in _lines(name, annotations)]
    wrong = [line[0] for line in listing if len(line) < 2 or line[1] not in known or Path(line[0]).name != line[0]]
    if wrong:
        raise DataError(
            f"{name}: {len(wrong)} of {len(listing)} lines of {shown(annotations)} are not a file name and an id of "
            f"wnids.txt: {listed(wrong)}"
        )
    present = [(root / "val" / "images" / line[0], line[1]) for line in listing]
    present = [(path, wnid) for path, wnid in present if path.is_file()]
    if not present:
        raise DataError(
            f"{name}: none of the {len(listing)} files that {shown(annotations)} lists is in "
            f"{shown(root / 'val' / 'images')}; expected the official layout, as {URL} unpacks to"
        )
    absent = len(listing) - len(present)
    notes = (f"{absent} of {len(listing)} images in val_annotations.txt are not there and were left out",)
    return _WnidFiles([path for path, _ in present], [wnid for _, wnid in present], notes if absent else ())


def _training_files(name: str, root: Path, wnids: list[str]) -> _WnidFiles:
    if not (root / "train").is_dir():
        raise DataError(
            f"{name}: no {shown(root / 'train')}; expected the official layout (train/<wnid>/images), as {URL} "
            f"unpacks to, or pass tiny-imagenet for the validation images"
        )
    return _class_folders(name, root / "train", wnids)


def _class_folders(name: str, folder: Path, wnids: list[str]) -> _WnidFiles:
    """``<wnid>/images/*`` or ``<wnid>/*``."""
    files = _WnidFiles([], [])
    empty = []
    for wnid in wnids:
        found = sorted(p for p in (folder / wnid).rglob("*") if _is_picture(p))
        files.paths.extend(found)
        files.wnids.extend([wnid] * len(found))
        if not found:
            empty.append(wnid)
    if not files.paths:
        raise DataError(
            f"{name}: no images in {shown(folder)}; expected them in {shown(folder / wnids[0] / 'images')} …"
        )
    if empty:
        return replace(files, notes=(f"{len(empty)} of 200 classes have no images: {listed(empty)}",))
    return files


IMAGENET = DataSource(("imagenet[:PATH]",), _imagenet, images=True)

TINY_IMAGENET = DataSource(
    ("tiny-imagenet[:PATH]",), _tiny_imagenet, images=True, unlisted=("tiny-imagenet-train[:PATH]",)
)
