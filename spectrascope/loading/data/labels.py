"""Class names of the usual datasets in the order networks number them, and matching folders to them."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

__all__ = ["CIFAR10", "CIFAR100", "DIGITS", "imagenet_wnids", "match_labels"]

DIGITS = tuple("0123456789")

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_CIFAR100.split())

# Other spellings in circulation, after `_plain`.
_ALIASES = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile", "auto": "automobile"}


@lru_cache(maxsize=1)
def imagenet_wnids() -> tuple[str, ...]:
    """WordNet ids of the 1000 ImageNet classes; networks number them in this (sorted) order."""
    text = resources.files("spectrascope.data").joinpath("imagenet_wnids.txt").read_text("ascii")
    return tuple(text.split())


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def match_labels(folders: list[str], class_names: tuple[str, ...]) -> dict[str, int | None]:
    """Find each folder's class number: by class name, by a known alias, or by WordNet id for ImageNet.

    Case, underscores and hyphens do not count. A name that two classes share (ImageNet's "crane") matches
    neither, as does a folder that is no class of the network: both are ``None``.

    >>> match_labels(["Dog", "cat", "tree"], ("cat", "dog"))
    {'Dog': 1, 'cat': 0, 'tree': None}
    """
    index: dict[str, int | None] = {}
    for i, name in enumerate(class_names):
        key = _plain(name)
        index[key] = None if key in index else i
    if len(class_names) == 1000:
        index.update((wnid, i) for i, wnid in enumerate(imagenet_wnids()))
    found: dict[str, int | None] = {}
    for folder in folders:
        key = _plain(folder)
        found[folder] = index[key] if key in index else index.get(_ALIASES.get(key, key))
    return found
