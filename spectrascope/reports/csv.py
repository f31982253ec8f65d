"""Every record as CSV: one row per layer, weight, check or checkpoint, every number in full, the same columns always.

A value that was not measured is an empty cell; column ``missing``, where there is one, says why, as ``name: reason;
name: reason``. Rows of skipped and failed layers have their description, ``status`` and ``reason`` only. ``M`` and
``N`` are a layer's outputs and inputs; a ``window`` runs over ranks ``k1`` to ``k2``, both included.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import Any

from spectrascope.records.advice import Advice, LayerAdvice
from spectrascope.records.bench import BenchReport
from spectrascope.records.comparison import Comparison
from spectrascope.records.inspection import InspectedWeight, Inspection
from spectrascope.records.report import LayerInfo, LayerReport, LayerRow, Report
from spectrascope.records.trajectory import Trajectory
from spectrascope.records.values import Interval, Missing, RankModel
from spectrascope.records.verdict import Verdict
from spectrascope.records.weights import TailRow, WeightsReport, WeightTail
from spectrascope.reports.fields import csv_fields, fit_columns, followed, plain, rank_columns, spread
from spectrascope.reports.order import ORDER, ChangeOrder, Sort, sort_changes, sort_layers

__all__ = [
    "ADVICE_COLUMNS", "CHANGE_COLUMNS", "DECOMPOSITION_COLUMNS", "FINDING_COLUMNS", "TRIANGLE_COLUMNS", "advice_to_csv",
    "bench_to_csv", "comparison_to_csv", "decomposition_to_csv", "inspection_to_csv", "report_columns",
    "report_to_csv", "trajectory_columns", "trajectory_to_csv", "triangle_to_csv", "verdict_to_csv", "weights_to_csv",
]  # fmt: skip


def _write(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """Write rows under a header; a column a row lacks is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        why = "; ".join(f"{name}: {value.reason}" for name, value in row.items() if isinstance(value, Missing))
        values = {"missing": why, **row}
        writer.writerow([_cell(values.get(column, "")) for column in columns])
    return stream.getvalue().removesuffix("\n")


def _cell(value: Any) -> str:
    if isinstance(value, Missing):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else str(value)


def _describe(info: LayerInfo) -> dict[str, Any]:
    m, n = info.shape
    return {"name": info.name, "kind": info.kind.value, "role": info.role.value, "M": m, "N": n}


# -- a report and its triangle --------------------------------------------------------------------------------------

TRIANGLE_COLUMNS = (
    "name", "kind", "status", "reason", "missing", "k1", "k2", "beta", "alpha_g", "alpha_h", "triangle_predicted",
    "triangle_error", "triangle_well_conditioned",
)  # fmt: skip
"""Columns of the α triangle alone, in order."""


def report_columns() -> tuple[str, ...]:
    """Columns of a report, in order."""
    numbers = (column for field in csv_fields() for column, _ in field.csv_columns)
    return "name", "kind", "role", "M", "N", "status", "reason", "missing", *numbers


def report_to_csv(report: Report, sort: Sort | str = ORDER) -> str:
    """Write one row per layer with every number of the report, headed by :func:`report_columns`."""
    return _write(report_columns(), (_row_values(row) for row in sort_layers(report, sort)))


def triangle_to_csv(report: Report, sort: Sort | str = ORDER) -> str:
    """Write one row per layer with the α triangle alone, headed by :data:`TRIANGLE_COLUMNS`."""
    return _write(TRIANGLE_COLUMNS, (_row_values(row) for row in sort_layers(report, sort)))


def _row_values(row: LayerRow) -> dict[str, Any]:
    values = {**_describe(row.info), "status": row.status.value}
    if not isinstance(row, LayerReport):
        return {**values, "reason": row.reason}
    for field in csv_fields():
        values |= field.cells(row)
    return values


# -- the decomposition ----------------------------------------------------------------------------------------------

