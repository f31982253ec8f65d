"""Any record as a piece of HTML for a notebook's output: what came out first, pictures, tables; the rest folded away.

Its style is its own and touches nothing outside; light or dark goes by the notebook's theme (Jupyter, VS Code, Colab),
else by the reader's system.
"""

from __future__ import annotations

import hashlib
from typing import Any

from markupsafe import Markup

from spectrascope.records.report import Report
from spectrascope.reports.charts.inks import DARK, LIGHT
from spectrascope.reports.charts.pictures import PictureKind, network_charts
from spectrascope.reports.html.page import draw_figure, environment, read, shades
from spectrascope.reports.render import Format, Rendered, View, document_of, render
from spectrascope.reports.views.across import say_across
from spectrascope.reports.views.document import Tone
from spectrascope.reports.views.words import say_in_words, warn

__all__ = ["notebook_html"]

_DARK_THEMES = (
    'body[data-jp-theme-light="false"] .spectrascope',
    "body.vscode-dark .spectrascope",
    "html[theme=dark] .spectrascope",
)
_LIGHT_THEMES = (
    'body[data-jp-theme-light="true"] .spectrascope',
    "body.vscode-light .spectrascope",
    "html[theme=light] .spectrascope",
)


def notebook_html(record: Rendered, headline: str, *, view: View = View.PROBE) -> str:
    """Show a record in a notebook.

    Args:
        record: what to show.
        headline: what came out, in a sentence or two.
        view: of a report, the whole of it, the α triangle alone, or the spectral alignment decomposition.

    Cost: some ten milliseconds, and a few per hundred layers.
    """
    document = document_of(record, view)
    first = [(headline, Tone.PLAIN)]
    charts = []
    if isinstance(record, Report):
        first += [*((line, Tone.PLAIN) for line in (*say_in_words(record)[1:], *say_across(record))), *warn(record)]
        kinds = {
            View.PROBE: (PictureKind.STEPS, PictureKind.DEPTH),
            View.TRIANGLE: (PictureKind.TRIANGLE,),
            View.DECOMPOSITION: (PictureKind.DECOMPOSITION,),
        }[view]
        charts = network_charts(record, kinds) if record.summary.n_ok else []
    last = [line for line in (*document.opening, *document.closing) if line[0] not in {text for text, _ in first}]
    html = environment().get_template("notebook.html.j2")
    values: dict[str, Any] = {
        "title": document.title,
        "first": [(text, tone.value) for text, tone in first],
        "charts": [draw_figure(chart, f"{_mark(record)}-{i}") for i, chart in enumerate(charts)],
        "sheets": document.sheets,
        "facts": document.facts,
        "last": [(text, tone.value) for text, tone in last],
        "more": "What was measured, and what the numbers mean",
    }
    return html.render(style=Markup(_style()), **values)


def _mark(record: Rendered) -> str:
    """What names parts of this drawing among those of other cells: the same record gives the same."""
    text = render(record, Format.JSON)
    return "s" + hashlib.sha256(str(text).encode()).hexdigest()[:10]


def _style() -> str:
    """Own rules, and those of charts, nested: they hold inside ``.spectrascope`` alone."""
    charts = [line for line in read("page.css").splitlines() if line.startswith((".chart ", ".ink-"))]
    dark, light = shades(DARK, ", ".join(_DARK_THEMES)), shades(LIGHT, ", ".join(_LIGHT_THEMES))
    by_system = f"@media (prefers-color-scheme: dark) {{{shades(DARK, '.spectrascope')}}}"
    rules = "\n".join([read("notebook.css"), *charts])
    return f"{shades(LIGHT, '.spectrascope')}\n{by_system}\n{dark}\n{light}\n.spectrascope {{\n{rules}\n}}"
