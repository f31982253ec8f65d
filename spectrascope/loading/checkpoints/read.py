"""Checkpoint files to state dicts. Nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from spectrascope.errors import LoadError, NonFiniteError, QuantizedError
from spectrascope.loading.absent import SUFFIXES, no_such_checkpoint
from spectrascope.loading.checkpoints.foreign import name_foreign_file
from spectrascope.loading.checkpoints.headers import quoted, read_header, shown
from spectrascope.loading.checkpoints.mapped import in_memory
from spectrascope.loading.checkpoints.pickles import GATHER, Found, find_weights, read_torch
from spectrascope.loading.checkpoints.shards import INDEX_SUFFIX, find_in_folder, read_index, read_shards
from spectrascope.numerics.finite import is_finite
from spectrascope.records.values import Missing

__all__ = [
    "Checkpoint",
    "everything",
    "file_sha256",
    "is_buffer",
    "read_checkpoint",
    "read_step",
    "require_finite",
    "require_finite_parameters",
    "require_plain",
    "require_plain_parameters",
    "strip_wrappers",
]

Held = TypeVar("Held")  # tensors, or what is known of them
Aside: TypeAlias = "Callable[[str, tuple[int, ...]], bool]"

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_QUANTISED = "quantised weights have no second derivatives; load the full-precision checkpoint it was made from"
_QUANTISED_NAME = re.compile(r"\.(qweight|qzeros|absmax|quant_map|SCB|weight_scale(_inv)?|quant_state\..*)$")
_BUFFER = re.compile(
    r"(^|[._])(masks?|tril|triu|freqs?(_cis)?|inv_freq|rope|cos|sin|index|indices|ids)(_cached|_cache)?$|"
    r"(attn|attention)\.(masked_)?bias$"
)
_SLACK = 1 << 20  # bytes that small tensors may be larger than their file
_MOST_SHARED = 64  # times the file's size that all tensors may have, where many names share one


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one checkpoint, wrapper prefixes removed, floats still in the file's precision.

    ``format`` says how the file was written and where in it the weights were ("pytorch, under 'state_dict'");
    ``place`` is that dotted place, ``others`` names what else held weights there, ``metadata`` a safetensors header's
    strings. ``sha256`` is of the file's bytes; of several files, of the lines "name:sha256" sorted by name. Where only
    headers were read, the tensors are on the meta device.
    """

    state_dict: dict[str, Tensor]
    sha256: str | Missing
    path: Path
    format: str
    metadata: dict[str, str]
    place: str = ""
    others: tuple[str, ...] = ()

    @property
    def choice(self) -> str:
        """Which of several sets of weights these are, for the report; empty where there is one."""
        names = ", ".join(repr(name)[:40] for name in self.others)
        return f"those under {self.place!r}, not {names}" if names else ""

    @property
    def narrow_dtypes(self) -> tuple[str, ...]:
        """Names of the floating-point dtypes in the file other than float32."""
        dtypes = {t.dtype for t in self.state_dict.values() if t.is_floating_point()}
        return tuple(sorted(str(d).removeprefix("torch.") for d in dtypes - {torch.float32}))


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes, as hex."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def strip_wrappers(state_dict: Mapping[str, Held]) -> dict[str, Held]:
    """Remove what DataParallel, ``torch.compile`` and ``AveragedModel`` put before parameter names.

    In a loop, because they nest in any order; ``_orig_mod.`` also from the middle, where one submodule was
    compiled.

    >>> list(strip_wrappers({"module._orig_mod.module.fc.weight": torch.ones(1)}))
    ['fc.weight']
    """
    stripped = {key.replace("_orig_mod.", ""): value for key, value in state_dict.items()}
    if any(key.startswith("module.") for key in stripped):
        stripped.pop("n_averaged", None)  # AveragedModel's step counter, beside its `module.`
    while stripped and all(key.startswith("module.") for key in stripped):
        stripped = {key.removeprefix("module."): value for key, value in stripped.items()}
    return stripped


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NonFiniteError: a tensor holds one; the first such tensor is named.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{where}: {bad} of {tensor.numel()} values of {shown(name)} are NaN or infinite; expected "
                f"finite weights, use a checkpoint from before training diverged"
            )


