"""A report as CSV: one row per layer, every number in full, the same columns in every report.

A value that was not measured is an empty cell; column ``missing`` says why, as ``name: reason; name: reason``.
Rows of skipped and failed layers have their description, ``status`` and ``reason`` only. ``M`` and ``N`` are
the layer's outputs and inputs; a ``window`` runs over ranks ``k1`` to ``k2``, both included.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from spectrascope.records.bench import BenchReport
from spectrascope.records.inspection import InspectedWeight, Inspection
from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.values import Interval, Missing, PowerFit, RankComparison, RankModel
from spectrascope.reports.codec import encode
from spectrascope.reports.order import Sort, sort_layers

__all__ = [
    "COLUMNS",
    "TRIANGLE_COLUMNS",
    "bench_to_csv",
    "inspection_to_csv",
    "missing_apart",
    "report_to_csv",
    "triangle_to_csv",
    "write_csv",
]

_EXPONENTS = ("beta", "alpha_g", "alpha_h")
_FIT_COLUMNS = (
    "",
    "_stderr",
    "_ci_low",
    "_ci_high",
    "_jackknife_low",
    "_jackknife_high",
    "_r2",
    "_n",
    "_n_dropped",
)
_ZETA = ("s", "infinite", "finite", "infinite_holds", "finite_holds")
_ANALYSIS = ("pr_h", "effective_rank_h", "n_negative", "n_above_noise", "off_diagonal_mass")
_MEASUREMENT = ("pr_g", "effective_rank_g", "noise_floor", "residual", "exact")

COLUMNS: tuple[str, ...] = (
    "name",
    "kind",
    "role",
    "M",
    "N",
    "status",
    "reason",
    "missing",
    "rank",
    "full_rank",
    "k1",
    "k2",
    "sigma_1",
    "h_1",
    *(f"{name}{suffix}" for name in _EXPONENTS for suffix in _FIT_COLUMNS),
    "triangle_predicted",
    "triangle_error",
    "triangle_well_conditioned",
    "rank_model",
    "rank_model_runner_up",
    "rank_model_delta_bic",
    "rank_model_tie",
    "rank_model_aic",
    *(f"{table}_{model.value}" for table in ("bic", "aic", "rss") for model in RankModel),
    *(f"zeta_{name}" for name in _ZETA),
    *_ANALYSIS,
    *_MEASUREMENT,
    "engine",
)
"""Columns of a report, in order."""

TRIANGLE_COLUMNS: tuple[str, ...] = (
    "name",
    "kind",
    "status",
    "reason",
    "missing",
    "k1",
    "k2",
    "beta",
    "alpha_g",
    "alpha_h",
    "triangle_predicted",
    "triangle_error",
    "triangle_well_conditioned",
)
"""Columns of the α triangle alone, in order."""


def report_to_csv(report: Report, sort: Sort = Sort.ORDER) -> str:
    """Write one row per layer with every number of the report, headed by :data:`COLUMNS`."""
    return write_csv(COLUMNS, (_row_values(row) for row in sort_layers(report, sort)))


def triangle_to_csv(report: Report, sort: Sort = Sort.ORDER) -> str:
    """Write one row per layer with the α triangle alone, headed by :data:`TRIANGLE_COLUMNS`."""
    return write_csv(TRIANGLE_COLUMNS, (_row_values(row) for row in sort_layers(report, sort)))


def bench_to_csv(bench: BenchReport) -> str:
    """Write a benchmark as one row; model and data by their ids."""
    record: dict[str, Any] = {"model": bench.model.id, "data": bench.data.id}
    for key, value in encode(bench).items():
        if not isinstance(value, (dict, list)):
            record[key] = value
    return write_csv(tuple(record), [record])


_INSPECTION_COLUMNS = (
    "name", "kind", "role", "M", "N", "stored_shape", "tied_names", "frozen", "measured", "reason", "directions",
    "engine", "engine_reason", "missing",
)  # fmt: skip


def inspection_to_csv(inspection: Inspection) -> str:
    """Write a dry run as one row per parameter, vectors included."""
    return write_csv(_INSPECTION_COLUMNS, (_inspected_values(row) for row in inspection.weights))


def _inspected_values(row: InspectedWeight) -> dict[str, Any]:
    info = row.info
    unknown = row.measured and isinstance(row.engine, Missing)
    return {
        "name": info.name,
        "kind": info.kind.value,
        "role": info.role.value,
        "M": info.shape[0],
        "N": info.shape[1],
        "stored_shape": "x".join(str(size) for size in info.stored_shape),
        "tied_names": " ".join(info.tied_names),
        "frozen": info.frozen,
        "measured": row.measured,
        "reason": row.reason,
        "directions": row.directions,
        "engine": "" if isinstance(row.engine, Missing) else row.engine.value,
        "engine_reason": row.engine_reason,
        "missing": f"engine: {row.engine.reason}" if unknown and isinstance(row.engine, Missing) else "",
    }


def write_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Write rows under a header; a column a row lacks is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column, "")) for column in columns])
    return stream.getvalue().removesuffix("\n")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else str(value)


def _row_values(row: LayerRow) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": row.info.name,
        "kind": row.info.kind.value,
        "role": row.info.role.value,
        "M": row.info.shape[0],
        "N": row.info.shape[1],
        "status": row.status.value,
    }
    if not isinstance(row, LayerReport):
        return {**values, "reason": row.reason}
    values |= _measured_values(row)
    return missing_apart(values)


def missing_apart(values: dict[str, Any]) -> dict[str, Any]:
    """Empty the cells of values that were not measured; column ``missing`` says why.

    >>> missing_apart({"beta": Missing("too few points"), "rank": 3})
    {'beta': '', 'rank': 3, 'missing': 'beta: too few points'}
    """
    missing = {key: value for key, value in values.items() if isinstance(value, Missing)}
    why = "; ".join(f"{key}: {value.reason}" for key, value in missing.items())
    return {**values, **dict.fromkeys(missing, ""), "missing": why}


def _measured_values(row: LayerReport) -> dict[str, Any]:
    measurement, analysis = row.measurement, row.analysis
    values: dict[str, Any] = {
        "rank": measurement.rank,
        "full_rank": measurement.full_rank,
        "k1": analysis.window[0],
        "k2": analysis.window[1],
        "engine": measurement.engine.value,
    }
    if measurement.sigma:
        values |= {"sigma_1": measurement.sigma[0], "h_1": measurement.h[0]}
    for name in _EXPONENTS:
        values |= _fit_values(name, getattr(analysis, name))
    values |= _rank_values(analysis.rank_models)
    values |= {name: getattr(analysis, name) for name in _ANALYSIS}
    values |= {name: getattr(measurement, name) for name in _MEASUREMENT}
    triangle, bound = analysis.triangle, analysis.zeta_bound
    if isinstance(triangle, Missing):
        values["triangle_error"] = triangle
    else:
        values["triangle_predicted"] = triangle.predicted
        values["triangle_error"] = triangle.relative_error
        values["triangle_well_conditioned"] = triangle.well_conditioned
    if isinstance(bound, Missing):
        values["zeta_s"] = bound
    else:
        values |= {f"zeta_{name}": getattr(bound, name) for name in _ZETA}
    return values


def _fit_values(name: str, fit: PowerFit | Missing) -> dict[str, Any]:
    if isinstance(fit, Missing):
        return {name: fit}
    values: dict[str, Any] = {
        name: fit.value,
        f"{name}_stderr": fit.stderr,
        f"{name}_ci_low": fit.ci95.low,
        f"{name}_ci_high": fit.ci95.high,
        f"{name}_r2": fit.r2,
        f"{name}_n": fit.n,
        f"{name}_n_dropped": fit.n_dropped,
    }
    interval = fit.jackknife_ci95
    if isinstance(interval, Interval):
        return {**values, f"{name}_jackknife_low": interval.low, f"{name}_jackknife_high": interval.high}
    return {**values, f"{name}_jackknife_low": interval}


def _rank_values(comparison: RankComparison | Missing) -> dict[str, Any]:
    if isinstance(comparison, Missing):
        return {"rank_model": comparison}
    values: dict[str, Any] = {
        "rank_model": comparison.best.value,
        "rank_model_runner_up": comparison.runner_up.value,
        "rank_model_delta_bic": comparison.delta_bic,
        "rank_model_tie": comparison.tie,
        "rank_model_aic": comparison.best_aic.value,
    }
    for fit in comparison.fits:
        for table in ("bic", "aic", "rss"):
            values[f"{table}_{fit.model.value}"] = getattr(fit, table)
    return values
