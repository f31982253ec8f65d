r"""The notation of charts as it is typeset: ``α_H`` has a subscript, quantities are italic, whatever draws the text.

Charts are data and hold plain text. matplotlib takes it as mathtext; SVG as spans.
"""

from __future__ import annotations

import re
from html import escape

__all__ = ["mathtext", "svg_spans"]

_GREEK = {"α": "alpha", "β": "beta", "σ": "sigma", "χ": "chi", "ρ": "rho", "Λ": "Lambda", "Φ": "Phi"}
_SUBSCRIPT = re.compile(r"(?<![^\W_])(PR|[αβσρhs])_([A-Za-zΛΦχ])(?![A-Za-z])")
_QUANTITY = re.compile(r"(?<![\w$\\'’.\[])([hkstbαβσχρ])(?![\w'’.])")


def mathtext(text: str) -> str:
    r"""Write the notation of a chart for matplotlib; a dollar sign stays one.

    >>> print(mathtext("α_H = β·α_G"))
    $\alpha_H$ = $\beta$·$\alpha_G$
    >>> print(mathtext("h against σ, in $"))
    $h$ against $\sigma$, in \$
    """
    text = text.replace("$", r"\$")
    text = _SUBSCRIPT.sub(lambda m: f"${_symbol(m[1])}_{_symbol(m[2])}$", text)
    return _QUANTITY.sub(lambda m: f"${_symbol(m[1])}$", text)


def _symbol(letter: str) -> str:
    if letter in _GREEK:
        return f"\\{_GREEK[letter]}"
    return f"\\mathrm{{{letter}}}" if len(letter) > 1 else letter


def svg_spans(text: str) -> str:
    """Write the notation of a chart for a ``<text>`` element, escaped.

    >>> svg_spans("α_H < 2")
    'α<tspan class="sub" dy="3">H</tspan><tspan dy="-3">\u200b</tspan> &lt; 2'
    """

    def lowered(match: re.Match[str]) -> str:
        # An empty span would not bring the next letter back up, one without width does.
        return f'{match[1]}<tspan class="sub" dy="3">{match[2]}</tspan><tspan dy="-3">\u200b</tspan>'

    return _SUBSCRIPT.sub(lowered, escape(text))
