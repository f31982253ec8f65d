"""Users' own networks: a function, named on the command line, that returns one."""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spectrascope.errors import DataError, LoadError, OptionError
from spectrascope.loading.checkpoints.read import Checkpoint, require_finite_parameters, require_plain_parameters
from spectrascope.loading.checkpoints.skeleton import KeyDifference, Skeleton, compare, meta_copy
from spectrascope.loading.loaded import LoadedModel, TextInput
from spectrascope.loading.models.finish import describe_network, ready
from spectrascope.loading.models.fit import Reading, readings
from spectrascope.loading.models.named import with_seed
from spectrascope.loading.models.source import ModelRequest, ModelSource
from spectrascope.loading.preprocessing import Preprocessing
from spectrascope.losses import make_loss, task_of, usual_loss
from spectrascope.records.values import LossName
from spectrascope.text import first_line
from spectrascope.workload import Workload, source_from_batches

__all__ = ["FACTORIES", "Factory", "Made", "fill_factory", "find_factory", "finish_factory", "is_factory", "seeded"]

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
    """Whether a string that is no other source's is ``package.module:factory`` or ``file.py:factory``."""
    return ":" in name and "::" not in name


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
        if isinstance(loss, str):
            own = usual_loss(network, source.fetch_targets(0, 1))
            loss = own if loss == LossName.AUTO.value else make_loss(loss, task=task_of(network))
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


def fill_factory(
    where: Path,
    factory: Factory,
    make: Callable[[int | None], Made],
    state_dict: Mapping[str, Tensor],
    num_classes: int | None,
) -> tuple[Made, Reading]:
    """Load a file into a user's own network, by copying, which keeps its tied parameters tied.

    Args:
        where: the file, for messages.
        factory: the user's function, and
        make: how to call it.
        state_dict: the file's tensors; where they are on the meta device, they are only compared with the network.
        num_classes: as asked for; guessed from the file when ``None``.

    Raises:
        LoadError: the file does not fit, or disagrees with itself about a tied parameter.
    """
    guesses = [num_classes]
    weights = [value for value in state_dict.values() if value.ndim >= 2]
    if num_classes is None and factory.takes_num_classes and weights:
        # The last matrix of a file is nearly always the head; wrong guesses do not fit and are not used.
        guesses = [int(weights[-1].shape[0]), None]
    refusal: LoadError | None = None
    for guess in guesses:
        made = None  # one network at a time
        try:
            made = make(guess)
            reading = _fitting_reading(where, factory.name, made.network, state_dict)
        except LoadError as error:
            refusal = error.with_traceback(None)  # which would keep the network
            continue
        require_plain_parameters(made.network, reading.state_dict, where)
        if any(value.is_meta for value in state_dict.values()):
            meta_copy(made.network)
        else:
            _copy(where, made.network, reading.state_dict)
            require_finite_parameters(made.network, reading.state_dict, where)
        return made, reading
    assert refusal is not None
    raise refusal


def _own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict by reference: tied parameters are the same object under each of their names."""
    return {key: value for key, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _fitting_reading(where: Path, name: str, network: nn.Module, state_dict: Mapping[str, Tensor]) -> Reading:
    own = _own_tensors(network)
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    counters = {key for key in shapes if key.endswith("num_batches_tracked")}
    best: KeyDifference | None = None
    for reading in readings(state_dict):
        there = {id(own[key]) for key in reading.state_dict if key in own}
        tied = {key for key, value in own.items() if id(value) in there}
        skeleton = Skeleton(shapes, {}, frozenset(counters | tied))
        _, difference = compare(skeleton, {key: tuple(value.shape) for key, value in reading.state_dict.items()})
        if difference.size == 0:
            return reading
        if best is None or difference.size < best.size:
            best = difference
    raise LoadError(f"{where} does not fit {name}: {best}; pass the factory of the network it was trained with")


def _copy(where: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    done: dict[int, tuple[str, Tensor]] = {}
    with torch.no_grad():
        for key, own in _own_tensors(network).items():
            value = tensors.get(key)
            if value is None:
                continue
            first, other = done.setdefault(id(own), (key, value))
            if other is not value and not torch.equal(other, value):
                raise LoadError(
                    f"{where}: {first!r} and {key!r} differ, but are one tied parameter of the network; pass a "
                    "factory that does not tie them"
                )
            try:
                own.copy_(value)
            except (RuntimeError, NotImplementedError) as error:  # a sparse buffer into a dense one
                raise LoadError(f"{where}: {key!r} does not go into the network's own: {first_line(error)}") from None


def finish_factory(
    spec: str,
    name: str,
    made: Made,
    num_classes: int | None,
    *,
    weights: str = "from the factory",
    checkpoint: Checkpoint | None = None,
) -> LoadedModel:
    """Describe a user's own network, with the loss and data that came with it.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    network = ready(made.network, spec, checked=checkpoint is not None)
    if made.workload is not None and num_classes is None:
        num_classes = made.workload.n_classes
    info = describe_network(spec, name, "factory", network, weights=weights, checkpoint=checkpoint)
    return LoadedModel(
        model=network,
        info=replace(info, task=task_of(network)),
        preprocessing=_guess_preprocessing(network),
        class_names=None,
        default_dataset=None,
        num_classes=num_classes,
        text=_guess_text(network),
        workload=made.workload,
    )


def _guess_text(network: nn.Module) -> TextInput | None:
    """A user's own language model: one that scores as many tokens as a table of its embeddings has."""
    scored = {m.out_features for m in network.modules() if isinstance(m, nn.Linear)}
    tables = (m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding))
    found = next((rows for rows in tables if rows in scored), None)
    if found is None:
        return None
    longest = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    return TextInput(found, longest if isinstance(longest, int) else None, "a network of the user's own has none")


def _guess_preprocessing(network: nn.Module) -> Preprocessing:
    """A user's own network: images at their own size, as many channels as its first layer takes.

    A convolution says so; a linear layer takes grey pixels where its inputs make a square, as 28 × 28.
    """
    channels = 3
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            channels = module.in_channels
            break
        if isinstance(module, nn.Linear):
            channels = 1 if math.isqrt(module.in_features) ** 2 == module.in_features else 3
            break
    return Preprocessing(size=None, channels=channels, note="the network does not say how its inputs are prepared")


def seeded(factory: Factory, seed: int) -> Callable[[int | None], Made]:
    """The factory, called from a fixed random state."""
    return lambda num_classes: with_seed(partial(factory.make, num_classes), seed)


class _Factories(ModelSource):
    """``package.module:factory`` or ``file.py:factory``: a network that brings its own weights, perhaps its data."""

    usage = "module:factory / file.py:factory"

    def owns(self, spec: str) -> bool:
        """Whether it is written so, and there is such a module; nothing is imported."""
        place = spec.rpartition(":")[0]
        if not is_factory(spec):
            return False
        here = [str(Path.cwd()), *sys.path]
        return "." in place or place in sys.modules or importlib.machinery.PathFinder.find_spec(place, here) is not None

    def open(self, request: ModelRequest) -> LoadedModel:
        """Call the factory."""
        spec = request.spec
        name, at, which = spec.rpartition("@")
        if at and is_factory(name):
            raise LoadError(f"{spec}: a factory brings its own weights; drop @{which}")
        factory = find_factory(spec)
        made = seeded(factory, request.seed)(request.num_classes)
        return finish_factory(spec, factory.name, made, request.num_classes)


FACTORIES = _Factories()
