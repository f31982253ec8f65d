"""One door to every form of every record."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from spectrascope.records.advice import Advice, Validation
from spectrascope.records.bench import BenchReport
from spectrascope.records.comparison import Comparison
from spectrascope.records.inspection import Inspection
from spectrascope.records.report import Report
from spectrascope.records.trajectory import Trajectory
from spectrascope.records.verdict import Verdict
from spectrascope.records.weights import WeightsReport

if TYPE_CHECKING:
    from rich.console import RenderableType

    from spectrascope.reports.charts.chart import Chart
    from spectrascope.reports.views.document import Document, Tone

__all__ = ["BY_ENDING", "Format", "Rendered", "View", "document_of", "render", "say_bottom_line"]

Rendered: TypeAlias = (
    Report | BenchReport | Inspection | Verdict | Comparison | Trajectory | Advice | WeightsReport
)  # fmt: skip


class Format(str, Enum):
    """Forms a report can be given out in."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"
    HTML = "html"
    LATEX = "latex"


BY_ENDING = {
    ".json": Format.JSON, ".csv": Format.CSV, ".md": Format.MARKDOWN, ".html": Format.HTML, ".htm": Format.HTML,
    ".tex": Format.LATEX, ".txt": Format.TABLE,
}  # fmt: skip
"""The form that the ending of a file's name asks for."""


class View(str, Enum):
    """What of a report is shown."""

    PROBE = "probe"
    TRIANGLE = "triangle"
    DECOMPOSITION = "decomposition"


_RECORDS = "spectrascope.records."


def render(
    record: Rendered, format: Format, *, view: View = View.PROBE, width: int | None = None, **how: Any
) -> RenderableType:
    """Give a record the form asked for: text, or for a table something rich can draw.

    JSON and CSV hold everything, whatever ``how`` says; JSON of a report is always the whole of it in the network's
    order, so that it can be read back.

    Args:
        record: what to show.
        format: the form.
        view: of a report, the whole of it, the α triangle alone, or the spectral alignment decomposition.
        width: columns of the terminal a table is for; ``None`` shows everything in full.
        how: ``sort``, the order of a report's layers; ``every``, to list a verdict's passed checks too; ``number``,
            what a trajectory's table of layers follows.

    Raises:
        NonFiniteError: JSON of a record with a number that is NaN or infinite.
    """
    if format is Format.JSON:
        from spectrascope.reports.json import record_to_json, report_to_json

        return report_to_json(record) if isinstance(record, Report) else record_to_json(record)
    if format is Format.HTML:
        return _page(record, view, **how)
    if format is Format.CSV:
        to_csv = _forms_of(record, view)[1]
        return to_csv(record, **{name: value for name, value in how.items() if name == "sort"})
    document = document_of(record, view, **how)
    if format is Format.MARKDOWN:
        from spectrascope.reports.markdown import document_markdown

        return document_markdown(document)
    if format is Format.LATEX:
        from spectrascope.reports.latex import document_latex

        return document_latex(document)
    from spectrascope.reports.table import document_table

    return document_table(document, width=width)


def document_of(record: Rendered, view: View = View.PROBE, **how: Any) -> Document:
    """What a reader sees of a record, not drawn yet; arguments as of :func:`render`."""
    document: Document = _forms_of(record, view)[0](record, **how)
    return document


def _forms_of(record: Rendered, view: View) -> tuple[Callable[..., Document], Callable[..., str]]:
    forms = _forms()
    if isinstance(record, Report):
        return forms[view]
    return next(forms[kind] for kind in type(record).__mro__ if kind in forms)


def say_bottom_line(record: Rendered, *, view: View = View.PROBE) -> tuple[tuple[str, Tone], ...]:
    """Say in sentences what came out, for who does not look at the whole of it."""
    return document_of(record, view).bottom_line


def _page(record: Rendered, view: View, **how: Any) -> str:
    """A page for a browser: the report's and the trajectory's own, else that of any document; it holds its numbers."""
    name = next(kind for kind in type(record).__mro__ if kind.__module__.startswith(_RECORDS)).__name__
    name = name.removesuffix("Report").lower() or "report"
    files = [
        (f"{name}.{form.value}", str(render(record, form, view=view, **how))) for form in (Format.JSON, Format.CSV)
    ]
    if isinstance(record, Report) and view is View.PROBE:
        from spectrascope.reports.html.page import report_html

        return report_html(record, files)
    if isinstance(record, Trajectory):
        from spectrascope.reports.html.trajectory import trajectory_html

        return trajectory_html(record, files)
    from spectrascope.reports.html.document import document_html

    return document_html(document_of(record, view, **how), _charts(record, view), files)


def _charts(record: Rendered, view: View) -> list[Chart]:
    """What is drawn on the page of a document."""
    from spectrascope.reports.charts.pictures import PictureKind, network_charts
    from spectrascope.reports.charts.validation_chart import validation_chart

    if isinstance(record, Report):
        kind = PictureKind.TRIANGLE if view is View.TRIANGLE else PictureKind.DECOMPOSITION
        return network_charts(record, [kind]) if record.summary.n_ok else []
    if isinstance(record, Advice) and isinstance(record.validation, Validation):
        return [validation_chart(record.validation)]
    return []


def _forms() -> dict[type | View, tuple[Callable[..., Document], Callable[..., str]]]:
    """What makes the document and the CSV of a record, or of a view of a report; imported when first asked for."""
    from spectrascope.reports import csv
    from spectrascope.reports.views import (
        advice,
        bench,
        decomposition,
        inspection,
        report,
        trajectory,
        verdict,
        weights,
    )  # fmt: skip

    return {
        View.PROBE: (report.build_probe, csv.report_to_csv),
        View.TRIANGLE: (report.build_triangle, csv.triangle_to_csv),
        View.DECOMPOSITION: (decomposition.build_decomposition, csv.decomposition_to_csv),
        Advice: (advice.build_advice, csv.advice_to_csv),
        BenchReport: (bench.build_bench, csv.bench_to_csv),
        Comparison: (verdict.build_comparison, csv.comparison_to_csv),
        Inspection: (inspection.build_inspection, csv.inspection_to_csv),
        Trajectory: (trajectory.build_trajectory_document, csv.trajectory_to_csv),
        Verdict: (verdict.build_verdict, csv.verdict_to_csv),
        WeightsReport: (weights.build_weights, csv.weights_to_csv),
    }
