"""Rows of a Hugging Face dataset, from the Hub or a local one in its formats, through the extra ``datasets``.

Images with classes, text, or texts with classes, as the network needs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from spectrascope.errors import DataError
from spectrascope.loading.data.folders import number_classes
from spectrascope.loading.data.images import Pictures, read_images
from spectrascope.loading.data.sampling import describe, listed, shown
from spectrascope.loading.data.source import DataRequest, DataSource, LoadedData
from spectrascope.loading.data.text import MAX_BYTES, Texts, read_texts, text_blocks
from spectrascope.loading.quiet import brief, quietly
from spectrascope.losses import require_labels_below

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HUB", "HubName", "datasets_package", "open_rows", "parse_hub_name"]

_TEXT_COLUMNS = ("text", "sentence", "content")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_SPLITS = ("validation", "valid", "val", "dev", "test", "train")  # in order of preference: held-out data first
_TIMEOUT = 10.0  # seconds until a Hub that does not answer is given up


@dataclass(frozen=True, slots=True)
class HubName:
    """A dataset, one of its configurations and one of its splits."""

    name: str
    config: str | None
    split: str | None


def parse_hub_name(spec: str) -> HubName:
    """Read ``hf:name[:config][:split]``; one part alone after the name is a split if it is called as splits are.

    >>> parse_hub_name("hf:org/name:test")
    HubName(name='org/name', config=None, split='test')
    >>> parse_hub_name("hf:./folder:plain:train[:10%]")
    HubName(name='./folder', config='plain', split='train[:10%]')

    Raises:
        DataError: it has no name or too many parts.
    """
    whole = spec.removeprefix("hf:")
    cut = re.search(r"\[[^\[\]]*\]$", whole)  # a slice of a split has a colon of its own
    parts = (whole[: cut.start()] if cut else whole).split(":")
    if cut:
        parts[-1] += cut.group()
    if not parts[0] or len(parts) > 3 or not all(parts):
        raise DataError(f"{shown(spec)}: expected hf:name, hf:name:split or hf:name:config:split")
    if len(parts) == 3:
        return HubName(parts[0], parts[1], parts[2])
    if len(parts) == 2:
        is_split = re.match(r"\w+", parts[1]) and re.split(r"[\[_]", parts[1])[0] in _SPLITS
        return HubName(parts[0], None, parts[1]) if is_split else HubName(parts[0], parts[1], None)
    return HubName(parts[0], None, None)


def datasets_package() -> Any:
    """The datasets package.

    Raises:
        DataError: it is not installed, or too old.
    """
    try:
        package: Any = importlib.import_module("datasets")
    except (ImportError, RuntimeError, OSError):
        raise DataError("hf: datasets need the package datasets; pip install 'spectrascope[datasets]'") from None
    if int(package.__version__.split(".")[0]) < 4:  # these run scripts that come with a dataset
        raise DataError(
            f"hf: datasets need version 4 or newer of the package datasets, got {package.__version__}; "
            f"pip install -U 'spectrascope[datasets]'"
        )
    return package


@contextlib.contextmanager
def _reading(package: Any, *, online: bool) -> Iterator[None]:
    """Without chatter, and without a look at the network unless downloads were asked for."""
    from huggingface_hub import constants

    before = package.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    shown_before = package.is_progress_bar_enabled()
    try:
        if not online:
            package.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
            package.disable_progress_bars()
        with quietly():
            yield
    finally:
        package.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        if shown_before:
            package.enable_progress_bars()


def open_rows(spec: str, parsed: HubName, *, download: bool) -> tuple[Any, str]:
    """The rows of one split, and its name.

    Raises:
        DataError: the dataset is neither here nor to be had, or has no such split.
    """
    package = datasets_package()
    path = Path(parsed.name).expanduser()
    local = path.exists()
    if not local and (parsed.name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", parsed.name)):
        raise DataError(f"{spec}: no {shown(path)}; expected a folder or file of parquet, arrow, csv, json or images")
    online = download and not local
    if online:
        _require_hub(spec, parsed)
    try:
        with _reading(package, online=online):
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                found = package.load_from_disk(str(path))
            elif local and path.is_file():
                kind = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".jsonl": "json", ".json": "json"}
                if path.suffix not in kind:
                    raise DataError(f"{spec}: expected a file ending in {', '.join(kind)}, or a folder")
                found = package.load_dataset(kind[path.suffix], data_files=str(path))
            else:
                found = package.load_dataset(str(path) if local else parsed.name, parsed.config)
            return _pick(spec, found, parsed.split)
    except DataError:
        raise
    except Exception as error:  # not cached, offline, gated, damaged files, an unknown configuration
        if local:
            raise DataError(
                f"{spec}: cannot be read ({shown(brief(error, 120))}); expected a folder or file of parquet, arrow, "
                f"csv, json or images"
            ) from None
        raise DataError(
            f"{spec} is not in the cache{' and could not be downloaded' if online else ''} "
            f"({shown(brief(error, 100))}); {_place(package, parsed)}"
            f"{'' if online else ', or fetch it with --download'}"
        ) from None


def _require_hub(spec: str, parsed: HubName) -> None:
    """Ask the Hub once, since the package retries for half a minute where it cannot be reached."""
    import huggingface_hub

    package = datasets_package()
    try:
        with quietly():
            huggingface_hub.HfApi().dataset_info(parsed.name, timeout=_TIMEOUT)
    except Exception as error:
        with contextlib.suppress(Exception), _reading(package, online=False):
            package.load_dataset(parsed.name, parsed.config)
            return  # it is in the cache, and that will be read below
        raise DataError(
            f"{spec} could not be downloaded ({shown(brief(error, 100))}); {_place(package, parsed)}"
        ) from None


def _place(package: Any, parsed: HubName) -> str:
    folder = Path(package.config.HF_DATASETS_CACHE) / parsed.name.replace("/", "___")
    return f"looked for it in {shown(folder)}; pass a local folder of its parquet files as hf:./folder"


def _pick(spec: str, found: Any, split: str | None) -> tuple[Any, str]:
    if not hasattr(found, "keys"):  # one split saved alone
        if split is not None and split != str(found.split):
            raise DataError(f"{spec}: has no split {split!r}; it is one table without splits, leave the split out")
        return found, str(found.split or "all")
    base, _, piece = (split or "").partition("[")
    if not split:
        base = next((name for name in _SPLITS if name in found), next(iter(found)))
    if base not in found:
        raise DataError(f"{spec}: no split {shown(base)!r}; expected one of {listed(list(found), 8)}")
    rows = found[base]
    if piece:
        limits = re.fullmatch(r"(\d*)(%?):(\d*)(%?)\]", piece)
        if limits is None:
            raise DataError(f"{spec}: cannot read the slice [{shown(piece)}; expected [10:20] or [:10%]")
        start, start_unit, stop, stop_unit = limits.groups()
        ends = [
            min(len(rows), int(value) * len(rows) // 100 if unit else int(value)) if value else usual
            for value, unit, usual in ((start, start_unit, 0), (stop, stop_unit, len(rows)))
        ]
        rows = rows.select(range(ends[0], max(ends)))
    return rows, split or base


def _hub_dataset(spec: str, request: DataRequest) -> LoadedData:
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
        pictures = _pictures(name, rows, request)
        labels, order, n_classes = _labels(name, rows, request)
        batch = read_images(request, pictures, labels)
    elif request.models_language:
        return _text(name, rows, request)
    else:
        texts = _texts(name, rows, request)
        labels, order, n_classes = _labels(name, rows, request)
        batch = read_texts(request, texts, labels, "texts")
    return describe(request, name, batch, n_classes=n_classes, label_order=order)


def _pictures(name: str, rows: Any, request: DataRequest) -> Pictures:
    """The one image column, undecoded: bytes, or the local file a row names."""
    package = datasets_package()
    columns = [key for key, feature in rows.features.items() if isinstance(feature, package.Image)]
    if len(columns) != 1:
        raise DataError(
            f"{name}: {len(columns) or 'no'} image columns among {listed(list(rows.features), 8)}; {request.network} "
            f"reads images, expected one column of them"
        )
    column = columns[0]
    cells = rows.cast_column(column, package.Image(decode=False)).select_columns([column])

    def open_row(index: int) -> Image.Image:
        from PIL import Image

        cell = cells[index][column]
        return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])

    return Pictures(len(rows), _row, open_row)


def _texts(name: str, rows: Any, request: DataRequest) -> Texts:
    """The text column."""
    column = _text_column(name, rows, request)
    cells = rows.select_columns([column])
    return Texts(len(rows), _row, lambda index: (cells[index][column] or "").encode())


def _row(index: int) -> str:
    return f"row {index}"


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


HUB = DataSource(("hf:NAME",), _hub_dataset)
