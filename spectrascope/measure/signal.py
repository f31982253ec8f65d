"""Held-out directions, null draws and their curvature: what tells signal from sampling noise. Silent.

Samples are dealt to groups at random, once; every group's gradient of a weight is kept until its directions are known.
The curvature of a fold is measured on that fold's samples only, so all folds together are one pass over the batch; the
directions of the whole batch and of null draws ride along in the same sweeps. References: SIGNAL sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectrascope.curvature import choose
from spectrascope.curvature.engine import Curvature, Target
from spectrascope.curvature.microbatches import group_borders
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import (
    Directions,
    join_directions,
    largest_singular_value,
    singular_values,
    top_directions,
)
from spectrascope.numerics.rank_models import RESAMPLES, draw_group_counts
from spectrascope.numerics.sample_groups import MIN_GROUPS
from spectrascope.numerics.signal import draw_signs, null_quantile, split_folds, t_values
from spectrascope.numerics.steps import widen_groups
from spectrascope.records.signal import HeldOut, NullDraws, RankResamples
from spectrascope.records.values import EngineName, Missing
from spectrascope.workload import PickedSamples, SampleSource

__all__ = [
    "Deal",
    "Part",
    "Piece",
    "SignalCurvature",
    "SignalTarget",
    "deal_samples",
    "find_momentum_target",
    "find_signal_target",
    "join_folds",
    "no_curvature",
    "resample_ranks",
]

NULL_SIGMA_DRAWS = 20
"""Null draws whose largest singular value sets the threshold of signal."""

RESAMPLED_UP_TO = 1024
"""Largest smaller side of a matrix whose gradient is resampled: its singular values take a second each time."""


@dataclass(frozen=True)
class Part:
    """A fold: its sample groups, and the samples on which its curvature is measured, by place in the dealt batch."""

    groups: range
    group_sizes: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """The samples of one group on which curvature is measured, by place in the dealt batch, and their fold."""

    group: int
    fold: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Deal:
    """The batch dealt to sample groups, and the groups to folds.

    ``source`` holds the samples of group 0, of group 1, …; ``borders`` says where each begins.
    """

    source: PickedSamples
    borders: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def n_groups(self) -> int:
        """Number of sample groups."""
        return len(self.borders) - 1

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples per group."""
        return tuple(b - a for a, b in zip(self.borders, self.borders[1:], strict=False))

    @property
    def pieces(self) -> list[Piece]:
        """Curvature's samples group by group: no sum is taken across them before all are known."""
        pieces: list[Piece] = []
        for number, part in enumerate(self.parts):
            for group in part.groups:
                inside = tuple(p for p in part.places if self.borders[group] <= p < self.borders[group + 1])
                pieces += [Piece(group, number, inside)] if inside else []
        return pieces

    @property
    def places(self) -> tuple[int, ...]:
        """Samples on which curvature is measured, by place in the dealt batch."""
        return tuple(place for part in self.parts for place in part.places)

    @property
    def curvature_sizes(self) -> tuple[int, ...]:
        """Samples of each group on which curvature is measured."""
        return tuple(size for part in self.parts for size in part.group_sizes)


def deal_samples(source: SampleSource, *, groups: int, folds: int, curvature_samples: int, seed: int) -> Deal:
    """Deal samples to groups at random, so that no group is of one class or of one part of a text.

    Args:
        source: the batch.
        groups: number of groups; at most one per sample.
        folds: number of folds, each a union of groups; 1 for none.
        curvature_samples: how many samples curvature is measured on, evenly over the groups; at most all.
        seed: of the order.
    """
    n = source.n
    order = np.random.default_rng([seed, n]).permutation(n)  # the same for every source of n samples
    borders = group_borders(n, groups)
    sizes, wanted = np.diff(borders), np.diff(group_borders(n if curvature_samples >= n else curvature_samples, groups))
    wanted = np.pad(wanted, (0, len(sizes) - len(wanted)))  # fewer samples than groups: the last go without
    taken = [int(min(size, count)) for size, count in zip(sizes, wanted, strict=True)]
    parts = [
        Part(
            members,
            tuple(taken[g] for g in members if taken[g]),
            tuple(borders[g] + i for g in members for i in range(taken[g])),
        )
        for members in split_folds(len(sizes), folds)
    ]
    return Deal(PickedSamples(source, tuple(order.tolist())), tuple(borders), tuple(parts))


