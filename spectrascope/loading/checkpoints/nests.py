"""Where in what a training script saved the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spectrascope.errors import LoadError, QuantizedError

__all__ = ["Found", "find_weights"]

# Where training scripts keep the weights, best guess first.
_NESTS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module",
    "model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model", "averaged_model", "teacher", "student",
)  # fmt: skip
_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Found:
    """The dict of tensors, the dotted place it was at, and where else there were weights."""

    tensors: dict[str, Tensor]
    place: str
    others: tuple[str, ...] = ()


def find_weights(content: Any, where: str, key: str = "") -> Found:
    """Find the dict of tensors in what a file holds.

    Args:
        content: what was read.
        where: the file, for messages.
        key: dotted place to look at; the likeliest one when empty.

    Raises:
        LoadError: there are no named tensors, or nothing at ``key``.
    """
    if isinstance(content, Tensor):
        raise LoadError(f"{where} holds a single tensor; expected a state dict (parameter name -> tensor)")
    if not isinstance(content, Mapping):
        raise LoadError(f"{where} holds a {type(content).__name__}; expected a state dict (parameter name -> tensor)")
    if key:
        content = _descend(content, key, where)
    if _is_optimizer(content):
        raise LoadError(
            f"{where} holds an optimizer's state; expected a network's weights, saved by model.state_dict()"
        )
    found = _search(content, key, 0)
    if _holds_packed(content, 0):
        raise QuantizedError(
            f"{where} holds the packed weights of torch's quantised layers (…._packed_params); quantised weights have "
            "no second derivatives; load the full-precision checkpoint it was made from"
        )
    if found is None:
        if isinstance(content.get("shadow_params"), list):
            raise LoadError(
                f"{where} holds averaged weights without their names ('shadow_params'); copy them into the network "
                "(ema.copy_to) and save its state_dict()"
            )
        keys = ", ".join(repr(name)[:60] for name in list(content)[:5])
        raise LoadError(
            f"{where} holds no weights: expected a state dict (parameter name -> tensor), bare or under "
            f"'state_dict' or 'model', got a dict with keys {keys or 'none'}"
        )
    tensors, place = found
    top = place.removeprefix(f"{key}.") if key else place
    others = [name for name in _NESTS if name in content and name != top.partition(".")[0]]
    others = [name for name in others if isinstance(content[name], Mapping) and _search(content[name], name, 1)]
    return Found(tensors, place, tuple(others) if top else ())


def _descend(content: Mapping[Any, Any], key: str, where: str) -> Mapping[Any, Any]:
    at: Any = content
    rest = key
    while rest:
        names = [str(name) for name in at] if isinstance(at, Mapping) else []
        # A name may hold dots itself: the longest that fits.
        step = max((n for n in names if rest == n or rest.startswith(n + ".")), key=len, default=None)
        if step is None:
            known = ", ".join(repr(name)[:40] for name in names[:8]) or "nothing with names"
            raise LoadError(f"{where} has nothing at {key!r}: expected one of {known}")
        at = next(value for name, value in at.items() if str(name) == step)
        rest = rest[len(step) + 1 :]
    if not isinstance(at, Mapping):
        raise LoadError(f"{where} holds a {type(at).__name__} at {key!r}; expected a state dict")
    return at


def _is_optimizer(content: Mapping[Any, Any]) -> bool:
    return "param_groups" in content and "state" in content


def _holds_packed(content: Mapping[Any, Any], depth: int) -> bool:
    if any(str(key).endswith("_packed_params") for key in content):
        return True
    return depth < _DEPTH and any(_holds_packed(v, depth + 1) for v in content.values() if isinstance(v, Mapping))


def _search(content: Mapping[Any, Any], place: str, depth: int) -> tuple[dict[str, Tensor], str] | None:
    if _is_optimizer(content):
        return None
    tensors = {
        key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    others = [key for key in content if key not in tensors and not str(key).endswith("_extra_state")]
    if tensors and not others:
        return tensors, place
    if depth < _DEPTH:
        names = [key for key in _NESTS if key in content]
        names += [key for key in others if key not in names and "optim" not in str(key)]
        for key in names:
            if isinstance(content[key], Mapping):
                below = _search(content[key], f"{place}.{key}" if place else str(key), depth + 1)
                if below is not None:
                    return below
    # A state dict with an epoch number or the like beside its tensors.
    weights = {key: value for key, value in tensors.items() if "." in key}
    return (weights, place) if weights else None
