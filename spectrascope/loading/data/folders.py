"""One sub-folder per class: image files, or text files for networks that read text."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from spectrascope.errors import DataError
from spectrascope.loading.data.images import file_pictures, image_suffixes, is_litter, read_images
from spectrascope.loading.data.labels import match_labels
from spectrascope.loading.data.sampling import describe, listed, shown
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.data.text import file_texts, read_texts
from spectrascope.loading.loaded import LoadedModel
from spectrascope.text import plural

__all__ = ["FOLDER", "number_classes"]

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})


def _folder(spec: str, request: DataRequest) -> LoadedData:
    """``folder:PATH``: one sub-folder per class, of images or (for a sequence classifier) of text files.

    Raises:
        DataError: nothing to read, folders that do not match the network's classes, or a language model.
    """
    root = Path(spec.partition(":")[2]).expanduser()
    images = request.loaded.text is None
    if request.models_language and not images:
        raise DataError(
            f"folder:{shown(root)} has classes, but {request.network} is a language model; expected "
            f"{request.suitable_texts}"
        )
    files = (image_suffixes(), "images", ".png or .jpg") if images else ({".txt"}, "text files", ".txt")
    paths, names, classes = _files(root, *files)
    numbers, order = number_classes(f"folder:{shown(root)}", classes, request.loaded)
    labels = np.array([numbers[folder] for folder in names], dtype=np.int64)
    if images:
        batch = read_images(request, file_pictures(paths), labels, "image files")
    else:
        batch = read_texts(request, file_texts(paths), labels, "text files")
    return describe(request, f"folder:{root}", batch, n_classes=len(classes), label_order=order)


def _files(root: Path, suffixes: Collection[str], what: str, such_as: str) -> tuple[list[Path], list[str], list[str]]:
    """Files in an order that no file system decides, the class folder of each, and all class folders."""
    name = f"folder:{shown(root)}"
    if not root.is_dir():
        raise DataError(f"{name}: no such folder; expected one with a sub-folder of {what} per class")
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not is_litter(p.name))
    if not classes:
        raise DataError(f"{name} has no sub-folders; expected one sub-folder of {what} per class")
    if all(folder.lower() in _SPLITS for folder in classes):
        raise DataError(
            f"{name} has the sub-folders {listed(classes)}, which are parts of a dataset and no classes; name one, as "
            f"{name}/{shown(classes[-1])}"
        )
    paths: list[Path] = []
    names: list[str] = []
    for folder in classes:
        found = [p for p in (root / folder).rglob("*") if p.suffix.lower() in suffixes and p.is_file()]
        found = [p for p in found if not any(map(is_litter, p.relative_to(root).parts))]
        paths += sorted(found, key=lambda p: p.relative_to(root).as_posix())
        names += [folder] * len(found)
    if not paths:
        raise DataError(
            f"{name}: no {what} in its {len(classes)} sub-folders; expected files such as {such_as} in them"
        )
    return paths, names, classes


def number_classes(
    name: str, classes: list[str], loaded: LoadedModel, kind: str = "folder"
) -> tuple[dict[str, int], str]:
    """Give each class folder (or label of another ``kind``) the number of the network's output for it; say how.

    Raises:
        DataError: some names are the network's and some are not, or the numbers of classes differ.
    """
    count, kinds = loaded.num_classes, f"{kind}s"
    if loaded.class_names is not None:
        matched = match_labels(classes, loaded.class_names)
        numbers = {folder: number for folder, number in matched.items() if number is not None}
        if len(numbers) == len(classes):
            if len(set(numbers.values())) < len(classes):
                raise DataError(f"{name}: two {kinds} name the same class of the network; expected one each")
            return numbers, f"{kind} names matched to the network's {len(loaded.class_names)} class names"
        if numbers:
            strange = [folder for folder in classes if folder not in numbers]
            raise DataError(
                f"{name}: {len(numbers)} of {len(classes)} {kinds} name classes of {loaded.info.id}, "
                f"but not {listed(strange)}; expected all or none, rename or remove these"
            )
    if count is not None and len(classes) != count:
        raise DataError(
            f"{name} has {plural(len(classes), f'class {kind}')}, but {loaded.info.id} has {count} outputs, and "
            f"the names do not tell which is which; expected one {kind} per output"
        )
    if all(folder.isdecimal() for folder in classes) and sorted(map(int, classes)) == list(range(len(classes))):
        return {folder: int(folder) for folder in classes}, f"{kind} names are the class numbers"
    why = "the network has no class names" if loaded.class_names is None else f"no {kind} is named as a class"
    return {folder: i for i, folder in enumerate(classes)}, f"sorted {kind} names, a guess ({why})"


FOLDER = DataSource(("folder:PATH",), _folder)
