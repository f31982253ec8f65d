"""The optimizers that are compared, each with a grid of learning rates a factor of two apart to begin with.

Wherever the best of a grid lies at its end the comparison goes on beyond it, for everyone alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from spectrascope.optim import SpectralNewton, parameter_groups
from spectrascope.records.advice import ParameterExponent

ADAMW_LR = 3e-3
"""Of embeddings, heads and vectors, wherever Muon or SpectralNewton step the matrices."""

WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Measured:
    """What a short warm-up and ``spectrascope.probe`` say of the network."""

    exponents: Sequence[ParameterExponent]
    alpha_h: Mapping[str, float]
    adamw: Sequence[str]
    training: float | None = None  # the one exponent for a whole training, where it is determined


@dataclass(frozen=True)
class Contender:
    """A name, the learning rates to try, and how to make it."""

    name: str
    rates: tuple[float, ...]
    make: Callable[[nn.Module, float, Measured], torch.optim.Optimizer]
    adaptive: bool = False  # exponents are measured again while it trains, paid for with steps
    package: str | None = None  # what it needs beside torch, by the name pip knows

    @property
    def installed(self) -> bool:
        """Whether it can be made here."""
        return self.package is None or find_spec(self.package) is not None


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon on hidden matrices, convolutions flattened to matrices, and AdamW on the rest.

    Muon takes matrices only; a flattened view of a kernel shares its memory, so stepping one steps the other.
    """

    def __init__(self, hidden: list[nn.Parameter], rest: list[nn.Parameter], lr: float) -> None:
        super().__init__([{"params": hidden, "lr": lr}, {"params": rest, "lr": ADAMW_LR}], {"lr": lr})
        self.views = [nn.Parameter(p.detach().view(len(p), -1)) for p in hidden]
        self.muon = torch.optim.Muon(self.views, lr=lr, weight_decay=WEIGHT_DECAY)
        self.adamw = torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step."""
        spectral, vectors = self.param_groups
        self.muon.param_groups[0]["lr"], self.adamw.param_groups[0]["lr"] = spectral["lr"], vectors["lr"]
        for p, view in zip(spectral["params"], self.views, strict=True):
            view.grad = p.grad.view_as(view)
        self.muon.step()
        self.adamw.step()


class ScalarScaledAdamW(torch.optim.AdamW):
    """The paper's negative control: AdamW with one learning rate per layer, ∝ (alpha_h / mean)^exponent.

    It knows how fast each layer's curvature decays, but cannot tell one singular direction from another.
    """

    def __init__(self, model: nn.Module, lr: float, alpha_h: Mapping[str, float], exponent: float = 0.5) -> None:
        mean = sum(alpha_h.values()) / max(1, len(alpha_h))
        groups = []
        for name, p in model.named_parameters():
            scale = max(alpha_h[name], 1e-3) / mean if name in alpha_h and mean > 0 else 1.0
            groups.append({"params": [p], "lr": lr * scale**exponent})
        super().__init__(groups, lr=lr, weight_decay=WEIGHT_DECAY)


DAMPING = 1e-4
"""Relative, where no measurement says anything: a hundredth of the largest singular value."""


def _spectral(model: nn.Module, lr: float, measured: Measured, **options: Any) -> torch.optim.Optimizer:
    groups = parameter_groups(model, adamw=measured.adamw)
    return SpectralNewton(groups, lr, weight_decay=WEIGHT_DECAY, adamw_lr=ADAMW_LR, adjust_lr_fn="original", **options)


def _muon(model: nn.Module, lr: float, measured: Measured) -> torch.optim.Optimizer:
    groups = parameter_groups(model, adamw=measured.adamw)
    return MuonWithAdamW(groups[0]["params"], groups[1]["params"], lr)


def _held_out(model: nn.Module, lr: float, measured: Measured) -> torch.optim.Optimizer:
    groups = parameter_groups(model, measured.exponents, adamw=measured.adamw, default_beta=1.0)
    return SpectralNewton(groups, lr, weight_decay=WEIGHT_DECAY, adamw_lr=ADAMW_LR, adjust_lr_fn="original")


def _half_way(model: nn.Module, lr: float, measured: Measured) -> torch.optim.Optimizer:
    beta = 1.0 if measured.training is None else measured.training
    return _spectral(model, lr, measured, beta=beta, damping=DAMPING, scale_free=True)


def _muon_like(model: nn.Module, lr: float, measured: Measured) -> torch.optim.Optimizer:
    return _spectral(model, lr, measured, beta=1.0, damping=DAMPING, scale_free=True)


def _adamw(model: nn.Module, lr: float, _: Measured) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr, weight_decay=WEIGHT_DECAY)


def _soap(model: nn.Module, lr: float, _: Measured) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP  # Adam in the eigenbasis of Shampoo; vectors by Adam

    return SOAP(model.parameters(), lr, weight_decay=WEIGHT_DECAY)  # type: ignore[no-any-return]


def _sgd(model: nn.Module, lr: float, _: Measured) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


_ADAMW_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
_MUON_RATES = (0.01, 0.02, 0.04, 0.08, 0.16)

CONTENDERS = (
    Contender("Muon", _MUON_RATES, _muon),
    Contender("SN, held-out β", _MUON_RATES, _held_out),
    Contender("SN, half-way β", _MUON_RATES, _half_way),
    Contender("SN, β = 1", _MUON_RATES, _muon_like),
    Contender("SN, adaptive", _MUON_RATES, _muon_like, adaptive=True),
    Contender("SOAP", _ADAMW_RATES, _soap, package="pytorch_optimizer"),
    Contender("AdamW", _ADAMW_RATES, _adamw),
    Contender("SGD", (0.025, 0.05, 0.1, 0.2, 0.4), _sgd),
    Contender("SN, β = 2", _MUON_RATES, lambda m, lr, found: _spectral(m, lr, found, damping=0.01, scale_free=True)),
    Contender("SN, paper", (0.1, 0.2, 0.4, 0.8, 1.6), _spectral),
    Contender("scalar control", _ADAMW_RATES, lambda m, lr, found: ScalarScaledAdamW(m, lr, found.alpha_h)),
)