@dataclass(frozen=True)
class SignalTarget:
    """One weight: directions of the whole batch, of each fold's complement and of null draws, and slopes by group.

    ``slopes`` (groups, K) are along the directions of the whole batch, ``held_out`` (groups, K') along those that the
    group's own fold did not choose; float64 on the CPU, as all else.
    """

    layer: WeightLayer
    directions: Directions
    folds: tuple[Directions, ...]
    nulls: tuple[Directions, ...]
    slopes: Tensor
    held_out: Tensor | None
    null_sigma: tuple[float, ...]

    @property
    def is_momentum(self) -> bool:
        """Whether the directions are an optimizer's, so that every sample is held out."""
        return self.held_out is self.slopes

    def target(self, fold: int, *, published: bool) -> Target:
        """What is to be measured on a fold's samples: all these directions at once."""
        wanted = [self.directions] if published else []
        if self.folds:
            wanted.append(self.folds[fold])
        return Target(self.layer, join_directions([*wanted, *self.nulls]))


def find_signal_target(
    layer: WeightLayer, mean: Tensor, by_group: Tensor, deal: Deal, *, top_k: int, dtype: torch.dtype, folds: bool,
    nulls: int, seed: int,
) -> SignalTarget:  # fmt: skip
    """Find a weight's directions: of its whole gradient, of each fold's complement, and of draws of the noise.

    Args:
        layer: the weight.
        mean: its mean gradient (m, n).
        by_group: mean gradients of the sample groups (groups, m, n).
        deal: which groups are in which fold.
        top_k: directions wanted of each.
        dtype: the precision of the measurement; sets the rank cut.
        folds: whether held-out directions are wanted.
        nulls: null draws along which curvature is to be measured.
        seed: of the null draws.

    Raises:
        NonFiniteError: the gradient holds NaN or infinity.

    Cost: a singular value decomposition per fold and null draw, and singular values alone for 20 more null draws.
    """
    directions = top_directions(mean, top_k, dtype)
    n, sizes = sum(deal.sizes), deal.sizes
    found: list[Directions] = []
    held_out: Tensor | None = None
    if folds and deal.n_groups >= MIN_GROUPS and len(deal.parts) > 1:
        total = mean.to(by_group.device, torch.float64) * n
        for part in deal.parts:
            own = _combine(by_group, [float(size) if g in part.groups else 0.0 for g, size in enumerate(sizes)])
            inside = sum(sizes[g] for g in part.groups)
            found.append(top_directions((total - own) / (n - inside), top_k, dtype, spectrum=False))
        k = min(directions.k, *(d.k for d in found))
        found = [d.pick(range(k)) for d in found]
        held_out = torch.cat([_slopes(by_group, d, p.groups) for p, d in zip(deal.parts, found, strict=True)])
    draws = (
        draw_signs(deal.n_groups, max(NULL_SIGMA_DRAWS, nulls), seed)
        if deal.n_groups >= MIN_GROUPS
        else np.zeros((0, 1))
    )
    noise = (_combine(by_group, (row / deal.n_groups).tolist()) for row in draws)
    sigma, chosen = [], []
    for i, draw in enumerate(noise):
        sigma.append(largest_singular_value(draw))
        if i < nulls:
            chosen.append(top_directions(draw, top_k, dtype, spectrum=False))
    return SignalTarget(
        layer, directions, tuple(found), tuple(chosen), _slopes(by_group, directions, range(deal.n_groups)), held_out,
        tuple(sigma),
    )  # fmt: skip


