"""Records as plain JSON values, and the shape of that JSON: what writer, reader, schema and gate share.

Three conventions hold everywhere in a report: a :class:`Missing` is ``{"missing": reason}``, an
:class:`Interval` is ``[low, high]``, and the three rank models are tables keyed by model. A layer is one flat object:
what it is, what was measured and what follows, side by side. Errors name the place in the document, as in
``layers[3] (fc.weight).beta.value``.
"""

from __future__ import annotations

import math
import numbers
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Union, get_origin, get_type_hints

from spectrascope.errors import NonFiniteError
from spectrascope.records.report import LayerReport, LayerRow
from spectrascope.records.values import Interval, Missing, PowerFit, RankComparison

__all__ = [
    "GROUP_KEYS",
    "LAYER_BLOCKS",
    "LAYER_KEYS",
    "RANK_SCALARS",
    "RANK_TABLES",
    "added_later",
    "child",
    "encode",
    "encode_layer",
    "hints_of",
    "is_union",
    "layer_place",
]

RANK_TABLES = ("bic", "aic", "rss", "r2", "params")
"""Per-model quantities of a rank comparison, each a table keyed by model."""

RANK_SCALARS = ("best", "runner_up", "delta_bic", "tie", "best_aic", "n")
"""Keys of a rank comparison before its tables."""

LAYER_KEYS = (
    "rank", "full_rank", "window", "sigma", "h", "h_stderr", "beta", "alpha_g", "alpha_h", "triangle", "rank_models",
    "pr_h", "pr_g", "effective_rank_h", "effective_rank_g", "zeta_bound", "n_negative", "n_above_noise", "noise_floor",
    "n_signal", "signal_share", "samples_needed",
    "off_diagonal_mass", "curvature_eigenvalues", "curvature_matrix", "beta_quartiles", "groups", "engine",
    "engine_reason", "exact", "residual",
)  # fmt: skip
"""Keys of a measured layer in the order they are written, after its info, ``status`` and ``reason``.

All but ``groups`` are fields of :class:`Measurement` or :class:`Analysis`, which share no name.
"""

GROUP_KEYS = ("sizes", "sigma", "h")
"""Keys of ``groups``: the fields ``group_sizes``, ``group_sigma`` and ``group_h`` of a measurement."""

_FIT_ORDER = ("value", "stderr", "ci95", "jackknife_ci95", "r2", "n", "n_dropped", "intercept")


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Field name -> type of a record class, in the order they are written."""
    hints = get_type_hints(cls)
    order = _FIT_ORDER if cls is PowerFit else tuple(item.name for item in fields(cls))
    return {name: hints[name] for name in order}


def added_later(record: Any) -> dict[str, Any]:
    """Fields of a record type that older reports lack -> the default they are read as."""
    return {item.name: item.default for item in fields(record) if item.metadata.get("added_later")}


LAYER_BLOCKS = added_later(LayerReport)
"""Optional last keys of a measured layer, written only where it has more to say than the default."""


def is_union(hint: Any) -> bool:
    """Whether a type hint is ``A | B`` in either spelling."""
    return get_origin(hint) in (Union, types.UnionType)


def child(path: str, key: str | int) -> str:
    """Extend a place in the document by a key or a position."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else key


def layer_place(index: int, name: object) -> str:
    """Name a row's place in the document by its position and, where it has one, its name."""
    return f"layers[{index}] ({name})" if isinstance(name, str) else f"layers[{index}]"


def encode(value: Any, path: str = "") -> Any:
    """Turn a record into JSON values (dict, list, str, int, float, bool).

    Raises:
        NonFiniteError: a number is NaN or infinite, which strict JSON cannot hold.
        TypeError: something that is no record, named with its place.
    """
    if isinstance(value, Missing):
        return {"missing": value.reason}
    if isinstance(value, Interval):
        value = (value.low, value.high)
    elif isinstance(value, RankComparison):
        tables = {name: {fit.model.value: getattr(fit, name) for fit in value.fits} for name in RANK_TABLES}
        value = {name: getattr(value, name) for name in RANK_SCALARS} | tables
    elif is_dataclass(value) and not isinstance(value, type):
        value = {name: getattr(value, name) for name in hints_of(type(value))}
    if isinstance(value, dict):
        return {str(key): encode(item, child(path, str(key))) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, child(path, index)) for index, item in enumerate(value)]
    return _encode_scalar(value, path)


def _encode_scalar(value: Any, path: str) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise NonFiniteError(f"{path or 'value'} is {float(value)}, a report holds finite numbers only")
        return float(value)
    raise TypeError(f"{path or 'value'}: a report cannot hold a {type(value).__name__}")


def encode_layer(index: int, row: LayerRow) -> dict[str, Any]:
    """Flatten one row; a row without numbers has only its info, ``status`` and ``reason``.

    Raises:
        NonFiniteError: a number is NaN or infinite.
    """
    path = layer_place(index, row.info.name)
    head = {**encode(row.info, path), "status": row.status.value, "reason": ""}
    if not isinstance(row, LayerReport):
        return {**head, "reason": row.reason}
    parts = (row.measurement, row.analysis)
    values = {item.name: getattr(part, item.name) for part in parts for item in fields(part)}
    values["groups"] = {key: values[f"group_{key}"] for key in GROUP_KEYS}
    blocks = {name: getattr(row, name) for name, default in LAYER_BLOCKS.items() if getattr(row, name) != default}
    rest: dict[str, Any] = encode({key: values[key] for key in LAYER_KEYS} | blocks, path)
    return head | rest
