"""Architectures by name: built in, torchvision's or timm's."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading.loaded import TextInput
from spectrascope.loading.models import timm as timm_models
from spectrascope.loading.models import torchvision as torchvision_models
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.loading.zoo import ZOO, ZooEntry, find_entry
from spectrascope.records.values import Task

__all__ = ["Architecture", "Build", "find_architecture"]

Build: TypeAlias = Callable[["int | None"], nn.Module]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built, and what is known about its inputs and outputs.

    ``build`` takes the number of classes, ``None`` for the architecture's own. ``source`` is ``built-in``,
    ``torchvision`` or ``timm``. ``preprocessing_of`` tells how a network that was built wants its inputs, and
    ``class_names_of`` what that number of outputs stands for (nothing where it is not known). ``builds_for`` lists
    the constructors to try on a file with given shapes, where there is more than ``build``. ``text_of`` tells what a
    network that was built says about the text it reads. ``untrained`` networks mean random weights by their name.
    """

    name: str
    source: str
    build: Build
    preprocessing_of: Callable[[nn.Module], Preprocessing]
    class_names_of: Callable[[int], dict[int, tuple[str, ...]]]
    dataset: str | None = None
    builds_for: Callable[[Mapping[str, tuple[int, ...]]], tuple[Build, ...]] | None = None
    task: Task = Task.IMAGE_CLASSIFICATION
    text_of: Callable[[nn.Module], TextInput | None] = lambda network: None
    untrained: bool = False


def find_architecture(name: str) -> Architecture:
    """Find a built-in network, a torchvision classification model or ``timm:NAME``.

    Raises:
        LoadError: no such name (the nearest are listed).
    """
    entry = find_entry(name)
    if entry is not None:
        return _built_in(entry)
    if name.startswith("mlp:"):
        raise LoadError(f"{name}: expected mlp: and at least two widths joined by hyphens, as in mlp:784-256-128-10")
    if name.startswith("timm:"):
        plain = name.removeprefix("timm:")
        timm_models.require_name(plain)
        build_timm = partial(timm_models.build_model, plain)
        return Architecture(name, "timm", build_timm, timm_models.preprocessing_of, timm_models.class_names_of)
    if name in torchvision_models.list_names():
        return _from_torchvision(name)
    known = [*ZOO, *torchvision_models.list_names()]
    wanted = name.casefold()
    near = [other for other in known if wanted in other]  # "resnet20" is in "cifar-resnet20"
    near += [n for n in difflib.get_close_matches(wanted, known, n=3, cutoff=0.5) if n not in near]
    raise LoadError(
        f"no network named {name!r}; "
        + (f"nearest: {', '.join(near[:3])}; " if near else "")
        + "expected a checkpoint file, a built-in name (such as cifar-resnet20 or mlp:784-256-10), a "
        "torchvision classification model, timm:NAME, hf:org/name, or module:factory / file.py:factory"
    )


def _built_in(entry: ZooEntry) -> Architecture:
    own, sizes_in = entry.num_classes, entry.sizes_in

    def build(num_classes: int | None, sizes: tuple[int, ...] = ()) -> nn.Module:
        if num_classes is not None and num_classes != own and entry.name.startswith("mlp:"):
            raise LoadError(f"{entry.name} has {own} outputs, not {num_classes}; change the last width")
        return entry.build(own if num_classes is None else num_classes, *sizes)

    def builds_for(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Build, ...]:
        return (partial(build, sizes=() if sizes_in is None else sizes_in(shapes)),)

    return Architecture(
        entry.name,
        "built-in",
        build,
        lambda network: entry.preprocessing,
        lambda count: entry.class_names,
        entry.dataset,
        builds_for=None if sizes_in is None else builds_for,
        task=entry.task,
        text_of=_text_of,
        untrained=entry.untrained,
    )


def _text_of(network: nn.Module) -> TextInput | None:
    vocabulary, context = getattr(network, "vocabulary", None), getattr(network, "context", None)
    if not isinstance(vocabulary, int) or not isinstance(context, int):
        return None
    # Which numbers stand for what is not in its weights. Padding comes last, where no token before it looks.
    return TextInput(vocabulary, context, "none; weights alone do not say which token is which", pad_id=0)


def _from_torchvision(name: str) -> Architecture:
    categories = tuple(torchvision_models.find_weights(name, None).meta["categories"])

    def build(num_classes: int | None, variant: torchvision_models.Variant = torchvision_models.PLAIN) -> nn.Module:
        return torchvision_models.build_model(name, len(categories) if num_classes is None else num_classes, variant)

    def builds_for(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Build, ...]:
        return tuple(partial(build, variant=variant) for variant in torchvision_models.variants_of(name, shapes))

    def preprocessing_of(network: nn.Module) -> Preprocessing:
        side = getattr(network, "image_size", None)  # vision transformers know theirs
        return torchvision_models.preprocessing_of(name, image_size=side)

    names = {len(categories): categories}
    return Architecture(name, "torchvision", build, preprocessing_of, lambda count: names, builds_for=builds_for)
