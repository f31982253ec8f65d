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

from spectrascope.errors import LoadError, QuantizedError
from spectrascope.text import printable

__all__ = ["Header", "dtype_of", "load_json", "printable", "read_header", "shown", "strings_of"]

_LIMIT = 100_000_000  # bytes, as the format has it
_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_QUANTISED = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}
_MOST_DIMENSIONS = 64  # as torch has it
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
            raise _damaged(path, f"{shown(name)} of shape {list(shape)[:8]} does not fill its {end - begin} bytes")
        shapes[name], dtypes[name] = shape, dtype
        places.append((begin, end, name))
    _require_contiguous(path, places, size - 8 - length)
    return Header(shapes, dtypes, strings_of(metadata))


def _entry(path: Path, name: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _damaged(path, f"the header's entry for {shown(name)} is not a dtype, a shape and offsets")
    dtype = dtype_of(path, name, entry["dtype"])
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_shape(shape) or not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{shown(name)} has the shape {shown(shape)} at {shown(offsets)}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def dtype_of(path: Path, name: str, code: object) -> torch.dtype:
    """The dtype of a tensor by the format's own code for it.

    Raises:
        LoadError: the code is of a quantised format, or of none that is known.
    """
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None and str(code) in _QUANTISED:
        raise QuantizedError(
            f"{path}: {shown(name)} is stored as {code}; quantised weights have no second derivatives; load "
            "the full-precision checkpoint it was made from"
        )
    if dtype is None:
        raise _damaged(path, f"{shown(name)} has the dtype {shown(code)}, which is not known")
    return dtype


def _is_shape(value: Any) -> bool:
    # Without its zeros, because torch multiplies the sizes of an empty tensor too, for its strides. The number of
    # dimensions first: the product of a million sizes takes minutes.
    return _are_sizes(value) and len(value) <= _MOST_DIMENSIONS and math.prod(max(n, 1) for n in value) < 2**59


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _require_contiguous(path: Path, places: Iterable[tuple[int, int, str]], size: int) -> None:
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise _damaged(path, f"{shown(name)} starts at byte {begin}, where {at} was expected")
        at = end
    if at != size:
        raise _damaged(path, f"the tensors fill {at} bytes, but the file holds {size}")


def strings_of(metadata: Any) -> dict[str, str]:
    """The strings among a file's free-form metadata."""
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
        raise LoadError(f"{where}: damaged, it names {shown(error.args[0])} twice; {_AGAIN}") from None
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
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DuplicateError(name)
            seen.add(name)
    return found


def shown(value: Any) -> str:
    """A value from a file as it may stand in a message: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def quoted(text: str) -> str:
    """The first line of another library's message, short; it may quote a damaged file's bytes."""
    first = (text.strip().splitlines() or [""])[0][:100]
    return printable(first, "?")


def _damaged(path: Path, what: str) -> LoadError:
    return LoadError(f"{path}: not a readable safetensors file, truncated or damaged ({what}); {_AGAIN}")
