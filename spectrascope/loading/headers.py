"""The header of a safetensors file, read and checked before anything is allocated.

Layout: eight bytes with the header's length, the header (a JSON object of name -> dtype, shape and offsets), the data.
A header that lies about sizes, leaves gaps or names a tensor twice is refused here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrascope.errors import LoadError

__all__ = ["Header", "load_json", "read_header"]

_LIMIT = 100_000_000  # bytes, as the format has it
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_AGAIN = "copy or download it again"


@dataclass(frozen=True, slots=True)
class Header:
    """Names, shapes and dtypes of a file's tensors, in the file's order, and its free-form strings."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors without their data, on the meta device."""
        return {name: torch.empty(shape, dtype=self.dtypes[name], device="meta") for name, shape in self.shapes.items()}


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; the data are not touched.

    Raises:
        LoadError: the file is truncated or its header contradicts itself or the file's size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LIMIT):
                raise _damaged(path, f"the header claims {length} bytes, the file has {size}")
            text = file.read(length)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror or error})") from None
    document = load_json(text, f"{path}: not a readable safetensors file")
    if not isinstance(document, dict):
        raise _damaged(path, "the header is not a JSON object")
    metadata = document.pop("__metadata__", None)
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, torch.dtype] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in document.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        if math.prod(shape) * dtype.itemsize != end - begin:
            raise _damaged(path, f"{_shown(name)} of shape {list(shape)[:8]} does not fill its {end - begin} bytes")
        shapes[name], dtypes[name] = shape, dtype
        places.append((begin, end, name))
    _require_contiguous(path, places, size - 8 - length)
    return Header(shapes, dtypes, _strings(metadata))


def _entry(path: Path, name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _damaged(path, f"the header's entry for {_shown(name)} is not a dtype, a shape and offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _damaged(path, f"{_shown(name)} has the dtype {_shown(entry['dtype'])}, which is not known")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{_shown(name)} has the shape {_shown(shape)} at {_shown(offsets)}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _require_contiguous(path: Path, places: Iterable[tuple[int, int, str]], size: int) -> None:
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise _damaged(path, f"{_shown(name)} starts at byte {begin}, where {at} was expected")
        at = end
    if at != size:
        raise _damaged(path, f"the tensors fill {at} bytes, but the file holds {size}")


def _strings(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


def load_json(text: bytes, where: str) -> Any:
    """Parse JSON, refusing names that occur twice.

    Raises:
        LoadError: not UTF-8, not JSON, nested too deeply, or a name occurs twice.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except _DuplicateError as error:
        raise LoadError(f"{where}: damaged, it names {_shown(error.args[0])} twice; {_AGAIN}") from None
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise LoadError(
            f"{where}: truncated or damaged, what should be JSON is not ({problem[:100]}); {_AGAIN}"
        ) from None


class _DuplicateError(Exception):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateError(next(name for name in names if names.count(name) > 1))
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _damaged(path: Path, what: str) -> LoadError:
    return LoadError(f"{path}: not a readable safetensors file, truncated or damaged ({what}); {_AGAIN}")