_SLOPES = {
    name: fit_columns(name, "", "_stderr", "_ci_low", "_ci_high", "_r2")
    for name in (
        "beta", "beta_lambda", "beta_lambda_cv", "beta_lambda_delta", "beta_lambda_a", "beta_phi", "beta_rho_delta",
        "beta_rho_a", "beta_chi",
    )
}  # fmt: skip
_OVER_GROUPS = {name: fit_columns(name, "_jackknife_low", "_jackknife_high") for name in ("beta", "beta_chi")}
_OF_ALIGNMENT = (
    "identity_residual", "chi_median", "concentration_ratio", "r2_h_sigma2", "r2_h_gn_sigma2", "r2_h_h_gn",
    "r_h_kron_sigma2", "profile_distance", "profile_scale",
)  # fmt: skip
_CONCENTRATION = ("top_1_percent", "top_10_percent", "gini_samples", "gini_positions")
_WINS = ("rank_resamples", *(f"rank_wins_{model.value}" for model in RankModel))
_OF_A_FACTOR = ("dimension", "trace", "effective_rank", "participation_ratio")

DECOMPOSITION_COLUMNS: tuple[str, ...] = (
    "name", "kind", "role", "M", "N", "status", "reason", "missing", "k1", "k2", "fisher", "sharing", "columns",
    "exact", "positions",
    *(column for columns in (*_SLOPES.values(), *_OVER_GROUPS.values()) for column, _ in columns),
    *_OF_ALIGNMENT, "chi_min", "chi_max", *_CONCENTRATION,
    *(f"{factor}_{name}" for factor in ("delta", "a") for name in (*_OF_A_FACTOR, "model")),
    "gradient_model", *_WINS, "driver", "s_weight", "alpha_h", "kronecker", "mechanisms",
)  # fmt: skip
"""Columns of the decomposition, in order."""


def decomposition_to_csv(report: Report, sort: Sort | str = ORDER) -> str:
    """Write one row per layer with every number of its decomposition, headed by :data:`DECOMPOSITION_COLUMNS`."""
    return _write(DECOMPOSITION_COLUMNS, (_decomposed_values(row) for row in sort_layers(report, sort)))


def _decomposed_values(row: LayerRow) -> dict[str, Any]:
    values = {**_describe(row.info), "status": row.status.value}
    if not isinstance(row, LayerReport):
        return {**values, "reason": row.reason}
    decomposition, resamples = row.decomposition, row.rank_resamples
    if isinstance(resamples, Missing):
        values["rank_resamples"] = resamples
    else:
        values["rank_resamples"] = len(resamples.sigma)
        values |= {f"rank_wins_{model}": wins for model, wins in resamples.wins.items()}
    if isinstance(decomposition, Missing):
        return {**values, "decomposition": decomposition}
    alignment, factors = decomposition.alignment, decomposition.factors
    values |= {"k1": alignment.window[0], "k2": alignment.window[1], "fisher": factors.fisher.value}
    values |= {"sharing": factors.sharing.value, "columns": factors.columns, "exact": factors.exact}
    values["positions"] = factors.positions
    for name, columns in _SLOPES.items():
        values |= spread(name, (*columns, *_OVER_GROUPS.get(name, ())), getattr(alignment, name))
    values |= {name: getattr(alignment, name) for name in _OF_ALIGNMENT}
    if alignment.chi:
        values |= {"chi_min": min(alignment.chi), "chi_max": max(alignment.chi)}
    values |= {name: getattr(factors.concentration, name) for name in _CONCENTRATION}
    reading = alignment.reading
    for factor, model in (("delta", reading.delta_model), ("a", reading.a_model)):
        values |= {f"{factor}_{name}": getattr(getattr(factors, factor), name) for name in _OF_A_FACTOR}
        values[f"{factor}_model"] = plain(model)
    values |= {"gradient_model": plain(reading.gradient_model), "driver": reading.driver}
    values |= {"s_weight": plain(factors.s_weight), "alpha_h": plain(row.analysis.alpha_h)}
    values["kronecker"] = alignment.kronecker.verdict.value
    values["mechanisms"] = "; ".join(f"{m.name}: {m.verdict.value}" for m in alignment.mechanisms)
    return values


# -- weights --------------------------------------------------------------------------------------------------------

