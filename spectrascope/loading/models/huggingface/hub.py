"""Files of a Hugging Face Hub repository: from the local cache, else downloaded."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.headers import dtype_of
from spectrascope.loading.checkpoints.read import Checkpoint, require_plain, strip_wrappers
from spectrascope.loading.models.huggingface.weights import (
    SAFETENSORS,
    WeightFiles,
    find_weight_files,
    is_mask,
    require_unpacked,
)
from spectrascope.loading.quiet import brief, quietly
from spectrascope.records.values import Missing

__all__ = ["HubSpec", "fetch_headers", "fetch_snapshot", "parse_hub_spec"]

_SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]
_TIMEOUT = 10.0  # seconds until a Hub that does not answer is given up


@dataclass(frozen=True, slots=True)
class HubSpec:
    """A repository on the Hub and the revision (branch, tag or commit) of it."""

    repo: str
    revision: str

    @property
    def name(self) -> str:
        """As the user writes it."""
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision != "main" else "")

    def place(self) -> str:
        """Where its files may be put by hand."""
        from huggingface_hub import constants

        folder = f"models--{self.repo.replace('/', '--')}"
        return (
            f"pass a local folder with its config.json and model.safetensors, or put them into the cache "
            f"({Path(constants.HF_HUB_CACHE) / folder})"
        )


def parse_hub_spec(spec: str) -> HubSpec:
    """Read ``hf:org/name`` or ``hf:org/name@revision``.

    >>> parse_hub_spec("hf:org/name@v1.0")
    HubSpec(repo='org/name', revision='v1.0')

    Raises:
        LoadError: it is neither.
    """
    repo, at, revision = spec.removeprefix("hf:").partition("@")
    well_formed = re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", repo) and ".." not in repo and "--" not in repo
    named = not at or (re.fullmatch(r"[\w./-]{1,200}", revision) and ".." not in revision)
    if not well_formed or not named:
        raise LoadError(f"{spec[:120]!r}: expected hf:org/name or hf:org/name@revision, as on huggingface.co")
    return HubSpec(repo, revision or "main")


def fetch_snapshot(spec: HubSpec, *, allow_download: bool, trust_remote_code: bool, headers_only: bool) -> Path:
    """Folder with the repository's files, downloaded where the cache does not hold them and ``allow_download`` is set.

    Only what a network needs is downloaded; with ``headers_only`` safetensors files are not, see
    :func:`fetch_headers`.

    Raises:
        LoadError: the files are neither in the cache nor to be had.
    """
    import huggingface_hub
    from huggingface_hub import constants

    cached = _cached(spec, headers_only=headers_only)
    if cached is not None:
        return cached
    if not allow_download:
        raise LoadError(f"{spec.name} is not in the cache and downloads are off; {spec.place()}")
    if constants.HF_HUB_OFFLINE:
        raise LoadError(f"{spec.name} is not in the cache and HF_HUB_OFFLINE is set; {spec.place()}")
    try:
        with quietly(bars=True):  # those of the download
            info = huggingface_hub.HfApi().model_info(spec.repo, revision=spec.revision, timeout=_TIMEOUT)
            files = [sibling.rfilename for sibling in info.siblings or []]
            return Path(
                huggingface_hub.snapshot_download(
                    spec.repo,
                    revision=spec.revision,  # by its name, so that the cache knows the name without the network
                    allow_patterns=_wanted(files, trust_remote_code=trust_remote_code, headers_only=headers_only),
                )
            )
    except Exception as error:  # offline, not found, gated, a full disk, an interrupted transfer
        raise LoadError(f"{spec.name} {_explain(error)}; {spec.place()}") from None


def fetch_headers(spec: HubSpec, folder: Path) -> WeightFiles:
    """Names and shapes of a repository's one safetensors file, of which only the beginning is downloaded.

    Args:
        spec: the repository.
        folder: what :func:`fetch_snapshot` returned for it.

    Raises:
        LoadError: there is none, or it cannot be had.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with quietly():
            metadata = huggingface_hub.HfApi().parse_safetensors_file_metadata(
                spec.repo, SAFETENSORS, revision=folder.name, timeout=_TIMEOUT
            )
    except errors.EntryNotFoundError:
        metadata = None
    except Exception as error:
        raise LoadError(f"{spec.name} {_explain(error)}; {spec.place()}") from None
    if metadata is None:
        return find_weight_files(folder)  # which says what is there instead
    path = folder / SAFETENSORS
    tensors = {
        key: torch.empty(tuple(info.shape), dtype=dtype_of(path, key, str(info.dtype)), device="meta")
        for key, info in metadata.tensors.items()
    }
    require_plain({key: value for key, value in tensors.items() if not is_mask(key, tuple(value.shape))}, path)
    headers = Checkpoint(
        strip_wrappers(tensors), Missing("only headers were read"), path, "safetensors", metadata.metadata or {}
    )
    require_unpacked(headers)
    return WeightFiles(path, elsewhere=headers)


def _cached(spec: HubSpec, *, headers_only: bool) -> Path | None:
    import huggingface_hub

    try:
        with quietly():
            folder = Path(
                huggingface_hub.snapshot_download(
                    spec.repo, revision=spec.revision, local_files_only=True, allow_patterns=["config.json"]
                )
            )
    except Exception:  # not there, or only in part
        return None
    if (folder / "adapter_config.json").is_file() and list(folder.glob("adapter_model.*")):
        return folder
    if not (folder / "config.json").is_file():
        return None
    try:
        find_weight_files(folder, headers_only=headers_only)
    except LoadError:
        return None
    return folder


def _wanted(files: list[str], *, trust_remote_code: bool, headers_only: bool) -> list[str]:
    """The files at the top of the repository that a network needs, its weights in one format only."""
    top = [file for file in files if "/" not in file]
    wanted = [file for file in top if any(fnmatch.fnmatch(file, pattern) for pattern in _SMALL)]
    if trust_remote_code:
        wanted += [file for file in top if file.endswith(".py")]
    safetensors = [file for file in top if file.endswith(".safetensors")]
    standard = [file for file in safetensors if re.fullmatch(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors", file)]
    weights = standard or [f for f in top if re.fullmatch(r"(pytorch|adapter)_model(-\d+-of-\d+)?\.bin", f)]
    if headers_only and (SAFETENSORS in weights or any(file.endswith(".index.json") for file in wanted)):
        # Its header says what it holds, an index names the tensors; both without what is large.
        weights = [file for file in weights if file.startswith("adapter_")]
    return wanted + weights


def _explain(error: Exception) -> str:
    from huggingface_hub import errors

    reasons: list[tuple[Any, str]] = [
        (errors.GatedRepoError, "is gated: accept its terms on huggingface.co and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "does not exist on the Hub, or is private (set HF_TOKEN)"),
        (errors.RevisionNotFoundError, "has no such revision"),
    ]
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    return f"is not in the cache and could not be downloaded ({brief(error, 100)})"
