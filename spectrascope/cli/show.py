"""``spectrascope show``: render a saved report again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.output import emit
from spectrascope.reports.order import ORDER
from spectrascope.reports.render import View
from spectrascope.reports.select import read_selected


def show(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A saved report.")],
    top_k: o.RefitTopK = None,
    min_rank: o.RefitMinRank = None,
    view: Annotated[View, o.result_option(help="The whole report, the α triangle, or the decomposition.")] = View.PROBE,
    *,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    result: o.Result,
    sort: o.SortOption = ORDER,
) -> None:
    """Render a saved report: another form, another window of directions, some of its weights, another order.

    Nothing is measured and torch is not needed.
    """
    shown = read_selected(
        report, layers=tuple(layers or ()), exclude=tuple(exclude or ()), top_k=top_k, min_rank=min_rank
    )
    emit(shown, result, view=view, sort=sort)
