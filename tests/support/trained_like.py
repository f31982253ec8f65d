"""Random weights that behave like trained ones: no uniform softmax, no idle gain, no dead or exploding unit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from spectrascope.losses import scores_of
from spectrascope.workload import Inputs

_DRAWN = ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "Embedding", "MultiheadAttention", "LSTM", "GRU")
_DRAWN += ("ConvTranspose1d", "ConvTranspose2d", "NonDynamicallyQuantizableLinear", "OPTLearnedPositionalEmbedding")
_AS_BUILT = re.compile(r"A_log|logit_scale|dt_proj|(^|\.)D$")  # their initial values carry meaning; nudged only
_GAIN = 1.3
_SCORES = 1.5  # standard deviation of the scores over classes and samples


def trained_like(model: nn.Module, inputs: Inputs, seed: int = 0) -> nn.Module:
    """Give every parameter and running statistic a fresh value, float64, and put the model in evaluation mode.

    Weights are normal with variance 1.7 / fan-in, gains are spread around what they were built with, biases are not
    zero, running statistics are those of the batch, jittered, and the last weight is scaled so that scores have a
    standard deviation of 1.5 (a tied one is left alone where they are of order one already).
    """
    model.double().eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for prefix, module in model.named_modules():
            for local, parameter in module._parameters.items():
                if parameter is not None:
                    parameter.copy_(_fresh(f"{prefix}.{local}", module, local, parameter))
        _calibrate(model, inputs)
        _scale_scores(model, inputs)
    return model


def _fresh(name: str, module: nn.Module, local: str, old: Tensor) -> Tensor:
    noise = torch.randn(old.shape, dtype=old.dtype)
    if _AS_BUILT.search(name):
        return old + 0.1 * noise
    if "layer_scale" in local:  # built as 1e-6, which would switch the block off
        return 0.4 + 0.6 * torch.rand(old.shape, dtype=old.dtype)
    if old.dim() < 2:
        spread = 0.2 if "bias" in local else 0.4
        return old + spread * (2 * torch.rand(old.shape, dtype=old.dtype) - 1)
    kind = type(module).__name__
    if kind == "Embedding":
        return 0.7 * noise
    if kind in _DRAWN or kind.endswith("Linear") or "expert" in name.lower():
        return noise * _GAIN / _fan_in(kind, old) ** 0.5
    return old + 0.4 * noise


def _fan_in(kind: str, weight: Tensor) -> int:
    if kind in ("Conv1D", "Embedding"):
        return weight.shape[0]
    if kind.startswith("ConvTranspose"):
        return weight.shape[0]
    return weight[0].numel() if weight.dim() != 3 or kind.startswith("Conv") else weight.shape[-1]


def _run(model: nn.Module, inputs: Inputs) -> Tensor:
    return scores_of(model(inputs) if isinstance(inputs, Tensor) else model(**inputs))


def _calibrate(model: nn.Module, inputs: Inputs) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    _run(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        if norm.running_mean is not None:
            norm.running_var.clamp_(min=0.2 * float(norm.running_var.mean()) + 1e-3)
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= 0.7 + 0.7 * torch.rand_like(norm.running_var)


def _scale_scores(model: nn.Module, inputs: Inputs) -> None:
    called: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in model.modules() if _is_linear(m)]
    spread = float(_run(model, inputs).std())
    for hook in hooks:
        hook.remove()
    if not called or 0.7 < spread < 3:
        return
    for parameter in called[-1].parameters(recurse=False):
        parameter.mul_(_SCORES / spread)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d))


@contextmanager
def no_narrowing() -> Iterator[None]:
    """Make casts to float32 inside a model no-ops, so that a float64 check stays float64.

    Hugging Face models cast to float32 in places on purpose (``.float()``, ``.to(torch.float32)``,
    ``softmax(dtype=torch.float32)`` in RMSNorm, eager attention, routers): right for half precision, but it rounds a
    float64 forward pass to 1e-7 and its second derivatives far worse.
    """
    before = torch.get_default_dtype()
    with _Float64Stays():
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class _Float64Stays(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
