"""Checkpoints in several files: an index that says which shard holds which tensor, and folders of one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.foreign import name_foreign_folder
from spectrascope.loading.checkpoints.headers import load_json, shown, strings_of

__all__ = ["INDEX_SUFFIX", "find_in_folder", "read_index", "read_shards", "require_shards"]

INDEX_SUFFIX = ".index.json"
_LIMIT = 100_000_000
_PREFERRED = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")


def read_index(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read an index: tensor name -> file name of its shard, in the index's order; and its free-form strings.

    Raises:
        LoadError: not an index, or a shard that is not a plain file name beside it.
    """
    try:
        if path.stat().st_size > _LIMIT:
            raise LoadError(f"{path} is larger than any index ({_LIMIT} bytes); expected a list of shards")
        text = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path}: cannot be read ({error.strerror or error})") from None
    document = load_json(text, str(path))
    places = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(places, dict) or not places:
        raise LoadError(
            f"{path} is not an index of shards: expected a JSON object with a 'weight_map' of names to files"
        )
    for name, file in places.items():
        if not _is_file_name(file):
            raise LoadError(
                f"{path}: {shown(name)} is said to be in {shown(file)}; expected the name of a file beside the index"
            )
        if file.endswith(".json"):
            raise LoadError(f"{path}: {shown(name)} is said to be in {shown(file)}, another index; expected tensors")
    return places, strings_of(document.get("metadata"))


def _is_file_name(file: object) -> bool:
    return (
        isinstance(file, str)
        and 0 < len(file.encode("utf-8", "replace")) < 256
        and file.isprintable()
        and (file not in (".", "..") and not any(c in file for c in "/\\\0:"))
    )


def require_shards(path: Path, places: dict[str, str]) -> None:
    """Refuse an index of which a shard is not there.

    Raises:
        LoadError: one is missing.
    """
    shards = dict.fromkeys(places.values())
    missing = [file for file in shards if not (path.parent / file).is_file()]
    if missing:
        count = sum(file in missing for file in places.values())
        raise LoadError(
            f"{path}: {len(missing)} of {len(shards)} shards are missing, with {count} tensors ({missing[0]}"
            f"{', …' if len(missing) > 1 else ''}); expected them in {path.parent}, copy or download them"
        )


def read_shards(path: Path, places: dict[str, str], read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read every shard of an index and put the tensors in the index's order.

    Further names of a listed tensor, which a shard's own metadata give, come last.

    Args:
        path: of the index.
        places: what :func:`read_index` found.
        read: reads the tensors of one shard.

    Raises:
        LoadError: a shard is missing or unreadable, or does not hold exactly what the index says.
    """
    require_shards(path, places)
    shards: dict[str, list[str]] = {}
    for name, file in places.items():
        shards.setdefault(file, []).append(name)
    tensors: dict[str, Tensor] = {}
    for file, names in shards.items():
        found = read(path.parent / file)
        absent = [name for name in names if name not in found]
        if absent:
            raise LoadError(
                f"{path.parent / file} lacks {len(absent)} of the {len(names)} tensors that {path.name} says it has, "
                f"e.g. {shown(absent[0])}; the files are not of one checkpoint, copy or download them again"
            )
        listed = {id(found[name]) for name in names}
        extra = [name for name, tensor in found.items() if id(tensor) not in listed]
        if extra:
            raise LoadError(
                f"{path.parent / file} holds {shown(extra[0])}, which {path.name} does not list in it; the files are "
                "not of one checkpoint, copy or download them again"
            )
        tensors.update(found)
    return {name: tensors[name] for name in (*places, *tensors)}


def find_in_folder(folder: Path, suffixes: tuple[str, ...]) -> Path:
    """The one checkpoint in a folder: an index, else a file of the usual name, else the only one.

    Raises:
        LoadError: none, several, or a format that is not read.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise LoadError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if any(name.endswith(".distcp") for name in names):  # Lightning keeps a meta.pt beside its parts
        raise LoadError(f"{folder} {name_foreign_folder(folder, names)}")
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    safe = [name for name in indices if ".safetensors." in name]
    files = [name for name in names if name.lower().endswith(suffixes) and not _is_optimizer(name)]
    usual = [name for name in _PREFERRED if name in files]
    for candidates in (safe, indices, usual[:1], files):
        if len(candidates) == 1:
            return folder / candidates[0]
        if candidates:
            listed = ", ".join(candidates[:6]) + (", …" if len(candidates) > 6 else "")
            raise LoadError(f"{folder} holds {len(candidates)} checkpoints ({listed}); name the one you mean")
    foreign = name_foreign_folder(folder, names)
    if foreign:
        raise LoadError(f"{folder} {foreign}")
    usual_names = " ".join(_PREFERRED)
    raise LoadError(f"{folder} holds no checkpoint; expected a {INDEX_SUFFIX} file or one of {usual_names} in it")


def _is_optimizer(name: str) -> bool:
    return name.startswith(("optimizer", "scheduler", "rng_state", "training_args", "scaler", "adapter_"))
