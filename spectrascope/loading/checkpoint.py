"""Checkpoint files to state dicts. Nothing in a file is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spectrascope.errors import LoadError, NonFiniteError

__all__ = ["SUFFIXES", "Checkpoint", "file_sha256", "read_checkpoint", "require_finite", "strip_wrappers"]

SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors")

# Where training scripts keep the weights, best guess first.
_NESTS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module",
    "model_ema", "ema_state_dict", "ema", "teacher", "student",
)  # fmt: skip
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_QUANTISED = "quantised weights have no second derivatives; load the full-precision checkpoint it was made from"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of one file, wrapper prefixes removed, floats still in the file's precision.

    ``format`` says how the file was written and where in it the weights were ("pytorch, under 'state_dict'");
    ``metadata`` holds a safetensors header's strings.
    """

    state_dict: dict[str, Tensor]
    sha256: str
    path: Path
    format: str
    metadata: dict[str, str]

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


def strip_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{where}: {bad} of {tensor.numel()} values of {name!r} are NaN or infinite; expected "
                f"finite weights, use a checkpoint from before training diverged"
            )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights in a ``.pt``, ``.pth``, ``.th``, ``.bin``, ``.ckpt`` or ``.safetensors`` file.

    The format is told from the file's first bytes, not from its name. Weights may be nested under
    ``state_dict``, ``model`` and the like.

    Raises:
        LoadError: no such file, a directory, a truncated or foreign file, a pickle that wants to run code (it
            is not run), a whole pickled network, quantised weights.
        NonFiniteError: a weight is NaN or infinite.
    """
    path = Path(path)
    if not path.exists():
        raise LoadError(f"{path}: no such file; expected a checkpoint ({' '.join(SUFFIXES)})")
    if not path.is_file():
        raise LoadError(f"{path} is a directory; expected one checkpoint file ({' '.join(SUFFIXES)}) in it to be named")
    try:
        with path.open("rb") as file:
            head = file.read(16)
        sha256 = file_sha256(path)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not head:
        raise LoadError(f"{path} is empty (0 bytes); expected a checkpoint, copy or download it again")
    metadata: dict[str, str] = {}
    if _is_safetensors(path, head):
        (content, metadata), written = _read_safetensors(path), "safetensors"
    else:
        content, written = _read_torch(path, head), "pytorch"
    tensors, nest = _find_weights(content, path)
    _require_plain(tensors, path)
    require_finite(tensors, str(path))
    written += f", under {nest!r}" if nest else ""
    return Checkpoint(strip_wrappers(tensors), sha256, path, written, metadata)


def _is_safetensors(path: Path, head: bytes) -> bool:
    """A safetensors file opens with the length of its JSON header and the header's brace."""
    return head[8:9] == b"{" or (path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            # Cloned, because safetensors may map the file, and a mapped file can change under a measurement.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # its own error class, and OSError, ValueError, KeyError on odd headers
        raise LoadError(
            f"{path}: not a readable safetensors file, truncated or damaged ({_brief(error)}); copy or "
            f"download it again"
        ) from None


def _read_torch(path: Path, head: bytes) -> Any:
    if head.startswith(b"PK") and not _has_index(path):
        raise LoadError(
            f"{path}: truncated checkpoint, the archive's index at its end is missing; copy or download it again"
        )
    try:
        # From an open file, because by name torch hands anything called .safetensors to another reader. Not
        # memory-mapped, because a mapped file can change under a measurement.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, for files that are refused below anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file provokes anything from UnpicklingError to UnicodeDecodeError
        raise _explain(path, head, error) from None


def _has_index(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, OSError, ValueError):  # an index it finds but cannot make sense of
        return False


def _explain(path: Path, head: bytes, error: BaseException) -> LoadError:
    """Say in one line why torch would not read the file."""
    text = str(error)
    blocked = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", text)
    name = (blocked.group(1) or blocked.group(2)) if blocked else ""
    resave = "re-save it with torch.save(model.state_dict(), ...) or as safetensors"
    protocol = head[1] if head[:1] == b"\x80" else None
    if "TorchScript" in text:
        why = " is a TorchScript program, not weights; save the original network's state_dict() and pass that"
    elif name.startswith(("torch.nn.", "torchvision.", "timm.", "transformers.")):
        why = (
            f" holds a whole pickled network ({name}), which loading would have to run code for; expected "
            f"weights, {resave}"
        )
    elif name:
        why = (
            f": its pickle asks to run {name!r}; nothing was run, because a checkpoint may hold weights "
            f"only; from a source you trust, {resave}"
        )
    elif protocol is not None and 2 < protocol <= pickle.HIGHEST_PROTOCOL:
        why = " is a plain pickle, which may run code and was not run; expected torch.save or safetensors"
    elif head.startswith(b"PK") or protocol == 2:
        why = f": truncated or damaged checkpoint ({_brief(error)}); copy or download it again"
    else:
        why = f" is not a checkpoint ({_brief(error)}); expected a file written by torch.save or safetensors"
    return LoadError(f"{path}{why}")


def _brief(error: BaseException) -> str:
    """The telling line of an error, shortened; torch buries it below advice to switch its protection off."""
    text = str(error)
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    if inner:
        text = inner.group(1)
    elif text.startswith("Weights only load failed"):
        text = ""
    first = (text.strip().splitlines() or [""])[0].rstrip(".:; ")
    return f"{type(error).__name__}: {first[:100]}" if first else type(error).__name__


def _find_weights(content: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """Find the dict of tensors in what a file holds, and the dotted place it was at."""
    if isinstance(content, Tensor):
        raise LoadError(f"{path} holds a single tensor; expected a state dict (parameter name -> tensor)")
    if not isinstance(content, Mapping):
        raise LoadError(f"{path} holds a {type(content).__name__}; expected a state dict (parameter name -> tensor)")
    found = _search(content, "", 0)
    if found is None:
        keys = ", ".join(repr(key) for key in list(content)[:5])
        raise LoadError(
            f"{path} holds no weights: expected a state dict (parameter name -> tensor), bare or under "
            f"'state_dict' or 'model', got a dict with keys {keys or 'none'}"
        )
    return found


def _search(content: Mapping[Any, Any], place: str, depth: int) -> tuple[dict[str, Tensor], str] | None:
    tensors = {
        key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    others = [key for key in content if key not in tensors and not str(key).endswith("_extra_state")]
    if tensors and not others:
        return tensors, place
    if depth < 3:
        names = [key for key in _NESTS if key in content]
        names += [key for key in others if key not in names and "optim" not in str(key)]
        for key in names:
            if isinstance(content[key], Mapping):
                below = _search(content[key], f"{place}.{key}" if place else str(key), depth + 1)
                if below is not None:
                    return below
    # A state dict with an epoch number or the like beside its tensors.
    weights = {key: value for key, value in tensors.items() if "." in key}
    return (weights, place) if weights else None


def _require_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.dtype in (torch.int8, torch.uint8):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise LoadError(f"{path}: {name!r} is stored as {dtype}; {_QUANTISED}")
        if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise LoadError(f"{path}: {name!r} is stored as {dtype} without its scale; {_QUANTISED}")
        if tensor.layout is not torch.strided or tensor.is_complex():
            raise LoadError(f"{path}: {name!r} is a sparse or complex tensor; expected dense real weights")
