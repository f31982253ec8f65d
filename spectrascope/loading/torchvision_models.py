"""The only door to torchvision's classification models; torchvision is imported when a function is called."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading.preprocessing import Preprocessing

__all__ = [
    "FAMILIES",
    "build_model",
    "families_of",
    "fetch_weights",
    "find_weights",
    "list_names",
    "names_in",
    "preprocessing_of",
    "without_auxiliary_heads",
]

# Pattern of the names of a family and keys of which its state dicts always hold one. A file is compared with
# the families whose key it holds: building all eighty skeletons takes seconds, one family a fraction of one.
FAMILIES: dict[str, tuple[str, ...]] = {
    r"(wide_)?resne(x?)t\d+.*": ("layer4.0.conv1.weight",),
    r"alexnet|vgg.*|squeezenet.*": ("features.0.weight",),
    r"densenet\d+": ("features.conv0.weight",),
    r"convnext_.*": ("features.1.0.layer_scale",),
    r"efficientnet_b\d": ("features.1.0.block.1.fc1.weight",),
    r"efficientnet_v2_.*": ("features.1.0.block.0.0.weight",),
    r"mobilenet_v2": ("features.1.conv.0.0.weight",),
    r"mobilenet_v3_.*": ("features.1.block.0.0.weight",),
    r"googlenet": ("inception3a.branch1.conv.weight",),
    r"inception_v3": ("Mixed_5b.branch1x1.conv.weight",),
    r"maxvit_.*": ("blocks.0.layers.0.layers.MBconv.layers.conv_a.0.weight",),
    r"mnasnet.*": ("layers.8.0.layers.0.weight",),
    r"regnet_.*": ("trunk_output.block1.block1-0.f.a.0.weight",),
    r"shufflenet_.*": ("stage2.0.branch2.0.weight",),
    r"swin_.*": ("features.1.0.attn.qkv.weight",),
    r"vit_.*": ("class_token", "conv_proj.weight"),
}
_WITH_AUXILIARY = ("googlenet", "inception_v3")


def _models() -> ModuleType:
    try:
        import torchvision.models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(
            f"torchvision cannot be imported ({detail}); expected a torchvision that matches torch "
            f"{torch.__version__}, reinstall both together"
        ) from None
    module: ModuleType = torchvision.models
    return module


@lru_cache(maxsize=1)
def list_names() -> tuple[str, ...]:
    """Names of torchvision's classification models.

    Raises:
        LoadError: torchvision cannot be imported.
    """
    models = _models()
    return tuple(models.list_models(module=models))


def families_of(keys: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the families whose tell-tale key is among ``keys``; needs no torchvision."""
    keys = set(keys)
    return tuple(pattern for pattern, tells in FAMILIES.items() if not keys.isdisjoint(tells))


def names_in(families: Iterable[str]) -> tuple[str, ...]:
    """Names of the models in these families."""
    families = tuple(families)
    if not families:
        return ()
    return tuple(name for name in list_names() if any(re.fullmatch(p, name) for p in families))


def build_model(name: str, num_classes: int, *, auxiliary: bool = True) -> nn.Module:
    """Build a model with freshly initialised weights.

    ``auxiliary`` keeps the extra training heads of GoogLeNet and Inception, which their files usually hold.
    Both take inputs normalised for ImageNet and shift them themselves where they have its 1000 classes, as
    their published weights expect.
    """
    options: dict[str, Any] = {}
    if name in _WITH_AUXILIARY:
        options = {"init_weights": False, "aux_logits": auxiliary, "transform_input": num_classes == 1000}
    model: nn.Module = _models().get_model(name, weights=None, num_classes=num_classes, **options)
    return model


def without_auxiliary_heads(model: nn.Module) -> nn.Module:
    """Drop heads that only training uses: evaluation gives them no gradient to measure."""
    if getattr(model, "aux_logits", None) is True:
        model.aux_logits = False  # type: ignore[assignment]
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, head):
                setattr(model, head, None)
    return model


def find_weights(name: str, which: str | None) -> Any:
    """Find a model's weights entry by name (``IMAGENET1K_V2``), the default one for ``None``.

    Raises:
        LoadError: the model has no such weights.
    """
    models = _models()
    if which is None:
        return models.get_model_weights(name).DEFAULT
    names = [entry.name for entry in models.get_model_weights(name)]
    for entry in models.get_model_weights(name):
        if entry.name.casefold() == which.casefold():
            return entry
    raise LoadError(f"{name}@{which}: no such weights; expected {name}@ one of {', '.join([*names, 'none'])}")


def fetch_weights(name: str, entry: Any, *, allow_download: bool) -> tuple[nn.Module, Path]:
    """Load published weights from torch hub's cache, downloading them where they are not there yet.

    Returns:
        The model and the cached file.

    Raises:
        LoadError: the file is not in the cache and cannot be downloaded, or is damaged.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    place = f"put {file.name} from {entry.url} into {file.parent}"
    if not file.exists():
        if not allow_download:
            raise LoadError(f"{name}: weights {entry.name} are not on this machine and downloads are off; {place}")
        try:
            with redirect_stdout(sys.stderr):  # torch announces downloads on stdout, which is for data
                entry.get_state_dict(progress=True, check_hash=True)
        except Exception as error:  # URLError, HTTPError, timeouts, a full disk, a wrong hash
            detail = " ".join(str(error).split())[:120]
            raise LoadError(f"{name}: weights {entry.name} could not be downloaded ({detail}); {place}") from None
    try:
        model: nn.Module = _models().get_model(name, weights=entry)
    except Exception as error:  # a damaged cache raises whatever its bytes provoke
        raise LoadError(
            f"{name}: the cached weights {file} cannot be read ({type(error).__name__}); delete the file "
            f"and run again, or {place}"
        ) from None
    return model, file


def preprocessing_of(name: str, entry: Any = None) -> Preprocessing:
    """The evaluation preprocessing torchvision states for a model's weights, by default the best ones."""
    entry = entry if entry is not None else find_weights(name, None)
    steps = entry.transforms()
    return Preprocessing(
        size=None,
        mean=tuple(steps.mean),
        std=tuple(steps.std),
        resize=steps.resize_size[0],
        crop=steps.crop_size[0],
        interpolation=steps.interpolation.value,
    )
