"""Cotangents at the network's output whose outer products add up to the loss's curvature there, per loss term.

A sample has one loss term (a classifier) or several (a token each). With several, one backward pass cannot keep terms
apart; columns then carry independent random signs, so that products of different terms vanish on average, and
everything made from them is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectrascope.curvature.loss_root import is_cross_entropy
from spectrascope.errors import UnsupportedModelError
from spectrascope.losses import IGNORED, CausalLM, CrossEntropy, Loss, MaskedLM
from spectrascope.records.decomposition import DecomposeOptions, FisherType
from spectrascope.workload import LossFunction

__all__ = ["EXACT_UP_TO", "LossColumns", "curvature_columns", "gradient_column", "make_columns", "softmax_slopes"]

EXACT_UP_TO = 128
"""Most outputs for which one exact column each is pulled back; random columns beyond."""


_SMALLEST = 1e-30  # probabilities below are as good as this, and columns can still be divided by their roots


@dataclass(frozen=True)
class LossColumns:
    """Columns (c, *scores.shape) whose outer products, summed and divided by ``draws``, are the wanted matrix.

    ``terms`` is the number of loss terms of one sample; each column is of terms that are *not* divided by it.
    """

    columns: Tensor
    terms: int
    draws: int
    exact: bool


def make_columns(
    scores: Tensor, targets: Tensor, loss_fn: LossFunction, options: DecomposeOptions, generator: torch.Generator
) -> LossColumns:
    """Columns of one micro-batch.

    Args:
        scores: the network's output (b, C) or, for a loss with a term per position, (b, t, C) or (b, C, …).
        targets: labels as the loss takes them.
        loss_fn: the mean loss.
        options: which Fisher matrix, and how many random columns.
        generator: of the random columns, on the CPU.

    Raises:
        UnsupportedModelError: the curvature at the outputs has no square root that can be had (a loss that is not
            convex in the scores, or several loss terms that are no cross-entropy).
    """
    scores = scores.detach()
    if _is_softmax(scores, targets, loss_fn):
        return _softmax_columns(scores, targets, loss_fn, options, generator)
    if scores.dim() > 2:
        raise UnsupportedModelError(
            "the loss has several terms per sample and is no cross-entropy: its factors are not measured"
        )
    if options.fisher is FisherType.EMPIRICAL:
        return LossColumns(gradient_column(scores, targets, loss_fn)[None], 1, 1, True)
    root, signs = curvature_columns(scores, targets, loss_fn)
    if signs is not None:
        raise UnsupportedModelError("the loss is not convex in the scores: its curvature there has no square root")
    if options.fisher is FisherType.GGN and len(root) <= EXACT_UP_TO:
        return LossColumns(root, 1, 1, True)
    signs = _signs((options.draws, len(root), len(scores)), generator, scores)
    return LossColumns(torch.einsum("rcb,cb...->rb...", signs, root), 1, options.draws, False)


def softmax_slopes(scores: Tensor, targets: Tensor, loss_fn: LossFunction, s: Tensor) -> Tensor | None:
    """Slope of each sample's loss along directions, from the projections of its curvature columns.

    The gradient in the scores is a combination of the columns, so no column of its own need be pulled back.

    Args:
        scores: (b, C).
        targets: labels.
        loss_fn: the mean loss.
        s: derivative of each column of :func:`curvature_columns` along each direction (C−1, b, K).

    Returns:
        Slopes (b, K); ``None`` for a loss other than softmax cross-entropy.
    """
    if not _is_softmax(scores, targets, loss_fn):
        return None
    others, _, rest, p_top = (x.T[:, :, None] for x in _probabilities(scores.detach()))
    root_top = p_top.to(s.dtype).sqrt()
    root = rest.to(s.dtype).sqrt()
    mean = (root * s).sum(0, keepdim=True) / root_top  # Σ_c p_c s_c over raw score differences s_c
    raw = s / root + mean / (1 + root_top)
    gradient = gradient_column(scores, targets, loss_fn).to(s.dtype).gather(1, others[:, :, 0].T)
    return (gradient.T[:, :, None] * raw).sum(0)


def curvature_columns(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> tuple[Tensor, Tensor | None]:
    """Columns S (c, b, C) with Σ_c S_c S_cᵀ the second derivative of each sample's loss in its scores (b, C).

    Returns:
        The columns, and their signs (c, b) where the loss is not convex: then Σ_c sign_c S_c S_cᵀ.
    """
    scores = scores.detach()
    if _is_softmax(scores, targets, loss_fn):
        return _softmax_root(scores), None
    hessian = _hessian(scores, targets, loss_fn).double()
    values, vectors = torch.linalg.eigh(hessian)
    columns = (vectors * values.abs().sqrt()[:, None, :]).permute(2, 0, 1).to(scores.dtype)
    columns = columns.reshape(-1, *scores.shape)
    flat = values.abs() <= 1e-6 * values.abs().amax(1, keepdim=True)
    signs = torch.where(flat, 1.0, values.sign()).T.to(scores.dtype)
    return columns, None if bool((signs >= 0).all()) else signs


def gradient_column(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
    """Gradient of each sample's own loss with respect to its scores."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_fn(leaf, targets) * len(leaf), leaf)
    return gradient


