"""Curvature of a step that moves all measured weights at once: frozen records, standard library only.

M[(w, k), (v, l)] = <D_wk, H D_vl> over the leading K directions of every weight's gradient, H the Hessian in all
weights together. Its diagonal blocks are the weights' own curvature matrices; a block (w, v) says what moving w and v
at once adds to moving each alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from spectrascope.records.values import EngineName, Missing

__all__ = ["NOT_ASKED_ACROSS", "Across", "JointStep"]

NOT_ASKED_ACROSS = Missing("not asked for: --across-weights")
"""Why a report has no curvature across weights."""


@dataclass(frozen=True, slots=True)
class JointStep:
    """A step D = sum over weights of sum_k T_k D_wk along the leading directions of all weights at once.

    ``joint`` is <D, H D>, ``separate`` the sum over weights of what each has alone, ``ratio`` joint over separate: 1
    where the weights share no curvature. Where every weight's step is first given the length that suits it alone,
    ``factor`` is the best common factor on all of these lengths: 1 where nothing is shared, below where weights get in
    each other's way. ``left_out`` weights have no such length, their curvature along the step not being positive.
    """

    joint: float
    separate: float
    ratio: float | Missing
    factor: float | Missing
    left_out: int


@dataclass(frozen=True, slots=True)
class Across:
    """What weights share of their curvature.

    ``directions`` of each of ``weights`` enter. ``gradient`` is the gradient step (T = sigma), ``orthogonal`` the
    orthogonalised one (T = 1, as Muon's); of a momentum's directions the momentum's steps. The coupling of two weights
    is ‖M_wv‖ / sqrt(‖M_ww‖ ‖M_vv‖) in Frobenius norms, at most 1 where H is positive; ``pair`` has the largest.
    ``off_block_mass`` is ‖M without its diagonal blocks‖ / ‖M‖. ``exact`` is false where the blocks between weights are
    the Gauss-Newton part of the Hessian's alone.
    ``residual`` is the largest difference of a diagonal block from the matrix measured for its weight, over the
    latter's largest entry. ``matrix`` is M, weights one after another, only where it was asked for.
    """

    weights: tuple[str, ...]
    directions: tuple[int, ...]
    engine: EngineName
    exact: bool
    gradient: JointStep
    orthogonal: JointStep
    coupling: float
    pair: tuple[str, str]
    off_block_mass: float
    residual: float | Missing
    matrix: tuple[tuple[float, ...], ...] | Missing

    def __post_init__(self) -> None:
        size = sum(self.directions)
        if len(self.weights) != len(self.directions) or len(self.weights) < 2:
            raise ValueError(f"{len(self.weights)} weights with {len(self.directions)} numbers of directions")
        if not isinstance(self.matrix, Missing) and any(len(row) != size for row in (*self.matrix, self.matrix)):
            raise ValueError(f"a matrix across weights that is not {size} × {size}")
