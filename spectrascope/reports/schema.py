"""The published JSON Schema of a report, built from the records it describes.

``report.schema.json`` beside this file is :func:`report_schema` written out; a test keeps them equal.
Regenerate it with ``python -m spectrascope.reports.schema > spectrascope/reports/report.schema.json``.
"""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin

from spectrascope.records.report import Analysis, LayerInfo, Measurement, ProbeOptions, Provenance, Summary
from spectrascope.records.values import (
    SCHEMA_VERSION,
    Interval,
    LayerStatus,
    Missing,
    RankComparison,
    RankModel,
    RankModelFit,
)
from spectrascope.reports.codec import RANK_TABLES, hints_of, is_union
from spectrascope.reports.layer_json import DECOMPOSITION_HINT, DECOMPOSITION_KEY, GROUP_KEYS, MEASURED_KEYS

__all__ = ["report_schema"]

Schema = dict[str, Any]

_ABOUT_LAYER = {
    "shape": "the weight seen as a matrix: m outputs, n inputs",
    "stored_shape": "the shape of the parameter tensor",
    "tied_names": "other names of the same parameter",
    "frozen": "training would leave it alone (requires_grad is false)",
    "parametrized": "no parameter: computed from others on every use, such as under weight norm",
    "rank": "number of singular values above max(m, n)·eps·sigma_1",
    "full_rank": "min(m, n)",
    "window": "first and last rank that enter the fits, 1-based, both included",
    "sigma": "singular values of the mean gradient, decreasing",
    "h": "curvature along u_k v_k^T, in the order of sigma; may be negative",
    "beta": "slope of log h on log sigma",
    "alpha_g": "minus the slope of log sigma on log k",
    "alpha_h": "minus the slope of log h on log rank, over the positive h sorted",
    "triangle": "the identity alpha_h = beta * alpha_g",
    "rank_models": "three models of log sigma against k; the lowest BIC wins",
    "pr_h": "participation ratio of the window's positive h",
    "pr_g": "participation ratio of the full gradient spectrum",
    "zeta_bound": "bound on pr_h for curvature decaying as k^-s",
    "n_negative": "number of h in the window that are not positive",
    "n_above_noise": "number of sigma in the window above noise_floor",
    "noise_floor": "half the spectral norm of the difference of two half-batch gradients",
    "off_diagonal_mass": "Frobenius norm of M without its diagonal, over that of M, in the window",
    "curvature_eigenvalues": "eigenvalues of the window's symmetrised M, decreasing",
    "curvature_matrix": "M_kj = <D_k, H D_j>",
    "beta_quartiles": "beta on quarters of the window, from 40 directions on",
    "decomposition": "Kronecker factors and their alignment; only in reports of `spectrascope decompose`",
    "groups": "the same sigma and h by group of samples",
    "exact": "whether the engine is exact for this layer",
    "h_stderr": "standard error of each h, where the engine only estimates it",
    "residual": "largest |h - h_reference| / max |h_reference| over the pairs of the self-check",
}


def report_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of what :func:`report_to_json` writes.

    Objects are closed: a key the schema does not know makes a document invalid.

    >>> report_schema()["properties"]["schema_version"]
    {'const': 1}
    """
    properties: Schema = {
        "schema_version": {"const": SCHEMA_VERSION},
        "provenance": _schema_of(Provenance),
        "options": _schema_of(ProbeOptions),
        "summary": _schema_of(Summary),
        "layers": {"type": "array", "items": {"oneOf": [_measured_layer(), _empty_layer()]}},
    }
    document = _closed(properties)
    properties["extra"] = {"type": "object"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "spectrascope report",
        "description": "Curvature of a network's loss along each weight's gradient singular directions.",
        **document,
        "$defs": {
            "missing": _closed({"missing": {"type": "string", "minLength": 1}})
            | {"description": "a value that was not measured, and why"}
        },
    }


def _closed(properties: Schema) -> Schema:
    return {
        "type": "object",
        "required": list(properties),
        "additionalProperties": False,
        "properties": properties,
    }


def _head(status: Schema, reason: Schema) -> Schema:
    hints = hints_of(LayerInfo)
    return {
        **{name: _describe(name, _schema_of(hint)) for name, hint in hints.items()},
        "status": status,
        "reason": reason,
    }


def _measured_layer() -> Schema:
    properties = _head({"const": LayerStatus.OK.value}, {"const": ""})
    for key, (owner, name) in MEASURED_KEYS.items():
        if key == "engine":
            hints = hints_of(Measurement)
            groups = _closed({group: _schema_of(hints[field]) for group, field in GROUP_KEYS.items()})
            properties["groups"] = _describe("groups", groups)
        properties[key] = _describe(key, _schema_of(hints_of(owner)[name]))
    assert {owner for owner, _ in MEASURED_KEYS.values()} == {Measurement, Analysis}
    layer = _closed(properties) | {"title": "measured layer"}
    optional = _describe(DECOMPOSITION_KEY, _schema_of(DECOMPOSITION_HINT))
    return layer | {"properties": {**properties, DECOMPOSITION_KEY: optional}}


def _empty_layer() -> Schema:
    statuses = [status.value for status in LayerStatus if status is not LayerStatus.OK]
    head = _head({"enum": statuses}, {"type": "string", "minLength": 1})
    return _closed(head) | {"title": "skipped or failed layer"}


def _describe(key: str, schema: Schema) -> Schema:
    return {**schema, "description": _ABOUT_LAYER[key]} if key in _ABOUT_LAYER else schema


def _schema_of(hint: Any) -> Schema:
    scalars = {bool: "boolean", int: "integer", float: "number", str: "string"}
    if hint in scalars:
        return {"type": scalars[hint]}
    if hint is Missing:
        return {"$ref": "#/$defs/missing"}
    if hint is Interval:
        return _fixed_list([float, float])
    if hint is RankComparison:
        return _rank_comparison()
    if is_union(hint):
        return {"anyOf": [_schema_of(member) for member in get_args(hint)]}
    if get_origin(hint) is tuple:
        arguments = get_args(hint)
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": _schema_of(arguments[0])}
        return _fixed_list(list(arguments))
    if get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _schema_of(get_args(hint)[1])}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        return _closed({name: _schema_of(inner) for name, inner in hints_of(hint).items()})
    raise TypeError(f"no JSON Schema for {hint}")


def _fixed_list(members: list[Any]) -> Schema:
    n = len(members)
    return {
        "type": "array",
        "prefixItems": [_schema_of(member) for member in members],
        "minItems": n,
        "maxItems": n,
    }


def _rank_comparison() -> Schema:
    hints, fit_hints = hints_of(RankComparison), hints_of(RankModelFit)
    properties = {name: _schema_of(hint) for name, hint in hints.items() if name != "fits"}
    for table in RANK_TABLES:
        properties[table] = _closed({model.value: _schema_of(fit_hints[table]) for model in RankModel})
    return _closed(properties)


if __name__ == "__main__":
    print(json.dumps(report_schema(), indent=2))
