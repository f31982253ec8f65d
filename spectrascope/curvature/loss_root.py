"""The loss seen from the network's output: which cotangents to pull back, and what to make of their projections.

With s_ck the derivative of output c along direction k (per sample), curvature is s^T (d²loss/df²) s. Softmax
cross-entropy depends on differences of logits only, so C − 1 columns suffice, measured from the sample's most likely
class: there s is small exactly where p is near one, and nothing cancels. Curvature needs no more than those
differences (:func:`output_model`); Kronecker factors need cotangents whose outer products add up to the loss's
curvature (:func:`curvature_columns`, :func:`make_columns`).

A sample has one loss term (a classifier) or several (a token each). With several, one backward pass cannot keep terms
apart; columns then carry independent random signs, so that products of different terms vanish on average, and
everything made from them is an estimate.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spectrascope.curvature.engine import UnsupportedOperationError
from spectrascope.errors import UnsupportedModelError
from spectrascope.losses import BatchLoss, Loss, aligned, curvature_weights, terms_per_sample, weighing_of
from spectrascope.records.decomposition import DecomposeOptions, FisherType
from spectrascope.records.values import LossName
from spectrascope.text import first_line
from spectrascope.workload import LossFunction

__all__ = [
    "EXACT_UP_TO",
    "LossColumns",
    "OutputModel",
    "curvature_columns",
    "gradient_column",
    "make_columns",
    "output_model",
    "random_column",
    "softmax_slopes",
]

EXACT_UP_TO = 128
"""Most outputs for which one exact column each is pulled back; random columns beyond."""

_SMALLEST = 1e-30  # probabilities below are as good as this, and columns can still be divided by their roots


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


def output_model(output: Tensor, targets: Tensor, loss_fn: LossFunction) -> OutputModel:
    """Choose the representation for a micro-batch of outputs (b, C)."""
    slope = gradient_column(output, targets, loss_fn)
    if _is_softmax(output, targets, loss_fn):
        return _SoftmaxCrossEntropy(output.detach(), slope, _term_weights(targets, loss_fn))
    return _AnyLoss(output.detach(), targets, loss_fn, slope)


@dataclass(frozen=True)
class _SoftmaxCrossEntropy:
    output: Tensor
    slope: Tensor
    weights: Tensor | None  # of the samples (b,); 1 each where there are none

    def columns(self) -> Tensor:
        batch, classes = self.output.shape
        others, top = (x.T for x in _classes(self.output))  # (C−1, b), (1, b)
        columns = self.output.new_zeros(classes - 1, batch, classes)
        columns.scatter_(2, others[:, :, None], 1.0)
        return columns.scatter_add_(2, top[:, :, None].expand(classes - 1, -1, -1), -torch.ones_like(columns[:, :, :1]))

    def contract(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        others, _ = _classes(self.output)
        dtype = s.dtype
        p = self.output.to(dtype).softmax(1)
        p_others = p.gather(1, others).T[:, :, None]  # (C−1, b, 1)
        p_top = p.amax(1)[None, :, None]
        mean = (p_others * s).sum(0, keepdim=True)
        rows = torch.cat([p_others.sqrt() * (s - mean), p_top.sqrt() * -mean])  # S^T applied, centred
        if self.weights is not None:
            rows = rows * self.weights.to(dtype).sqrt()[:, None]
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

    def contract(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hessian = _hessian(self.output, self.targets, self.loss_fn).to(s.dtype)
        bent = torch.einsum("bcd,dbk->cbk", hessian, s)
        slope = (self.slope.to(s.dtype).T[:, :, None] * s).sum(0)
        return slope, (s * bent).sum(0), torch.einsum("cbk,cbj->kj", s, bent)


@dataclass(frozen=True)
class LossColumns:
    """Columns (c, *scores.shape) whose outer products, summed and divided by ``draws``, are the wanted matrix.

    ``terms`` is the number of loss terms of one sample, on average and by weight; columns are *not* divided by it.
    """

    columns: Tensor
    terms: float
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
        Slopes (b, K); ``None`` for a loss other than softmax cross-entropy that weighs samples alike.
    """
    if not _is_softmax(scores, targets, loss_fn) or _term_weights(targets, loss_fn) is not None:
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
        return _softmax_root(scores, _term_weights(targets, loss_fn)), None
    hessian = _precise_hessian(scores, targets, loss_fn)
    rounding = 100 * torch.finfo(hessian.dtype).eps * float(hessian.abs().max())
    values, vectors = torch.linalg.eigh(hessian.double())
    columns = (vectors * values.abs().sqrt()[:, None, :]).permute(2, 0, 1).to(scores.dtype)
    columns = columns.reshape(-1, *scores.shape)
    flat = values.abs() <= (1e-6 * values.abs().amax(1, keepdim=True)).clamp_min(rounding)
    signs = torch.where(flat, 1.0, values.sign()).T.to(scores.dtype)
    return columns, None if bool((signs >= 0).all()) else signs


