"""Running sums of Kronecker factors over micro-batches, of each half of the sample groups by itself.

Layouts, fixed here once: inputs ``a`` (b, t, g, n), cotangents ``delta`` (c, b, t, g, w): sample, position, group of a
grouped convolution, entries; m = g · w outputs, c columns. A group sees its own n inputs, so each (t, g) counts as a
position and C_delta is block-diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from spectrascope.curvature.engine import Target
from spectrascope.curvature.microbatches import group_numbers
from spectrascope.numerics.fits import fit_alpha_g
from spectrascope.numerics.participation import effective_rank, participation_ratio
from spectrascope.numerics.separable import predict_profile
from spectrascope.numerics.spectra import gram_eigenvalues, lower_gram, sum_dtype
from spectrascope.records.decomposition import Concentration, DecomposeOptions, Factor, Factors, Sharing
from spectrascope.records.values import Missing

__all__ = ["HELD_UP_TO", "GramSum", "ParameterSums", "TargetSums", "half_shares"]

HELD_UP_TO = 5120
"""Largest side of which a whole factor is held (200 MiB a half); of larger ones, a sketch of the leading part."""

_OVERSAMPLING = 20


class GramSum:
    """Σ x xᵀ over rows x (R, size), in blocks, by half of the samples; or of a large one its action on a few vectors.

    Args:
        groups: blocks on the diagonal.
        size: side of a block.
        basis: (groups · size, k) vectors along which the sketch of a large factor is exact.
        device: where to sum.
        dtype: of the rows; sums are in float64 up to 2048, beyond that in the rows' precision.
        seed: of the sketch.
    """

    def __init__(
        self, groups: int, size: int, basis: Tensor, device: torch.device, dtype: torch.dtype, seed: int = 0
    ) -> None:
        self.size = size
        self.whole = size <= HELD_UP_TO
        total_dtype = sum_dtype(device) if size <= 2048 else dtype
        self.trace = 0.0
        if self.whole:
            self.halves = torch.zeros(2, groups, size, size, dtype=total_dtype, device=device)
            return
        if groups > 1:
            raise NotImplementedError("blocks of a grouped convolution are small")
        generator = torch.Generator().manual_seed(seed)
        extra = torch.randn(size, basis.shape[1] + _OVERSAMPLING, generator=generator, dtype=torch.float64)
        self.test = torch.linalg.qr(torch.cat([basis.cpu().double(), extra], 1)).Q.to(device, dtype)
        self.total = torch.zeros(1, size, self.test.shape[1], dtype=dtype, device=device)

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> GramSum:
        """The sum whose ``vars`` were kept."""
        found = cls.__new__(cls)
        vars(found).update(state)
        return found

    def add(self, rows: Tensor, scale: Tensor | None = None, *, half: int = 0) -> None:
        """Add rows (R, groups, size) of samples of one half, each entry times ``scale`` (groups · size,)."""
        if self.whole:
            blocks = torch.stack([lower_gram(rows[:, g]) for g in range(rows.shape[1])]) if rows.shape[1] < 8 else (
                torch.einsum("rgi,rgj->gij", rows, rows)
            )  # fmt: skip
            if scale is not None:
                factors = scale.reshape(rows.shape[1], -1)
                blocks = blocks * factors[:, :, None] * factors[:, None, :]
            self.halves[half] += blocks
            return
        rows = rows[:, 0] if scale is None else rows[:, 0] * scale
        self.trace += float(rows.double().square().sum())
        self.total[0] += rows.T @ (rows @ self.test)

    def add_gram(self, gram: Tensor, *, half: int = 0) -> None:
        """Add a sum of outer products (size, size) made elsewhere, its lower triangle, to a whole factor."""
        self.halves[half, 0] += gram

    def finish(self, divisor: float) -> tuple[Tensor, float, bool]:
        """All eigenvalues in decreasing order (the leading ones of a sketch), the trace, and whether they are exact."""
        if self.whole:
            # Only lower triangles are filled.
            total = self.halves.sum(0)
            values = torch.linalg.eigvalsh(total / divisor).flatten().clamp_min(0).cpu().double()
            values = values.sort(descending=True).values
            return values, float(total.diagonal(dim1=1, dim2=2).sum()) / divisor, True
        # Nyström from one pass: Y (Ωᵀ Y)⁻¹ Yᵀ = F Fᵀ with F = Y L^−ᵀ, of a matrix shifted to keep Ωᵀ Y definite.
        y, omega = self.total[0].cpu().double() / divisor, self.test.cpu().double()
        shift = float(torch.finfo(self.test.dtype).eps) * float(y.norm())
        y = y + shift * omega
        core = omega.T @ y
        lower = torch.linalg.cholesky((core + core.T) / 2)
        half = torch.linalg.solve_triangular(lower, y.T, upper=False)
        values = (gram_eigenvalues(half)[0] - shift).clamp_min(0)
        return values, self.trace / divisor, False

    def cross_validate(self, divisor: float, shares: tuple[float, float], k: int) -> tuple[float, ...] | Missing:
        """q_jᵀ C q_j for the k leading eigenvectors q_j of one half and the other's C, mean of both ways round.

        Args:
            divisor: of the sum over all samples.
            shares: of the samples, in each half.
            k: how many; past the factor's size they are 0.

        Cost: the leading eigenvectors of two matrices, each about as much as all eigenvalues of one.
        """
        if not self.whole:
            return Missing(f"the factor is larger than {HELD_UP_TO}: the halves of the samples were not held apart")
        if min(shares) == 0:
            return Missing("cross-validated eigenvalues need at least two sample groups")
        found = torch.zeros(k, dtype=torch.float64)
        for half in (0, 1):
            values, vectors = _leading_vectors(self.halves[half], k)
            lower = self.halves[1 - half].to(vectors)
            other = lower.tril() + lower.tril(-1).mT  # only lower triangles are filled
            forms = (vectors * (other @ vectors)).sum(-2).flatten()[values.flatten().argsort(descending=True)][:k]
            found[: len(forms)] += forms.cpu().double() / (2 * divisor * shares[1 - half])
        return tuple(found.tolist())


def _leading_vectors(blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues (groups, j) and eigenvectors (groups, size, j) of blocks, j at most k; any order."""
    size = blocks.shape[-1]
    if len(blocks) > 1 or blocks.device.type == "cuda":
        values, vectors = torch.linalg.eigh(blocks if blocks.device.type == "cuda" else blocks.cpu())
        return values[:, -k:].to(blocks), vectors[:, :, -k:].to(blocks)
    # LAPACK finds some eigenvectors in a fraction of the time that all of them take, and PyTorch has all only.
    array = blocks[0].cpu().numpy()
    some, of_them = scipy.linalg.eigh(array, lower=True, subset_by_index=(max(0, size - k), size - 1))
    return torch.from_numpy(some)[None].to(blocks), torch.from_numpy(of_them)[None].to(blocks)


