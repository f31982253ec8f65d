"""Tiny ImageNet in its official layout, for networks of its own 200 classes and for ImageNet networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spectrascope.errors import DataError
from spectrascope.loading.data.imagenet import IMAGENET_ORDER, require_imagenet_names
from spectrascope.loading.data.images import FilePictures, image_suffixes, read_images
from spectrascope.loading.data.labels import imagenet_wnids
from spectrascope.loading.data.sampling import DataRequest, LoadedData, describe, listed, shown
from spectrascope.loading.downloads import fetch_archive, reason

__all__ = ["MD5", "URL", "tiny_imagenet"]

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"

_FOLDER = "tiny-imagenet-200"
_LAYOUT = "wnids.txt, val/val_annotations.txt and val/images"


@dataclass(frozen=True)
class _WnidFiles:
    """Image files with the WordNet id of each, and what to say about them."""

    paths: list[Path]
    wnids: list[str]
    notes: tuple[str, ...] = ()


def tiny_imagenet(spec: str, request: DataRequest) -> LoadedData:
    """Tiny ImageNet: ``tiny-imagenet[:PATH][:train]`` or ``tiny-imagenet-train[:PATH]``, else its validation images.

    A network of 200 classes numbers them as ``wnids.txt`` does (or as its own class names say), an ImageNet
    network of 1000 by WordNet id.

    Raises:
        DataError: the files are not there or not in the official layout, or the network has other classes.
    """
    name, split, given = _parse(spec)
    root = _find(name, given, request)
    wnids = _read_wnids(name, root)
    numbers, order = _number(name, wnids, root, request)
    if request.preprocessing.input_shape is None:
        request = replace(request, preprocessing=request.preprocessing.with_image_size(64))
    files = _training_files(name, root, wnids) if split == "train" else _validation_files(name, root, wnids)
    labels: NDArray[np.int64] = np.array([numbers[wnid] for wnid in files.wnids], dtype=np.int64)
    batch = read_images(request, FilePictures(files.paths), labels, "image files")
    return describe(
        request,
        name,
        batch.source,
        n_available=len(files.paths),
        n_classes=len(wnids),
        preprocessing=f"{'training' if split == 'train' else 'validation'} set; {request.preprocessing.description}",
        label_order=order,
        notes=files.notes + batch.notes,
    )


def _parse(spec: str) -> tuple[str, str, str | None]:
    """Name for the report, split, and the folder where one is given."""
    head, _, rest = spec.partition(":")
    split = "train" if head == "tiny-imagenet-train" else "val"
    for ending in ("train", "val"):
        if rest == ending or rest.endswith(f":{ending}"):
            split, rest = ending, rest[: -len(ending)].removesuffix(":")
    return "tiny-imagenet" + ("-train" if split == "train" else ""), split, rest or None


def _find(name: str, given: str | None, request: DataRequest) -> Path:
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
        require_imagenet_names(name, request)
        number = {wnid: i for i, wnid in enumerate(imagenet_wnids())}
        strange = [wnid for wnid in wnids if wnid not in number]
        if strange:
            raise DataError(
                f"{name}: {len(strange)} of the ids in wnids.txt are no ImageNet-1k classes ({listed(strange)}); "
                f"expected the official wnids.txt, whose 200 ids all are"
            )
        return {
            wnid: number[wnid] for wnid in wnids
        }, f"by WordNet id, 200 of ImageNet's 1000 classes; {IMAGENET_ORDER}"
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
        found = sorted(p for p in (folder / wnid).rglob("*") if p.suffix.lower() in image_suffixes() and p.is_file())
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
