"""The reference: one double-backprop product per (weight, k), exact for any twice-differentiable network.

The graph of the gradient is built once per micro-batch, shared by all weights, and kept for all products.
Reference: MEASUREMENT section 5; FIELD section 4 for the traps (fused attention, unused weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectrascope.curvature.engine import (
    Curvature,
    CurvatureEngine,
    CurvatureSums,
    Downstream,
    JointForm,
    Progress,
    Target,
    mean_form,
    target_slopes,
)
from spectrascope.curvature.microbatches import Groups, Schedule, candidate_sizes
from spectrascope.errors import UnsupportedModelError
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.records.values import EngineName
from spectrascope.workload import Inputs, Workload

__all__ = ["DoubleBackprop", "hessian_product_across", "hessian_products", "loss_gradients", "loss_gradients_found"]


@dataclass(frozen=True)
class DoubleBackprop(CurvatureEngine):
    """Measure by Hessian-vector products: exact wherever autograd differentiates twice, and what others are held to.

    Args:
        micro_batch: samples per graph; ``None`` tunes it.
    """

    name: ClassVar = EngineName.DOUBLE_BACKPROP
    exact: ClassVar = True
    reference: ClassVar = (EngineName.FINITE_DIFFERENCE,)
    hint: ClassVar = "; --engine finite-difference would estimate it"
    joint: ClassVar = JointForm.HESSIAN

    @classmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        """A differentiable graph of the gradient, and 2.5 forward-equivalents per product through all of it."""
        return 4.0 + sum(2.5 * w.share * w.k for w in weights) if weights else 0.0

    def measure_each(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature | str]:
        """Curvature of each target, or why it has no second derivative: one product on two samples is tried first."""
        problems = [_problem_of(workload, target) for target in targets]
        fine = [t for t, problem in zip(targets, problems, strict=True) if problem is None]
        measured = iter(self.measure(workload, fine, groups=groups, progress=progress) if fine else ())
        return [next(measured) if problem is None else problem for problem in problems]

    def measure_joint(
        self, workload: Workload, targets: Sequence[Target], *, progress: Progress | None = None
    ) -> Tensor:
        """The Hessian's form on all directions of all targets at once.

        Cost: a product with the whole Hessian for each direction of each target.

        Raises:
            UnsupportedModelError: an operation has no second derivative, or a weight does not reach the loss.
        """
        n = workload.source.n
        dtype = sum_dtype(workload.device)
        size = sum(target.directions.k for target in targets)
        total = torch.zeros(size, size, dtype=dtype, device=workload.device)
        schedule = Schedule(n, self.micro_batch, candidates=candidate_sizes(workload.device, 64), device=total.device)

        def work(start: int, stop: int) -> None:
            gradients = loss_gradients(workload, targets, *workload.fetch(start, stop))
            rows = []
            for target, gradient in zip(targets, gradients, strict=True):
                for k in range(target.directions.k):
                    products = hessian_product_across(targets, target, gradient, k)
                    pairs = zip(targets, products, strict=True)
                    rows.append(torch.cat([target_slopes(other, product, dtype).to(total) for other, product in pairs]))
            total.add_(torch.stack(rows), alpha=stop - start)

        schedule.run(work, progress)
        return mean_form(total, n)

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature]:
        """Curvature of each target over the whole batch.

        Cost: about four forward-equivalents per (weight, k). Memory: one micro-batch's gradient graph.

        Raises:
            UnsupportedModelError: an operation has no second derivative, or a weight does not reach the loss.
        """
        n = workload.source.n
        sums = [CurvatureSums(t.directions.k, n, groups, workload.device) for t in targets]
        borders = sums[0].borders
        schedule = Schedule(
            n, self.micro_batch, borders, candidates=candidate_sizes(workload.device, 64), device=workload.device
        )

        def work(start: int, stop: int) -> None:
            inputs, labels = workload.fetch(start, stop)
            weight = stop - start
            group = sums[0].group_of(start)
            gradients = loss_gradients(workload, targets, inputs, labels)
            found = []
            for i, (target, gradient, target_sums) in enumerate(zip(targets, gradients, sums, strict=True)):
                found.append(self._one(target, gradient, target_sums.dtype))
                if progress is not None:
                    progress(start + weight * (i + 1) / len(targets), n)
            for total, (slope, matrix) in zip(sums, found, strict=True):
                total.add(group, slope, matrix, weight)

        schedule.run(work, progress)
        return [s.finish(self.name, exact=True) for s in sums]

    @staticmethod
    def _one(target: Target, gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        layer, d = target.layer, target.directions
        left = d.left.to(gradient.device, dtype)
        right = d.right.to(gradient.device, dtype)
        slope = target_slopes(target, gradient, dtype)
        rows = [
            torch.einsum("mk,mn,nk->k", left, layer.matrix(product).to(dtype), right)
            for product in hessian_products(target, gradient, range(d.k))
        ]
        return slope, torch.stack(rows)


def _problem_of(workload: Workload, target: Target) -> str | None:
    inputs, labels = workload.fetch(0, min(2, workload.source.n))
    try:
        (gradient,) = loss_gradients(workload, [target], inputs, labels)
        hessian_products(target, gradient, [0])
    except _NoGraphError as error:
        if _is_linear(workload, target, inputs, labels):
            return f"the loss is linear in weight {target.layer.name!r}: it has no curvature"
        return str(error)
    except UnsupportedModelError as error:
        return str(error)
    return None


class _NoGraphError(UnsupportedModelError):
    """A gradient hangs on no graph of the weight."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no second derivative for weight {name!r}: a backward pass between it and the loss builds no graph "
            "(once_differentiable, NumPy, no_grad)"
        )


