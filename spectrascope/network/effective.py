"""The network with plain weights: wrappers unwrapped, parametrized weights replaced by what they evaluate to.

What a network applies to its inputs is the effective weight, so that is what is measured: of a weight-normalised
layer the product of direction and length, not the two; of a low-rank update the sum with its base. The user's
model is never touched: a network that holds such weights is copied first.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from spectrascope.errors import UnsupportedModelError
from spectrascope.text import first_line

__all__ = ["copy_of", "effective_tensors", "parametrized_weights", "unwrapped", "with_effective_weights"]

_OLD_STYLE = ("WeightNorm", "SpectralNorm")  # forward pre-hooks of torch.nn.utils.weight_norm and spectral_norm


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``AveragedModel``.

    In any nesting, compiled submodules too. Compiled code has no second derivative, and wrappers change every weight's
    name, so that a report of a network in memory and one of its file would not match. Where a submodule is compiled,
    the modules above it are copied, shallow: parameters and buffers are the user's own.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module) and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if not isinstance(inner, nn.Module) and _is_average(model):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return _eager(model, {})
        model = inner


def _is_average(model: nn.Module) -> bool:
    """Whether it keeps a moving average of another network's weights; told by name, to import no more of torch."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__}
    return "torch.optim.swa_utils.AveragedModel" in kinds


def _eager(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """The module without compiled ones in it; itself if there are none."""
    if id(module) in seen:
        return seen[id(module)]
    inner = getattr(module, "_orig_mod", None)
    if isinstance(inner, nn.Module):
        return _eager(inner, seen)
    seen[id(module)] = module
    children = {name: None if m is None else _eager(m, seen) for name, m in module._modules.items()}
    if all(child is module._modules[name] for name, child in children.items()) and not _is_compiled(module):
        return module
    plain = seen[id(module)] = copy.copy(module)
    plain._modules = children
    plain._compiled_call_impl = None
    return plain


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``module.compile()`` was called."""
    return getattr(module, "_compiled_call_impl", None) is not None


def parametrized_weights(model: nn.Module) -> list[str]:
    """Names of the weights that are computed from other tensors on every use."""
    return [f"{name}.{local}" if name else local for name, module in model.named_modules() for local in _of(module)]


def _of(module: nn.Module) -> list[str]:
    new: list[str] = []
    if parametrize.is_parametrized(module):
        new += cast("nn.ModuleDict", module.parametrizations)
    return new + [hook.name for hook in _old_hooks(module)] + list(_pruned(module))


def _old_hooks(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ in _OLD_STYLE]


def _pruned(module: nn.Module) -> dict[str, Any]:
    """Forward pre-hooks that multiply a weight by a mask, by the weight's name."""
    hooks = module._forward_pre_hooks.values()
    return {hook._tensor_name: hook for hook in hooks if isinstance(hook, prune.BasePruningMethod)}


def with_effective_weights(model: nn.Module) -> nn.Module:
    """A copy whose parametrized weights are plain parameters under their usual names.

    Raises:
        UnsupportedModelError: a parametrization cannot be evaluated.
    """
    model = copy_of(model)
    for name, module in list(model.named_modules()):
        for local in _of(module):
            try:
                with torch.no_grad():
                    _bake(module, local)
            except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
                raise UnsupportedModelError(
                    f"the parametrized weight {name}.{local} cannot be evaluated: {first_line(error)}"
                ) from error
    return model


def _bake(module: nn.Module, local: str) -> None:
    trained = any(p.requires_grad for p in module.parameters())
    training = module.training
    module.eval()  # spectral norm takes another step of its power iteration in training
    if parametrize.is_parametrized(module, local):
        # The copy shares its class with the user's module, and torch takes the property off the class.
        kind = type(module)
        own = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, own)
        parametrize.remove_parametrizations(module, local, leave_parametrized=True)
    elif local in _pruned(module):
        prune.remove(module, local)
    else:
        hook = next(hook for hook in _old_hooks(module) if hook.name == local)
        remove = nn.utils.remove_weight_norm if type(hook).__name__ == "WeightNorm" else nn.utils.remove_spectral_norm
        remove(module, local)
    module.train(training)
    weight = getattr(module, local)
    if not isinstance(weight, nn.Parameter):  # torch leaves a plain tensor where several made up one
        delattr(module, local)
        setattr(module, local, nn.Parameter(weight.detach()))
    getattr(module, local).requires_grad_(trained)


