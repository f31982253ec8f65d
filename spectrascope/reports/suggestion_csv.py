"""An advice as CSV: one row per layer, every number in full, the same columns always."""

from __future__ import annotations

import csv
import io

from spectrascope.records.advice import Advice, LayerAdvice
from spectrascope.records.values import Interval, Missing

__all__ = ["COLUMNS", "advice_to_csv"]

_STEPS = ("0", "1", "beta", "2", "recommended")

COLUMNS = (
    "name", "kind", "role", "M", "N", "treatment", "reason", "beta", "beta_low", "beta_high", "source", "doubts",
    "meaning", "damping", "relative_damping", "damping_reason", "measured_beta", "measured_r2", "scatter", "k1", "k2",
    "n_above_noise", *(f"efficiency_{name}" for name in _STEPS), "best_exponent", "missing",
)  # fmt: skip
"""Columns, in order; column ``missing`` says why a cell is empty, as ``name: reason; name: reason``."""


def advice_to_csv(advice: Advice) -> str:
    """One row per layer; groups and validation are left to JSON."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for layer in advice.layers:
        writer.writerow(_row(layer))
    return stream.getvalue().rstrip("\n")


def _row(layer: LayerAdvice) -> dict[str, object]:
    own, window, steps = layer.measured, layer.window, layer.efficiencies
    row: dict[str, object] = {
        "name": layer.info.name,
        "kind": layer.info.kind.value,
        "role": layer.info.role.value,
        "M": layer.info.shape[0],
        "N": layer.info.shape[1],
        "treatment": layer.treatment.value,
        "reason": layer.reason,
        "beta": layer.beta,
        "source": layer.source if isinstance(layer.source, Missing) else layer.source.value,
        "doubts": "; ".join(layer.doubts),
        "meaning": layer.meaning,
        "damping": layer.damping,
        "relative_damping": layer.relative_damping,
        "damping_reason": layer.damping_reason,
        "measured_beta": own if isinstance(own, Missing) else own.value,
        "scatter": layer.scatter,
        "n_above_noise": layer.n_above_noise,
        "best_exponent": layer.best_exponent,
    }
    if isinstance(layer.interval, Interval):
        row |= {"beta_low": layer.interval.low, "beta_high": layer.interval.high}
    if not isinstance(own, Missing):
        row["measured_r2"] = own.r2
    if not isinstance(window, Missing):
        row |= {"k1": window[0], "k2": window[1]}
    if not isinstance(steps, Missing):
        row |= {f"efficiency_{step.name}": step.efficiency for step in steps}
    missing = [f"{name}: {value.reason}" for name, value in row.items() if isinstance(value, Missing)]
    row = {name: "" if isinstance(value, Missing) else value for name, value in row.items()}
    return {**row, "missing": "; ".join(missing)}
