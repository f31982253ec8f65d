"""Users' own networks: a function, named on the command line, that returns one."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectrascope.errors import DataError, LoadError, OptionError
from spectrascope.losses import make_loss, task_of
from spectrascope.workload import Workload, source_from_batches

__all__ = ["Factory", "Made", "find_factory", "is_factory"]

_EXPECTED = "expected a torch.nn.Module, a Workload, or a tuple (model, batches, loss function)"


@dataclass(frozen=True, slots=True)
class Made:
    """What a factory returned: a network on the CPU, with its samples and loss if it brought them.

    It is in float32, or in the precision of the workload it came in.
    """

    network: nn.Module
    workload: Workload | None


@dataclass(frozen=True, slots=True)
class Factory:
    """A user's function; ``takes_num_classes`` tells whether it has a parameter of that name."""

    name: str
    make: Callable[[int | None], Made]
    takes_num_classes: bool


def is_factory(name: str) -> bool:
    """Whether a model string is ``package.module:factory`` or ``file.py:factory``."""
    return ":" in name and not name.startswith(("mlp:", "timm:", "hf:")) and "::" not in name


def find_factory(name: str) -> Factory:
    """Import the function that ``package.module:factory`` or ``file.py:factory`` names.

    Raises:
        LoadError: no such file, module or function, or its code fails.
    """
    place, _, attribute = name.rpartition(":")
    factory = _import_factory(name, place, attribute)
    try:
        accepts = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        accepts = {}  # type: ignore[assignment]
    takes = "num_classes" in accepts or any(p.kind is p.VAR_KEYWORD for p in accepts.values())

    def make(num_classes: int | None) -> Made:
        call = partial(factory, num_classes=num_classes) if takes and num_classes is not None else factory
        with _running(name, place):
            made = _understand(name, call())
        lazy = [key for key, p in made.network.named_parameters() if is_lazy(p)]
        if lazy:
            raise LoadError(f"{name}: {lazy[0]!r} has no shape yet; run the network once in the factory")
        return made

    return Factory(name, make, takes)


def _understand(name: str, returned: Any) -> Made:
    if isinstance(returned, nn.Module):
        return Made(_bare(returned), None)
    if isinstance(returned, Workload):
        network = _bare(returned.model, returned.dtype)
        return Made(network, replace(returned, model=network))
    if not isinstance(returned, tuple):
        raise LoadError(f"{name} returned {type(returned).__name__}; {_EXPECTED}")
    if len(returned) != 3 or not isinstance(returned[0], nn.Module):
        kinds = ", ".join(type(item).__name__ for item in returned[:4]) + (", …" if len(returned) > 4 else "")
        raise LoadError(f"{name} returned a tuple ({kinds}); {_EXPECTED}")
    network, batches, loss = _bare(returned[0]), returned[1], returned[2]
    try:
        source = source_from_batches(batches)
        loss = make_loss(loss, task=task_of(network)) if isinstance(loss, str) else loss
    except (DataError, OptionError) as error:
        raise LoadError(f"{name}: {error}") from None
    if not callable(loss):
        raise LoadError(f"{name}: the loss is a {type(loss).__name__}; expected a function (output, targets) -> scalar")
    return Made(network, Workload(network, source, loss, torch.device("cpu"), torch.float32))


def _bare(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network inside DataParallel and ``torch.compile``, on the CPU."""
    while isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(network, "_orig_mod"):
        inner = getattr(network, "_orig_mod", None)
        network = inner if isinstance(inner, nn.Module) else network.module  # type: ignore[assignment]
    return network if any(is_lazy(p) for p in network.parameters()) else network.to("cpu", dtype)


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