def _is_linear(workload: Workload, target: Target, inputs: Inputs, labels: Tensor) -> bool:
    """Whether the gradient is the same at two places: only then has a gradient without a graph no derivative."""
    weight = target.layer.parameter
    kept = weight.detach().clone()
    step = target.direction(0).to(weight)
    found = []
    try:
        for size in (0.0, 0.1 * max(float(kept.norm()), 1e-3)):
            with torch.no_grad():
                weight.copy_(kept + size * step)
            found.append(loss_gradients(workload, [target], inputs, labels)[0].detach())
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    return torch.allclose(found[0], found[1], rtol=1e-4, atol=1e-5 * float(found[0].abs().max()))


def loss_gradients(workload: Workload, targets: Sequence[Target], inputs: Inputs, labels: Tensor) -> list[Tensor]:
    """Differentiable gradients of the micro-batch's mean loss, one per target, each shaped like its weight.

    Raises:
        UnsupportedModelError: a weight does not reach the loss.
    """
    out = []
    for target, gradient in zip(targets, loss_gradients_found(workload, targets, inputs, labels), strict=True):
        if gradient is None:  # never zero: the graph may be broken, or the weight unused
            raise UnsupportedModelError(f"weight {target.layer.name!r} does not reach the loss")
        out.append(gradient)
    return out


def loss_gradients_found(
    workload: Workload, targets: Sequence[Target], inputs: Inputs, labels: Tensor
) -> list[Tensor | None]:
    """Differentiable gradients of the micro-batch's mean loss, ``None`` for a weight that does not reach it.

    Fused attention has no second derivative, so the math kernel is forced around the forward pass.

    Raises:
        UnsupportedModelError: no weight reaches the loss.
    """
    parameters = list({id(t.layer.parameter): t.layer.parameter for t in targets}.values())
    with torch.enable_grad():
        with sdpa_kernel(SDPBackend.MATH):
            loss = workload.loss(inputs, labels)
        if not loss.requires_grad:
            raise UnsupportedModelError(
                "the loss does not depend on any measured weight through autograd: the model detaches its output "
                "or runs under no_grad or inference_mode"
            )
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    by_id = dict(zip(map(id, parameters), found, strict=True))
    return [by_id[id(target.layer.parameter)] for target in targets]


def hessian_product_across(targets: Sequence[Target], target: Target, gradient: Tensor, k: int) -> list[Tensor]:
    """The product of the whole Hessian with one direction of one target, as each target's weight is shaped.

    Args:
        targets: those wanted.
        target: the one whose direction it is.
        gradient: its differentiable gradient.
        k: which direction, from 0.

    Raises:
        UnsupportedModelError: the second derivative does not exist.
    """
    if not gradient.requires_grad:
        raise _NoGraphError(target.layer.name)
    parameters = list({id(t.layer.parameter): t.layer.parameter for t in targets}.values())
    direction = target.direction(k).to(gradient)
    found = torch.autograd.grad((gradient * direction).sum(), parameters, retain_graph=True, materialize_grads=True)
    by_id = dict(zip(map(id, parameters), found, strict=True))
    return [by_id[id(t.layer.parameter)] for t in targets]


def hessian_products(target: Target, gradient: Tensor, directions: Sequence[int]) -> list[Tensor]:
    """Products H D_k (each shaped like the weight) from a differentiable gradient, for k in ``directions``.

    Raises:
        UnsupportedModelError: the second derivative does not exist or is identically zero by construction.
    """
    layer = target.layer
    if not gradient.requires_grad:
        raise _NoGraphError(layer.name)
    products = []
    for k in directions:
        direction = target.direction(k).to(gradient)
        try:
            # A scalar, because autograd imports its symbolic-shape machinery (seconds) to check grad_outputs.
            slope = (gradient * direction).sum()
            (product,) = torch.autograd.grad(slope, layer.parameter, retain_graph=True, allow_unused=True)
        except (RuntimeError, NotImplementedError) as error:
            if (
                "not implemented" in str(error)
                or "double backward" in str(error)
                or "once_differentiable" in str(error)
            ):
                raise UnsupportedModelError(
                    f"no second derivative for weight {layer.name!r}: {str(error).splitlines()[0]}"
                ) from error
            raise
        if product is None:
            raise _NoGraphError(layer.name)
        products.append(product)
    return products
