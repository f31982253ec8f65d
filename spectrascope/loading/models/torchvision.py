"""The only door to torchvision's classification models; torchvision is imported when a function is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import isqrt
from types import ModuleType
from typing import Any

import torch
from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.skeleton import build_skeleton
from spectrascope.loading.downloads import fetch_published
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models.finish import finish
from spectrascope.loading.models.fit import fill_architecture
from spectrascope.loading.models.named import NamedSource, read_cached, require_published_classes
from spectrascope.loading.models.source import Architecture, Build, ModelRequest
from spectrascope.loading.preprocessing import Preprocessing

__all__ = [
    "FAMILIES",
    "PLAIN",
    "TORCHVISION",
    "Variant",
    "build_model",
    "families_of",
    "find_weights",
    "list_names",
    "names_in",
    "preprocessing_of",
    "unlisted_names",
    "variant_of",
    "variants_of",
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


@dataclass(frozen=True, slots=True)
class Variant:
    """What else than its name and number of classes makes a model.

    ``auxiliary`` keeps the extra training heads of GoogLeNet and Inception, which their files usually hold;
    ``image_size`` is the side of a vision transformer's inputs, 224 when ``None``.
    """

    auxiliary: bool = True
    image_size: int | None = None


PLAIN = Variant()


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


def unlisted_names() -> tuple[str, ...]:
    """Names of models that belong to no family in ``FAMILIES``: those of a newer torchvision."""
    return tuple(name for name in list_names() if not any(re.fullmatch(p, name) for p in FAMILIES))


def variants_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Variant, ...]:
    """The variants of a model that a file with these shapes may hold."""
    if name in _WITH_AUXILIARY:
        return PLAIN, Variant(auxiliary=False)
    if name.startswith("vit_"):
        positions, patches = shapes.get("encoder.pos_embedding", ()), shapes.get("conv_proj.weight", ())
        if len(positions) == 3 and len(patches) == 4 and name.endswith(f"_{patches[-1]}"):
            side = isqrt(max(positions[1] - 1, 0)) * patches[-1]  # one position more, for the class token
            # Above 4096 pixels a damaged file, which is not worth building a network for.
            return (PLAIN, Variant(image_size=side)) if side != 224 and 0 < side <= 4096 else (PLAIN,)
    return (PLAIN,)


def variant_of(name: str, entry: Any) -> Variant:
    """The variant that published weights are for."""
    crop: int = entry.transforms().crop_size[0]
    return Variant(image_size=crop) if name.startswith("vit_") and crop != 224 else PLAIN


def build_model(name: str, num_classes: int, variant: Variant = PLAIN) -> nn.Module:
    """Build a model with freshly initialised weights.

    GoogLeNet and Inception take inputs normalised for ImageNet and shift them themselves where they have its 1000
    classes, as their published weights expect.
    """
    options: dict[str, Any] = {}
    if name in _WITH_AUXILIARY:
        options = {"init_weights": False, "aux_logits": variant.auxiliary, "transform_input": num_classes == 1000}
    if variant.image_size is not None:
        options["image_size"] = variant.image_size
    model: nn.Module = _models().get_model(name, weights=None, num_classes=num_classes, **options)
    return model


def find_weights(name: str, which: str | None) -> Any:
    """Find a model's weights entry by name (``IMAGENET1K_V2``), the default one for ``None``.

    Raises:
        LoadError: the model has no such weights, or they have no classifier.
    """
    models = _models()
    if which is None:
        return models.get_model_weights(name).DEFAULT
    names = [entry.name for entry in models.get_model_weights(name)]
    for entry in models.get_model_weights(name):
        if entry.name.casefold() == which.casefold():
            if not entry.meta.get("categories"):
                raise LoadError(f"{name}@{which}: these weights have no classifier; use {name}@{names[0]}")
            return entry
    raise LoadError(f"{name}@{which}: no such weights; expected {name}@ one of {', '.join([*names, 'none'])}")


def preprocessing_of(name: str, entry: Any = None, image_size: int | None = None) -> Preprocessing:
    """The evaluation preprocessing torchvision states for a model's weights, by default the best ones.

    ``image_size`` picks the weights for inputs of that side, where there are such.
    """
    if entry is None:
        entry = find_weights(name, None)
        for other in _models().get_model_weights(name):
            if image_size is not None and other.transforms().crop_size[0] == image_size:
                entry = other
                break
    steps = entry.transforms()
    preprocessing = Preprocessing(
        size=None,
        mean=tuple(steps.mean),
        std=tuple(steps.std),
        resize=steps.resize_size[0],
        crop=steps.crop_size[0],
        interpolation=steps.interpolation.value,
    )
    if image_size in (None, preprocessing.crop):
        return preprocessing
    return preprocessing.with_image_size(image_size)


class _Torchvision(NamedSource):
    """``NAME`` or ``NAME@WEIGHTS`` of torchvision's classification models."""

    usage = "a torchvision classification model"

    def owns(self, spec: str) -> bool:
        """Whether it is one of torchvision's names, perhaps with weights."""
        return ":" not in spec and super().owns(spec)  # without an import for strings with a prefix

    def names(self) -> Sequence[str]:
        """All of torchvision's."""
        return list_names()

    def architecture(self, name: str) -> Architecture | None:
        """The model of this name, with as many outputs as its weights have."""
        if ":" in name or name not in list_names():
            return None
        categories = tuple(find_weights(name, None).meta["categories"])

        def build(num_classes: int | None, variant: Variant = PLAIN) -> nn.Module:
            return build_model(name, len(categories) if num_classes is None else num_classes, variant)

        def builds_for(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Build, ...]:
            return tuple(partial(build, variant=variant) for variant in variants_of(name, shapes))

        def prepare(network: nn.Module) -> Preprocessing:
            side = getattr(network, "image_size", None)  # vision transformers know theirs
            return preprocessing_of(name, image_size=side)

        names = {len(categories): categories}
        return Architecture(name, "torchvision", build, prepare, lambda count: names, builds_for=builds_for)

    def published(self, request: ModelRequest, architecture: Architecture, which: str | None) -> LoadedModel:
        """With the weights of this name."""
        name = architecture.name
        entry = find_weights(name, which)
        count = len(entry.meta["categories"])
        require_published_classes(request, architecture, count)
        file = None
        if request.headers_only:
            variant = variant_of(name, entry)
            network = build_skeleton(lambda: build_model(name, count, variant))
        else:
            what = f"{name}: weights {entry.name}"
            file = fetch_published(entry.url, what, allow_download=request.allow_download)
            network = fill_architecture(file, architecture, read_cached(what, file, entry.url)).network
        loaded = finish(request.spec, architecture, network, count, weights=str(entry.name), file=file)
        return replace(loaded, preprocessing=preprocessing_of(name, entry))


TORCHVISION = _Torchvision()
