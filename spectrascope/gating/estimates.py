"""What the error of an engine that only estimates h does to a reported number.

Sample groups do not see an error that is the same for every group, such as what finite differences leave over. It is
worked out from the standard error that the engine states of each h, direction by direction, as if they were
independent. The random vectors of the Gauss–Newton sketch are drawn anew for every micro-batch and so for every sample
group: there the spread of the groups, and with it the jackknife, holds the error already.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from spectrascope.records.report import LayerReport
from spectrascope.records.values import EngineName, Missing, PowerFit

__all__ = ["engine_error", "engine_error_of_median"]

_SEEN_BY_GROUPS = {EngineName.GAUSS_NEWTON_SKETCH}


def engine_error(row: LayerReport, number: str, rank: int | None = None, *, of_logarithm: bool = False) -> float:
    """Return the standard error of a layer's number that stems from the engine alone.

    Args:
        row: a measured layer.
        number: ``beta``, ``alpha_g``, ``alpha_h``, ``pr_h``, ``effective_rank_h``, or ``sigma`` or ``h``.
        rank: which direction of ``sigma`` or ``h``, from 1 on.
        of_logarithm: whether the error is that of the logarithm of the number.

    Returns:
        The error, in the number's unit; 0 for an exact engine, and where the report states no error of h; NaN where
        the number cannot be worked out.

    Reference: MEASUREMENT section 5.
    """
    stated = row.measurement.h_stderr
    if row.measurement.exact or isinstance(stated, Missing) or row.measurement.engine in _SEEN_BY_GROUPS:
        return 0.0
    if rank is not None:
        if number == "sigma":
            return 0.0
        h = row.measurement.h[rank - 1]
        if not of_logarithm:
            return stated[rank - 1]
        return stated[rank - 1] / h if h > 0 else math.nan
    from spectrascope.numerics.replicates import perturb_curvatures  # numpy: only where noise is asked for

    found = perturb_curvatures(row)
    if isinstance(found, Missing):
        return 0.0
    as_measured, raised = (getattr(numbers, number) for numbers in found)
    return math.hypot(*(raised - as_measured).tolist())


def engine_error_of_median(rows: Sequence[LayerReport]) -> float:
    """Return the standard error of the median beta of layers that stems from their engines, layer by layer."""
    from statistics import median

    fitted = [(row, row.analysis.beta.value) for row in rows if isinstance(row.analysis.beta, PowerFit)]
    betas, errors = [beta for _, beta in fitted], [engine_error(row, "beta") for row, _ in fitted]
    middle = median(betas) if betas else 0.0
    moved = [
        median([*betas[:i], betas[i] + error, *betas[i + 1 :]]) - middle for i, error in enumerate(errors) if error
    ]
    return math.hypot(*moved)
