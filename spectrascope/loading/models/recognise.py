"""Which architecture do these keys and shapes belong to?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from torch import Tensor, nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.skeleton import (
    KeyDifference,
    Skeleton,
    build_if_shapes_fit,
    compare,
    kinds_of,
    skeleton_from,
    skeleton_of,
)
from spectrascope.loading.models import timm as timm_models
from spectrascope.loading.models import torchvision as torchvision_models
from spectrascope.loading.models.fit import Reading, readings
from spectrascope.loading.models.huggingface.config import read_json
from spectrascope.loading.zoo import ZOO, find_entry
from spectrascope.text import plural

__all__ = ["Recognised", "is_listed", "named_architecture", "recognise"]

Shapes = dict[str, tuple[int, ...]]

_NAMING = ("architecture", "model_name", "arch", "model")  # in a file's metadata


@dataclass(frozen=True, slots=True)
class Recognised:
    """An exact fit: ``build`` makes the network, ``reading`` holds the file's tensors under its names.

    ``same`` lists other names of the very same network, ``image_size`` the side of its inputs where the file
    gives it away.
    """

    architecture: str
    num_classes: int
    build: Callable[[], nn.Module]
    reading: Reading
    same: tuple[str, ...] = ()
    image_size: int | None = None

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The file's tensors under the network's names."""
        return self.reading.state_dict


@dataclass(frozen=True, slots=True)
class _Likely:
    """A network that may be it; ``variant`` tells apart those of one name, and so do a built-in one's ``sizes``."""

    name: str
    variant: torchvision_models.Variant = torchvision_models.PLAIN
    sizes: tuple[int, ...] = ()

    def build(self, num_classes: int) -> nn.Module:
        entry = find_entry(self.name)
        if entry is not None:
            return entry.build(num_classes, *self.sizes)
        return torchvision_models.build_model(self.name, num_classes, self.variant)


@lru_cache(maxsize=512)
def _skeleton(candidate: _Likely) -> Skeleton:
    return skeleton_of(candidate.build)


def _candidates(shapes: Shapes) -> Iterator[_Likely]:
    for name, entry in ZOO.items():
        yield _Likely(name, sizes=() if entry.sizes_in is None else entry.sizes_in(shapes))
    layers = [
        (int(key.split(".")[1]), shape[1])
        for key, shape in shapes.items()
        if re.fullmatch(r"layers\.\d{1,6}\.weight", key) and len(shape) == 2
    ]
    widths = [width for _, width in sorted(layers)]  # an index of shards lists 10 before 2
    last = shapes.get(f"layers.{len(widths) - 1}.weight")
    if widths and last:
        name = f"mlp:{'-'.join(str(n) for n in (*widths, last[0]))}"
        if find_entry(name) is not None:  # a damaged file may have layers of no width
            yield _Likely(name)
    for name in torchvision_models.names_in(torchvision_models.families_of(shapes)):
        for variant in torchvision_models.variants_of(name, shapes):
            yield _Likely(name, variant)


def recognise(state_dict: Mapping[str, Tensor], *, hint: str = "", timm: bool = True) -> Recognised:
    """Find the one known architecture whose keys and shapes these are; the head's size is read from the file.

    Known are the built-in networks, torchvision's classification models and, where none of them fits and timm is
    installed, timm's models. Buffers that only count batches may be absent.

    Args:
        state_dict: the tensors, of which only names and shapes are looked at; they may be on the meta device.
        hint: architecture that the file itself names, in timm's spelling; decides between equals.
        timm: try timm's models too.

    Raises:
        LoadError: nothing fits (the nearest architecture and the difference are named), or several do.

    Cost:
        About 0.2 s, and the import of torchvision where the keys look like one of its models; with timm, 0.5 to
        2.5 s and its import.
    """
    found = _recognise_timm(state_dict, (hint,)) if hint and timm else None
    if found is None:
        found = _recognise_known(state_dict, _candidates)
    if found is None:
        found = _recognise_known(state_dict, _unlisted)
    if found is None and timm:
        found = _recognise_timm(state_dict, None)
    if found is not None:
        return found
    raise LoadError(
        f"the keys and shapes of {plural(len(state_dict), 'tensor')} fit no known network{_nearest(state_dict)}; "
        "name the architecture with --arch NAME, --arch timm:NAME, --arch package.module:factory or --arch "
        "file.py:factory"
    )


