"""Files written by ``torch.save``: read without running anything in them, and where in them the weights are."""

from __future__ import annotations

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

from spectrascope.errors import LoadError, QuantizedError
from spectrascope.loading.checkpoints.foreign import ARRAYS_TO_TENSORS, name_foreign_archive, name_text
from spectrascope.loading.checkpoints.headers import quoted
from spectrascope.loading.checkpoints.stand_ins import (
    StandIn,
    UnreadableError,
    holds_arrays,
    names_network,
    needs_name,
    read_with_stand_ins,
)

__all__ = ["GATHER", "Found", "find_weights", "read_torch", "require_plain_archive"]

_AGAIN = "copy or download it again"
GATHER = (
    "save the whole ones: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True))"
)


def read_torch(path: Path, head: bytes, *, headers_only: bool = False, mapped: bool = False) -> Any:
    """Read what ``torch.save`` wrote.

    Args:
        path: the file.
        head: its first bytes.
        headers_only: leave the data where they are; tensors are on the meta device. Files of the format before
            torch 1.6 have no list of contents and are read in full, then dropped.
        mapped: leave the data in the file, memory-mapped, where it is not of that old format: for those who copy each
            tensor (:func:`~spectrascope.loading.checkpoints.mapped.in_memory`), because a mapped file can change later.

    Raises:
        LoadError: truncated, foreign, compressed, or a pickle that wants to run code (it is not run).
    """
    archive = head.startswith(b"PK")
    if archive:
        require_plain_archive(path)

    def read(headers_only: bool) -> Any:
        place = "meta" if headers_only else "cpu"
        # By name torch hands anything called .safetensors to another reader.
        if (headers_only or mapped) and archive and path.suffix != ".safetensors":
            try:
                return torch.load(str(path), map_location=place, weights_only=True, mmap=True)
            except RuntimeError as error:
                if "unable to mmap" not in str(error):  # some file systems cannot
                    raise
        with path.open("rb") as file:
            return torch.load(file, map_location=place, weights_only=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols, for files that are refused below anyway
        try:
            return read(headers_only)
        except Exception as error:  # a damaged file provokes anything, even UnicodeDecodeError
            refused = error
        try:
            return read_with_stand_ins(read, refused, headers_only=headers_only)
        except UnreadableError as error:
            raise _explain(path, head, refused, error.name) from None


def require_plain_archive(path: Path) -> None:
    """Refuse an archive that torch.save, which never compresses, did not write: what it holds is no larger than itself.

    Raises:
        LoadError: it is compressed, damaged, or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # zipfile lets through what struct, codecs and seeking raise on damaged entries
        raise LoadError(
            f"{path}: truncated or damaged checkpoint, the archive's index at its end is missing or wrong; {_AGAIN}"
        ) from None
    foreign = name_foreign_archive([entry.filename for entry in entries])
    if foreign:
        raise LoadError(f"{path} {foreign}")
    if any("/code/" in entry.filename for entry in entries):
        return  # TorchScript compresses its program; torch.load says what it is and reads nothing
    size = path.stat().st_size
    claimed = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or claimed > size:
        raise LoadError(
            f"{path}: its archive is compressed or claims {claimed} bytes in a file of {size}; torch.save writes "
            "neither, re-save it with torch.save(model.state_dict(), ...)"
        )


_RESAVE = "re-save it with torch.save(model.state_dict(), ...) or as safetensors"


def _explain(path: Path, head: bytes, error: BaseException, name: str) -> LoadError:
    """Say in one line why torch would not read the file; ``name`` is what it asks for, where that is the reason."""
    text = str(error)
    blocked = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)", text)
    name = name or ((blocked.group(1) or blocked.group(2)) if blocked else "")
    protocol = head[1] if head[:1] == b"\x80" else None
    if "TorchScript" in text:
        why = " is a TorchScript program, not weights; save the original network's state_dict() and pass that"
    elif name.startswith("torch.distributed"):
        why = f" holds tensors that are spread over processes ({name}); {GATHER}"
    elif name:
        why = _asks_to_run(name)
    elif protocol is not None and 2 < protocol <= pickle.HIGHEST_PROTOCOL:
        why = " is a plain pickle, which may run code and was not run; expected torch.save or safetensors"
    elif head.startswith(b"PK") or protocol == 2:
        why = f": truncated or damaged checkpoint ({_brief(error)}); {_AGAIN}"
    elif saying := name_text(head):
        why = f" {saying}"
    else:
        why = f" is not a checkpoint ({_brief(error)}); expected a file written by torch.save or safetensors"
    return LoadError(f"{path}{why}")


def _asks_to_run(name: str) -> str:
    return (
        f": its pickle asks to run {name[:100]!r}; nothing was run, because a checkpoint may hold weights "
        f"only; from a source you trust, {_RESAVE}"
    )


def _pickled_network(name: str) -> str:
    return (
        f" holds a whole pickled network ({name[:100]}), which loading would have to run code for; expected "
        f"weights, {_RESAVE}"
    )


def _brief(error: BaseException) -> str:
    """The telling line of an error, shortened; torch buries it below advice to switch its protection off."""
    text = str(error)
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", text)
    if inner:
        text = inner.group(1)
    elif text.startswith("Weights only load failed"):
        text = ""
    first = quoted(text).rstrip(".:; ")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


# Where training scripts keep the weights, best guess first.
_MAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
_NESTS = (
    *_MAIN, "model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model", "averaged_model", "teacher", "student",
)  # fmt: skip
_AVERAGED = re.compile(r"(.*_)?(ema|swa|averaged?|shadow)(_.*)?", re.IGNORECASE)
_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Found:
    """The dict of tensors, the dotted place it was at, and where else there were weights."""

    tensors: dict[str, Tensor]
    place: str
    others: tuple[str, ...] = ()


def find_weights(content: Any, where: str, key: str = "") -> Found:
    """Find the dict of tensors in what a file holds.

    Args:
        content: what was read.
        where: the file, for messages.
        key: dotted place to look at; the likeliest one when empty.

    Raises:
        LoadError: there are no named tensors, or nothing at ``key``.
    """
    if isinstance(content, StandIn):
        network = names_network(content)
        raise LoadError(f"{where}{_pickled_network(network) if network else _asks_to_run(content.named)}")
    if isinstance(content, Tensor):
        raise LoadError(f"{where} holds a single tensor; expected a state dict (parameter name -> tensor)")
    if not isinstance(content, Mapping):
        raise LoadError(f"{where} holds a {type(content).__name__}; expected a state dict (parameter name -> tensor)")
    if key:
        content = _descend(content, key, where)
    if _is_optimizer(content):
        raise LoadError(
            f"{where} holds an optimizer's state; expected a network's weights, saved by model.state_dict()"
        )
    found = _search(content, key, 0, where)
    if _holds_packed(content, 0):
        raise QuantizedError(
            f"{where} holds the packed weights of torch's quantised layers (…._packed_params); quantised weights have "
            "no second derivatives; load the full-precision checkpoint it was made from"
        )
    if found is None:
        if isinstance(content.get("shadow_params"), list):
            raise LoadError(
                f"{where} holds averaged weights without their names ('shadow_params'); copy them into the network "
                "(ema.copy_to) and save its state_dict()"
            )
        if network := names_network(content):
            raise LoadError(f"{where}{_pickled_network(network)}")
        if needed := needs_name(content):
            raise LoadError(f"{where}{_asks_to_run(needed)}")
        raise LoadError(f"{where} {_what_instead(content, where)}")
    beside = _descend(content, found.place.removeprefix(key).removeprefix("."), where)
    for name, value in beside.items():  # an epoch number may be left aside, a weight may not
        if isinstance(value, StandIn) and ("." in str(name) and not str(name).endswith("_extra_state")):
            raise LoadError(f"{where}{_asks_to_run(value.named)}")
    first = next((name for name in _NESTS if name in content), "")
    network = names_network(content[first]) if first and isinstance(content[first], StandIn) else ""
    if network and found.place.partition(".")[0] not in _NESTS:
        raise LoadError(f"{where}{_pickled_network(network)}")
    return found


def _what_instead(content: Mapping[Any, Any], where: str) -> str:
    """What a dict holds in which no weights were found, and what to do."""
    if holds_arrays(content):
        return (
            "holds NumPy arrays, not tensors; with ARRAYS = torch.load(FILE, weights_only=False), if you trust it, "
            f"write {ARRAYS_TO_TENSORS} and pass that"
        )
    place, listed = _place_of_tensors(content)
    if place and listed:
        return f"holds weights in a list, at {quoted(place)}; save the state dict you mean by itself"
    if place:
        return f"holds weights deeper than is looked, at {quoted(place)}; name the place, as {where}::{place}"
    keys = ", ".join(repr(name)[:60] for name in list(content)[:5])
    return (
        "holds no weights: expected a state dict (parameter name -> tensor), bare or under 'state_dict' or 'model', "
        f"got a dict with keys {keys or 'none'}"
    )


def _place_of_tensors(content: Mapping[Any, Any]) -> tuple[str, bool]:
    """Dotted place of the first dict of named tensors that is no optimizer's, and whether a list lies on the way."""
    left: list[tuple[str, bool, Any]] = [("", False, content)]
    seen: set[int] = set()
    while left:
        place, listed, at = left.pop(0)
        if id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at, (list, tuple)):
            left += [(place, True, item) for item in at]
        elif isinstance(at, Mapping) and not _is_optimizer(at):
            if place and any(isinstance(key, str) and isinstance(value, Tensor) for key, value in at.items()):
                return place, listed
            left += [
                (f"{place}.{key}" if place and not listed else place or str(key), listed, v) for key, v in at.items()
            ]
    return "", False


