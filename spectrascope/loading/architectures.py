"""Architectures by name: built in, torchvision's, or a user's own factory."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading import torchvision_models
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.loading.zoo import ZOO, find_entry

__all__ = ["Architecture", "find_architecture"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network that can be built, and what is known about its inputs and outputs.

    ``build`` takes the number of classes, ``None`` for the architecture's own. ``source`` is ``built-in``,
    ``torchvision`` or ``factory``; a factory's ``preprocessing`` is known only once its network is.
    """

    name: str
    source: str
    build: Callable[[int | None], nn.Module]
    preprocessing: Preprocessing | None
    class_names: dict[int, tuple[str, ...]]
    dataset: str | None = None
    takes_num_classes: bool = True


def find_architecture(name: str) -> Architecture:
    """Find a built-in network, a torchvision classification model or a user's factory by name.

    Raises:
        LoadError: no such name (the nearest are listed), or the factory cannot be imported.
    """
    entry = find_entry(name)
    if entry is not None:
        zoo_build, own = entry.build, entry.num_classes

        def build(num_classes: int | None) -> nn.Module:
            if num_classes is not None and num_classes != own and name.startswith("mlp:"):
                raise LoadError(f"{name} has {own} outputs, not {num_classes}; change the last width")
            return zoo_build(own if num_classes is None else num_classes)

        return Architecture(name, "built-in", build, entry.preprocessing, entry.class_names, entry.dataset)
    if name.startswith("mlp:"):
        raise LoadError(f"{name}: expected mlp: and at least two widths joined by hyphens, as in mlp:784-256-128-10")
    if ":" in name:
        return _from_factory(name)
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
        "torchvision classification model, or module:factory / file.py:factory"
    )


def _from_torchvision(name: str) -> Architecture:
    categories = tuple(torchvision_models.find_weights(name, None).meta["categories"])

    def build(num_classes: int | None) -> nn.Module:
        return torchvision_models.build_model(name, len(categories) if num_classes is None else num_classes)

    preprocessing = torchvision_models.preprocessing_of(name)
    return Architecture(name, "torchvision", build, preprocessing, {len(categories): categories})


def _from_factory(name: str) -> Architecture:
    place, _, attribute = name.rpartition(":")
    factory = _import_factory(name, place, attribute)
    try:
        accepts = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        accepts = {}  # type: ignore[assignment]
    takes = "num_classes" in accepts or any(p.kind is p.VAR_KEYWORD for p in accepts.values())

    def build(num_classes: int | None) -> nn.Module:
        call = partial(factory, num_classes=num_classes) if takes and num_classes is not None else factory
        with _running(name, place):
            network = call()
        if not isinstance(network, nn.Module):
            raise LoadError(f"{name} returned {type(network).__name__}; expected a torch.nn.Module")
        return network

    return Architecture(name, "factory", build, None, {}, takes_num_classes=takes)


def _import_factory(name: str, place: str, attribute: str) -> Callable[..., Any]:
    with _running(name, place):
        if place.endswith(".py"):
            file = Path(place)
            if not file.is_file():
                raise LoadError(f"{name}: no such file {place}; expected file.py:factory")
            spec = importlib.util.spec_from_file_location(f"_spectrascope_user_{file.stem}", file)
            if spec is None or spec.loader is None:
                raise LoadError(f"{name}: {place} cannot be imported as Python")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickling look their module up here
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    factory: Any = module
    for part in attribute.split("."):
        if not hasattr(factory, part):
            offered = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            near = difflib.get_close_matches(attribute, offered, n=3, cutoff=0.0)
            raise LoadError(f"{name}: {place} has no {attribute!r}" + (f"; nearest: {', '.join(near)}" if near else ""))
        factory = getattr(factory, part)
    if not callable(factory):
        raise LoadError(f"{name}: {attribute} is a {type(factory).__name__}; expected a function returning a network")
    return factory  # type: ignore[no-any-return]


@contextmanager
def _running(name: str, place: str) -> Iterator[None]:
    """Run the user's own code: what it imports from beside it is found, what it raises becomes one line."""
    before = list(sys.path)
    sys.path.insert(0, str(Path(place).resolve().parent) if place.endswith(".py") else str(Path.cwd()))
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except LoadError:
        raise
    except (Exception, SystemExit) as error:
        detail = " ".join(str(error).split())[:200]
        raise LoadError(f"{name} raised {type(error).__name__}: {detail}".rstrip(": ")) from None
    finally:
        sys.path[:] = before