_OF_A_WEIGHT = ("Q", "num_evals", "norm", "spectral_norm", "sv_max", "stable_rank", "matrix_rank", "alpha_weighted")
_OF_A_TAIL = ("alpha", "sigma", "D", "xmin", "xmax", "num_pl_spikes")
_S_WEIGHT = fit_columns("s_weight", "", "_stderr", "_ci_low", "_ci_high", "_r2", "_n")
_OF_RANKS = (("rank_model", plain), ("rank_model_delta_bic", lambda found: found.delta_bic), *rank_columns("bic"))
_WEIGHT_COLUMNS = (
    "name", "kind", "role", "status", "reason", "missing", "outputs", "inputs", "M", "N", "Q", "num_evals", "alpha",
    "sigma", "D", "xmin", "xmax", "num_pl_spikes", "alpha_weighted", "norm", "spectral_norm", "sv_max", "stable_rank",
    "matrix_rank", *(column for column, _ in (*_S_WEIGHT, *_OF_RANKS)), "alpha_h",
)  # fmt: skip
"""As in WeightWatcher's table where the quantity is the same; its N is the larger side, M the smaller."""


def weights_to_csv(report: WeightsReport) -> str:
    """Write one row per weight with every number in full."""
    return _write(_WEIGHT_COLUMNS, (_weight_values(row) for row in report.rows))


def _weight_values(row: TailRow) -> dict[str, Any]:
    outputs, inputs = row.info.shape
    values = {**_describe(row.info), "status": row.status.value, "outputs": outputs, "inputs": inputs}
    values |= {"M": min(outputs, inputs), "N": max(outputs, inputs)}
    if not isinstance(row, WeightTail):
        return {**values, "reason": row.reason}
    values |= {name: getattr(row, name) for name in _OF_A_WEIGHT}
    tail = row.tail
    values |= {"alpha": tail} if isinstance(tail, Missing) else {name: getattr(tail, name) for name in _OF_A_TAIL}
    values |= spread("s_weight", _S_WEIGHT, row.s_weight) | spread("rank_model", _OF_RANKS, row.rank_models)
    return {**values, "alpha_h": plain(row.alpha_h)}


# -- a trajectory ---------------------------------------------------------------------------------------------------


def trajectory_columns() -> tuple[str, ...]:
    """Columns of a trajectory: one line per checkpoint and layer."""
    return "step", "checkpoint", "name", "kind", *(field.flat for field in followed()), "rank_model", "missing"


def trajectory_to_csv(trajectory: Trajectory) -> str:
    """Write one row per checkpoint and layer, headed by :func:`trajectory_columns`."""
    rows = (
        {
            "step": f"{point.step:g}",
            "checkpoint": point.label,
            "name": track.name,
            "kind": track.kind.value,
            **{name: values[place] for name, values in track.values.items()},
            "rank_model": plain(track.rank_models[place]),
        }
        for place, point in enumerate(trajectory.points)
        for track in trajectory.layers
    )
    return _write(trajectory_columns(), rows)


# -- advice ---------------------------------------------------------------------------------------------------------

_STEPS = ("0", "1", "2", "recommended")
ADVICE_COLUMNS = (
    "name", "kind", "role", "M", "N", "treatment", "reason", "beta", "beta_low", "beta_high", "source", "doubts",
    "meaning", "damping", "relative_damping", "damping_reason", "own_exponent", "own_low", "own_high", "own_determined",
    "measured_beta", "null_beta", "k1", "k2", "n_signal", "n_resolved", "samples_needed",
    *(f"decrease_{name}" for name in _STEPS), *(f"efficiency_{name}" for name in _STEPS), "nuclear_rank",
    "stable_rank", "spectral_rule", "missing",
)  # fmt: skip
"""Columns of an advice, in order."""


def advice_to_csv(advice: Advice) -> str:
    """Write one row per layer; groups and validation are left to JSON."""
    return _write(ADVICE_COLUMNS, (_advised_values(layer) for layer in advice.layers))


