"""Refuse what is certainly not there, before seconds are spent on importing torch: files, folders, unknown names.

What is let pass may still be wrong; opening it says so. Nothing here imports torch or reads a file's content.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from spectrascope.errors import DataError, LoadError
from spectrascope.text import printable

__all__ = [
    "DATASETS", "SUFFIXES", "is_written_as_path", "model_names", "nearest_names", "no_such_checkpoint",
    "refuse_absent_data", "refuse_absent_model", "refuse_python_source",
]  # fmt: skip

SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors")
"""Endings of checkpoint files."""

DATASETS = (
    "digits", "folder:", "cifar10", "cifar100", "imagenet", "tiny-imagenet", "tiny-imagenet-train", "npz:", "pt:",
    "text:", "hf:", "synthetic",
)  # fmt: skip
"""What a dataset string is or begins with."""

_EXPECTED = {
    "folder": "a folder with a sub-folder per class",
    "npz": "a file with arrays x and y",
    "pt": "a file with tensors x and y",
    "text": "a plain text file",
}
_REGISTERED = re.compile(r"^@register_model\(\)\n(?:@.*\n|    .*\n|\)\n)*def (\w+)\(", re.MULTILINE)
_LONGEST = 200  # characters of the user's string in a message


def refuse_absent_model(spec: str, group: str = "spectrascope.models") -> None:
    """Refuse a model string whose file is not there, or a plain name that no source can know.

    Args:
        spec: as on the command line, of a network or an architecture.
        group: of the entry points by which installed distributions add sources.

    Raises:
        LoadError: certainly no network.
    """
    place = spec.rpartition(":")[0]
    if place.endswith(".py"):
        if not _exists(place):
            raise LoadError(f"{printable(spec)}: no such file {place}; expected file.py:factory")
        return
    refuse_python_source(spec)
    file = spec.partition("::")[0]
    if file.endswith(".json") and not file.endswith(".index.json") and os.path.isfile(file):
        raise LoadError(
            f"{printable(file)} holds JSON, no weights; saved reports are read by show, suggest-beta, triangle, gate"
        )
    name = re.split("[:@]", spec, maxsplit=1)[0]
    if _exists(file) or _is_installed(group, name):
        return
    if re.match(r"[\w.-]+:(?!:)", spec):  # hf:, timm:, mlp:, package.module:factory
        return
    if is_written_as_path(spec):
        raise no_such_checkpoint(file)
    known = model_names()
    bare = spec.rpartition("@")[0] or spec
    if known and bare not in known:
        near = nearest_names(bare, known)
        raise LoadError(
            f"no network named {printable(bare)[:_LONGEST]!r}; "
            + (f"nearest: {', '.join(near)}; " if near else "")
            + "expected a checkpoint file, a name of a network, hf:org/name, timm:NAME or file.py:factory "
            "(spectrascope probe --help lists what MODEL may be)"
        )


def refuse_absent_data(spec: str, group: str = "spectrascope.datasets") -> None:
    """Refuse a dataset string whose file or folder is not there, or whose kind no source can know.

    Raises:
        DataError: certainly no dataset.
    """
    kind, colon, rest = spec.partition(":")
    if kind in _EXPECTED:
        path = Path(rest).expanduser()
        if rest and not _exists(path):
            what = "folder" if kind == "folder" else "file"
            raise DataError(f"{printable(spec)[:_LONGEST]}: no such {what}; expected {_EXPECTED[kind]}")
        return
    kinds = [known.rstrip(":") for known in DATASETS]
    if not colon and kind not in kinds and not _exists(spec) and not _is_installed(group, kind):
        near = nearest_names(kind, kinds)
        raise DataError(
            f"no dataset named {printable(kind)[:_LONGEST]!r}; "
            + (f"nearest: {', '.join(near)}; " if near else "")
            + "expected digits, cifar10, cifar100, imagenet, tiny-imagenet, folder:PATH, npz:PATH, pt:PATH, text:FILE, "
            "hf:NAME or synthetic"
        )


def refuse_python_source(spec: str) -> None:
    """Refuse a file of Python that names no function in it.

    Raises:
        LoadError: it is one.
    """
    file = spec.partition("::")[0]
    if Path(file).suffix == ".py":
        raise LoadError(
            f"{spec} is Python source; expected {file}:factory, naming the function that returns the network"
        )


def no_such_checkpoint(path: str | Path) -> LoadError:
    """What to raise where a checkpoint is not there."""
    return LoadError(f"{path}: no such file; expected a checkpoint ({' '.join(SUFFIXES)})")


def is_written_as_path(spec: str) -> bool:
    """Whether a model string can only be meant as the path of a file or folder, there or not."""
    file = spec.partition("::")[0]
    return "::" in spec or any(s in file for s in {"/", os.sep}) or Path(file).suffix.lower() in SUFFIXES


@cache
def model_names() -> tuple[str, ...]:
    """Every network's plain name, torchvision's read off its source; none where torchvision is not installed."""
    from spectrascope.loading.zoo import ZOO

    found = importlib.util.find_spec("torchvision")
    if found is None or found.submodule_search_locations is None:
        return ()
    files = (path for root in found.submodule_search_locations for path in sorted(Path(root, "models").glob("*.py")))
    names = [name for path in files for name in _REGISTERED.findall(path.read_text(encoding="utf-8"))]
    return (*ZOO, *names) if names else ()


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """At most three known names that look like a misspelt one; ``resnet-20`` is near ``cifar-resnet20``."""
    known = list(known)
    wanted = name.casefold()
    bare = re.sub(r"[-_]", "", wanted)
    near = [other for other in known if bare and bare in re.sub(r"[-_]", "", other)]
    near += [other for other in difflib.get_close_matches(wanted, known, n=3, cutoff=0.5) if other not in near]
    return near[:3]


def _exists(path: str | Path) -> bool:
    """Whether something is there, or cannot be looked for: opening it says why."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return True


def _is_installed(group: str, name: str) -> bool:
    return bool(name) and bool(entry_points(group=group, name=name))
