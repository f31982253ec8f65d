"""Weight files of a Hugging Face folder: which they are, what their headers say, and their tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from spectrascope.errors import LoadError, QuantizedError
from spectrascope.loading.checkpoints.read import file_sha256, read_checkpoint, require_finite, strip_wrappers
from spectrascope.loading.models.huggingface.config import read_json
from spectrascope.loading.quiet import brief

__all__ = ["SAFETENSORS", "TensorHeader", "WeightFiles", "find_weight_files", "has_weights", "is_mask"]

SAFETENSORS = "model.safetensors"
"""The one weight file of most checkpoints."""

_SINGLE = (SAFETENSORS, "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_OTHERS = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_PLAIN = ("float32", "float16", "bfloat16", "float64")
# Old files keep the causal mask of an attention layer, a buffer, in bytes.
_MASK = re.compile(r"(attn|attention)\.(masked_)?bias$")


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Shape and dtype of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of_safetensors(cls, shape: Sequence[int], code: str) -> TensorHeader:
        """With the dtype by torch's name; ``code`` is the format's own."""
        return cls(tuple(shape), _FLOATS.get(code) or _OTHERS.get(code) or code)


def is_mask(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a stored tensor is an attention layer's causal mask, which newer networks make themselves."""
    return bool(_MASK.search(key)) and (shape in {(), (1,)} or (len(shape) == 4 and shape[:2] == (1, 1)))


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a network's weights; ``weight_map`` is an index's, tensor name to file name.

    ``absent`` means that an index is here without any of its files: names are known, shapes are not. ``elsewhere``
    are the headers of a file that is not here at all.
    """

    files: tuple[Path, ...]
    index: Path | None = None
    weight_map: dict[str, str] | None = None
    absent: bool = False
    elsewhere: dict[str, TensorHeader] | None = None

    @property
    def path(self) -> Path:
        """The one file, or the index."""
        return self.index if self.index is not None else self.files[0]

    def headers(self) -> dict[str, TensorHeader]:
        """Names, shapes and dtypes of all tensors, read without the tensors; wrappers' prefixes are removed.

        Raises:
            LoadError: a file is damaged, quantised, or does not hold what the index says.
        """
        found: dict[str, TensorHeader] = {}
        for file in self.files:
            headers = _read_headers(file) if self.elsewhere is None else self.elsewhere
            for key, header in headers.items():
                if key in found:
                    raise LoadError(f"{file} holds {key!r}, which another shard holds too; expected each tensor once")
                _require_plain(key, header, file)
                found[key] = header
        if self.weight_map is not None and (gone := [key for key in self.weight_map if key not in found]):
            raise LoadError(
                f"{self.index}: {len(gone)} of its {len(self.weight_map)} tensors are in none of the shards "
                f"({gone[0][:80]!r}); copy or download them again"
            )
        return strip_wrappers(found)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, floating-point ones in float32, under the names of :meth:`headers`.

        Raises:
            LoadError: a file is damaged.
            NonFiniteError: a weight is NaN or infinite.
        """
        found: dict[str, Tensor] = {}
        for file in self.files:
            tensors = _read_tensors(file)
            # A mask may hold -inf by design, and nothing reads it.
            require_finite({k: v for k, v in tensors.items() if not is_mask(k, tuple(v.shape))}, str(file))
            for key in list(tensors):
                value = tensors.pop(key)  # one copy at a time
                # Copied, because safetensors may map the file, and a mapped file can change under a measurement.
                found[key] = value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
        return strip_wrappers(found)

    def sha256(self) -> str:
        """Sha256 of the single file's bytes; for shards of their sorted names and hashes."""
        if self.index is None:
            return file_sha256(self.files[0])
        lines = sorted(f"{file.name}:{file_sha256(file)}" for file in self.files)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a whole network's weights, or an index of them."""
    return any((folder / name).is_file() for name in _SINGLE + _INDEXES)


