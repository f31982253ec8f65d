"""Fetching published files, only where the user asks for it."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from spectrascope.errors import LoadError
from spectrascope.loading.quiet import brief

__all__ = ["downloading", "fetch_archive", "fetch_published", "reason"]

# Seconds a server may stay silent.
_FOR_DATA = 30.0
_FOR_WEIGHTS = 20.0


@contextlib.contextmanager
def downloading(patience: float = _FOR_DATA) -> Iterator[None]:
    """Let torch and torchvision download: what they print goes to stderr, and a silent server is given up."""
    # urllib has no other way to a timeout through their functions; without one it waits for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(patience)
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        socket.setdefaulttimeout(before)


def fetch_archive(url: str, md5: str, folder: Path) -> None:
    """Download an archive, with progress on stderr, and unpack it into ``folder`` once its checksum is right.

    Members with paths that lead elsewhere are unpacked inside ``folder`` nevertheless.

    Raises:
        Exception: whatever went wrong, from the network to a full disk; see :func:`reason`.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    with downloading():
        download_and_extract_archive(url, str(folder), md5=md5)


def fetch_published(url: str, name: str, *, allow_download: bool) -> Path:
    """The weights at ``url`` from torch hub's cache, downloaded with a progress bar where they are not there yet.

    Args:
        url: address; a hash in the file's name is checked.
        name: what the weights are called, for messages.
        allow_download: fetch what is not in the cache.

    Raises:
        LoadError: the file is not in the cache and cannot be downloaded.
    """
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.exists():
        return file
    place = f"put {file.name} from {url} into {file.parent}"
    if not allow_download:
        raise LoadError(f"{name} are not on this machine and downloads are off; {place}")
    stated = re.search(r"-([a-f0-9]{8,})\.", file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Called directly because torch's loader prints a line before it knows that there is a connection; the
        # progress bar comes only after. Stdout is for data.
        with downloading(_FOR_WEIGHTS):
            torch.hub.download_url_to_file(url, str(file), stated and stated.group(1), progress=True)
    except Exception as error:  # URLError, HTTPError, timeouts, a full disk, a wrong hash
        detail = " ".join(str(error).split())[:120]
        raise LoadError(f"{name} could not be downloaded ({detail}); {place}") from None
    return file


def reason(error: BaseException) -> str:
    """Why a download failed, in a few words."""
    return brief(error, 120).replace("<", "").replace(">", "")
