"""Small profiles of numbers in a table's cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spectrascope.records.values import Missing

__all__ = ["log_sparkline", "sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | Missing], width: int = 8) -> str:
    """Heights between the least and the greatest value; a blank where there is none.

    More values than ``width`` are thinned out evenly, the first and the last kept.

    >>> sparkline([0, 1, 2, Missing("failed"), 7])
    '▁▂▃ █'
    >>> sparkline([3, 3])
    '▄▄'
    """
    shown = _thin(values, width)
    known = [value for value in shown if not isinstance(value, Missing)]
    if not known:
        return ""
    low, high = min(known), max(known)
    top = len(_BLOCKS) - 1
    return "".join(
        " " if isinstance(value, Missing) else _BLOCKS[round(top * (value - low) / (high - low)) if high > low else 3]
        for value in shown
    )


def log_sparkline(values: Sequence[float], width: int = 8) -> str:
    """Heights of the logarithms; a blank where a value is not positive.

    >>> log_sparkline([1000, 100, 10, -2, 1])
    '█▆▃ ▁'
    """
    return sparkline([math.log(value) if value > 0 else Missing("not positive") for value in values], width)


def _thin(values: Sequence[float | Missing], width: int) -> list[float | Missing]:
    n = len(values)
    if n <= width:
        return list(values)
    return [values[round(i * (n - 1) / (width - 1))] for i in range(width)]
