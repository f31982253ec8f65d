"""The curvature engines by name."""

from __future__ import annotations

from collections.abc import Callable

from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.engine import CurvatureEngine
from spectrascope.curvature.finite_difference import FiniteDifference
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.curvature.sketch import GaussNewtonSketch
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.records.values import EngineName

__all__ = ["ESTIMATES", "make_engine"]

ESTIMATES = frozenset({EngineName.GAUSS_NEWTON_SKETCH, EngineName.FINITE_DIFFERENCE})
"""Engines whose numbers are estimates, with an error beside them."""


def make_engine(name: EngineName, micro_batch: int | None = None, seed: int = 0) -> CurvatureEngine:
    """The engine of that name; ``auto`` is a choice, not an engine.

    Args:
        name: which.
        micro_batch: samples per pass; ``None`` tunes it.
        seed: of random vectors, where the engine draws any.
    """
    if name is EngineName.GAUSS_NEWTON_SKETCH:
        return GaussNewtonSketch(micro_batch, seed=seed)
    engines: dict[EngineName, Callable[[int | None], CurvatureEngine]] = {
        EngineName.GAUSS_NEWTON: GaussNewton,
        EngineName.TANGENT: Tangents,
        EngineName.DOUBLE_BACKPROP: DoubleBackprop,
        EngineName.FINITE_DIFFERENCE: FiniteDifference,
    }
    return engines[name](micro_batch)
