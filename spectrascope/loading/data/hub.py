"""Samples from the rows of a Hugging Face dataset: images with classes, text, or texts with classes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectrascope.errors import DataError
from spectrascope.loading.data.folders import number_classes
from spectrascope.loading.data.hub_rows import datasets_package, open_rows, parse_hub_name
from spectrascope.loading.data.images import read_images
from spectrascope.loading.data.labelled_text import read_texts
from spectrascope.loading.data.sampling import DataRequest, LoadedData, describe, listed, shown
from spectrascope.loading.data.text import LM_TASKS, MAX_BYTES, text_blocks
from spectrascope.losses import require_labels_below

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["hub_dataset"]

_TEXT_COLUMNS = ("text", "sentence", "content")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


def hub_dataset(spec: str, request: DataRequest) -> LoadedData:
    """``hf:name[:config][:split]``: images with classes, text, or texts with classes, as the network needs.

    Raises:
        DataError: the package or the dataset is not there, or has no columns the network could read.
    """
    parsed = parse_hub_name(spec)
    rows, split = open_rows(shown(spec), parsed, download=request.download)
    name = shown(spec if parsed.split else f"{spec}:{split}")
    if len(rows) == 0:
        raise DataError(f"{name}: no rows; expected at least one")
    if request.loaded.text is None:
        return _images(name, rows, request)
    if request.loaded.info.task in LM_TASKS:
        return _text(name, rows, request)
    return _labelled_text(name, rows, request)


@dataclass(frozen=True)
class _HubPictures:
    """An image column, undecoded."""

    rows: Any
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Its row."""
        return f"row {index}"

    def open(self, index: int) -> Image.Image:
        """The bytes of a row, or the local file it names."""
        from PIL import Image

        cell = self.rows[index][self.column]
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])


def _images(name: str, rows: Any, request: DataRequest) -> LoadedData:
    package = datasets_package()
    columns = [key for key, feature in rows.features.items() if isinstance(feature, package.Image)]
    if len(columns) != 1:
        raise DataError(
            f"{name}: {len(columns) or 'no'} image columns among {listed(list(rows.features), 8)}; {request.network} "
            f"reads images, expected one column of them"
        )
    column = columns[0]
    labels, order, n_classes = _labels(name, rows, request)
    pictures = _HubPictures(rows.cast_column(column, package.Image(decode=False)).select_columns([column]), column)
    batch = read_images(request, pictures, labels)
    return describe(
        request,
        name,
        batch.source,
        n_available=len(rows),
        n_classes=n_classes,
        preprocessing=request.preprocessing.description,
        label_order=order,
        notes=batch.notes,
    )


def _labels(name: str, rows: Any, request: DataRequest) -> tuple[NDArray[np.int64], str, int]:
    """The network's output for each row, how it was found in words, and the number of classes."""
    package = datasets_package()
    features, count = rows.features, request.loaded.num_classes
    named = {key: feature for key, feature in features.items() if isinstance(feature, package.ClassLabel)}
    fitting = [key for key, feature in named.items() if feature.num_classes == count] or list(named)
    column = fitting[0] if len(fitting) == 1 else next((key for key in _LABEL_COLUMNS if key in features), None)
    if column is None:
        raise DataError(
            f"{name}: no column of class labels among {listed(list(features), 8)}; expected one named label"
        )
    values = list(rows[column])
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise DataError(
            f"{name}: column {shown(column)!r} has rows without a class number; expected one in every row, try another "
            f"split"
        )
    labels: NDArray[np.int64] = np.array(values, dtype=np.int64)
    if column in named:
        names = list(named[column].names)
        numbers, order = number_classes(name, names, request.loaded, "label")
        table = np.array([numbers[label] for label in names], dtype=np.int64)
        return table[labels], order, len(names)
    if count is not None:
        try:
            require_labels_below(torch.from_numpy(labels), count)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
    return labels, f"numbers of column {shown(column)!r}", int(labels.max()) + 1


def _text_column(name: str, rows: Any, request: DataRequest) -> str:
    features = rows.features
    strings = [
        key for key, feature in features.items() if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    named = [key for key in _TEXT_COLUMNS if key in strings]
    if not named and len(strings) != 1:
        raise DataError(
            f"{name}: no column named text among {listed(list(features), 8)}; {request.network} reads text, "
            f"expected one"
        )
    return str((named or strings)[0])


def _text(name: str, rows: Any, request: DataRequest) -> LoadedData:
    column = _text_column(name, rows, request)
    parts: list[bytes] = []
    size = used = 0
    for batch in rows.select_columns([column]).iter(batch_size=1000):
        for text in batch[column]:
            parts.append((text or "").rstrip("\n").encode())
            size += len(parts[-1]) + 1
            used += 1
        if size > MAX_BYTES:
            break
    notes = (f"only the first {used} of {len(rows)} rows were used",) if used < len(rows) else ()
    return text_blocks(name, b"\n".join(parts), request, notes)


@dataclass(frozen=True)
class _HubTexts:
    """A text column."""

    rows: Any
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Its row."""
        return f"row {index}"

    def read(self, index: int) -> bytes:
        """The text of a row."""
        return (self.rows[index][self.column] or "").encode()


def _labelled_text(name: str, rows: Any, request: DataRequest) -> LoadedData:
    column = _text_column(name, rows, request)
    labels, order, n_classes = _labels(name, rows, request)
    batch = read_texts(request, _HubTexts(rows.select_columns([column]), column), labels, "texts")
    return describe(
        request,
        name,
        batch.source,
        n_available=len(rows),
        n_classes=n_classes,
        preprocessing=batch.preprocessing,
        label_order=order,
        notes=batch.notes,
    )
