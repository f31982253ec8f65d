"""A whole report in a few numbers: medians over layers, all together and by kind of layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spectrascope.numerics.signal import summarise_signal
from spectrascope.records.report import LayerReport, LayerRow, Summary, SummaryGroup
from spectrascope.records.values import (
    Interval,
    LayerKind,
    LayerStatus,
    Missing,
    PowerFit,
    RankComparison,
    RankModel,
    Triangle,
)

__all__ = ["summarise"]


def summarise(layers: Sequence[LayerRow]) -> Summary:
    """Summarise measured layers: medians, interquartile ranges and rank-model wins.

    Missing values, skipped and failed layers never enter a statistic; a statistic over nothing is Missing.
    The ``beta_iqr`` interval is the 25 % and 75 % quantile (linear interpolation). A rank model wins a
    layer with the lowest BIC, ties included, as the paper counts.

    Args:
        layers: rows of a report, in any order.

    Returns:
        Counts by status, the overall group (kind ``"all"``) and one group per kind with a measured layer,
        in the order of :class:`LayerKind`.

    Cost: O(layers).

    Reference: MEASUREMENT sections 2 and 3.

    >>> summarise([]).overall.beta_median
    Missing(reason='no layer has a beta')
    """
    measured = [row for row in layers if isinstance(row, LayerReport)]
    kinds = [kind for kind in LayerKind if any(row.info.kind is kind for row in measured)]
    return Summary(
        n_ok=len(measured),
        n_skipped=sum(row.status is LayerStatus.SKIPPED for row in layers),
        n_failed=sum(row.status is LayerStatus.FAILED for row in layers),
        overall=_summarise_group("all", measured),
        by_kind=tuple(
            _summarise_group(kind.value, [row for row in measured if row.info.kind is kind]) for kind in kinds
        ),
        well_conditioned_median=_well_conditioned_medians(measured),
        signal=summarise_signal(measured),
    )


def _summarise_group(kind: str, layers: Sequence[LayerReport]) -> SummaryGroup:
    betas = [row.analysis.beta.value for row in layers if isinstance(row.analysis.beta, PowerFit)]
    triangles = [row.analysis.triangle for row in layers if isinstance(row.analysis.triangle, Triangle)]
    wins = dict.fromkeys((model.value for model in RankModel), 0)
    for row in layers:
        if isinstance(row.analysis.rank_models, RankComparison):
            wins[row.analysis.rank_models.best.value] += 1
    return SummaryGroup(
        kind=kind,
        n=len(layers),
        beta_median=_median(betas) if betas else Missing("no layer has a beta"),
        beta_iqr=_quartiles(betas) if betas else Missing("no layer has a beta"),
        triangle_error_median=(
            _median([triangle.relative_error for triangle in triangles])
            if triangles
            else Missing("no layer has a triangle")
        ),
        n_well_conditioned=sum(triangle.well_conditioned for triangle in triangles),
        bic_wins=wins,
    )


def _well_conditioned_medians(layers: Sequence[LayerReport]) -> dict[str, float] | Missing:
    columns: dict[str, list[float]] = {"beta": [], "alpha_g": [], "alpha_h": [], "triangle_error": []}
    for row in layers:
        triangle = row.analysis.triangle
        if isinstance(triangle, Missing) or not triangle.well_conditioned:
            continue
        columns["triangle_error"].append(triangle.relative_error)
        for name in ("beta", "alpha_g", "alpha_h"):
            fit: PowerFit | Missing = getattr(row.analysis, name)
            if isinstance(fit, PowerFit):
                columns[name].append(fit.value)
    if not columns["triangle_error"]:
        return Missing("no layer's triangle is well conditioned")
    return {name: _median(values) for name, values in columns.items() if values}


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))


def _quartiles(values: Sequence[float]) -> Interval:
    low, high = np.quantile(values, [0.25, 0.75])
    return Interval(float(low), float(high))