def _advised_values(layer: LayerAdvice) -> dict[str, Any]:
    own, window, steps, rule = layer.own, layer.window, layer.efficiencies, layer.spectral_rule
    values = {
        **_describe(layer.info),
        "treatment": layer.treatment.value,
        "reason": layer.reason,
        "beta": layer.beta,
        "source": plain(layer.source),
        "doubts": "; ".join(layer.doubts),
        "meaning": layer.meaning,
        "damping": layer.damping,
        "relative_damping": layer.relative_damping,
        "damping_reason": layer.damping_reason,
        "own_exponent": own if isinstance(own, Missing) else own.value,
        "measured_beta": plain(layer.measured),
        "null_beta": layer.null if isinstance(layer.null, Missing) else layer.null.value,
        "n_signal": layer.n_signal,
        "n_resolved": layer.n_resolved,
        "samples_needed": layer.samples_needed,
        "spectral_rule": rule if isinstance(rule, Missing) else rule.favours,
    }
    if isinstance(layer.interval, Interval):
        values |= {"beta_low": layer.interval.low, "beta_high": layer.interval.high}
    if not isinstance(own, Missing):
        values |= {"own_low": own.interval.low, "own_high": own.interval.high, "own_determined": own.determined}
    if not isinstance(rule, Missing):
        values |= {"nuclear_rank": rule.nuclear_rank, "stable_rank": rule.stable_rank}
    if not isinstance(window, Missing):
        values |= {"k1": window[0], "k2": window[1]}
    if not isinstance(steps, Missing):
        values |= {f"decrease_{step.name}": step.decrease for step in steps}
        values |= {f"efficiency_{step.name}": step.efficiency for step in steps}
    return values


# -- a gate, a comparison, a dry run, a benchmark -------------------------------------------------------------------

FINDING_COLUMNS = (
    "outcome", "layer", "number", "baseline", "now", "change", "allowed", "severity", "rule", "message",
)  # fmt: skip
"""Columns of a verdict: one row per check, the worst first; of the whole report where ``layer`` is empty."""

CHANGE_COLUMNS = ("layer", "number", "before", "after", "change", "stderrs")
"""Columns of a comparison."""

_INSPECTION_COLUMNS = (
    "name", "kind", "role", "M", "N", "stored_shape", "tied_names", "frozen", "measured", "reason", "directions",
    "engine", "engine_reason", "missing",
)  # fmt: skip


def verdict_to_csv(verdict: Verdict) -> str:
    """Write one row per check."""
    names = {"outcome": "mark", "baseline": "before", "now": "after"}
    return _write(
        FINDING_COLUMNS,
        ({name: plain(getattr(item, names.get(name, name))) for name in FINDING_COLUMNS} for item in verdict.findings),
    )


def comparison_to_csv(comparison: Comparison, sort: ChangeOrder = ChangeOrder.ORDER) -> str:
    """Write one row per number."""
    changes = sort_changes(comparison.changes, sort)
    return _write(CHANGE_COLUMNS, ({name: getattr(item, name) for name in CHANGE_COLUMNS} for item in changes))


def inspection_to_csv(inspection: Inspection) -> str:
    """Write a dry run as one row per parameter, vectors included."""
    return _write(_INSPECTION_COLUMNS, (_inspected_values(row) for row in inspection.weights))


def _inspected_values(row: InspectedWeight) -> dict[str, Any]:
    info = row.info
    engine = "" if isinstance(row.engine, Missing) and not row.measured else plain(row.engine)
    return {
        **_describe(info),
        "stored_shape": "x".join(str(size) for size in info.stored_shape),
        "tied_names": " ".join(info.tied_names),
        "frozen": info.frozen,
        "measured": row.measured,
        "reason": row.reason,
        "directions": row.directions,
        "engine": engine,
        "engine_reason": row.engine_reason,
    }


def bench_to_csv(bench: BenchReport) -> str:
    """Write a benchmark as one row; model and data by their ids, numbers of another tool after its name."""
    values = {field.name: getattr(bench, field.name) for field in dataclasses.fields(bench)}
    row: dict[str, Any] = {"model": bench.model.id, "data": bench.data.id}
    row |= {name: value for name, value in values.items() if isinstance(value, (str, int, float))}
    for peer in bench.peers:
        for name in ("version", "seconds", "ratio", "max_relative_difference"):
            row[f"{peer.name}_{name}"] = getattr(peer, name)
    return _write(tuple(row), [row])
