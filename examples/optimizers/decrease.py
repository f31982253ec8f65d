"""What a step promises and what it keeps: the loss on samples held out, before and after, and its quadratic model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class StepTaken:
    """A step Δ of all weights: ``slope`` is -⟨gradient, Δ⟩, ``curvature`` ΔᵀHΔ, ``realised`` the fall of the loss.

    All on the same samples, which the step has not seen.
    """

    step: int
    loss: float
    slope: float
    curvature: float
    realised: float

    @property
    def predicted(self) -> float:
        """By how much the quadratic model falls."""
        return self.slope - self.curvature / 2

    @property
    def best_length(self) -> float | None:
        """The multiple of the step at which the quadratic model falls most; None where it has no lowest point."""
        return self.slope / self.curvature if self.curvature > 0 else None

    @property
    def at_best_length(self) -> float | None:
        """By how much it falls there: what the direction is worth, whatever the learning rate."""
        return max(self.slope, 0.0) ** 2 / (2 * self.curvature) if self.curvature > 0 else None


def watch_step(
    model: nn.Module,
    samples: tuple[Tensor, Tensor],
    loss_of: Callable[..., Tensor],
    step: int,
    take: Callable[[], None],
) -> StepTaken:
    """Take a step and compare; the network stays in training mode for it and in evaluation mode for the losses."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    gradients = [p.grad for p in parameters]
    with torch.no_grad():
        start = float(loss_of(model.eval()(samples[0]), samples[1]))
    model.train()
    take()
    after = [p.detach().clone() for p in parameters]
    moved: Sequence[Tensor] = [new - old for new, old in zip(after, before, strict=True)]
    with torch.no_grad():
        realised = start - float(loss_of(model.eval()(samples[0]), samples[1]))
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        found = torch.autograd.grad(loss_of(model(samples[0]), samples[1]), parameters, create_graph=True)
        along = sum((g * d).sum() for g, d in zip(found, moved, strict=True))
        product = torch.autograd.grad(along, parameters)
    curvature = float(sum((h * d).sum() for h, d in zip(product, moved, strict=True)))
    with torch.no_grad():
        for p, new, gradient in zip(parameters, after, gradients, strict=True):
            p.copy_(new)
            p.grad = gradient
    model.train()
    return StepTaken(step, start, -float(along.detach()), curvature, realised)