def require_plain_parameters(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Judge those tensors of a file that become parameters of a network: buffers hold masks, tables and counters.

    Raises:
        QuantizedError: one is quantised.
        LoadError: one is sparse or complex.
    """
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    require_plain({name: tensor for name, tensor in tensors.items() if name in names}, path)


def require_finite_parameters(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Judge the parameters that a network has from a file: as they are measured, not as they lie in the file.

    Raises:
        NonFiniteError: one holds NaN or infinity.
    """
    own = {name: p for name, p in network.named_parameters(remove_duplicate=False) if name in tensors}
    require_finite({name: p for name, p in own.items() if not p.is_meta}, str(path))


def everything(name: str, shape: tuple[int, ...]) -> bool:
    """Leave all tensors of a file aside, to be judged where it is known which of them are weights."""
    return True


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor's name or shape says that it is no weight matrix, for where the network is not known.

    >>> [is_buffer(name, (1, 1, 8, 8)) for name in ("h.0.attn.bias", "causal_mask", "freqs_cis", "mask_head.weight")]
    [True, True, True, False]
    """
    return len(shape) < 2 or _BUFFER.search(name) is not None


def _nothing(name: str, shape: tuple[int, ...]) -> bool:
    return False


def read_checkpoint(
    path: str | Path, *, headers_only: bool = False, aside: Aside = _nothing, mapped: bool = False
) -> Checkpoint:
    """Read the weights of a checkpoint: a file, an index of shards, or a folder that holds one of these.

    The format is told from a file's first bytes, not from its name. Weights may be nested under ``state_dict``,
    ``model`` and the like; ``FILE::dotted.key`` names the place.

    Args:
        path: what to read.
        headers_only: read names, shapes and dtypes; the data are neither read nor checked.
        aside: tells by name and shape which tensors are not judged here, so that they may hold bytes and infinities
            (an old file's causal mask); :data:`everything` where the network says later what is a weight.
        mapped: leave the data in the file, unread and not known to be finite, for those who copy each tensor where it
            is going to stay (:func:`~spectrascope.loading.checkpoints.mapped.in_memory`) and judge the copy.

    Raises:
        LoadError: no such file, a truncated or foreign file, a pickle that wants to run code (it is not run), a
            whole pickled network, quantised weights, shards that do not fit their index.
        NonFiniteError: a weight is NaN or infinite.
    """
    path, key = _split_key(path)
    if not _exists(path):
        raise no_such_checkpoint(path)
    if path.is_dir():
        path = find_in_folder(path, SUFFIXES)
    if not path.is_file():  # reading a pipe would wait for ever
        raise LoadError(f"{path} is a pipe or a device; expected a checkpoint in a file")
    if path.name.endswith(INDEX_SUFFIX):
        if key:
            raise LoadError(f"{path} lists shards, which hold tensors and no places; drop ::{key}")
        parts = _read_index(path, headers_only, mapped)
    else:
        parts = _read_file(path, key, headers_only, mapped)
    tensors = parts.found.tensors
    weights = {name: tensor for name, tensor in tensors.items() if not aside(name, tuple(tensor.shape))}
    _require_tensors(tensors, path)
    require_plain(weights, path)
    _require_sizes(tensors, path, sum(file.stat().st_size for file in parts.files))
    if without := "" if headers_only else next((name for name, t in tensors.items() if t.is_meta), ""):
        raise LoadError(
            f"{path}: {shown(without)} was saved from the meta device, as a shape without values; save the network "
            "once its weights are loaded"
        )
    if not (headers_only or mapped):
        require_finite(weights, str(path))
    sha256 = Missing("only headers were read") if headers_only else _sha256_of(parts.files)
    return Checkpoint(
        strip_wrappers(tensors), sha256, path, _describe(parts), parts.metadata, parts.found.place, parts.found.others
    )


def read_step(path: Path) -> int | None:
    """The training step in a safetensors file's metadata; ``None`` where there is none, or another kind of file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        step = read_header(path).metadata.get("step", "")
    except LoadError:  # reading the weights says what is wrong
        return None
    return int(step) if step.isascii() and step.isdigit() else None


def _split_key(path: str | Path) -> tuple[Path, str]:
    file, colons, key = str(path).rpartition("::")
    if colons and key and _exists(Path(file)) and not _exists(Path(path)):
        return Path(file), key
    return Path(path), ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise LoadError(f"{shown(str(path))}: cannot be read ({error.strerror or error})") from None


@dataclass(frozen=True, slots=True)
class _Parts:
    found: Found
    written: str
    metadata: dict[str, str]
    files: tuple[Path, ...]


def _describe(parts: _Parts) -> str:
    text = parts.written
    if parts.found.place:
        text += f", under {shown(parts.found.place)}"
    if parts.found.others:
        text += f" ({', '.join(repr(name) for name in parts.found.others)} also there)"
    return text


def _sha256_of(files: Sequence[Path]) -> str:
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "\n".join(f"{file.name}:{file_sha256(file)}" for file in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_index(path: Path, headers_only: bool, mapped: bool) -> _Parts:
    places, metadata = read_index(path)
    written: list[str] = []

    def read(shard: Path) -> dict[str, Tensor]:
        parts = _read_file(shard, "", headers_only, mapped)
        if parts.found.place:
            raise LoadError(
                f"{shard} holds its tensors under {shown(parts.found.place)}; expected a shard of {path.name}"
            )
        written.append(parts.written)
        return parts.found.tensors

    tensors = _with_shared_names(read_shards(path, places, read), metadata)
    files = tuple(path.parent / file for file in dict.fromkeys(places.values()))
    return _Parts(Found(tensors, ""), f"{written[0]}, {len(files)} shards", metadata, files)


def _read_file(path: Path, key: str, headers_only: bool, mapped: bool) -> _Parts:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not head:
        raise LoadError(f"{path} is empty (0 bytes); expected a checkpoint, copy or download it again")
    foreign = "" if head[8:9] == b"{" else name_foreign_file(path, head)
    if foreign:
        raise LoadError(f"{path} {foreign}")
    # A safetensors file opens with the length of its JSON header and the header's brace.
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))):
        header = read_header(path)
        tensors = header.tensors() if headers_only else _read_safetensors(path, mapped)
        tensors = _with_shared_names({name: tensors[name] for name in header.shapes}, header.metadata)
        if not tensors:
            raise LoadError(f"{path} holds no weights: its header lists no tensor")
        if key:
            raise LoadError(f"{path} is a safetensors file, which holds tensors and no places; drop ::{key}")
        return _Parts(Found(tensors, ""), "safetensors", header.metadata, (path,))
    content = read_torch(path, head, headers_only=headers_only, mapped=mapped)
    try:
        return _Parts(find_weights(content, str(path), key), "pytorch", {}, (path,))
    except RecursionError:  # a dict inside itself
        raise LoadError(f"{path}: damaged, its contents hold themselves; copy or download it again") from None