def find_momentum_target(
    layer: WeightLayer, momentum: Tensor, by_group: Tensor, deal: Deal, *, top_k: int, dtype: torch.dtype
) -> SignalTarget:
    """Take a weight's directions from an optimizer's momentum, and the gradient's slopes along them.

    No sample of the batch chose these directions, so every one of them is held out.

    Raises:
        NonFiniteError: the momentum holds NaN or infinity.
    """
    directions = top_directions(layer.matrix(momentum), top_k, dtype)
    slopes = _slopes(by_group, directions, range(deal.n_groups))
    return SignalTarget(layer, directions, (), (), slopes, slopes, ())


def resample_ranks(by_group: Tensor, deal: Deal, *, top_k: int, seed: int) -> RankResamples | Missing:
    """Leading singular values of a weight's mean gradient over sample groups drawn again, with replacement.

    Args:
        by_group: mean gradients of the sample groups (groups, m, n).
        deal: how large each group is.
        top_k: singular values wanted.
        seed: of the resamples.

    Returns:
        The resamples, with no wins counted yet; or why there are none.

    Cost: all singular values of 20 matrices.
    """
    if min(by_group.shape[1:]) > RESAMPLED_UP_TO:
        return Missing(f"the gradient is not resampled where both sides of the matrix are above {RESAMPLED_UP_TO}")
    if deal.n_groups < 4:
        return Missing("resampling the gradient needs at least 4 sample groups")
    rows = []
    for counts in draw_group_counts(deal.n_groups, RESAMPLES, seed):
        weights = counts * np.array(deal.sizes)
        rows.append(singular_values(_combine(by_group, (weights / weights.sum()).tolist()), top_k))
    return RankResamples(tuple(rows), {})


def _combine(by_group: Tensor, weights: Sequence[float]) -> Tensor:
    """Σ w_b G_b (m, n) in float64, one group at a time: all at once would double what is kept."""
    total = torch.zeros(by_group.shape[1:], dtype=torch.float64, device=by_group.device)
    for group, weight in zip(by_group, weights, strict=True):
        if weight:
            total.add_(group, alpha=weight)
    return total


def _slopes(by_group: Tensor, directions: Directions, groups: range) -> Tensor:
    """Slopes <D_k, G_b> of some groups (groups, K), float64 on the CPU."""
    left, right = directions.left.to(by_group.device), directions.right.to(by_group.device)
    return torch.stack([(by_group[g].double() @ right * left).sum(0) for g in groups]).cpu()


def _why_not_held_out(deal: Deal) -> Missing:
    if len(deal.parts) < 2 and deal.n_groups >= MIN_GROUPS:
        return Missing("no samples were held out: see --estimate")
    return Missing(f"held-out slopes need at least {MIN_GROUPS} sample groups, the batch has {deal.n_groups}")


def no_curvature(target: SignalTarget, piece: Piece, engine: EngineName) -> Curvature:
    """What stands for a group's curvature where none was asked for: no directions."""
    inside = target.slopes[piece.group : piece.group + 1, :0]
    return Curvature(torch.zeros(0, 0, dtype=torch.float64), inside, inside, (len(piece.places),), engine, exact=True)


@dataclass(frozen=True)
class SignalCurvature:
    """The parts of one weight's measurement, put together from all folds.

    ``published`` has no directions where only held-out ones were measured.
    """

    published: Curvature
    held_out: HeldOut | Missing
    null: NullDraws | Missing


