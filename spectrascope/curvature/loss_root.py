"""The loss seen from the network's output: which columns to pull back, and what to make of their projections.

With s_ck the derivative of output c along direction k (per sample), curvature is s^T (d²loss/df²) s. Softmax
cross-entropy depends on differences of logits only, so C − 1 columns e_c − e_r suffice, r the sample's most
likely class: measured from there, s is small exactly where p is near one, and nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrascope.workload import LossFunction

__all__ = ["OutputModel", "is_cross_entropy", "output_model"]


class OutputModel(Protocol):
    """One micro-batch's loss as a function of the outputs (b, C)."""

    def columns(self) -> Tensor:
        """Cotangents (c, b, C) to pull back; every output derivative needed is a combination of them."""
        ...

    def contract(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From projections s (c, b, k) of the columns: slope (b, k), curvature (b, k) and sum of M (k, k).

        Each sample counts as its own loss term; divide by the number of samples for the mean.
        """
        ...


def is_cross_entropy(loss_fn: LossFunction) -> bool:
    """Whether the loss is plain mean softmax cross-entropy (label smoothing allowed)."""
    if loss_fn is functional.cross_entropy or getattr(loss_fn, "is_cross_entropy", False) is True:
        return True
    return (
        isinstance(loss_fn, nn.CrossEntropyLoss)
        and type(loss_fn) is nn.CrossEntropyLoss
        and loss_fn.weight is None
        and loss_fn.reduction == "mean"
    )


def output_model(output: Tensor, targets: Tensor, loss_fn: LossFunction) -> OutputModel:
    """Choose the representation for a micro-batch of outputs (b, C)."""
    slope = _slope(output, targets, loss_fn)
    # Soft targets (b, C) need not sum to one, and then scale the curvature.
    if is_cross_entropy(loss_fn) and output.shape[1] > 1 and not targets.is_floating_point():
        return _SoftmaxCrossEntropy(output.detach(), slope)
    return _AnyLoss(output.detach(), targets, loss_fn, slope)


def _slope(output: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
    """Gradient (b, C) of each sample's own loss with respect to its outputs."""
    with torch.enable_grad():
        leaf = output.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss_fn(leaf, targets) * len(leaf), leaf)
    return grad


@dataclass(frozen=True)
class _SoftmaxCrossEntropy:
    output: Tensor
    slope: Tensor

    def _others(self) -> Tensor:
        """Class numbers (b, C−1) other than the most likely one."""
        classes = torch.arange(self.output.shape[1], device=self.output.device)
        top = self.output.argmax(1, keepdim=True)
        shifted = classes[None, 1:].expand(len(top), -1)
        return (top + shifted) % self.output.shape[1]

    def columns(self) -> Tensor:
        batch, classes = self.output.shape
        others = self._others().T  # (C−1, b)
        columns = self.output.new_zeros(classes - 1, batch, classes)
        columns.scatter_(2, others[:, :, None], 1.0)
        top = self.output.argmax(1)
        columns.scatter_add_(
            2,
            top[None, :, None].expand(classes - 1, -1, -1),
            -columns.new_ones(1).expand(classes - 1, batch, 1),
        )
        return columns

    def contract(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        others = self._others()
        dtype = s.dtype
        p = self.output.to(dtype).softmax(1)
        p_others = p.gather(1, others).T[:, :, None]  # (C−1, b, 1)
        p_top = p.amax(1)[None, :, None]
        mean = (p_others * s).sum(0, keepdim=True)
        rows = torch.cat([p_others.sqrt() * (s - mean), p_top.sqrt() * -mean])  # S^T applied, centred
        slope = (self.slope.to(dtype).gather(1, others).T[:, :, None] * s).sum(0)
        flat = rows.flatten(0, 1)
        return slope, rows.square().sum(0), flat.T @ flat


@dataclass(frozen=True)
class _AnyLoss:
    output: Tensor
    targets: Tensor
    loss_fn: LossFunction
    slope: Tensor

    def columns(self) -> Tensor:
        batch, classes = self.output.shape
        eye = torch.eye(classes, dtype=self.output.dtype, device=self.output.device)
        return eye[:, None, :].expand(classes, batch, classes).contiguous()

    def _hessian(self) -> Tensor:
        """Second derivative (b, C, C) of each sample's loss, by double backprop through the loss alone."""
        with torch.enable_grad():
            leaf = self.output.requires_grad_()
            (grad,) = torch.autograd.grad(self.loss_fn(leaf, self.targets) * len(leaf), leaf, create_graph=True)
            rows = []
            for c in range(leaf.shape[1]):
                if grad.requires_grad:
                    (row,) = torch.autograd.grad(grad[:, c].sum(), leaf, retain_graph=True, materialize_grads=True)
                else:
                    row = torch.zeros_like(leaf)  # the loss is linear in the outputs
                rows.append(row)
        return torch.stack(rows, 1)

    def contract(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hessian = self._hessian().to(s.dtype)
        bent = torch.einsum("bcd,dbk->cbk", hessian, s)
        slope = (self.slope.to(s.dtype).T[:, :, None] * s).sum(0)
        return slope, (s * bent).sum(0), torch.einsum("cbk,cbj->kj", s, bent)
