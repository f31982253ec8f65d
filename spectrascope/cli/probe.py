"""``spectrascope probe``: measure a network."""

from __future__ import annotations

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import measure
from spectrascope.cli.output import emit
from spectrascope.cli.rerun import Parts
from spectrascope.reports.order import ORDER


def probe(
    context: typer.Context,
    target: o.Request,
    options: o.JointOptions,
    parts: Parts,
    result: o.Result,
    sort: o.SortOption = ORDER,
) -> None:
    """Measure how the loss curves along the gradient's singular directions, weight by weight.

    Without arguments: the embedded digits-cnn, early in its training, on handwritten digits.
    """
    report = measure(target, options.asked, context, quiet=result.quiet, kept=parts)
    emit(report, result, sort=sort)
