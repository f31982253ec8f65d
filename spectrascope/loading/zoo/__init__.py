"""The built-in networks: those of the paper and the embedded default, by name.

``ZOO`` holds a :class:`ZooEntry` per fixed name; ``mlp:784-256-10`` and the like are made on demand by
:func:`find_entry`. Network modules are imported when a network is built, not when this package is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectrascope.loading.data.labels import CIFAR10, CIFAR100, DIGITS
from spectrascope.loading.preprocessing import IMAGENET_MEAN, IMAGENET_STD, TOKENS, Preprocessing
from spectrascope.records.values import Task

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ZOO", "ZooEntry", "find_entry"]

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
# Mean and standard deviation of the 1797 embedded images, to three digits.
DIGITS_MEAN = (0.305,)
DIGITS_STD = (0.376,)


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """A network that can be built by name.

    ``build`` takes the number of classes (of a language model, the size of its vocabulary); ``num_classes`` is the
    usual one. ``class_names`` lists, by number of classes, what the outputs stand for in the usual datasets.
    ``dataset`` is the one used when none is named. ``sizes_in`` reads further arguments of ``build`` off the shapes
    of a file, by name, and gives none where the usual ones are meant. ``untrained`` networks mean random weights by
    their plain name.
    """

    name: str
    build: Callable[..., nn.Module]
    num_classes: int
    preprocessing: Preprocessing
    class_names: dict[int, tuple[str, ...]]
    dataset: str | None = None
    task: Task = Task.IMAGE_CLASSIFICATION
    sizes_in: Callable[[Mapping[str, tuple[int, ...]]], tuple[int, ...]] | None = None
    untrained: bool = False


def _builder(module: str, function: str, *args: Any) -> Callable[..., nn.Module]:
    def build(num_classes: int, *sizes: int) -> nn.Module:
        factory = getattr(import_module(f"{__name__}.{module}"), function)
        network: nn.Module = factory(*args, num_classes, *sizes)
        return network

    return build


def _sizes(module: str, function: str) -> Callable[[Mapping[str, tuple[int, ...]]], tuple[int, ...]]:
    def read(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        sizes: tuple[int, ...] = getattr(import_module(f"{__name__}.{module}"), function)(shapes)
        return sizes

    return read


def _cifar(name: str, build: Callable[[int], nn.Module], mean: tuple[float, ...], std: tuple[float, ...]) -> ZooEntry:
    preprocessing = Preprocessing(size=(32, 32), mean=mean, std=std)
    return ZooEntry(name, build, 10, preprocessing, {10: CIFAR10, 100: CIFAR100})


def _entries() -> list[ZooEntry]:
    digits = ZooEntry(
        "digits-cnn",
        _builder("digits_cnn", "DigitsCnn"),
        10,
        Preprocessing(size=(8, 8), channels=1, mean=DIGITS_MEAN, std=DIGITS_STD),
        {10: DIGITS},
        dataset="digits",
    )
    entries = [digits]
    for layers in (20, 32, 44, 56, 110):
        # The published checkpoints of this family were trained with the ImageNet statistics.
        build = _builder("resnet_cifar", "cifar_resnet", layers)
        entries.append(_cifar(f"cifar-resnet{layers}", build, IMAGENET_MEAN, IMAGENET_STD))
    for layers in (18, 34, 50):
        build = _builder("resnet_stem", "resnet_stem", layers)
        entries.append(_cifar(f"resnet{layers}-cifar", build, CIFAR_MEAN, CIFAR_STD))
    for layers in (11, 16):
        for batch_norm in (False, True):
            build = _builder("vgg", "cifar_vgg", layers, batch_norm)
            entries.append(_cifar(f"vgg{layers}{'-bn' * batch_norm}-cifar", build, CIFAR_MEAN, CIFAR_STD))
    entries.append(_cifar("vit-tiny", _builder("vit_tiny", "VitTiny"), CIFAR_MEAN, CIFAR_STD))
    return entries + _language_models()


def _language_models() -> list[ZooEntry]:
    return [
        ZooEntry(
            "mini-gpt2", _builder("mini_gpt2", "MiniGPT2LMHeadModel"), 256, TOKENS, {}, task=Task.CAUSAL_LM,
            sizes_in=_sizes("mini_gpt2", "context_size"), untrained=True,
        ),
        ZooEntry(
            "mini-gpt2-classifier", _builder("mini_gpt2", "MiniGPT2ForSequenceClassification"), 2, TOKENS, {},
            task=Task.SEQUENCE_CLASSIFICATION, sizes_in=_sizes("mini_gpt2", "classifier_sizes"),
        ),
    ]  # fmt: skip


ZOO: dict[str, ZooEntry] = {entry.name: entry for entry in _entries()}


def _mlp_entry(name: str) -> ZooEntry | None:
    from spectrascope.loading.zoo.mlp import Mlp, image_shape, parse_widths

    widths = parse_widths(name)
    if widths is None:
        return None
    channels, height, width = image_shape(widths[0])
    preprocessing = Preprocessing(size=(height, width), channels=channels)
    names = {10: DIGITS if channels == 1 else CIFAR10}

    def build(num_classes: int) -> nn.Module:
        return Mlp((*widths[:-1], num_classes))

    return ZooEntry(name, build, widths[-1], preprocessing, names)


def find_entry(name: str) -> ZooEntry | None:
    """Look a built-in network up by name, ``mlp:WIDTHS`` included; ``None`` where there is none.

    >>> find_entry("mlp:64-32-10").preprocessing.input_shape
    (1, 8, 8)
    """
    return ZOO.get(name) or _mlp_entry(name)
