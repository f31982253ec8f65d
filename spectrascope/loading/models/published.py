"""Published weight files at a plain address: from torch hub's cache, else downloaded."""

from __future__ import annotations

import re
import socket
import sys
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import urlparse

import torch

from spectrascope.errors import LoadError

__all__ = ["fetch_published"]

_TIMEOUT = 20.0  # seconds until a server that does not answer is given up


def fetch_published(url: str, name: str, *, allow_download: bool) -> Path:
    """The file at ``url`` in torch hub's cache, downloaded with a progress bar where it is not there yet.

    Args:
        url: address; a hash in the file's name is checked.
        name: what the weights are called, for messages.
        allow_download: fetch what is not in the cache.

    Raises:
        LoadError: the file is not in the cache and cannot be downloaded.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if file.exists():
        return file
    place = f"put {file.name} from {url} into {file.parent}"
    if not allow_download:
        raise LoadError(f"{name} are not on this machine and downloads are off; {place}")
    stated = re.search(r"-([a-f0-9]{8,})\.", file.name)
    before = socket.getdefaulttimeout()  # torch passes none to urllib, which would wait for ever
    try:
        socket.setdefaulttimeout(_TIMEOUT)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Called directly because torch's loader prints a line before it knows that there is a connection; the
        # progress bar comes only after. Stdout is for data.
        with redirect_stdout(sys.stderr):
            torch.hub.download_url_to_file(url, str(file), stated and stated.group(1), progress=True)
    except Exception as error:  # URLError, HTTPError, timeouts, a full disk, a wrong hash
        detail = " ".join(str(error).split())[:120]
        raise LoadError(f"{name} could not be downloaded ({detail}); {place}") from None
    finally:
        socket.setdefaulttimeout(before)
    return file
