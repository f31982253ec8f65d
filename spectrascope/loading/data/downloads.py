"""Fetching dataset files, only where the user asks for it."""

from __future__ import annotations

import contextlib
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from spectrascope.loading.quiet import brief

__all__ = ["downloading", "fetch_archive", "reason"]

_PATIENCE = 30.0  # seconds a server may stay silent


@contextlib.contextmanager
def downloading() -> Iterator[None]:
    """Let torchvision download: what it prints goes to stderr, and a silent server is given up."""
    # urllib has no other way to a timeout through torchvision's functions; without one it waits for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
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


def reason(error: BaseException) -> str:
    """Why a download failed, in a few words."""
    return brief(error, 120).replace("<", "").replace(">", "")
