"""What a curvature engine takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from spectrascope.curvature.microbatches import Groups, MicroBatch, group_borders, group_numbers
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import Directions
from spectrascope.numerics.spectra import sum_dtype
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = [
    "GRADIENT_COST",
    "Curvature",
    "CurvatureEngine",
    "CurvatureSums",
    "Downstream",
    "JointForm",
    "Progress",
    "Target",
    "UnsupportedOperationError",
    "mean_form",
    "target_slopes",
]

Progress = Callable[[float, int], None]
"""(done, total), in samples or in products: whatever the stage counts; a fraction where one is long."""

GRADIENT_COST = 3.0
"""Forward-equivalents of one gradient: a forward and a backward pass."""


class UnsupportedOperationError(RuntimeError):
    """The network does something that the engine cannot follow exactly; its weights go to the engine's ``next``."""


class JointForm(Enum):
    """What an engine measures of the second derivatives across weights; within each weight it is exact."""

    HESSIAN = "Hessian"
    GAUSS_NEWTON = "Gauss-Newton part"


@dataclass(frozen=True)
class Target:
    """One weight and the directions along which its curvature is wanted."""

    layer: WeightLayer
    directions: Directions

    def direction(self, k: int) -> Tensor:
        """D_k = u_k v_k^T, shaped like the weight."""
        return self.layer.tensor(torch.outer(self.directions.left[:, k], self.directions.right[:, k]))


@dataclass(frozen=True)
class Curvature:
    """Second derivatives of the mean loss on span{D_1 … D_K}, D_k = u_k v_k^T.

    ``matrix`` (K, K) is M_kj = <D_k, H D_j>; ``group_h`` (G, K) its diagonal and ``group_sigma`` (G, K) the slopes
    u_k^T G_g v_k of each sample group's own mean loss. ``stderr`` (K,) is the standard error of ``h`` where the engine
    only estimates it, ``None`` where it is exact. float64 on the CPU.
    """

    matrix: Tensor
    group_h: Tensor
    group_sigma: Tensor
    group_sizes: tuple[int, ...]
    engine: EngineName
    exact: bool
    stderr: Tensor | None = None

    @property
    def h(self) -> Tensor:
        """Curvatures (K,): the diagonal of ``matrix``."""
        return self.matrix.diagonal()


