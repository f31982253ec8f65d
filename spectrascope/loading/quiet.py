"""Calling transformers and its relatives: without their chatter, and with a clear word where they are broken."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch

from spectrascope.errors import LoadError
from spectrascope.text import printable

__all__ = ["brief", "quietly", "transformers"]


def transformers() -> ModuleType:
    """The transformers package.

    Raises:
        LoadError: it cannot be imported, or the torchvision it imports was built for another torch.
    """
    # First, because transformers hides why an import of torchvision failed behind names of its own models.
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise LoadError(
            f"torchvision cannot be imported ({brief(error)}), and transformers' models need it; expected a "
            f"torchvision that matches torch {torch.__version__}, reinstall both together"
        ) from None
    try:
        import transformers as package
    except (ImportError, RuntimeError, OSError) as error:
        raise LoadError(f"transformers cannot be imported ({brief(error)}); pip install 'transformers>=5'") from None
    return package


@contextmanager
def quietly(*, bars: bool = False) -> Iterator[None]:
    """Silence log records, warnings and, but for ``bars``, progress bars; what the user had set returns afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with nullcontext() if bars else _without_bars():
                yield
    finally:
        logging.disable(before)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, where it is imported."""
    package = sys.modules.get("transformers")  # its import takes seconds, and not every caller needs it
    if package is None:
        yield
        return
    bars: Any = package.utils.logging
    if not hasattr(bars, "set_tqdm_hook"):  # older versions have one switch for both
        hub: Any = importlib.import_module("huggingface_hub.utils")
        shown, hub_hidden = bars.is_progress_bar_enabled(), hub.are_progress_bars_disabled()
        bars.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                bars.enable_progress_bar()
            if hub_hidden:
                hub.disable_progress_bars()
        return
    before = bars.set_tqdm_hook(lambda factory, args, kwargs: bars.EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        bars.set_tqdm_hook(before)


def brief(error: BaseException, length: int = 140) -> str:
    """Class and first telling line of an error, shortened, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(printable((lines or [""])[0], " ").split()).rstrip(".:; ")
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
