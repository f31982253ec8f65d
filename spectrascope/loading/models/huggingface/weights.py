"""Weight files of a Hugging Face folder: which they are; the one checkpoint reader reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spectrascope.errors import LoadError, QuantizedError
from spectrascope.loading.checkpoints.read import Checkpoint, read_checkpoint
from spectrascope.loading.checkpoints.shards import INDEX_SUFFIX, read_index, require_shards
from spectrascope.records.values import Missing

__all__ = ["SAFETENSORS", "WeightFiles", "find_weight_files", "has_weights", "is_mask", "require_unpacked"]

SAFETENSORS = "model.safetensors"
"""The one weight file of most checkpoints."""

_SINGLE = (SAFETENSORS, "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Old files keep the causal mask of an attention layer, a buffer, in bytes.
_MASK = re.compile(r"(attn|attention)\.(masked_)?bias$")
_PACKED = re.compile(r"(^|\.)(qweight|qzeros|weight)$")


def is_mask(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a stored tensor is an attention layer's causal mask, which newer networks make themselves."""
    return bool(_MASK.search(key)) and (shape in {(), (1,)} or (len(shape) == 4 and shape[:2] == (1, 1)))


@dataclass(frozen=True)
class WeightFiles:
    """A network's weights: in one file, or in those of an index.

    ``names`` are those of an index without any of its files: shapes are not known. ``elsewhere`` is what the header
    says of a file that is not here at all.
    """

    path: Path
    names: tuple[str, ...] = ()
    elsewhere: Checkpoint | None = None

    def headers(self) -> Checkpoint:
        """Names, shapes and dtypes of all tensors, which are on the meta device; none where only names are known.

        Raises:
            LoadError: a file is damaged, quantised, or does not hold what the index says.
        """
        if self.elsewhere is not None:
            return self.elsewhere
        if self.names:
            return Checkpoint({}, Missing("only headers were read"), self.path, "index", {})
        return self._read(headers_only=True)

    def stored(self) -> tuple[dict[str, Tensor], str | Missing]:
        """All tensors under the names of :meth:`headers`, mapped and not known to be finite, and the files' sha256.

        Raises:
            LoadError: a file is damaged.
        """
        checkpoint = self._read(headers_only=False)
        return checkpoint.state_dict, checkpoint.sha256

    def _read(self, *, headers_only: bool) -> Checkpoint:
        checkpoint = read_checkpoint(self.path, headers_only=headers_only, aside=is_mask, mapped=True)
        if checkpoint.place:
            raise LoadError(
                f"{self.path} holds no plain state dict; expected one (parameter name -> tensor), and nothing else"
            )
        require_unpacked(checkpoint)
        return checkpoint


def require_unpacked(checkpoint: Checkpoint) -> None:
    """Refuse weights packed into whole numbers.

    Raises:
        QuantizedError: there are some.
    """
    for key, value in checkpoint.state_dict.items():
        if value.is_floating_point() or value.dtype is torch.bool or is_mask(key, tuple(value.shape)):
            continue
        if _PACKED.search(key) or value.dtype not in (torch.int64, torch.int32, torch.int16):
            raise QuantizedError(
                f"{checkpoint.path}: {key[:80]!r} is stored as {str(value.dtype).removeprefix('torch.')}; quantised "
                f"weights have no second derivatives; load the full-precision checkpoint it was made from"
            )


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
    if not named.name.endswith(INDEX_SUFFIX):
        return WeightFiles(named)
    places, _ = read_index(named)
    for file in places.values():
        if file.rpartition(".")[2] not in ("safetensors", "bin"):
            raise LoadError(
                f"{named} names the file {file[:80]!r}; expected .safetensors or .bin files in its own folder, none is "
                f"read from elsewhere"
            )
    if headers_only and not any((named.parent / file).is_file() for file in set(places.values())):
        return WeightFiles(named, names=tuple(places))
    require_shards(named, places)
    return WeightFiles(named)
