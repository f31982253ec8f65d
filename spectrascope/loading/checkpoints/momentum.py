"""The momentum an optimizer kept in a checkpoint, by the names of the weights it belongs to.

torch numbers an optimizer's buffers and names none of them, so names are found by order: the parameters of each group
are in the order of the network, and every shape must agree. What cannot be told apart is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.mapped import in_memory
from spectrascope.loading.checkpoints.pickles import read_torch

__all__ = ["momentum_of", "read_momentum"]

BUFFERS = ("exp_avg", "momentum_buffer")
"""What torch's optimizers, and most others, call their momentum."""

_BESIDE = ("optimizer.pt", "optimizer.bin", "optimizer.pth")
_DEPTH = 3


def read_momentum(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read the momentum buffers saved in a checkpoint, or in an optimizer's file beside it.

    Args:
        checkpoint: a training checkpoint with the optimizer's state in it, a folder with ``optimizer.pt``, or a file
            beside one. Nothing in it is executed.
        model: the network they belong to.

    Returns:
        Momentum by parameter name, shaped like the parameters.

    Raises:
        LoadError: no optimizer's state, no momentum in it, or buffers that cannot be told apart.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    own = [checkpoint] if checkpoint.is_file() and checkpoint.suffix != ".safetensors" else []
    files = [*own, *(path for name in _BESIDE if (path := folder / name).is_file() and path not in own)]
    for file in files:
        with file.open("rb") as opened:
            head = opened.read(16)
        states = list(_states(read_torch(file, head, mapped=True), _DEPTH))
        if len(states) > 1:
            raise LoadError(f"{file} holds the states of {len(states)} optimizers; expected one: save them apart")
        if states:
            return {name: in_memory(buffer) for name, buffer in _by_name(states[0], model, str(file)).items()}
    looked = ", ".join(file.name for file in files) or "no file of torch.save"
    raise LoadError(
        f"{checkpoint}: no optimizer's state found (looked in {looked}); expected a training checkpoint that holds "
        f"optimizer.state_dict(), or {_BESIDE[0]} beside the weights"
    )


def momentum_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Take the momentum buffers of an optimizer in memory, by parameter name.

    Raises:
        LoadError: it has taken no step yet, or keeps no momentum.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for parameter, state in optimizer.state.items():
        buffer = next((state[name] for name in BUFFERS if isinstance(state.get(name), Tensor)), None)
        if buffer is not None and id(parameter) in names:
            found[names[id(parameter)]] = buffer.detach()
    if not found:
        raise LoadError(f"{type(optimizer).__name__} holds no {' or '.join(BUFFERS)}: step it first, with momentum")
    return found


def _states(content: Any, depth: int) -> Iterator[Mapping[Any, Any]]:
    """Optimizers' state dicts anywhere near the top of what a training script saved."""
    if isinstance(content, Mapping):
        if isinstance(content.get("state"), Mapping) and isinstance(content.get("param_groups"), Sequence):
            yield content
        elif depth:
            for value in content.values():
                yield from _states(value, depth - 1)
    elif isinstance(content, (list, tuple)) and depth:
        for value in content[:8]:
            yield from _states(value, depth - 1)


def _by_name(state: Mapping[Any, Any], model: nn.Module, where: str) -> dict[str, Tensor]:
    buffers: dict[Any, Tensor] = {}
    for key, kept in state["state"].items():
        if isinstance(kept, Mapping):
            found = next((kept[name] for name in BUFFERS if isinstance(kept.get(name), Tensor)), None)
            if found is not None:
                buffers[key] = found
    if not buffers:
        raise LoadError(f"{where}: its optimizer keeps no {' or '.join(BUFFERS)}; expected one with momentum")
    groups = [group for group in state["param_groups"] if isinstance(group, Mapping)]
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = _saved_names(groups) or _names_by_order(groups, buffers, own, where)
    momentum = {}
    for key, name in names.items():
        if key not in buffers:
            continue
        if name not in own or own[name].shape != buffers[key].shape:
            held = tuple(own[name].shape) if name in own else "none"
            raise LoadError(
                f"{where}: momentum of {name!r} has shape {tuple(buffers[key].shape)}, the network's weight {held}: is "
                "this optimizer's state of this network?"
            )
        momentum[name] = buffers[key]
    return momentum


def _saved_names(groups: Sequence[Mapping[Any, Any]]) -> dict[Any, str]:
    """Names, where the optimizer was made from named parameters (torch 2.6 and later)."""
    names: dict[Any, str] = {}
    for group in groups:
        given, keys = group.get("param_names"), group.get("params")
        if not (isinstance(given, Sequence) and isinstance(keys, Sequence) and len(given) == len(keys)):
            return {}
        names |= {key: str(name).removeprefix("module.") for key, name in zip(keys, given, strict=True)}
    return names


def _names_by_order(
    groups: Sequence[Mapping[Any, Any]], buffers: Mapping[Any, Tensor], own: Mapping[str, nn.Parameter], where: str
) -> dict[Any, str]:
    """Names by the order of the network, where the groups leave no doubt.

    One group holds all parameters in order, as ``model.parameters()`` gives them; two hold the matrices and the
    vectors, as weight decay wants them. Other groups could be in any order, so there only shapes can tell.
    """
    keys = [list(group["params"]) for group in groups if isinstance(group.get("params"), Sequence)]
    row = [key for group in keys for key in group]
    matrices = [name for name, parameter in own.items() if parameter.dim() > 1]
    vectors = [name for name, parameter in own.items() if parameter.dim() <= 1]
    sizes = [len(group) for group in keys]
    orders = [
        ([len(own)], list(own)),
        ([len(matrices), len(vectors)], [*matrices, *vectors]),
        ([len(vectors), len(matrices)], [*vectors, *matrices]),
    ]
    known = [dict(zip(row, order, strict=True)) for counts, order in orders if counts == sizes]
    for names in known:
        if all(key not in buffers or buffers[key].shape == own[name].shape for key, name in names.items()):
            return names
    if not known and len(row) == len(own):
        of_shape = {tuple(parameter.shape): name for name, parameter in own.items()}
        if len(of_shape) == len(own) and all(tuple(buffer.shape) in of_shape for buffer in buffers.values()):
            return {key: of_shape[tuple(buffer.shape)] for key, buffer in buffers.items()}
    raise LoadError(
        f"{where}: an optimizer of {len(row)} parameters in groups of {', '.join(map(str, sizes))} does not say which "
        f"of the network's {len(own)} each belongs to; save its state with names (make it from "
        "model.named_parameters(), torch 2.6 and later)"
    )
