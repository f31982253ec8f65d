"""What a curvature engine takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spectrascope.curvature.microbatches import group_borders
from spectrascope.network.layers import WeightLayer
from spectrascope.numerics.directions import Directions
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload

__all__ = ["Curvature", "CurvatureEngine", "CurvatureSums", "Progress", "Target", "target_slopes"]

Progress = Callable[[float, int], None]
"""(done, total), in samples or in products: whatever the stage counts; a fraction where one is long."""


@dataclass(frozen=True)
class Target:
    """One weight and the directions along which its curvature is wanted."""

    layer: WeightLayer
    directions: Directions


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

    def __init__(self, k: int, n: int, groups: int, device: torch.device) -> None:
        self.borders = group_borders(n, groups)
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
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

    def group_of(self, start: int) -> int:
        """The group a sample belongs to."""
        return next(g for g, border in enumerate(self.borders[1:]) if start < border)

    def finish(self, engine: EngineName, exact: bool, stderr: Tensor | None = None) -> Curvature:
        """Divide by sample counts and bring the result to the CPU."""
        sizes = torch.tensor(self.borders).diff()
        matrix = (self.matrix / self.borders[-1]).cpu().double()
        per_group = sizes[:, None].double()
        return Curvature(
            matrix=(matrix + matrix.T) / 2,
            group_h=self.group_h.cpu().double() / per_group,
            group_sigma=self.group_sigma.cpu().double() / per_group,
            group_sizes=tuple(sizes.tolist()),
            engine=engine,
            exact=exact,
            stderr=stderr,
        )


class CurvatureEngine(Protocol):
    """Measures curvature along given directions; one implementation per method."""

    @property
    def name(self) -> EngineName:
        """Which method this is."""
        ...

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: int, progress: Progress | None = None
    ) -> list[Curvature]:
        """Curvature of each target over the workload's whole batch, in the order given."""
        ...


def target_slopes(target: Target, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Slopes u_k^T G v_k (K,) of a gradient shaped like the stored weight."""
    left, right = (side.to(gradient.device, dtype) for side in (target.directions.left, target.directions.right))
    return torch.einsum("mk,mn,nk->k", left, target.layer.matrix(gradient.detach()).to(dtype), right)
