"""One layer as one flat JSON object: what it is, what was measured and what follows, side by side."""

from __future__ import annotations

from typing import Any

from spectrascope.errors import ReportFormatError
from spectrascope.records.decomposition import Decomposition
from spectrascope.records.report import (
    NOT_DECOMPOSED,
    Analysis,
    LayerInfo,
    LayerReport,
    LayerRow,
    Measurement,
    SkippedLayer,
)
from spectrascope.records.values import LayerStatus, Missing
from spectrascope.reports.codec import added_later, child, decode, encode, hints_of, require_key, require_object

__all__ = [
    "DECOMPOSITION_HINT",
    "DECOMPOSITION_KEY",
    "GROUP_KEYS",
    "HEAD_KEYS",
    "MEASURED_KEYS",
    "decode_layer",
    "encode_layer",
]

HEAD_KEYS = tuple(hints_of(LayerInfo))
"""Keys of every layer, before ``status`` and ``reason``."""

_M, _A = Measurement, Analysis

MEASURED_KEYS: dict[str, tuple[type, str]] = {
    "rank": (_M, "rank"),
    "full_rank": (_M, "full_rank"),
    "window": (_A, "window"),
    "sigma": (_M, "sigma"),
    "h": (_M, "h"),
    "h_stderr": (_M, "h_stderr"),
    "beta": (_A, "beta"),
    "alpha_g": (_A, "alpha_g"),
    "alpha_h": (_A, "alpha_h"),
    "triangle": (_A, "triangle"),
    "rank_models": (_A, "rank_models"),
    "pr_h": (_A, "pr_h"),
    "pr_g": (_M, "pr_g"),
    "effective_rank_h": (_A, "effective_rank_h"),
    "effective_rank_g": (_M, "effective_rank_g"),
    "zeta_bound": (_A, "zeta_bound"),
    "n_negative": (_A, "n_negative"),
    "n_above_noise": (_A, "n_above_noise"),
    "noise_floor": (_M, "noise_floor"),
    "off_diagonal_mass": (_A, "off_diagonal_mass"),
    "curvature_eigenvalues": (_A, "curvature_eigenvalues"),
    "curvature_matrix": (_M, "curvature_matrix"),
    "beta_quartiles": (_A, "beta_quartiles"),
    "engine": (_M, "engine"),
    "engine_reason": (_M, "engine_reason"),
    "exact": (_M, "exact"),
    "residual": (_M, "residual"),
}
"""Keys of a measured layer -> record and field they come from, in the order they are written."""

GROUP_KEYS = {"sizes": "group_sizes", "sigma": "group_sigma", "h": "group_h"}
"""Keys of ``groups``, written before ``engine``, -> field of :class:`Measurement`."""

DECOMPOSITION_KEY = "decomposition"
"""Last key of a measured layer, written only where a decomposition was asked for."""

DECOMPOSITION_HINT = Decomposition | Missing


def encode_layer(row: LayerRow, path: str) -> dict[str, Any]:
    """Flatten one row; a row without numbers has the head keys only.

    Raises:
        NonFiniteError: a number is NaN or infinite.
    """
    record: dict[str, Any] = encode(row.info, path)
    record["status"] = row.status.value
    record["reason"] = "" if isinstance(row, LayerReport) else row.reason
    if not isinstance(row, LayerReport):
        return record
    for key, (owner, name) in MEASURED_KEYS.items():
        if key == "engine":
            record["groups"] = {
                group: encode(getattr(row.measurement, field), child(child(path, "groups"), group))
                for group, field in GROUP_KEYS.items()
            }
        part = row.measurement if owner is Measurement else row.analysis
        record[key] = encode(getattr(part, name), child(path, key))
    decomposition = row.decomposition
    if decomposition != NOT_DECOMPOSED:
        record[DECOMPOSITION_KEY] = encode(decomposition, child(path, DECOMPOSITION_KEY))
    return record


def decode_layer(value: Any, path: str) -> LayerRow:
    """Read one row back.

    Raises:
        ReportFormatError: a missing key, a wrong type, or arrays whose lengths do not fit together.
    """
    record = require_object(value, path)
    info: LayerInfo = decode(LayerInfo, record, path)
    status = decode(LayerStatus, require_key(record, "status", path), child(path, "status"))
    reason = decode(str, require_key(record, "reason", path), child(path, "reason"))
    if status is not LayerStatus.OK:
        if not reason:
            raise ReportFormatError(f"{path} is {status.value} without a reason")
        return SkippedLayer(info, status, reason)
    parts: dict[type, dict[str, Any]] = {Measurement: {}, Analysis: {}}
    for key, (owner, name) in MEASURED_KEYS.items():
        if key not in record and name in added_later(owner):
            continue
        parts[owner][name] = decode(hints_of(owner)[name], require_key(record, key, path), child(path, key))
    place = child(path, "groups")
    groups = require_object(require_key(record, "groups", path), place)
    for key, name in GROUP_KEYS.items():
        parts[Measurement][name] = decode(
            hints_of(Measurement)[name], require_key(groups, key, place), child(place, key)
        )
    try:
        measurement = Measurement(**parts[Measurement])
    except ValueError as error:
        raise ReportFormatError(f"{path} contradicts itself: {error}") from error
    _require_rectangular(measurement, path)
    place = child(path, DECOMPOSITION_KEY)
    decomposition = (
        decode(DECOMPOSITION_HINT, record[DECOMPOSITION_KEY], place) if DECOMPOSITION_KEY in record else NOT_DECOMPOSED
    )
    if isinstance(decomposition, Decomposition):
        _require_same_directions(decomposition, len(measurement.sigma), place)
    return LayerReport(info, measurement, Analysis(**parts[Analysis]), decomposition)


def _require_same_directions(decomposition: Decomposition, n: int, path: str) -> None:
    factors = decomposition.factors
    arrays = {
        "rayleigh_delta": factors.rayleigh_delta,
        "delta.eigenvalues": factors.delta.eigenvalues,
        "a.eigenvalues": factors.a.eigenvalues,
        "concentration.ratio": factors.concentration.ratio,
        **({} if isinstance(factors.h_gn, Missing) else {"h_gn": factors.h_gn}),
    }
    tables = {
        "group_rayleigh_delta": factors.group_rayleigh_delta,
        "group_rayleigh_a": factors.group_rayleigh_a,
    }
    wrong = [name for name, values in arrays.items() if len(values) != n]
    wrong += [name for name, rows in tables.items() if any(len(row) != n for row in rows)]
    if wrong:
        raise ReportFormatError(f"{path}.factors.{wrong[0]} must have {n} values, one per direction")


def _require_rectangular(measurement: Measurement, path: str) -> None:
    n = len(measurement.sigma)
    tables = {
        "curvature_matrix": measurement.curvature_matrix,
        "groups.sigma": measurement.group_sigma,
        "groups.h": measurement.group_h,
    }
    for key, rows in tables.items():
        if any(len(row) != n for row in rows):
            raise ReportFormatError(f"{path}.{key} must have rows of {n} values, one per direction")
