"""Which architecture do these keys and shapes belong to?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading import torchvision_models
from spectrascope.loading.skeleton import Difference, Skeleton, compare, skeleton_of
from spectrascope.loading.zoo import ZOO, find_entry

__all__ = ["Recognised", "key_variants", "recognise"]

# Other spellings of the same networks: the usual CIFAR re-implementations of ResNet, and the dotted names in
# torchvision's own DenseNet files.
_RESPELLINGS: tuple[tuple[tuple[str, str], ...], ...] = (
    ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")),
    ((r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),),
)


@dataclass(frozen=True, slots=True)
class Recognised:
    """An exact fit: ``build`` makes the network, ``state_dict`` holds the file's tensors under its names."""

    architecture: str
    num_classes: int
    build: Callable[[], nn.Module]
    state_dict: dict[str, Tensor]


def key_variants(state_dict: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the state dict as it is, then with readings of its keys that may fit where the first does not.

    These are: without the first component all keys share (``model.``, ``net.``, …; repeatedly), and with
    other spellings of known networks.
    """
    current = dict(state_dict)
    while current:
        yield current
        for rules in _RESPELLINGS:
            respelt = {_respell(key, rules): value for key, value in current.items()}
            if list(respelt) != list(current) and len(respelt) == len(current):
                yield respelt
        first = {key.partition(".")[0] for key in current}
        if len(first) != 1 or not all("." in key for key in current):
            return
        current = {key.partition(".")[2]: value for key, value in current.items()}


def _respell(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


@lru_cache(maxsize=256)
def _skeleton(name: str) -> Skeleton:
    return skeleton_of(partial(_build, name))


def _build(name: str, num_classes: int) -> nn.Module:
    plain = name.removesuffix(_NO_AUXILIARY)
    entry = find_entry(plain)
    if entry is not None:
        return entry.build(num_classes)
    return torchvision_models.build_model(plain, num_classes, auxiliary=plain == name)


# GoogLeNet and Inception files come with or without their training heads.
_NO_AUXILIARY = " without auxiliary heads"


def _candidates(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    names = list(ZOO)
    widths = [
        shape[1] for key, shape in shapes.items() if re.fullmatch(r"layers\.\d+\.weight", key) and len(shape) == 2
    ]
    last = shapes.get(f"layers.{len(widths) - 1}.weight")
    if widths and last is not None:
        names.append(f"mlp:{'-'.join(str(n) for n in (*widths, last[0]))}")
    for name in torchvision_models.names_in(torchvision_models.families_of(shapes)):
        names.append(name)
        if name in ("googlenet", "inception_v3"):
            names.append(name + _NO_AUXILIARY)
    return names


def recognise(state_dict: Mapping[str, Tensor]) -> Recognised:
    """Find the one known architecture whose keys and shapes these are; the head's size is read from the file.

    Known are the built-in networks and torchvision's classification models. Buffers that only count batches
    may be absent.

    Raises:
        LoadError: nothing fits (the nearest architecture and the difference are named), or several do.

    Cost:
        About 0.2 s, and the import of torchvision where the keys look like one of its models.
    """
    nearest: tuple[int, str, Difference] | None = None
    for variant in key_variants(state_dict):
        shapes = {key: tuple(value.shape) for key, value in variant.items()}
        fits: list[tuple[str, int]] = []
        for name in _candidates(shapes):
            num_classes, difference = compare(_skeleton(name), shapes)
            if difference.size == 0 and num_classes is not None:
                fits.append((name, num_classes))
            elif nearest is None or difference.size < nearest[0]:
                nearest = difference.size, name, difference
        if len(fits) > 1:
            names = ", ".join(name for name, _ in fits)
            raise LoadError(f"the weights fit several networks ({names}); name one with --arch")
        if fits:
            name, num_classes = fits[0]
            plain = name.removesuffix(_NO_AUXILIARY)
            return Recognised(plain, num_classes, partial(_build, name, num_classes), variant)
    detail = f"; nearest is {nearest[1]}, which differs by {nearest[2]}" if nearest is not None else ""
    raise LoadError(
        f"the keys and shapes of the {len(state_dict)} tensors fit no known network{detail}; name the "
        f"architecture with --arch NAME, --arch package.module:factory or --arch file.py:factory"
    )