# -- softmax cross-entropy ----------------------------------------------------------------------------------------


def _is_softmax(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> bool:
    named = isinstance(loss_fn, (CrossEntropy, CausalLM, MaskedLM)) or is_cross_entropy(loss_fn)
    return named and not targets.is_floating_point() and scores.dim() > 1 and scores.shape[1] > 1


def _softmax_columns(
    scores: Tensor, targets: Tensor, loss_fn: LossFunction, options: DecomposeOptions, generator: torch.Generator
) -> LossColumns:
    """Columns of a cross-entropy with one term or several per sample."""
    single = scores.dim() == 2
    if options.fisher is FisherType.GGN and single and scores.shape[1] <= EXACT_UP_TO:
        return LossColumns(_softmax_root(scores), 1, 1, True)
    aligned, labels = (scores, targets)
    if isinstance(loss_fn, Loss):
        aligned, labels = loss_fn.labelled(scores, targets)
    axis = -1 if aligned.shape[:-1] == labels.shape else 1
    by_term = aligned.movedim(axis, -1)  # (b, …, C)
    labelled = labels != int(getattr(loss_fn, "ignore_index", IGNORED))
    terms = round(float(labelled.reshape(len(labels), -1).sum(1).double().mean()))
    draws = 1 if options.fisher is FisherType.EMPIRICAL and single else options.draws
    columns = scores.new_zeros(draws, *scores.shape)
    for column in columns:
        place = loss_fn.labelled(column, targets)[0] if isinstance(loss_fn, Loss) else column
        place.movedim(axis, -1).copy_(_drawn(by_term, labels, labelled, loss_fn, options.fisher, generator))
        if options.fisher is FisherType.EMPIRICAL:
            column.copy_(gradient_column(scores, targets, loss_fn) * terms)
            if not single:
                signs = _signs(tuple(labels.shape), generator, scores)
                place.movedim(axis, -1).mul_(signs[..., None])
    exact = single and options.fisher is FisherType.EMPIRICAL
    return LossColumns(columns, terms, draws, exact)


def _drawn(
    scores: Tensor,
    labels: Tensor,
    labelled: Tensor,
    loss_fn: LossFunction,
    fisher: FisherType,
    generator: torch.Generator,
) -> Tensor:
    """One random column per term: the gradient for a label drawn from the model, or random signs through S."""
    p = scores.softmax(-1)
    if fisher is FisherType.MC:
        drawn = torch.multinomial(p.flatten(0, -2).cpu(), 1, generator=generator).to(p.device)
        column = p.clone()
        column.view(-1, p.shape[-1]).scatter_add_(1, drawn, -torch.ones_like(drawn, dtype=p.dtype))
    else:
        root = p.sqrt()
        signs = _signs(tuple(p.shape), generator, p)
        column = root * signs - p * (root * signs).sum(-1, keepdim=True)
    return column * labelled[..., None]


def _softmax_root(scores: Tensor) -> Tensor:
    """A square root (C−1, b, C) of diag(p) − p pᵀ, without cancellation where one class is nearly certain.

    Over the classes other than the most likely, r, the matrix is diag(p) − p pᵀ = L Lᵀ with L = diag(√p)(I − g √p √pᵀ),
    g = (1 − √p_r) / (1 − p_r); measured from r, column c of the root has its entries there and minus their sum at r.
    """
    batch, classes = scores.shape
    others, top, rest, p_top = _probabilities(scores)
    root = rest.sqrt()
    factor = 1 / (1 + p_top.sqrt())  # (1 − √p_r) / (1 − p_r)
    lower = torch.diag_embed(root) - factor[:, :, None] * rest[:, :, None] * root[:, None, :]
    columns = scores.new_zeros(batch, classes - 1, classes)
    columns.scatter_(2, others[:, None, :].expand(-1, classes - 1, -1), lower.transpose(1, 2))
    columns.scatter_(2, top[:, :, None].expand(-1, classes - 1, -1), -lower.sum(1)[:, :, None])
    return columns.transpose(0, 1).contiguous()


def _probabilities(scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes other than the most likely (b, C−1), that one (b, 1), and the probabilities of both."""
    p = scores.softmax(1).clamp_min(_SMALLEST)
    top = scores.argmax(1, keepdim=True)
    others = (top + torch.arange(1, scores.shape[1], device=scores.device)) % scores.shape[1]
    return others, top, p.gather(1, others), p.gather(1, top)


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(like.device, like.dtype)


def _hessian(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
    """Second derivative (b, C, C) of each sample's loss in its scores (b, C) or (b,)."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_fn(leaf, targets) * len(leaf), leaf, create_graph=True)
        rows = []
        for column in gradient.reshape(len(leaf), -1).unbind(1):
            if column.requires_grad:
                (row,) = torch.autograd.grad(column.sum(), leaf, retain_graph=True, materialize_grads=True)
            else:
                row = torch.zeros_like(leaf)  # the loss is linear in the scores
            rows.append(row.reshape(len(leaf), -1))
    return torch.stack(rows, 1)