def is_listed(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether these tensors fit exactly one built-in network or one of torchvision's families listed here.

    Cost:
        A few hundredths of a second where no family's keys are there; torchvision is imported only where one's are.
    """
    try:
        return _recognise_known(state_dict, _candidates) is not None
    except LoadError:  # several of them
        return False


def _shapes(state_dict: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def _unlisted(shapes: Shapes) -> Iterator[_Likely]:
    """Models of a torchvision newer than our list of families."""
    return (_Likely(name) for name in torchvision_models.unlisted_names())


def _recognise_known(
    state_dict: Mapping[str, Tensor], candidates: Callable[[Shapes], Iterator[_Likely]]
) -> Recognised | None:
    for reading in readings(state_dict):
        shapes = _shapes(reading.state_dict)
        held = kinds_of(shapes)
        fits: list[tuple[_Likely, int]] = []
        for candidate in candidates(shapes):
            network = build_if_shapes_fit(candidate.build, held)
            if network is None:
                continue
            num_classes, difference = compare(skeleton_from(network), shapes)
            if difference.size == 0 and num_classes is not None:
                fits.append((candidate, num_classes))
        if len(fits) > 1:
            names = ", ".join(candidate.name for candidate, _ in fits)
            raise LoadError(f"the weights fit several networks ({names}); name one with --arch")
        if fits:
            candidate, num_classes = fits[0]
            build = partial(candidate.build, num_classes)
            size = candidate.variant.image_size
            return Recognised(candidate.name, num_classes, build, reading, image_size=size)
    return None


def _recognise_timm(state_dict: Mapping[str, Tensor], names: tuple[str, ...] | None) -> Recognised | None:
    if not timm_models.is_installed():
        return None
    for reading in readings(state_dict):
        fits = timm_models.fitting(_shapes(reading.state_dict), names)
        if not fits:
            continue
        # Names of the same code with the same settings are one network; others compute something else from the
        # same weights (another stride, padding or activation), and no tensor says which.
        first, *others = fits
        different = [fit for fit in others if fit.fingerprint != first.fingerprint]
        if different:
            listed = ", ".join(f"timm:{fit.name}" for fit in fits[:8]) + (", …" if len(fits) > 8 else "")
            raise LoadError(
                f"the weights fit several networks that differ in what no tensor shows ({listed}); name one with --arch"
            )
        return Recognised(
            f"timm:{first.name}",
            first.num_classes,
            partial(timm_models.build_model, first.name, first.num_classes),
            reading,
            same=tuple(f"timm:{fit.name}" for fit in others),
        )
    return None


def _nearest(state_dict: Mapping[str, Tensor]) -> str:
    nearest: tuple[str, KeyDifference] | None = None
    for reading in readings(state_dict):
        shapes = _shapes(reading.state_dict)
        for candidate in _candidates(shapes):
            skeleton = _skeleton(candidate)
            _, difference = compare(skeleton, shapes)
            if 2 * difference.size > max(len(shapes), len(skeleton.shapes)):
                continue  # what differs in most of its tensors is not near
            if nearest is None or difference.size < nearest[1].size:
                nearest = candidate.name, difference
    return f"; nearest is {nearest[0]}, which differs by {nearest[1]}" if nearest is not None else ""


def named_architecture(spec: str, metadata: Mapping[str, str]) -> str:
    """The architecture that a file's metadata or timm's ``config.json`` beside it names; empty where none does.

    It is a hint: nothing is loaded by it unless every key and shape fits.

    >>> named_architecture("net.safetensors", {"architecture": "timm/resnet50d.ra2_in1k"})
    'resnet50d'
    """
    place = Path(spec.partition("::")[0])
    folder = place if place.is_dir() else place.parent
    found = next((metadata[key] for key in _NAMING if metadata.get(key)), None)
    if found is None and (folder / "config.json").is_file():
        try:
            found = read_json(folder / "config.json").get("architecture")
        except LoadError:
            found = None
    if not isinstance(found, str):
        return ""
    return found.removeprefix("timm:").removeprefix("timm/").partition(".")[0]
