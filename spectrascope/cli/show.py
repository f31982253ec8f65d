"""``spectrascope show``: render a saved report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli import report_options as r
from spectrascope.cli.output import emit, write_page
from spectrascope.reports.order import ORDER
from spectrascope.reports.read import read_report
from spectrascope.reports.refit import refit
from spectrascope.reports.render import View, render
from spectrascope.reports.write import check_writable

__all__ = ["show"]


def show(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", show_default=False, help="A saved report.")],
    top_k: r.RefitTopK = None,
    min_rank: r.RefitMinRank = None,
    view: Annotated[
        View, typer.Option(rich_help_panel=o.RESULT, help="The whole report, the α triangle, or the decomposition.")
    ] = View.PROBE,
    format: o.FormatOption = None,
    json: o.Json = False,
    sort: o.SortOption = ORDER,
    output: o.Output = None,
    html: r.Html = None,
) -> None:
    """Render a saved report: another form, another window of directions, another order.

    Nothing is measured and torch is not needed.
    """
    form = o.choose_format(format, json, output)
    if output is not None:
        check_writable(output)
    r.check_page(html)
    shown = refit(read_report(report), top_k=top_k, min_rank=min_rank)
    if html is not None:
        write_page(html, shown)
    emit(lambda width: render(shown, form, view=view, sort=sort, width=width), output)
