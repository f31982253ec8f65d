"""Step along gradients whose every singular direction is scaled by its own curvature: spectral Newton."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from spectrascope.optim.matrix_transfer import Precision, Route, apply_transfer, choose_route
from spectrascope.records.advice import ParameterExponent

__all__ = ["SpectralNewton"]

Group = dict[str, Any]

_LAYOUTS = ("flat", "stacked", "conv_transpose")
_ADJUSTMENTS = (None, "original", "match_rms_adamw")
_STACK_ELEMENTS = 2**25  # of one batched call: bounds the memory of its copies

_AUTO_EXPONENTS = {"convolution": 2.0, "matrix": 1.0}
"""What ``beta="auto"`` means: medians of the paper's table, rounded. Nothing measured stands behind them."""


class SpectralNewton(Optimizer):
    """Step along U diag(T(sigma)) Vᵀ, with M = U diag(sigma) Vᵀ the momentum, T(sigma) = sigma / (sigma² + d)^(beta/2).

    With beta = 0 that is (scaled) SGD, with beta = 1 and d → 0 Muon's orthogonalised step, with beta = 2 Spectral
    Newton, M (Mᵀ M + d I)^(−1). Momentum, its Nesterov form and decoupled weight decay are those of
    ``torch.optim.Muon``: M ← μ M + (1 − μ) G.

    Matrices are stepped so, convolution kernels as (out, in · kernel). Parameters of fewer than two dimensions go to
    an AdamW of their own, in a parameter group that the constructor splits off (so a learning-rate schedule reaches
    them); any other parameter goes there by ``beta=None`` in its group. Embedding tables and heads belong there: see
    :func:`spectrascope.optim.parameter_groups`.

    Every option but the AdamW ones can differ by group. Matrices of equal shape are stepped as one stack, across
    groups too.

    Args:
        params: parameters, named parameters, or groups of either.
        lr: learning rate of the spectral step.
        beta: exponent, 0 or more; ``"auto"``: 2 for convolutions, 1 for matrices, the paper's medians rounded;
            ``None``: the group is stepped by AdamW.
        damping: d. In units of sigma², the gradient's own, unless ``scale_free``. At beta = 2 this is the paper's
            sigma / (sigma^beta + d); at any other beta it damps the same directions, those with sigma below √d.
        momentum: μ, from 0 to below 1.
        nesterov: look ahead by one momentum step.
        weight_decay: decoupled: weights shrink by lr · weight_decay per step.
        scale_free: measure sigma in units of the matrix's Schatten 4-norm (about sigma_1), so that damping is
            relative, and give every step the Frobenius norm √min(m, n) of an orthogonal one, so that a learning rate
            means the same for every beta, layer and size of the gradient. What the paper does not do, and what
            training usually needs: without it a gradient that shrinks makes steps with beta > 1 *grow* until
            damping stops them.
        adjust_lr_fn: as in ``torch.optim.Muon``: ``"original"`` multiplies by √max(1, m/n), ``"match_rms_adamw"`` by
            0.2·√max(m, n), ``None`` by 1.
        layout: how a parameter is seen as matrices: ``flat`` (m, …) as (m, n); ``stacked`` (e, m, n) as e matrices,
            such as a mixture's experts; ``conv_transpose`` (in, out, …) as (out, in · kernel).
        precision: see :class:`spectrascope.optim.Precision`.
        adamw_lr: learning rate of groups split off for AdamW, and of groups with ``beta=None`` that name none.
        adamw_betas: AdamW's averaging coefficients.
        adamw_eps: AdamW's ε.
        adamw_weight_decay: of the groups split off, and of groups with ``beta=None`` that name none.

    Raises:
        ValueError: an option out of range, or a parameter that cannot be seen in its group's layout.

    Cost: for an m × n matrix, m ≤ n, 4 m² n floating-point operations and, on a CPU, 2 m³ at beta = 2 and an m × m
        eigensolver at any other; Muon takes 20 m² n + 10 m³. On a GPU, with beta a multiple of ¼ (to 3) and a damping
        relative to the gradient of 1e-4 or more, 4 m² n and products of m × m matrices, 2 m³ each: 15, 14, 19, 14, 20,
        18, 23, 19, 24, 21, 27, 23 of them at beta = ¼, ½, … 3, never more than two of Muon's steps, to 1e-3. A beta
        between two multiples is stepped exactly as asked, by an eigensolver, some ten times as slow there:
        :func:`spectrascope.optim.parameter_groups` rounds by ``beta_grid=0.25``.
    Reference: MEASUREMENT section 8.

    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> weight.grad = torch.diag(torch.tensor([3.0, 1.0]))
    >>> SpectralNewton([weight], lr=1.0, beta=2.0, damping=1.0, momentum=0.0).step()
    >>> [round(value, 6) for value in weight.diag().tolist()]
    [-0.3, -0.5]
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        beta: float | str | None = 2.0,
        damping: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        *,
        scale_free: bool = False,
        adjust_lr_fn: str | None = None,
        layout: str = "flat",
        precision: Precision | str = Precision.AUTO,
        adamw_lr: float = 3e-4,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "damping": damping,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "scale_free": scale_free,
            "adjust_lr_fn": adjust_lr_fn,
            "layout": layout,
            "precision": Precision(precision).value,
            "adamw_lr": adamw_lr,
            "adamw_betas": tuple(adamw_betas),
            "adamw_eps": adamw_eps,
            "adamw_weight_decay": adamw_weight_decay,
        }
        _require_sound(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters as one or, where they are to be stepped differently, several groups.

        Raises:
            ValueError: an option out of range, or a parameter that cannot be seen in the group's layout.
        """
        for group in _split(param_group, self.defaults):
            _require_sound({**self.defaults, **group})
            super().add_param_group(group)

    @torch.no_grad()
    def set_exponents(self, exponents: Mapping[nn.Parameter, ParameterExponent]) -> None:
        """Step parameters by exponents of their own from now on, in place of their groups'.

        They are part of the state, so that a training that goes on later has them too. Parameters of AdamW groups,
        and what the exponents say of layouts, are left alone.

        Args:
            exponents: by parameter; ``relative_damping`` where its group is ``scale_free``, else ``damping``.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if group["beta"] is not None and p in exponents:
                    found = exponents[p]
                    self.state[p]["beta"] = found.beta
                    self.state[p]["damping"] = found.relative_damping if group["scale_free"] else found.damping

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: reevaluates the model and returns the loss; run once, with gradients.

        Returns:
            What the closure returned, if there is one.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        jobs: list[_Job] = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None and p.numel()]
            if any(p.grad.is_sparse for p in parameters):
                raise RuntimeError("SpectralNewton does not support sparse gradients")
            if not parameters:
                continue
            if group["beta"] is None:
                self._step_adamw(group, parameters)
            else:
                jobs += self._directions(group, parameters)
        for stack in _stacks(jobs):
            _step_together(stack)
        return loss

    def _directions(self, group: Group, parameters: list[Tensor]) -> list[_Job]:
        """Advance the momentum, shrink the weights, and return what is left to be transferred and added."""
        gradients = _gradients(parameters)
        momentum = group["momentum"]
        directions = gradients
        if momentum:
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            directions = list(torch._foreach_lerp(gradients, buffers, momentum)) if group["nesterov"] else buffers
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        return [
            _Job(
                p,
                _as_matrices(d, group["layout"]),
                group,
                float(self.state[p].get("beta", group["beta"])),
                float(self.state[p].get("damping", group["damping"])),
            )
            for p, d in zip(parameters, directions, strict=True)
        ]

    def _step_adamw(self, group: Group, parameters: list[Tensor]) -> None:
        for p in parameters:
            if "exp_avg" not in self.state[p]:
                self.state[p]["step"] = torch.tensor(0.0)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["adamw_betas"]
        adamw(
            parameters,
            _gradients(parameters),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["adamw_eps"],
            maximize=False,
        )


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    """Return gradients in their parameters' dtype, which is that of the state; ``grad_dtype`` lets theirs differ."""
    return [p.grad.to(p.dtype) for p in parameters if p.grad is not None]


