"""What a checkpoint says itself about its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spectrascope.errors import LoadError
from spectrascope.loading.models.huggingface.config import read_json

__all__ = ["named_architecture"]

_KEYS = ("architecture", "model_name", "arch", "model")


def named_architecture(spec: str, metadata: Mapping[str, str]) -> str:
    """The architecture that a file's metadata or timm's ``config.json`` beside it names; empty where none does.

    It is a hint: nothing is loaded by it unless every key and shape fits.

    >>> named_architecture("net.safetensors", {"architecture": "timm/resnet50d.ra2_in1k"})
    'resnet50d'
    """
    place = Path(spec.partition("::")[0])
    folder = place if place.is_dir() else place.parent
    found = next((metadata[key] for key in _KEYS if metadata.get(key)), None)
    if found is None and (folder / "config.json").is_file():
        try:
            found = read_json(folder / "config.json").get("architecture")
        except LoadError:
            found = None
    if not isinstance(found, str):
        return ""
    return found.removeprefix("timm:").removeprefix("timm/").partition(".")[0]
