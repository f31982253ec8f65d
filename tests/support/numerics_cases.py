"""Measurements with known answers, shared by the tests of this room."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from spectrascope.records.report import Measurement
from spectrascope.records.values import EngineName, Missing

NOT_MEASURED = Missing("not measured")


def power_law(exponent: float, count: int, first: int = 1, scale: float = 1.0) -> np.ndarray:
    """scale · k^(-exponent) for k = first … first + count - 1."""
    return scale * np.arange(first, first + count, dtype=float) ** -exponent


def make_measurement(
    sigma: Sequence[float],
    h: Sequence[float],
    *,
    rank: int | None = None,
    matrix: np.ndarray | None = None,
    group_sizes: Sequence[int] = (),
    group_sigma: Sequence[Sequence[float]] = (),
    group_h: Sequence[Sequence[float]] = (),
    noise_floor: float | Missing = NOT_MEASURED,
) -> Measurement:
    """A measurement with the given spectra; M is diag(h) and there are no sample groups unless given."""
    matrix = np.diag(np.asarray(h, dtype=float)) if matrix is None else matrix
    return Measurement(
        sigma=tuple(map(float, sigma)),
        h=tuple(map(float, h)),
        curvature_matrix=tuple(tuple(map(float, row)) for row in matrix),
        group_sizes=tuple(group_sizes),
        group_sigma=tuple(tuple(map(float, row)) for row in group_sigma),
        group_h=tuple(tuple(map(float, row)) for row in group_h),
        rank=len(sigma) if rank is None else rank,
        full_rank=len(sigma),
        pr_g=NOT_MEASURED,
        effective_rank_g=NOT_MEASURED,
        noise_floor=noise_floor,
        engine=EngineName.DOUBLE_BACKPROP,
        engine_reason="test",
        exact=True,
        residual=NOT_MEASURED,
    )


def walk_floats(record: Any) -> Iterator[float]:
    """Every float inside a tree of frozen records, tuples and dicts."""
    if isinstance(record, float):
        yield record
    elif is_dataclass(record):
        for field in fields(record):
            yield from walk_floats(getattr(record, field.name))
    elif isinstance(record, tuple | list):
        for item in record:
            yield from walk_floats(item)
    elif isinstance(record, dict):
        yield from walk_floats(tuple(record.values()))
