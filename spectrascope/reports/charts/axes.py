"""Axes: the range that holds the data, and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spectrascope.reports.charts.names import short_names

__all__ = ["OPTIMIZERS", "Axis", "linear_axis", "log_axis", "names_axis", "steps_axis"]

OPTIMIZERS = ((0.0, "GD"), (1.0, "Muon"), (2.0, "Newton"))
"""What steps of the exponents 0, 1 and 2 are called; GD is gradient descent."""

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_NAMES = 30


@dataclass(frozen=True, slots=True)
class Axis:
    """A label, a range ``low < high`` and ticks as (value, text) inside it; ``log`` for a logarithmic scale."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False
    slanted: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"no axis from {self.low} to {self.high}")

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end.

        >>> log_axis("x", [1, 100], margin=0).place(10)
        0.5
        """
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)

    def holds(self, value: float) -> bool:
        """Whether a value lies on the axis."""
        return self.low <= value <= self.high


def linear_axis(
    label: str, values: Iterable[float], *, include: Sequence[float] = (), margin: float = 0.05, n_ticks: int = 5
) -> Axis:
    """An axis over all ``values`` and ``include``, with a margin as a share of the range.

    >>> [text for _, text in linear_axis("β", [0.1, 2.4], include=[0]).ticks]
    ['0', '0.5', '1', '1.5', '2', '2.5']
    """
    found = [*values, *include] or [0.0, 1.0]
    low, high = min(found), max(found)
    spread = (high - low) or max(abs(high), 1.0)
    low, high = low - margin * spread, high + margin * spread
    if low == high:
        low, high = low - 0.5, high + 0.5
    return Axis(label, low, high, _linear_ticks(low, high, n_ticks))


def log_axis(label: str, values: Iterable[float], *, margin: float = 0.06) -> Axis:
    """A logarithmic axis over the positive ``values``.

    >>> [text for _, text in log_axis("σ", [1e-4, 0.02]).ticks]
    ['10⁻⁴', '10⁻³', '10⁻²']
    """
    found = [value for value in values if value > 0] or [1.0, 10.0]
    low, high = math.log10(min(found)), math.log10(max(found))
    spread = max(high - low, 0.1)
    low, high = low - margin * spread, high + margin * spread
    low, high = max(low, -300.0), min(high, 300.0)
    return Axis(label, 10.0**low, 10.0**high, _log_ticks(low, high), log=True)


def names_axis(names: Sequence[str], label: str = "layer, from input to output") -> Axis:
    """Places 1 … n with a name each; beyond thirty only every so many is written."""
    every = max(-(-len(names) // _MOST_NAMES), 1)
    shown = short_names(names, 20)
    ticks = tuple((float(i + 1), shown[i]) for i in range(0, len(names), every))
    return Axis(label, 0.4, max(len(names), 1) + 0.6, ticks, slanted=True)


def steps_axis(label: str, steps: Sequence[float]) -> Axis:
    """An axis over training, ticks at whole numbers where the steps are whole."""
    axis = linear_axis(label, steps, margin=0.03)
    if all(float(step).is_integer() for step in steps):
        whole = tuple(tick for tick in axis.ticks if float(tick[0]).is_integer())
        return Axis(axis.label, axis.low, axis.high, whole)
    return axis


def _linear_ticks(low: float, high: float, n: int) -> tuple[tuple[float, str], ...]:
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [min(max(i * step, low), high) for i in range(first, last + 1)]  # at an end, rounding leads astray
    return tuple((value, _plain(value, step)) for value in values)


def _plain(value: float, step: float) -> str:
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if digits > 4 or abs(value) >= 1e7:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{float(mantissa):g}·{_power(int(exponent))}".replace("-", "−") if value else "0"
    text = f"{value:,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("-", "−") if text not in ("-0", "") else "0"


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Powers of ten, on short axes their multiples too, on very short ones round numbers."""
    if high - low >= 2:
        decades = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
        every = -(-len(decades) // 6)
        return tuple((10.0**e, _power(e)) for e in decades if e % every == 0)
    steps = (1, 2, 5) if high - low > 0.8 else (1, 2, 3, 5, 7)
    ticks = [
        (m * 10.0**e, _multiple(m, e))
        for e in range(math.floor(low), math.ceil(high) + 1)
        for m in steps
        if low <= math.log10(m) + e <= high
    ]
    return tuple(ticks) if len(ticks) >= 2 else _linear_ticks(10.0**low, 10.0**high, 3)


def _power(exponent: int) -> str:
    return {0: "1", 1: "10"}.get(exponent, "10" + str(exponent).translate(_SUPERSCRIPT))


def _multiple(m: int, exponent: int) -> str:
    if -3 <= exponent <= 3:
        return f"{m * 10.0**exponent:.3g}" if exponent < 0 else str(m * 10**exponent)
    return f"{m}·{_power(exponent)}" if m > 1 else _power(exponent)