def join_folds(target: SignalTarget, deal: Deal, measured: Sequence[Curvature], *, published: bool) -> SignalCurvature:
    """Put one weight's curvature together from its sample groups, in their order.

    Args:
        target: the weight and its directions.
        deal: the groups and folds.
        measured: curvature on the samples of each group (or of several at once), along :meth:`SignalTarget.target`.
        published: whether the whole batch's directions were among them.
    """
    counts = torch.tensor([float(sum(c.group_sizes)) for c in measured], dtype=torch.float64)
    share = counts / counts.sum()
    k_all, k_held = (target.directions.k if published else 0), (target.folds[0].k if target.folds else 0)
    whole, held = slice(0, k_all), slice(k_all, k_all + k_held)
    matrix = sum(float(w) * c.matrix for w, c in zip(share, measured, strict=True))
    group_h = torch.cat([c.group_h for c in measured])
    assert isinstance(matrix, Tensor)
    slopes = torch.cat([c.group_sigma for c in measured])
    all_of_them = deal.curvature_sizes == deal.sizes  # then both passes saw every sample, and can be compared
    stderr = None
    errors = [w * c.stderr[whole] for w, c in zip(share, measured, strict=True) if c.stderr is not None]
    if errors:
        # Random vectors are drawn anew for each group; a difference errs to the same side in all of them.
        systematic = measured[0].engine is EngineName.FINITE_DIFFERENCE
        stderr = torch.stack(errors).sum(0) if systematic else torch.stack(errors).square().sum(0).sqrt()
    curvature = Curvature(
        matrix=matrix[whole, whole],
        group_h=group_h[:, whole],
        group_sigma=_group_sigma(target, slopes[:, whole] if published and all_of_them else target.slopes),
        group_sizes=deal.sizes,
        engine=max((c.engine for c in measured), key=_place),
        exact=all(c.exact for c in measured),
        stderr=stderr,
    )
    held_out: HeldOut | Missing = _why_not_held_out(deal)
    unread = Missing("not fitted yet")
    if target.held_out is not None:
        where = whole if target.is_momentum else held  # where nothing was chosen, everything is held out
        held_matrix, held_h = matrix[where, where], group_h[:, where]
        wide = target.held_out.numpy()
        if not target.is_momentum:
            wide = widen_groups(wide, target.directions.sigma[:k_held].numpy(), deal.sizes)
        held_out = HeldOut(
            n_folds=0 if target.is_momentum else len(deal.parts),
            slopes=_numbers(torch.tensor(deal.sizes).double() @ target.held_out / sum(deal.sizes)),
            t=tuple(t_values(wide, deal.sizes).tolist()),
            h=_numbers(held_matrix.diagonal()),
            curvature_matrix=tuple(map(_numbers, held_matrix)),
            group_slopes=tuple(map(_numbers, target.held_out)),
            group_h=tuple(map(_numbers, held_h)),
            beta=unread,
            step_exponent=unread,
        )
    quantile = (
        Missing("null draws are of the batch's gradient: these directions are the momentum's")
        if target.is_momentum
        else null_quantile(target.null_sigma)
    )
    null: NullDraws | Missing = (
        quantile if isinstance(quantile, Missing) else _null_draws(target, matrix, k_all + k_held, quantile)
    )
    return SignalCurvature(curvature, held_out, null)


def _place(name: EngineName) -> int:
    """How far down the list of engines: where groups differ, the one that some weight was left to is named."""
    return [engine.name for engine in choose.ENGINES].index(name)


def _group_sigma(target: SignalTarget, slopes: Tensor) -> Tensor:
    """Sigma by sample group: slopes of the batch's gradient; a momentum's is the same whatever the group."""
    return target.directions.sigma.expand(len(slopes), -1) if target.is_momentum else slopes


def _null_draws(target: SignalTarget, matrix: Tensor, at: int, quantile: float) -> NullDraws:
    h = []
    for draw in target.nulls:
        h.append(_numbers(matrix.diagonal()[at : at + draw.k]))
        at += draw.k
    unread = Missing("not fitted yet")
    return NullDraws(
        target.null_sigma, quantile, tuple(_numbers(d.sigma) for d in target.nulls), tuple(h), unread, unread
    )


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
