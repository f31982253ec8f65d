"""The published JSON Schema of a report: what its reader insists on, without what it forgives, and with words.

``report.schema.json`` beside this file is :func:`report_schema` written out; a test keeps them equal.
Regenerate it with ``python -m spectrascope.reports.schema > spectrascope/reports/report.schema.json``.
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from spectrascope.records.values import SCHEMA_VERSION, LayerStatus
from spectrascope.reports.codec import LAYER_BLOCKS
from spectrascope.reports.validate import document_schema

__all__ = ["report_schema"]

Schema: TypeAlias = dict[str, Any]

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
    "n_signal": "number of leading sigma in the window above the 95 % quantile of sampling noise (null.quantile)",
    "signal_share": "held-out slope over sigma, direction by direction of the window",
    "samples_needed": "directions whose held-out slope has three standard errors, and samples that bring more there",
    "held_out": "slopes and curvature on samples that did not choose the directions; only where they were measured",
    "null": "gradients of nothing but sampling noise; only where they were drawn",
    "noise_floor": "half the spectral norm of the difference of two half-batch gradients",
    "off_diagonal_mass": "Frobenius norm of M without its diagonal, over that of M, in the window",
    "curvature_eigenvalues": "eigenvalues of the window's symmetrised M, decreasing",
    "curvature_matrix": "M_kj = <D_k, H D_j>",
    "beta_quartiles": "beta on quarters of the window, from 40 directions on",
    "decomposition": "Kronecker factors and their alignment; only in reports of `spectrascope decompose`",
    "rank_resamples": "singular values of resampled gradients; only in reports of `spectrascope decompose`",
    "groups": "the same sigma and h by group of samples",
    "exact": "whether the engine is exact for this layer",
    "h_stderr": "standard error of each h, where the engine only estimates it",
    "residual": "largest |h - h_reference| / max |h_reference| over the pairs of the self-check",
}


def report_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of what :func:`report_to_json` writes.

    Objects are closed: a key the schema does not know makes a document invalid.

    >>> report_schema()["properties"]["schema_version"]
    {'const': 2}
    """
    document: Schema = _Closed().generate(document_schema(), mode="serialization")
    properties = document["properties"]
    properties["schema_version"] = {"const": SCHEMA_VERSION}
    document["required"].remove("extra")
    measured, empty = properties["layers"]["items"]["oneOf"]
    measured["title"], empty["title"] = "measured layer", "skipped or failed layer"
    measured["required"] = [key for key in measured["required"] if key not in LAYER_BLOCKS]
    measured["properties"] |= {"status": {"const": LayerStatus.OK.value}, "reason": {"const": ""}}
    others = [status.value for status in LayerStatus if status is not LayerStatus.OK]
    empty["properties"] |= {"status": {"enum": others}, "reason": {"type": "string", "minLength": 1}}
    for layer in (measured, empty):
        for key in layer["properties"].keys() & _ABOUT_LAYER.keys():
            layer["properties"][key]["description"] = _ABOUT_LAYER[key]
    ranks = document["$defs"]["RankComparison"]["properties"]
    ranks["bic"] = ranks["aic"]  # its reader also keeps the order of the models
    missing = document["$defs"]["Missing"]
    missing["description"] = "a value that was not measured, and why"
    missing["properties"]["missing"]["minLength"] = 1
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "spectrascope report",
        "description": "Curvature of a network's loss along each weight's gradient singular directions.",
        **document,
    }


class _Closed(GenerateJsonSchema):
    """JSON Schema of objects as they are written: every key is there, and no other. Names and docstrings stay out."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return True

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def enum_schema(self, schema: core_schema.EnumSchema) -> Schema:
        return {"enum": [member.value for member in schema["members"]]}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> Schema:
        return self.generate_inner(schema["schema"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> Schema:
        return self.generate_inner(schema["schema"])

    def dataclass_args_schema(self, schema: core_schema.DataclassArgsSchema) -> Schema:
        return super().dataclass_args_schema(schema) | {"additionalProperties": False}

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> Schema:
        return super().typed_dict_schema(schema) | {"additionalProperties": False}


if __name__ == "__main__":
    print(json.dumps(report_schema(), indent=2))