@dataclass(frozen=True)
class _Job:
    """A parameter and its direction as matrices (e, m, n), before the transfer."""

    parameter: Tensor
    matrices: Tensor
    group: Group
    beta: float
    damping: float

    @property
    def wide(self) -> Tensor:
        """The matrices with the smaller side first."""
        return self.matrices.mT if self.matrices.shape[1] > self.matrices.shape[2] else self.matrices

    def stack_key(self) -> tuple[Any, ...]:
        """Return a key that is equal for jobs that can be transferred in one call."""
        group, wide = self.group, self.wide
        # One iteration for all that share a beta; the other routes take any.
        route = choose_route(self.beta, wide.device)
        beta = self.beta if route is Route.ROOTS else None
        return (*wide.shape[1:], wide.dtype, wide.device, route, beta, group["scale_free"], group["precision"])

    def add(self, wide: Tensor) -> None:
        """Take the step, given the transferred matrices with the smaller side first."""
        rows, columns = self.matrices.shape[1:]
        matrices = wide.mT if rows > columns else wide
        factor = {None: 1.0, "original": math.sqrt(max(1, rows / columns))}.get(
            self.group["adjust_lr_fn"], 0.2 * math.sqrt(max(rows, columns))
        )
        update = _as_parameter(matrices, self.parameter.shape, self.group["layout"])
        self.parameter.add_(update, alpha=-float(self.group["lr"]) * factor)


def _stacks(jobs: list[_Job]) -> Iterator[list[_Job]]:
    """Yield jobs that can be transferred in one call, in pieces of bounded memory."""
    alike: dict[tuple[Any, ...], list[_Job]] = {}
    for job in jobs:
        alike.setdefault(job.stack_key(), []).append(job)
    for found in alike.values():
        stack: list[_Job] = []
        size = 0
        for job in found:
            if stack and size + job.matrices.numel() > _STACK_ELEMENTS:
                yield stack
                stack, size = [], 0
            stack.append(job)
            size += job.matrices.numel()
        yield stack


