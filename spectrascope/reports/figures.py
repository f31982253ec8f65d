"""Numbers as a reader likes them."""

from __future__ import annotations

import math

from spectrascope.text import plural

__all__ = [
    "format_bytes",
    "format_count",
    "format_large",
    "format_percent",
    "format_roughly",
    "format_seconds",
    "format_span",
]


format_count = plural


def format_percent(fraction: float) -> str:
    """Write a fraction as a percentage with a digit after the point, or none from 100 % on.

    >>> format_percent(0.0123), format_percent(1.5699)
    ('1.2 %', '157 %')
    """
    percent = 100 * fraction
    return f"{percent:.1f} %" if abs(percent) < 99.95 else f"{percent:.0f} %"


def format_seconds(seconds: float) -> str:
    """Write a duration with three digits; in milliseconds below 0.1 s, in minutes from two minutes on.

    >>> format_seconds(0.0123), format_seconds(12.345), format_seconds(1050)
    ('12.3 ms', '12.3 s', '17.5 min')
    """
    if seconds < 0.1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.3g} s"


def format_span(seconds: float) -> str:
    """Write a guessed duration with two digits, in the unit that makes it easy to weigh.

    >>> format_span(0.031), format_span(41.3), format_span(5000), format_span(2.1e6), format_span(4e8)
    ('0.031 s', '41 s', '83 min', '24 days', '13 years')
    """
    units = (
        ("s", 1.0, 120),
        ("min", 60.0, 120),
        ("h", 3600.0, 48),
        ("days", 86400.0, 730),
        ("years", 3.156e7, math.inf),
    )
    unit, each = next((unit, each) for unit, each, most in units if seconds / each < most)
    return f"{float(f'{seconds / each:.2g}'):,g} {unit}"


def format_large(n: float) -> str:
    """Write a large number with three digits and a prefix, for a unit to follow.

    >>> format_large(8178368512), format_large(1.68e16), format_large(12)
    ('8.18 G', '16.8 P', '12 ')
    """
    for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if n < 999.5:
            return f"{n:.3g} {prefix}"
        n /= 1000
    return f"{n:.3g} Y"


def format_roughly(n: float) -> str:
    """Write an estimated number of things with two digits, so that it does not look like a count.

    >>> format_roughly(61_234), format_roughly(7.26e6), format_roughly(3e12)
    ('61,000', '7.3 million', 'over a billion')
    """
    if n >= 1e9:
        return "over a billion"
    rounded = round(n, -max(0, len(str(int(n))) - 2))
    return f"{rounded / 1e6:g} million" if rounded >= 1e6 else f"{rounded:,.0f}"


def format_bytes(n: int) -> str:
    """Write a number of bytes, in units of 1024.

    >>> format_bytes(523685972), format_bytes(133072445952)
    ('499 MiB', '124 GiB')
    """
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"