@dataclass
class ParameterSums:
    """One parameter's inputs: C_A, shared by all targets of it (the q, k and v of a fused weight)."""

    a: GramSum
    positions: int = 0  # of one sample, over all uses and groups
    blocks: int = 0  # uses × groups
    found: dict[int, tuple[float, ...] | Missing] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """What was summed so far, to go on from with :meth:`restore`."""
        return {"a": dict(vars(self.a)), "positions": self.positions, "blocks": self.blocks}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self.a, self.positions, self.blocks = GramSum.restored(state["a"]), state["positions"], state["blocks"]

    def cross_validate(self, n: int, shares: tuple[float, float], k: int) -> tuple[float, ...] | Missing:
        """The k leading eigenvalues of C_A, once for all targets."""
        if k not in self.found:
            self.found[k] = self.a.cross_validate(n, shares, k)
        return self.found[k]

    def divisor(self, sharing: Sharing) -> float:
        """What C_delta is divided by besides the loss terms: T, or T² where positions are summed first."""
        return self.positions if sharing is Sharing.EXPAND else self.positions**2 / self.blocks


@dataclass
class TargetSums:
    """One target's sums; arrays over its K directions."""

    target: Target
    parameter: ParameterSums
    borders: Sequence[int]
    device: torch.device
    delta: GramSum | None = None  # made when the first cotangents show the groups of a convolution
    rays: Tensor = field(init=False)  # (G, 2, K): along left and right vectors
    gn: list[Tensor] = field(default_factory=list)  # (b, K) per micro-batch
    products: Tensor = field(init=False)  # (3, K): of both, of delta, of a
    by_position: Tensor | bool | None = None

    def __post_init__(self) -> None:
        dtype = sum_dtype(self.device)
        k = self.target.directions.k
        self.rays = torch.zeros(len(self.borders) - 1, 2, k, dtype=dtype, device=self.device)
        self.products = torch.zeros(3, k, dtype=dtype, device=self.device)

    def state(self) -> dict[str, Any]:
        """What was summed so far, to go on from with :meth:`restore`."""
        delta = None if self.delta is None else dict(vars(self.delta))
        return {"delta": delta, **{name: getattr(self, name) for name in ("rays", "gn", "products", "by_position")}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        delta = state["delta"]
        vars(self).update(state, delta=None if delta is None else GramSum.restored(delta))

    def add_rows(self, start: int, squares: Tensor, energy: Tensor, left: Tensor, right: Tensor) -> None:
        """Add one use.

        Args:
            start: number of the first sample.
            squares: (v·a)² (b, t, g, K).
            energy: Σ_c (u·delta)² (b, t, g, K).
            left: what makes u^T C_delta u: ``energy``, or that of sums over positions (b, 1, g, K).
            right: what makes v^T C_A v, likewise.
        """
        both = energy * squares
        dtype = self.rays.dtype
        self.products += torch.stack([x.flatten(0, 2).sum(0) for x in (both, energy, squares)]).to(dtype)
        if self.by_position is not False:
            here = both.flatten(1, 2).sum(0).to(dtype)
            if self.by_position is None:
                self.by_position = here
            elif isinstance(self.by_position, Tensor) and self.by_position.shape == here.shape:
                self.by_position += here
            else:
                self.by_position = False  # several uses of different sizes: positions cannot be added up
        per_sample = torch.stack([left.flatten(1, 2).sum(1), right.flatten(1, 2).sum(1)], 1).to(dtype)
        group = group_numbers(self.borders, start, start + len(squares)).to(self.device)
        self.rays.index_add_(0, group, per_sample)

    def finish(self, n: int, terms: float, draws: int, columns: int, exact: bool, options: DecomposeOptions) -> Factors:
        """Divide by counts and read off spectra.

        Args:
            n: samples.
            terms: loss terms of one sample, on average.
            draws: random columns each sum is over (1: exact).
            columns: cotangents pulled back per sample.
            exact: whether the columns are.
            options: what was asked for.
        """
        target, k = self.target, self.target.directions.k
        positions = self.parameter.positions
        divisor = n * terms * draws * self.parameter.divisor(options.sharing)
        assert self.delta is not None  # cotangents were added
        values_delta, trace_delta, exact_delta = self.delta.finish(divisor)
        values_a, trace_a, exact_a = self.parameter.a.finish(n)
        sizes = torch.tensor(self.borders).diff().double()
        rays = self.rays.cpu().double()
        per_group = rays / sizes[:, None, None]
        per_group[:, 0] /= divisor / n
        whole = rays.sum(0) / torch.tensor([divisor, n], dtype=torch.float64)[:, None]
        both, only_delta, only_a = self.products.cpu().double()
        ratio = both * (n * positions) / (only_delta * only_a).clamp_min(1e-300)
        contributions = torch.cat(self.gn).cpu().double() / (terms * draws)
        full = exact_delta and exact_a
        shares = half_shares(self.borders)
        cv_delta = self.delta.cross_validate(divisor, shares, k)
        cv_a = self.parameter.cross_validate(n, shares, k)
        too_large = Missing(f"a factor is larger than {HELD_UP_TO}: only its leading eigenvalues were held")
        weight = target.layer.matrix(target.layer.parameter.detach())
        sigma, _ = gram_eigenvalues(weight, precise=False)
        window = sigma.sqrt()[:k].numpy()
        return Factors(
            fisher=options.fisher,
            sharing=options.sharing,
            columns=columns,
            exact=exact,
            positions=positions,
            delta=_factor(values_delta, trace_delta, exact_delta, cv_delta, k, target.layer.info.shape[0]),
            a=_factor(values_a, trace_a, exact_a, cv_a, k, target.layer.info.shape[1]),
            rayleigh_delta=tuple(whole[0].tolist()),
            rayleigh_a=tuple(whole[1].tolist()),
            h_gn=tuple(contributions.mean(0).tolist()),
            group_rayleigh_delta=tuple(tuple(row) for row in per_group[:, 0].tolist()),
            group_rayleigh_a=tuple(tuple(row) for row in per_group[:, 1].tolist()),
            concentration=_concentration(ratio, contributions, self.by_position),
            profile=predict_profile(values_delta, values_a, round(n * terms), k) if full else too_large,
            s_weight=fit_alpha_g(window),
        )


def half_shares(borders: Sequence[int]) -> tuple[float, float]:
    """Shares of the samples in each half of the sample groups.

    >>> half_shares([0, 4, 8, 12]), half_shares([0, 4])
    ((0.3333333333333333, 0.6666666666666666), (0.0, 1.0))
    """
    middle = borders[(len(borders) - 1) // 2]
    return middle / borders[-1], (borders[-1] - middle) / borders[-1]


def _factor(
    values: Tensor, trace: float, exact: bool, cross_validated: tuple[float, ...] | Missing, k: int, dimension: int
) -> Factor:
    missing = Missing(f"the factor is larger than {HELD_UP_TO}: only its leading eigenvalues were held")
    leading = values[:k].tolist() + [0.0] * max(0, k - len(values))
    return Factor(
        dimension=dimension,
        eigenvalues=tuple(leading),
        trace=trace,
        effective_rank=effective_rank(values.numpy()) if exact else missing,
        participation_ratio=participation_ratio(values.numpy()) if exact else missing,
        exact=exact,
        cross_validated=cross_validated,
    )


def _concentration(ratio: Tensor, contributions: Tensor, by_position: Tensor | bool | None) -> Concentration:
    samples = contributions.numpy()
    positions: float | Missing = Missing("the weight is used at one position")
    if by_position is False:
        positions = Missing("uses of different numbers of positions cannot be compared")
    elif isinstance(by_position, Tensor) and len(by_position) > 1:
        positions = _over_directions(by_position.cpu().double().numpy(), _gini)
    return Concentration(
        ratio=tuple(ratio.tolist()),
        top_1_percent=_over_directions(samples, lambda x: _top_share(x, 0.01)),
        top_10_percent=_over_directions(samples, lambda x: _top_share(x, 0.1)),
        gini_samples=_over_directions(samples, _gini),
        gini_positions=positions,
    )


def _over_directions(table: np.ndarray, measure: Callable[[np.ndarray], float]) -> float | Missing:
    values = [measure(column) for column in table.T if column.sum() > 0]
    return float(np.median(values)) if values else Missing("no direction has curvature")


def _top_share(values: np.ndarray, share: float) -> float:
    """Share of the sum that the largest values hold; as many as the share of all, at least one."""
    count = max(1, round(share * len(values)))
    return float(np.sort(values)[::-1][:count].sum() / values.sum())


def _gini(values: np.ndarray) -> float:
    """Mean absolute difference of two values over twice their mean: 0 if all are equal.

    >>> round(_gini(np.array([1.0, 1.0, 1.0])), 12), round(_gini(np.array([0.0, 0.0, 0.0, 8.0])), 12)
    (0.0, 0.75)
    """
    ordered = np.sort(values)
    n = len(ordered)
    return float(2 * (np.arange(1, n + 1) @ ordered) / (n * ordered.sum()) - (n + 1) / n)