class CurvatureSums:
    """Running sums of one target over micro-batches, in float64 (float32 where the device has no float64)."""

    def __init__(self, k: int, n: int, groups: Groups, device: torch.device) -> None:
        self.borders = group_borders(n, groups)
        self.dtype = sum_dtype(device)
        shape = (len(self.borders) - 1, k)
        self.matrix = torch.zeros(k, k, dtype=self.dtype, device=device)
        self.group_h = torch.zeros(shape, dtype=self.dtype, device=device)
        self.group_sigma = torch.zeros(shape, dtype=self.dtype, device=device)

    def add(self, group: int, slope: Tensor, matrix: Tensor, samples: int) -> None:
        """Add a micro-batch of one group: slopes (K,) and M (K, K) of its mean loss over ``samples`` samples."""
        matrix = matrix.to(self.matrix)
        matrix = (matrix + matrix.T) / 2
        self.matrix += matrix * samples
        self.group_h[group] += matrix.diagonal() * samples
        self.group_sigma[group] += slope.to(self.group_sigma) * samples

    def add_groups(self, first: int, slopes: Tensor, matrices: Tensor, samples: int) -> None:
        """Add a micro-batch that spans groups, from number ``first`` on.

        Args:
            first: its first group.
            slopes: each group's part (G, K) of those of the micro-batch's mean loss.
            matrices: each group's part (G, K, K) of its M.
            samples: how many the micro-batch has.
        """
        matrices = matrices.to(self.matrix)
        matrices = (matrices + matrices.mT) / 2 * samples
        self.matrix += matrices.sum(0)
        groups = slice(first, first + len(matrices))
        self.group_h[groups] += matrices.diagonal(dim1=1, dim2=2)
        self.group_sigma[groups] += slopes.to(self.group_sigma) * samples

    def add_samples(self, start: int, slopes: Tensor, h: Tensor, matrix: Tensor) -> None:
        """Add samples from number ``start`` on, of any groups: slopes and h (b, K), and the sum of M (K, K)."""
        self.matrix += matrix
        group = group_numbers(self.borders, start, start + len(h)).to(h.device)
        self.group_h.index_add_(0, group, h)
        self.group_sigma.index_add_(0, group, slopes)

    def state(self) -> dict[str, Tensor]:
        """The sums so far, to go on from with :meth:`restore`."""
        return {name: getattr(self, name) for name in ("matrix", "group_h", "group_sigma")}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from sums that were kept."""
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def group_of(self, start: int) -> int:
        """The group a sample belongs to."""
        return next(g for g, border in enumerate(self.borders[1:]) if start < border)

    def finish(self, engine: EngineName, exact: bool, stderr: Tensor | None = None) -> Curvature:
        """Divide by sample counts and bring the result to the CPU."""
        sizes = torch.tensor(self.borders).diff()
        per_group = sizes[:, None].double()
        return Curvature(
            matrix=mean_form(self.matrix, self.borders[-1]),
            group_h=self.group_h.cpu().double() / per_group,
            group_sigma=self.group_sigma.cpu().double() / per_group,
            group_sizes=tuple(sizes.tolist()),
            engine=engine,
            exact=exact,
            stderr=stderr,
        )


@dataclass(frozen=True)
class Downstream:
    """What the cost of measuring one weight depends on: the share of the network after it, and how many directions."""

    share: float
    k: int


@dataclass(frozen=True)
class CurvatureEngine(ABC):
    """Measures curvature along given directions. One subclass per method, listed in ``curvature/choose.py``.

    Args:
        micro_batch: samples per pass; ``None`` tunes it, a ``Tuning`` does so over several measurements.

    Attributes:
        name: its spelling on the command line and in reports.
        exact: whether its numbers are, where it is used; an estimate carries an error beside each number.
        next: the engine that takes the weights this one gives up.
        reference: the engines it is held to in every run's self-check: the second has the last word where the first
            disagrees, and on the earliest weight. Empty for estimates, which carry an error of their own.
        hint: what to try where it gives up a weight and there is no ``next``.
        joint: what :meth:`measure_joint` gives across weights; ``None`` for an engine that cannot.
    """

    name: ClassVar[EngineName]
    exact: ClassVar[bool]
    next: ClassVar[EngineName | None] = None
    reference: ClassVar[tuple[EngineName, ...]] = ()
    hint: ClassVar[str] = ""
    joint: ClassVar[JointForm | None] = None

    micro_batch: MicroBatch = None

    @classmethod
    def make(cls, micro_batch: MicroBatch, seed: int, memory: int | None) -> CurvatureEngine:
        """Make the engine; ``seed`` is for one that draws random vectors, ``memory`` for one that fills what it may."""
        return cls(micro_batch)

    @classmethod
    @abstractmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        """Roughly what measuring these weights takes, in forward passes over the whole batch; 0 for none of them."""

    @abstractmethod
    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature]:
        """Curvature of each target over the workload's whole batch, in the order given."""

    def measure_each(
        self, workload: Workload, targets: Sequence[Target], *, groups: Groups = 16, progress: Progress | None = None
    ) -> list[Curvature | str]:
        """Curvature of each target, or why the engine gives it up. Here all or none; an engine may know better."""
        try:
            return [*self.measure(workload, targets, groups=groups, progress=progress)]
        except UnsupportedOperationError as error:
            return [str(error)] * len(targets)

    def measure_joint(
        self, workload: Workload, targets: Sequence[Target], *, progress: Progress | None = None
    ) -> Tensor:
        """Second derivatives of the mean loss across weights, on all directions of all targets.

        Returns:
            M (S, S), float64 on the CPU, S the directions of all targets one after another: <D_wk, H D_vl>; across
            weights only the part of it that ``joint`` names.

        Raises:
            UnsupportedOperationError: the network cannot be followed.
        """
        raise NotImplementedError(f"{self.name.value} measures no curvature across weights")


def mean_form(total: Tensor, n: int) -> Tensor:
    """A sum (K, K) of second derivatives over n samples as their mean: its symmetric part, float64 on the CPU."""
    matrix = (total / n).cpu().double()
    return (matrix + matrix.T) / 2


def target_slopes(target: Target, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Slopes u_k^T G v_k (K,) of a gradient shaped like the stored weight."""
    left, right = (side.to(gradient.device, dtype) for side in (target.directions.left, target.directions.right))
    return torch.einsum("mk,mn,nk->k", left, target.layer.matrix(gradient.detach()).to(dtype), right)