def _read_safetensors(path: Path, mapped: bool) -> dict[str, Tensor]:
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            stored = ((key, file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
            return {key: tensor if mapped else in_memory(tensor) for key, tensor in stored}
    except Exception as error:  # its own error class, and OSError, ValueError, KeyError on odd headers
        raise LoadError(
            f"{path}: not a readable safetensors file, truncated or damaged ({type(error).__name__}: "
            f"{quoted(str(error))}); copy or download it again"
        ) from None


def _with_shared_names(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Put back the names of shared tensors, which safetensors writes once, the rest into the metadata."""
    shared = {name: tensors[kept] for name, kept in metadata.items() if kept in tensors and name not in tensors}
    return {**tensors, **shared}


def require_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what no derivative can be taken of.

    Raises:
        QuantizedError: quantised weights.
        LoadError: sparse or complex ones.
    """
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.dtype in (torch.int8, torch.uint8) or _QUANTISED_NAME.search(name):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise QuantizedError(f"{path}: {shown(name)} is stored as {dtype}; {_QUANTISED}")
        if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise QuantizedError(f"{path}: {shown(name)} is stored as {dtype} without its scale; {_QUANTISED}")
        if tensor.layout is not torch.strided or tensor.is_complex():
            raise LoadError(f"{path}: {shown(name)} is a sparse or complex tensor; expected dense real weights")


def _require_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):  # an operation on it may do anything
            kind = type(tensor).__name__
            what = GATHER if kind == "DTensor" else "expected plain tensors, re-save them as such"
            raise LoadError(f"{path}: {shown(name)} is a {kind}; {what}")


def _require_sizes(tensors: Mapping[str, Tensor], path: Path, size: int) -> None:
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > size + _SLACK:  # one stored value may be spread over any shape
            raise LoadError(
                f"{path}: damaged, {shown(name)} of shape {tuple(tensor.shape)} is larger than the whole file ({size} "
                "bytes)"
            )
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > _MOST_SHARED * (size + _SLACK):  # one stored value may be spread over any number of tensors
        raise LoadError(f"{path}: damaged, its tensors take {total} bytes in a file of {size}")