def copy_of(model: nn.Module, known: Mapping[int, nn.Parameter] | None = None) -> nn.Module:
    """A deep copy, also of a network that keeps computed tensors (old-style weight norm) beside its parameters.

    Args:
        model: what is copied.
        known: parameters of the copy that are made already, by the id of those they stand for.
    """
    with _computed_tensors_detached(model):
        copied = copy.deepcopy(model, {**(known or {})})
    vars(copied).pop("to", None)  # accelerate's stands in for the method, and moves the original
    return copied


@contextmanager
def _computed_tensors_detached(model: nn.Module) -> Iterator[None]:
    """``copy.deepcopy`` refuses tensors that hang on an autograd graph."""
    held = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if _is_computed(value) or (isinstance(value, list) and any(map(_is_computed, value)))
    ]
    try:
        for module, name, value in held:
            vars(module)[name] = [_detach(v) for v in value] if isinstance(value, list) else _detach(value)
        yield
    finally:
        for module, name, value in held:
            vars(module)[name] = value


def _is_computed(value: object) -> bool:
    return isinstance(value, Tensor) and value.grad_fn is not None


def _detach(value: Any) -> Any:
    return value.detach() if _is_computed(value) else value


# -- of a file ----------------------------------------------------------------------------------------------------

_NEW = re.compile(r"^(.*?)parametrizations\.([^.]+)\.(original[01]?|\d+\._[uv])$")
_OLD = re.compile(r"^(.+)_(orig|mask|u|v|g)$")
_OF_NEW = {"original0": "g", "original1": "v", "original": "orig", "0._u": "u", "0._v": "v"}


def effective_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the weights that pruned and normalised ones evaluate to, under their usual names.

    Known by the names of their parts: ``weight_orig`` and ``weight_mask`` (pruning), ``weight_g`` and ``weight_v`` or
    ``parametrizations.weight.original0`` and ``1`` (weight norm), ``weight_orig``, ``weight_u`` and ``weight_v`` or
    ``parametrizations.weight.original`` with ``0._u`` and ``_v`` (spectral norm). Parts of anything else stay as they
    are.
    """
    parts: dict[str, dict[str, str]] = {}
    owner: dict[str, str] = {}
    for name in tensors:
        if new := _NEW.match(name):
            whole, part = new[1] + new[2], _OF_NEW.get(new[3], "")
        elif old := _OLD.match(name):
            whole, part = old[1], old[2]
        else:
            continue
        parts.setdefault(whole, {})[part], owner[name] = name, whole
    made = {}
    for whole, names in parts.items():
        value = None if whole in tensors else _evaluate({part: tensors[name] for part, name in names.items()})
        if value is not None:
            made[whole] = value
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = owner.get(name, "")
        found.setdefault(whole, made[whole]) if whole in made else found.setdefault(name, tensor)
    return found


def _evaluate(parts: dict[str, Tensor]) -> Tensor | None:
    kinds = parts.keys()
    if kinds == {"orig", "mask"} and parts["orig"].shape == parts["mask"].shape:
        return parts["orig"] * parts["mask"].to(parts["orig"].dtype)
    if kinds == {"g", "v"}:
        g, v = parts["g"], parts["v"]
        if g.dim() and (g.dim() != v.dim() or any(a not in (1, b) for a, b in zip(g.shape, v.shape, strict=True))):
            return None
        over = [d for d in range(v.dim()) if not g.dim() or g.shape[d] == 1]
        return v * (g / torch.linalg.vector_norm(v, dim=over, keepdim=True)) if over else None
    if kinds == {"orig", "u", "v"} and parts["u"].dim() == parts["v"].dim() == 1:
        weight, u, v = parts["orig"], parts["u"], parts["v"]
        for rows in (weight.flatten(1), weight.transpose(0, 1).flatten(1)) if weight.dim() > 1 else ():
            if rows.shape == (len(u), len(v)):
                return weight / (u @ rows @ v)
    return None