def _step_together(jobs: list[_Job]) -> None:
    sizes = [len(job.matrices) for job in jobs]
    betas = [job.beta for job, size in zip(jobs, sizes, strict=True) for _ in range(size)]
    dampings = [job.damping for job, size in zip(jobs, sizes, strict=True) for _ in range(size)]
    group = jobs[0].group
    stacked = jobs[0].wide if len(jobs) == 1 else torch.cat([job.wide for job in jobs])
    found = apply_transfer(stacked, betas, dampings, scale_free=group["scale_free"], precision=group["precision"])
    for job, part in zip(jobs, torch.split(found, sizes), strict=True):
        job.add(part)


def _as_matrices(tensor: Tensor, layout: str) -> Tensor:
    if layout == "stacked":
        return tensor
    if layout == "conv_transpose":
        return tensor.transpose(0, 1).flatten(1)[None]
    return tensor.flatten(1)[None]


def _as_parameter(matrices: Tensor, shape: torch.Size, layout: str) -> Tensor:
    if layout == "conv_transpose":
        return matrices[0].reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)
    return matrices.reshape(shape)


def _split(group: Group, defaults: Group) -> list[Group]:
    """Split a group where its parameters are to be stepped differently."""
    params = group["params"]
    if isinstance(params, set):
        raise TypeError("parameters must be ordered: a set was given")
    entries = [params] if isinstance(params, Tensor) else list(params)
    if group.get("beta", defaults["beta"]) is None:
        adamw_group = {"lr": defaults["adamw_lr"], "weight_decay": defaults["adamw_weight_decay"], **group}
        return [{**adamw_group, "params": entries}]
    layout = str(group.get("layout", defaults["layout"]))
    spectral: dict[Any, list[Any]] = {}
    vectors: list[Any] = []
    for entry in entries:
        tensor = entry[1] if isinstance(entry, tuple) else entry
        if not isinstance(tensor, Tensor) or tensor.dim() < 2:
            vectors.append(entry)  # what is no tensor is refused by the base class
            continue
        _require_view(tensor, layout)
        beta = group.get("beta", defaults["beta"])
        if beta == "auto":
            beta = _AUTO_EXPONENTS["matrix" if tensor.dim() == 2 or layout == "stacked" else "convolution"]
        spectral.setdefault(beta, []).append(entry)
    groups = [{**group, "beta": beta, "params": found} for beta, found in spectral.items()]
    if vectors:
        lr = group.get("adamw_lr", defaults["adamw_lr"])
        decay = group.get("adamw_weight_decay", defaults["adamw_weight_decay"])
        groups.append({**group, "beta": None, "lr": lr, "weight_decay": decay, "params": vectors})
    return groups or [{**group, "params": entries}]


def _require_view(tensor: Tensor, layout: str) -> None:
    if tensor.is_complex():
        raise ValueError("SpectralNewton does not step complex parameters: put them in a group with beta=None")
    if layout == "stacked" and tensor.dim() != 3:
        raise ValueError(f"layout 'stacked' is for parameters (e, m, n), got shape {tuple(tensor.shape)}")
    if layout == "conv_transpose" and tensor.dim() < 3:
        raise ValueError(f"layout 'conv_transpose' is for parameters (in, out, …), got shape {tuple(tensor.shape)}")


def _require_sound(options: Group) -> None:
    beta = options["beta"]
    if isinstance(beta, str) and beta != "auto":
        raise ValueError(f"beta {beta!r}: expected a number from 0 on, 'auto', or None for AdamW")
    if not isinstance(beta, str) and beta is not None and not 0 <= beta < math.inf:
        raise ValueError(f"beta {beta}: expected a number from 0 on, 'auto', or None for AdamW")
    for name in ("lr", "damping", "weight_decay", "adamw_lr", "adamw_eps", "adamw_weight_decay"):
        if not 0 <= options[name] < math.inf:
            raise ValueError(f"{name} {options[name]}: expected a number from 0 on")
    if len(options["adamw_betas"]) != 2:
        raise ValueError(f"adamw_betas {options['adamw_betas']}: expected two numbers")
    for name, values in (("momentum", (options["momentum"],)), ("adamw_betas", options["adamw_betas"])):
        if not all(0 <= value < 1 for value in values):
            raise ValueError(f"{name} {options[name]}: expected from 0 to below 1")
    if options["layout"] not in _LAYOUTS:
        raise ValueError(f"layout {options['layout']!r}: expected one of {', '.join(_LAYOUTS)}")
    if options["adjust_lr_fn"] not in _ADJUSTMENTS:
        raise ValueError(f"adjust_lr_fn {options['adjust_lr_fn']!r}: expected None, 'original' or 'match_rms_adamw'")
    Precision(options["precision"])
