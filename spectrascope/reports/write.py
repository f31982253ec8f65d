"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from spectrascope.errors import OptionError

__all__ = ["check_writable", "is_special", "write_bytes_atomically", "write_text_atomically"]


def check_writable(path: Path) -> None:
    """Refuse an output path that could not be written, before a long measurement rather than after.

    An existing file at ``path`` is left as it is.

    Raises:
        OptionError: a folder, a missing or read-only folder, or a read-only file.
    """
    if path.is_dir():
        raise OptionError(f"cannot write {path}: it is a folder, name a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise OptionError(f"cannot write {path}: the file is read-only")
    if is_special(path):
        return
    handle = _open_beside(path)
    os.close(handle[0])
    os.unlink(handle[1])


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text beside ``path`` and move it into place, so a reader never sees half a file.

    A symbolic link is followed, and an existing file keeps its permissions. Something that is no regular
    file (``/dev/stdout``, a pipe) is written to directly.

    Raises:
        OptionError: the folder is missing or not writable, or the disk is full.
    """
    write_bytes_atomically(path, text.encode("utf-8", "backslashreplace"))


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write bytes as :func:`write_text_atomically` writes text.

    Raises:
        OptionError: the folder is missing or not writable, or the disk is full.
    """
    if is_special(path):
        try:
            path.write_bytes(data)
        except OSError as error:
            raise _cannot_write(path, error) from error
        return
    target = Path(os.path.realpath(path))
    descriptor, name = _open_beside(path)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)  # else a power cut could leave the new name with nothing behind it
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(name, target)
    except OSError as error:
        _remove(name)
        raise _cannot_write(path, error) from error
    except BaseException:
        _remove(name)
        raise


def _open_beside(path: Path) -> tuple[int, str]:
    target = Path(os.path.realpath(path))
    try:
        return tempfile.mkstemp(prefix=".spectrascope-", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> OptionError:
    if isinstance(error, FileNotFoundError):
        return OptionError(f"cannot write {path}: the folder {path.parent} does not exist")
    return OptionError(f"cannot write {path}: {error.strerror or error}")


def is_special(path: Path) -> bool:
    """Whether this is there and no regular file: ``/dev/stdout``, a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _remove(name: str) -> None:
    if os.path.exists(name):
        os.unlink(name)
