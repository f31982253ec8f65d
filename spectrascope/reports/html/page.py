"""A report as one page for a browser: a single file that opens offline, on a phone, in the dark.

The page runs one script and one style sheet, both inside the file and named by their hashes in its
Content-Security-Policy; nothing else may run or be fetched, whatever a layer is called.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from importlib.metadata import version
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypeAlias

from spectrascope.records.report import LayerReport, LayerRow, Report
from spectrascope.records.signal import HeldOut
from spectrascope.reports.charts.chart import Chart
from spectrascope.reports.charts.inks import DARK, LIGHT, Paper
from spectrascope.reports.charts.layer_charts import curvature_chart, rank_chart
from spectrascope.reports.charts.pictures import NETWORK_CHARTS, network_charts
from spectrascope.reports.charts.svg import chart_svg
from spectrascope.reports.html.rows import LayerFacts, build_layer_table, layer_facts
from spectrascope.reports.views.across import say_across
from spectrascope.reports.views.document import DASH
from spectrascope.reports.views.facts import describe_everything
from spectrascope.reports.views.report import build_summary_sheet
from spectrascope.reports.views.words import explain, say_in_words, warn
from spectrascope.text import printable

_BREAK = re.compile(r"(?<=_)|(?<=\.)(?=[^\W\d])")

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = [
    "Figure", "Files", "LayerDetail", "PageDirections", "draw_figure", "environment", "fill_page", "read",
    "report_html", "shades",
]  # fmt: skip


Files: TypeAlias = Sequence[tuple[str, str]]
"""Names and texts."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawn chart with its caption."""

    title: str
    svg: Markup
    summary: str
    note: str


@dataclass(frozen=True, slots=True)
class PageDirections:
    """A small table over the directions of one layer: its columns with what they mean, and its rows."""

    columns: tuple[tuple[str, str], ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class LayerDetail:
    """What is shown of one layer when it is selected."""

    id: int
    facts: tuple[LayerFacts, ...]
    charts: tuple[Figure, ...]
    directions: PageDirections


def report_html(report: Report, files: Files = ()) -> str:
    """Write the whole report as a page, which holds these files to save.

    Cost: a few milliseconds per layer; some 8 kB per layer in the file.
    """
    charts = network_charts(report, NETWORK_CHARTS) if report.summary.n_ok else []
    run = report.provenance
    return fill_page(
        "report.html.j2",
        files,
        title=f"{run.model.id}: curvature along gradient directions",
        subtitle=f"{run.model.architecture} on {run.data.id}, {run.data.n:,} samples, measured {run.created[:10]}",
        words=(*say_in_words(report), *say_across(report)),
        warnings=[(text, tone.value) for text, tone in warn(report)],
        pictures_title="The network at a glance",
        charts=[draw_figure(chart, f"network-{i}") for i, chart in enumerate(charts)],
        table=build_layer_table(report),
        sheets=[build_summary_sheet(report)],
        meaning=[text for text, _ in explain(report)],
        layers=[_detail(i, row) for i, row in enumerate(report.layers)],
        facts=describe_everything(report),
    )


def fill_page(template: str, files: Files, *, title: str, **values: Any) -> str:
    """Fill a page's template; every value is escaped except drawings.

    Args:
        template: name of a file in ``reports/page``.
        files: what a reader may save, by name.
        title: of the page.
        values: what the template asks for.
    """
    from markupsafe import Markup

    dark = f"@media (prefers-color-scheme: dark) {{{shades(DARK)}}}"
    style = f"{shades(LIGHT)}\n{dark}\n{read('page.css')}"
    script = read("page.js")
    page = environment().get_template(template)
    return page.render(
        title=printable(title),
        files=[(name, base64.b64encode(zlib.compress(text.encode(), 9)).decode()) for name, text in files],
        version=version("spectrascope"),
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        **values,
    )


def draw_figure(chart: Chart, identity: str) -> Figure:
    """Draw a chart for a page; ``identity`` is unique in it."""
    from markupsafe import Markup

    return Figure(chart.title, Markup(chart_svg(chart, identity)), chart.summary, chart.note)


def _detail(index: int, row: LayerRow) -> LayerDetail:
    if not isinstance(row, LayerReport):
        return LayerDetail(index, layer_facts(row), (), PageDirections())
    charts = (
        replace(curvature_chart(row), title="h against σ"),
        replace(rank_chart(row), title="σ by rank, and three models of it"),
    )
    return LayerDetail(
        index,
        layer_facts(row),
        tuple(draw_figure(chart, f"layer-{index}-{i}") for i, chart in enumerate(charts)),
        _directions(row),
    )


def _directions(row: LayerReport) -> PageDirections:
    """Every direction: σ and h of the samples that chose it; slope, t, share and h of those that did not."""
    measured, held = row.measurement, row.held_out
    columns = {("k", "rank"): [str(k) for k in range(1, len(measured.sigma) + 1)]}
    columns["σ", "singular value of the gradient"] = [f"{value:.4g}" for value in measured.sigma]
    if measured.h:
        columns["h", "curvature, on the same samples"] = [f"{value:.4g}" for value in measured.h]
    if isinstance(held, HeldOut):
        columns["s", "slope on held-out samples"] = [f"{value:.4g}" for value in held.slopes]
        columns["t", "slope over its standard error; 3 is resolved"] = [f"{value:.1f}" for value in held.t]
        columns["s/σ", "share of σ that is signal"] = [
            f"{slope / sigma:.2f}" if sigma > 0 else DASH
            for slope, sigma in zip(held.slopes, measured.sigma, strict=False)
        ]
        columns["h held out", "curvature on held-out samples"] = [f"{value:.4g}" for value in held.h]
    rows = zip_longest(*columns.values(), fillvalue=DASH)
    return PageDirections(tuple(columns), tuple(rows))


@cache
def environment() -> Environment:
    """The templates of pages."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    folder = resources.files("spectrascope.reports.html") / "page"
    pages: Mapping[str, str] = {
        item.name: item.read_text(encoding="utf-8") for item in folder.iterdir() if item.name.endswith(".j2")
    }
    environment = Environment(
        loader=DictLoader(pages), autoescape=True, undefined=StrictUndefined, finalize=_show, trim_blocks=False
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: str) -> Markup:
    """Let a long name break after its dots and underscores; a number has none that a letter follows."""
    from markupsafe import Markup, escape

    text = str(escape(printable(name)))
    return Markup(_BREAK.sub("<wbr>", text))


def _show(value: Any) -> Any:
    """Escape control characters of whatever a template prints, and keep a percent sign with its number."""
    return printable(value).replace(" %", "\u00a0%") if type(value) is str else value


def read(name: str) -> str:
    """A file of the page's folder."""
    return (resources.files("spectrascope.reports.html") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def shades(paper: Paper, selector: str = ":root") -> str:
    """The colours of a paper as variables of what ``selector`` names."""
    names = {"paper": paper.background, "raised": paper.raised, "text": paper.text}
    names |= {"quiet": paper.quiet, "grid": paper.grid} | {ink.value: shade for ink, shade in paper.inks.items()}
    return f"{selector} {{{' '.join(f'--{name}: {shade};' for name, shade in names.items())}}}"