def find_weight_files(folder: Path, named: Path | None = None, *, headers_only: bool = False) -> WeightFiles:
    """Find the weight files of a folder, or those a named file or index stands for.

    With ``headers_only`` an index may stand without its files.

    Raises:
        LoadError: there are none, a shard is missing, or the index points outside its folder.
    """
    if named is None:
        # Safetensors first, as transformers does: no other format of the same weights is read then.
        order = (_SINGLE[0], _INDEXES[0], _SINGLE[1], _INDEXES[1])
        named = next((folder / name for name in order if (folder / name).is_file()), None)
    if named is None:
        shards = sorted(folder.glob("*-of-*.safetensors")) + sorted(folder.glob("*-of-*.bin"))
        if shards:
            raise LoadError(f"{folder} holds shards ({shards[0].name}) without their index; expected {_INDEXES[0]}")
        foreign = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".h5", ".msgpack", ".gguf", ".ckpt")]
        got = f"got {', '.join(foreign[:3])}, which are not read" if foreign else "got none"
        raise LoadError(f"{folder}: no weights beside config.json; expected {' or '.join(_SINGLE + _INDEXES)}, {got}")
    if named.suffix != ".json":
        return WeightFiles((named,))
    weight_map = read_json(named).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise LoadError(f"{named} has no 'weight_map' (tensor name -> file name); expected a checkpoint index")
    names = sorted(set(weight_map.values()))
    for name in names:
        plain = PurePosixPath(name).name == name == PureWindowsPath(name).name and name.isprintable()
        if not plain or name.rpartition(".")[2] not in ("safetensors", "bin"):
            raise LoadError(
                f"{named} names the file {name[:80]!r}; expected .safetensors or .bin files in its own folder, none is "
                f"read from elsewhere"
            )
    files = tuple(named.parent / name for name in names)
    missing = [file.name for file in files if not file.is_file()]
    if missing and headers_only and len(missing) == len(files):
        return WeightFiles((), named, weight_map, absent=True)
    if missing:
        raise LoadError(
            f"{named}: {len(missing)} of its {len(files)} files are missing ({', '.join(missing[:2])}"
            f"{', …' if len(missing) > 2 else ''}); copy or download them into {named.parent}"
        )
    return WeightFiles(files, named, weight_map)


def _require_plain(key: str, header: TensorHeader, file: Path) -> None:
    if header.dtype in _PLAIN or is_mask(key, header.shape):
        return
    floating = header.dtype not in ("int64", "int32", "int16", "bool")
    packed = re.search(r"(^|\.)(qweight|qzeros|weight)$", key) and header.dtype != "bool"
    if floating or packed:  # int8, uint8, fp8 of any kind, and packed int32
        raise QuantizedError(
            f"{file}: {key[:80]!r} is stored as {header.dtype}; quantised weights have no second derivatives; load the "
            f"full-precision checkpoint it was made from"
        )


def _is_safetensors(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(16)
    return head[8:9] == b"{" or (file.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")))


def _read_headers(file: Path) -> dict[str, TensorHeader]:
    try:
        if _is_safetensors(file):
            import safetensors

            found = {}
            with safetensors.safe_open(str(file), framework="pt", device="cpu") as opened:
                for key in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(key)
                    found[key] = TensorHeader.of_safetensors(part.get_shape(), str(part.get_dtype()))
            return found
        content = _load_pickle(file, "meta")
    except LoadError:
        raise
    except Exception as error:  # whatever damaged bytes provoke
        raise _explain(file, error) from None
    return {k: TensorHeader(tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in content.items()}


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        if _is_safetensors(file):
            import safetensors

            with safetensors.safe_open(str(file), framework="pt", device="cpu") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return _load_pickle(file, "cpu")
    except LoadError:
        raise
    except Exception as error:
        raise _explain(file, error) from None


def _load_pickle(file: Path, device: str) -> dict[str, Tensor]:
    with file.open("rb") as opened:
        content: Any = torch.load(opened, map_location=device, weights_only=True)
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise LoadError(f"{file} holds no plain state dict; expected one (parameter name -> tensor), and nothing else")
    if any(v.layout is not torch.strided or v.is_quantized or v.is_complex() for v in content.values()):
        raise LoadError(f"{file} holds sparse, quantised or complex tensors; expected dense real weights")
    return {key: value.detach() for key, value in content.items()}


def _explain(file: Path, error: Exception) -> LoadError:
    """Let the reader of single checkpoints say what is wrong with a file: it knows the ways they break."""
    try:
        read_checkpoint(file)
    except LoadError as refusal:
        return refusal
    except Exception:  # non-finite and the like; the first error is the better one
        pass
    return LoadError(f"{file}: cannot be read ({brief(error)}); copy or download it again")