def gradient_column(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
    """Gradient of each sample's own loss with respect to its scores."""
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_fn(leaf, targets) * len(leaf), leaf)
    return gradient


def random_column(loss_fn: LossFunction, scores: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw S xi at the scores (scores' shape), scaled for the mean loss: its outer product is d²L/df² on average.

    Raises:
        UnsupportedModelError: the loss's curvature has no square root known here.
    """
    signs: Tensor = torch.randint(0, 2, scores.shape, generator=generator).to(scores) * 2 - 1
    name = loss_fn.name if isinstance(loss_fn, Loss) else None
    if name is LossName.BCE:
        p = scores.sigmoid()
        root: Tensor = (p * (1 - p) / scores.numel()).sqrt() * signs
        return root
    if name is LossName.MSE:
        return signs * (2.0 / scores.numel()) ** 0.5  # type: ignore[no-any-return]
    if not _is_cross_entropy(loss_fn):
        raise UnsupportedModelError(
            "gauss-newton-sketch knows cross-entropy, bce, mse and language-model losses; for another loss use "
            "--engine auto or finite-difference"
        )
    if labels.is_floating_point():
        raise UnsupportedModelError("gauss-newton-sketch needs class numbers as labels, not class probabilities")
    found, targets = aligned(scores, labels, loss_fn)
    axis = -1 if found.shape[:-1] == targets.shape else 1
    weights = curvature_weights(targets, loss_fn)
    weight = (weights.to(scores.dtype) / (len(labels) * terms_per_sample(labels, loss_fn))).sqrt().unsqueeze(axis)
    p = found.softmax(axis)
    root = p.sqrt()
    at = signs[:, : found.shape[1]] if found.shape != signs.shape else signs
    column: Tensor = weight * root * (at - (root * at).sum(axis, keepdim=True) * root)
    if found.shape == scores.shape:
        return column
    padded: Tensor = torch.cat([column, torch.zeros_like(scores[:, column.shape[1] :])], 1)
    return padded


# -- softmax cross-entropy ----------------------------------------------------------------------------------------


def _is_softmax(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> bool:
    """Whether class numbers are compared by softmax cross-entropy; soft targets need not sum to one, and scale it."""
    return _is_cross_entropy(loss_fn) and not targets.is_floating_point() and scores.dim() > 1 and scores.shape[1] > 1


def _is_cross_entropy(loss_fn: LossFunction) -> bool:
    """Whether the loss is softmax cross-entropy, a mean over samples."""
    weighing = weighing_of(loss_fn)
    if weighing is None or weighing.logs:
        return False
    return isinstance(loss_fn, BatchLoss) or (weighing.weight is None and weighing.reduction == "mean")


def _term_weights(targets: Tensor, loss_fn: LossFunction) -> Tensor | None:
    """Of losses with one term per sample, its weight in the mean over samples (b,); ``None`` where all are 1."""
    if not isinstance(loss_fn, BatchLoss):
        return None
    return curvature_weights(targets, loss_fn) / loss_fn.mean_weight


def _softmax_columns(
    scores: Tensor, targets: Tensor, loss_fn: LossFunction, options: DecomposeOptions, generator: torch.Generator
) -> LossColumns:
    """Columns of a cross-entropy with one term or several per sample."""
    single = scores.dim() == 2
    if options.fisher is FisherType.GGN and single and scores.shape[1] <= EXACT_UP_TO:
        return LossColumns(_softmax_root(scores, _term_weights(targets, loss_fn)), 1, 1, True)
    found, labels = aligned(scores, targets, loss_fn)
    axis = -1 if found.shape[:-1] == labels.shape else 1
    by_term = found.movedim(axis, -1)  # (b, …, C)
    root = curvature_weights(labels, loss_fn).sqrt().to(scores.dtype)[..., None]
    terms = terms_per_sample(targets, loss_fn)
    draws = 1 if options.fisher is FisherType.EMPIRICAL and single else options.draws
    columns = scores.new_zeros(draws, *scores.shape)
    for column in columns:
        place = aligned(column, targets, loss_fn)[0].movedim(axis, -1)
        place.copy_(root * _drawn(by_term, labels, options.fisher, generator))
        if options.fisher is FisherType.EMPIRICAL:
            column.copy_(gradient_column(scores, targets, loss_fn) * terms)
            place.div_(torch.where(root > 0, root, 1.0))  # a term's weight counts once in a product of two columns
            if not single:
                signs = _signs(tuple(labels.shape), generator, scores)
                place.mul_(signs[..., None])
    exact = single and options.fisher is FisherType.EMPIRICAL
    return LossColumns(columns, terms, draws, exact)


def _drawn(scores: Tensor, labels: Tensor, fisher: FisherType, generator: torch.Generator) -> Tensor:
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
    return column


def _softmax_root(scores: Tensor, weights: Tensor | None = None) -> Tensor:
    """A square root (C−1, b, C) of w (diag(p) − p pᵀ), without cancellation where one class is nearly certain.

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
    if weights is not None:
        columns *= weights.to(scores.dtype).sqrt()[:, None, None]
    return columns.transpose(0, 1).contiguous()


def _probabilities(scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes other than the most likely (b, C−1), that one (b, 1), and the probabilities of both."""
    others, top = _classes(scores)
    p = scores.softmax(1).clamp_min(_SMALLEST)
    return others, top, p.gather(1, others), p.gather(1, top)


def _classes(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the classes other than the most likely (b, C−1), and of that one (b, 1)."""
    top = scores.argmax(1, keepdim=True)
    return (top + torch.arange(1, scores.shape[1], device=scores.device)) % scores.shape[1], top


def _signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(like.device, like.dtype)


def _precise_hessian(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
    """:func:`_hessian` in float64 where the loss takes that: of a sure sample p − p² is all rounding in float32."""
    if scores.dtype == torch.float32 and scores.device.type != "mps":
        with contextlib.suppress(Exception):  # a loss may hold tensors of its own in float32
            exact = _hessian(scores.double(), targets.double() if targets.is_floating_point() else targets, loss_fn)
            if bool(exact.isfinite().all()):
                return exact
    return _hessian(scores, targets, loss_fn)


def _hessian(scores: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
    """Second derivative (b, C, C) of each sample's loss in its scores (b, C) or (b,).

    Raises:
        UnsupportedOperationError: torch has none.
    """
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_fn(leaf, targets) * len(leaf), leaf, create_graph=True)
        rows = []
        for column in gradient.reshape(len(leaf), -1).unbind(1):
            if column.requires_grad:
                try:
                    (row,) = torch.autograd.grad(column.sum(), leaf, retain_graph=True, materialize_grads=True)
                except RuntimeError as error:
                    if "not implemented" in str(error):
                        raise UnsupportedOperationError(f"the loss: {first_line(error)}") from error
                    raise
            else:
                row = torch.zeros_like(leaf)  # the loss is linear in the scores
            rows.append(row.reshape(len(leaf), -1))
    return torch.stack(rows, 1)
