"""Models by name with the weights that their library publishes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.checkpoints.skeleton import build_skeleton
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models import timm as timm_models
from spectrascope.loading.models import torchvision as torchvision_models
from spectrascope.loading.models.architectures import Architecture
from spectrascope.loading.models.finish import finish
from spectrascope.loading.models.fit import fill_architecture
from spectrascope.loading.models.published import fetch_published

__all__ = ["load_timm", "load_torchvision"]


def _require_classes(spec: str, published: int, num_classes: int | None, name: str) -> None:
    if num_classes not in (None, published):
        raise LoadError(
            f"{spec}: the published weights have {published} outputs, not {num_classes}; use "
            f"{name}@none or pass a checkpoint trained on {num_classes} classes"
        )


def load_torchvision(
    spec: str,
    architecture: Architecture,
    which: str | None,
    *,
    num_classes: int | None,
    allow_download: bool,
    headers_only: bool,
) -> LoadedModel:
    """Load a torchvision model with the weights of this name, the default ones for ``None``.

    Raises:
        LoadError: no such weights, or they are neither cached nor downloadable.
    """
    name = architecture.name
    entry = torchvision_models.find_weights(name, which)
    count = len(entry.meta["categories"])
    _require_classes(spec, count, num_classes, name)
    file = None
    if headers_only:
        variant = torchvision_models.variant_of(name, entry)
        network = build_skeleton(lambda: torchvision_models.build_model(name, count, variant))
    else:
        what = f"{name}: weights {entry.name}"
        file = fetch_published(entry.url, what, allow_download=allow_download)
        network = fill_architecture(str(file), architecture, _read_cached(what, file, entry.url)).made.network
    loaded = finish(spec, architecture, network, count, weights=str(entry.name), file=file)
    return replace(loaded, preprocessing=torchvision_models.preprocessing_of(name, entry))


def _read_cached(what: str, file: Path, url: str) -> dict[str, Tensor]:
    try:
        return read_checkpoint(file).state_dict
    except LoadError as error:
        raise LoadError(
            f"{what}: the cached weights cannot be read ({str(error).partition(';')[0]}); delete {file} and run "
            f"again, or get {file.name} from {url}"
        ) from None


def load_timm(
    spec: str,
    architecture: Architecture,
    tag: str | None,
    *,
    num_classes: int | None,
    allow_download: bool,
    headers_only: bool,
) -> LoadedModel:
    """Load a timm model with the weights of this tag, the default ones for ``None``.

    Raises:
        LoadError: no such weights, or they are neither cached nor downloadable.
    """
    published = timm_models.find_published(architecture.name.removeprefix("timm:"), tag)
    _require_classes(spec, published.num_classes, num_classes, architecture.name)
    file = None
    if headers_only:
        network = build_skeleton(published.build)
    else:
        file = published.fetch(allow_download)
        what = f"{architecture.name}: weights {published.tag}"
        network = published.load(_read_cached(what, file, published.url))
    return finish(spec, architecture, network, published.num_classes, weights=published.tag, file=file)
