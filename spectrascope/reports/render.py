"""One door to every form of a report."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from spectrascope.records.advice import Advice
from spectrascope.records.bench import BenchReport
from spectrascope.records.comparison import Comparison
from spectrascope.records.inspection import Inspection
from spectrascope.records.report import Report
from spectrascope.records.trajectory import TrackedNumber, Trajectory
from spectrascope.records.verdict import Verdict
from spectrascope.records.weights import WeightsReport
from spectrascope.reports.order import Sort

if TYPE_CHECKING:
    from rich.console import RenderableType

    from spectrascope.reports.views.document import Document

__all__ = [
    "Format", "View", "render", "render_advice", "render_bench", "render_comparison", "render_inspection",
    "render_trajectory", "render_verdict", "render_weights",
]  # fmt: skip


Answer = TypeVar("Answer", BenchReport, Inspection, Verdict, Comparison, Trajectory, Advice, WeightsReport)


class Format(str, Enum):
    """Forms a report can be given out in."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


class View(str, Enum):
    """What of a report is shown."""

    PROBE = "probe"
    TRIANGLE = "triangle"
    DECOMPOSITION = "decomposition"


def render(
    report: Report,
    format: Format,
    *,
    view: View = View.PROBE,
    sort: Sort = Sort.ORDER,
    width: int | None = None,
) -> RenderableType:
    """Give a report the form asked for: text, or for a table something rich can draw.

    JSON is always the whole report in the network's order, whatever the view and sort, so that it can be read
    back.

    Args:
        report: what to show.
        format: the form.
        view: the whole report, the α triangle alone, or the spectral alignment decomposition.
        sort: order of the layers.
        width: columns of the terminal a table is for; ``None`` shows everything in full.

    Raises:
        NonFiniteError: JSON of a report with a number that is NaN or infinite.
    """
    if format is Format.JSON:
        from spectrascope.reports.json import report_to_json

        return report_to_json(report)
    if view is View.DECOMPOSITION:
        return _render_decomposition(report, format, sort, width)
    if format is Format.CSV:
        from spectrascope.reports.csv import report_to_csv, triangle_to_csv

        return (report_to_csv if view is View.PROBE else triangle_to_csv)(report, sort)
    if format is Format.MARKDOWN:
        from spectrascope.reports.markdown import report_markdown, triangle_markdown

        return (report_markdown if view is View.PROBE else triangle_markdown)(report, sort)
    from spectrascope.reports.table import report_table, triangle_table

    return (report_table if view is View.PROBE else triangle_table)(report, sort, width=width)


def _render_decomposition(report: Report, format: Format, sort: Sort, width: int | None) -> RenderableType:
    from spectrascope.reports.views.decomposition import build_decomposition, decomposition_to_csv

    if format is Format.CSV:
        return decomposition_to_csv(report, sort)
    return _draw(build_decomposition(report, sort), format, width)


def render_bench(bench: BenchReport, format: Format, *, width: int | None = None) -> RenderableType:
    """Give a benchmark the form asked for.

    Raises:
        NonFiniteError: JSON of a benchmark with a number that is NaN or infinite.
    """
    from spectrascope.reports.csv import bench_to_csv
    from spectrascope.reports.views.report import build_bench

    return _give(bench, format, width, bench_to_csv, build_bench)


def render_inspection(inspection: Inspection, format: Format, *, width: int | None = None) -> RenderableType:
    """Give a dry run the form asked for."""
    from spectrascope.reports.csv import inspection_to_csv
    from spectrascope.reports.views.inspection import build_inspection

    return _give(inspection, format, width, inspection_to_csv, build_inspection)


def render_verdict(
    verdict: Verdict, format: Format, *, every: bool = False, width: int | None = None
) -> RenderableType:
    """Give a gate's verdict the form asked for; JSON and CSV hold every check, ``every`` puts them in the others.

    Raises:
        NonFiniteError: JSON of a verdict with a number that is NaN or infinite.
    """
    from spectrascope.reports.verdict_csv import verdict_to_csv
    from spectrascope.reports.views.verdict import build_verdict

    return _give(verdict, format, width, verdict_to_csv, partial(build_verdict, every=every))


def render_comparison(comparison: Comparison, format: Format, *, width: int | None = None) -> RenderableType:
    """Give a comparison the form asked for.

    Raises:
        NonFiniteError: JSON of a comparison with a number that is NaN or infinite.
    """
    from spectrascope.reports.verdict_csv import comparison_to_csv
    from spectrascope.reports.views.verdict import build_comparison

    return _give(comparison, format, width, comparison_to_csv, build_comparison)


def render_trajectory(
    trajectory: Trajectory,
    format: Format,
    *,
    number: TrackedNumber = TrackedNumber.BETA,
    width: int | None = None,
) -> RenderableType:
    """Give a trajectory the form asked for; ``number`` is what the table of layers follows, JSON and CSV hold all.

    Raises:
        NonFiniteError: JSON of a trajectory with a number that is NaN or infinite.
    """
    from spectrascope.reports.views.trajectory import build_trajectory_document, trajectory_to_csv

    return _give(trajectory, format, width, trajectory_to_csv, partial(build_trajectory_document, number=number))


def render_advice(advice: Advice, format: Format, *, width: int | None = None) -> RenderableType:
    """Give an advice the form asked for.

    Raises:
        NonFiniteError: JSON of an advice with a number that is NaN or infinite.
    """
    from spectrascope.reports.suggestion_csv import advice_to_csv
    from spectrascope.reports.views.advice import build_advice

    return _give(advice, format, width, advice_to_csv, build_advice)


def render_weights(report: WeightsReport, format: Format, *, width: int | None = None) -> RenderableType:
    """Give weight tails the form asked for.

    Raises:
        NonFiniteError: JSON of a report with a number that is NaN or infinite.
    """
    from spectrascope.reports.views.weights import build_weights, weights_to_csv

    return _give(report, format, width, weights_to_csv, build_weights)


def _give(
    record: Answer,
    format: Format,
    width: int | None,
    to_csv: Callable[[Answer], str],
    build: Callable[[Answer], Document],
) -> RenderableType:
    """Answers that are no report, whose tables and Markdown are one document."""
    if format is Format.JSON:
        from spectrascope.reports.json import record_to_json

        return record_to_json(record)
    return to_csv(record) if format is Format.CSV else _draw(build(record), format, width)


def _draw(document: Document, format: Format, width: int | None) -> RenderableType:
    if format is Format.MARKDOWN:
        from spectrascope.reports.markdown import document_markdown

        return document_markdown(document)
    from spectrascope.reports.table import document_table

    return document_table(document, width=width)