def _descend(content: Mapping[Any, Any], key: str, where: str) -> Mapping[Any, Any]:
    at: Any = content
    rest = key
    while rest:
        names = [str(name) for name in at] if isinstance(at, Mapping) else []
        # A name may hold dots itself: the longest that fits.
        step = max((n for n in names if rest == n or rest.startswith(n + ".")), key=len, default=None)
        if step is None:
            known = ", ".join(repr(name)[:40] for name in names[:8]) or "nothing with names"
            raise LoadError(f"{where} has nothing at {key!r}: expected one of {known}")
        at = next(value for name, value in at.items() if str(name) == step)
        rest = rest[len(step) + 1 :]
    if not isinstance(at, Mapping):
        raise LoadError(f"{where} holds a {type(at).__name__} at {key!r}; expected a state dict")
    return at


def _is_optimizer(content: Mapping[Any, Any]) -> bool:
    return "param_groups" in content and "state" in content


def _holds_packed(content: Mapping[Any, Any], depth: int) -> bool:
    if any(str(key).endswith("_packed_params") for key in content):
        return True
    return depth < _DEPTH and any(_holds_packed(v, depth + 1) for v in content.values() if isinstance(v, Mapping))


def _search(content: Mapping[Any, Any], place: str, depth: int, where: str) -> Found | None:
    """Find the weights in a dict, and which else there are.

    Raises:
        LoadError: there are several sets, and no name says which one is the network.
    """
    if _is_optimizer(content):
        return None
    tensors = {
        key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    others = [key for key in content if key not in tensors and not str(key).endswith("_extra_state")]
    if tensors and not others:
        return Found(tensors, place)
    if depth < _DEPTH:
        names = [key for key in _NESTS if key in content]
        names += [key for key in others if key not in names and "optim" not in str(key)]
        held = {key: _search_below(content, key, place, depth, where) for key in names}
        found = {key: below for key, below in held.items() if below is not None}
        sets = [key for key, below in found.items() if _has_matrix(below)]
        chosen = next(iter(sets or found), None)
        plain = [key for key in sets if not _AVERAGED.fullmatch(str(key))]
        if len(sets) > 1 and chosen not in _MAIN:
            if len(plain) != 1:
                counts = ", ".join(f"{key!r} ({len(found[key].tensors)} tensors)"[:60] for key in sets[:8])
                raise LoadError(
                    f"{where} holds several sets of weights: {counts}; name the one to take, as "
                    f"{where}::{found[sets[0]].place}"
                )
            chosen = plain[0]
        if chosen is not None:
            below = found[chosen]
            return Found(below.tensors, below.place, (*(str(key) for key in sets if key != chosen), *below.others))
    # A state dict with an epoch number or the like beside its tensors.
    weights = {key: value for key, value in tensors.items() if "." in key}
    return Found(weights, place) if weights else None


def _search_below(content: Mapping[Any, Any], key: Any, place: str, depth: int, where: str) -> Found | None:
    inside = content[key]
    if not isinstance(inside, Mapping):
        return None
    return _search(inside, f"{place}.{key}" if place else str(key), depth + 1, where)


def _has_matrix(found: Found) -> bool:
    return any(value.ndim >= 2 and value.is_floating_point() for value in found.tensors.values())
