"""``spectrascope probe``: measure a network."""

from __future__ import annotations

import typer

from spectrascope.cli import groups
from spectrascope.cli import options as o
from spectrascope.cli import report_options as r
from spectrascope.cli.compose import composed
from spectrascope.cli.measure import measure, spell_command
from spectrascope.cli.output import emit, write_page
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.order import ORDER
from spectrascope.reports.render import render

__all__ = ["probe"]


@composed(target=groups.network_and_data, options=groups.measurement, window=groups.window, result=groups.result)
def probe(
    context: typer.Context,
    target: groups.Request,
    options: ProbeOptions,
    window: groups.Window,
    result: groups.Result,
    sort: o.SortOption = ORDER,
    html: r.Html = None,
) -> None:
    """Measure how the loss curves along the gradient's singular directions, weight by weight.

    Without arguments: the embedded digits-cnn on handwritten digits.
    """
    r.check_page(html)
    report = measure(target, window.of(options), command=spell_command(context.obj or ()), quiet=result.quiet)
    if html is not None:
        write_page(html, report)
    emit(lambda width: render(report, result.format, sort=sort, width=width), result.output)
