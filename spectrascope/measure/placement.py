"""A network larger than a device: blocks of it on several GPUs, the rest in the host's memory (``--device-map``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spectrascope.curvature.microbatches import available_bytes
from spectrascope.errors import OptionError
from spectrascope.measure.asked import device_name
from spectrascope.measure.streamed import Streamed
from spectrascope.network.formats import replace_tensors
from spectrascope.records.values import Missing
from spectrascope.text import device_map_of, memory_text

__all__ = ["Placed", "asked_map", "place"]

_SHARE = 2
"""One part of so many of a GPU's free memory is for weights; activations, gradients and tangents take the rest."""


@dataclass(frozen=True)
class Placed:
    """A network spread out: where its inputs go, what has to be entered to run it, and its places in words."""

    model: nn.Module
    device: torch.device
    streamed: Streamed | None
    places: str


def place(model: nn.Module, given: str) -> Placed:
    """Spread a network that nobody else holds over this machine's GPUs and its memory.

    Blocks on a GPU are computed there; what lies in the host's memory is brought to the first GPU while it is read.

    Args:
        model: on the CPU, in the format it is measured in.
        given: ``auto``, which fills half of each GPU's free memory in the order of the network, or what
            :func:`~spectrascope.text.device_map_of` reads.

    Raises:
        OptionError: names that are no modules, weights without a place, GPUs that are not there, no accelerate.
    """
    asked, devices = asked_map(given), gpus()
    places = _checked(model, asked, len(devices)) if isinstance(asked, dict) else _inferred(model, devices)
    used = sorted({at for at in places.values() if isinstance(at, int)})
    if not used:
        return Placed(model, torch.device("cpu"), None, "")
    first = devices[used[0]]
    away = [tensor for name, at in places.items() if at == "cpu" for tensor in _tensors_of(model, name)]
    streamed = Streamed(away, model, first) if away else None
    on_gpus = {name: first if at == "cpu" else devices[int(at)] for name, at in places.items()}
    if len(used) == 1:
        replace_tensors(model, {id(t): t.detach().to(first) for t in (*model.parameters(), *model.buffers())})
    else:
        model = _accelerate().dispatch_model(model, on_gpus, main_device=first, force_hooks=True)
    words = ", ".join(device_name(devices[number]) for number in used)
    if streamed is not None:
        words += f", {memory_text(streamed.nbytes)} of weights in the host's memory"
    return Placed(model, first, streamed, words)


def _tensors_of(model: nn.Module, name: str) -> list[Tensor]:
    """The parameters and buffers of a module, or the one of that name."""
    every = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return [tensor for own, tensor in every if not name or own == name or own.startswith(f"{name}.")]


def asked_map(given: str) -> dict[str, int | str] | str:
    """What ``--device-map`` says.

    Raises:
        OptionError: it cannot be read.
    """
    try:
        return device_map_of(given)
    except ValueError as error:
        raise OptionError(f"--device-map {given[:60]!r}: {error}") from None


def gpus() -> list[torch.device]:
    """The devices that ``--device-map`` counts from 0."""
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]


def room_for_weights(device: torch.device) -> int:
    """Bytes of weights that ``auto`` puts on a GPU."""
    free = available_bytes(device)
    return 0 if isinstance(free, Missing) else free // _SHARE


def _inferred(model: nn.Module, devices: list[torch.device]) -> Mapping[str, int | str]:
    if not devices:
        return {"": "cpu"}
    room: dict[int | str, int | str] = {i: room_for_weights(device) for i, device in enumerate(devices)}
    room["cpu"] = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) + 1
    found = _accelerate().infer_auto_device_map(model, max_memory=room, no_split_module_classes=_blocks(model))
    return dict(found)


def _blocks(model: nn.Module) -> list[str]:
    """Classes of modules that are computed on one device: what they add up inside must lie together."""
    named = getattr(model, "_no_split_modules", None) or ()
    containers = [m for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    inside = {type(child).__name__ for m in containers for child in m if any(True for _ in child.children())}
    return sorted({*named, *inside} - {"Sequential", "ModuleList"})


def _checked(model: nn.Module, asked: Mapping[str, int | str], n_devices: int) -> Mapping[str, int | str]:
    modules = dict(model.named_modules())
    for name, at in asked.items():
        if name not in modules:
            raise OptionError(f"--device-map: the network has no module {name[:80]!r}; its own are {_some(model)}")
        if isinstance(at, int) and at >= n_devices:
            has = f"has {n_devices}, numbered from 0" if n_devices else "has none"
            raise OptionError(f"--device-map: {name[:80]!r} is on GPU {at}; this machine {has}")
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        parts = name.split(".")[:-1]
        if not any(".".join(parts[:end]) in asked for end in range(len(parts) + 1)):
            raise OptionError(f'--device-map: {name!r} lies in none of its modules; "" stands for the whole network')
    return _apart(model, asked)


def _apart(model: nn.Module, asked: Mapping[str, int | str]) -> dict[str, int | str]:
    """The same places for modules none of which lies in another, as accelerate wants them."""
    found: dict[str, int | str] = {}

    def walk(name: str, module: nn.Module, at: int | str | None) -> None:
        at = asked.get(name, at)
        dot = f"{name}." if name else ""
        if at is not None and not any(other.startswith(dot) and other != name for other in asked):
            found[name] = at
            return
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        found.update({dot + local: at for local, _ in own if at is not None})
        for local, child in module.named_children():
            walk(dot + local, child, at)

    walk("", model, None)
    return found


def _some(model: nn.Module) -> str:
    names = [name for name, _ in model.named_children()]
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")


def _accelerate() -> Any:
    try:
        import accelerate
    except ImportError:
        raise OptionError("--device-map needs the package accelerate; pip install 'spectrascope[accelerate]'") from None
    return accelerate
