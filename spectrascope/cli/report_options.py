"""Options of the commands that read saved reports or draw them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.reports.write import check_writable

__all__ = ["Html", "RefitMinRank", "RefitTopK", "check_page"]

RefitTopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=1,
        metavar="K",
        show_default=False,
        rich_help_panel=o.MEASUREMENT,
        help="Fit again up to this direction.",
    ),
]
RefitMinRank = Annotated[
    int | None,
    typer.Option(
        "--min-rank",
        min=1,
        metavar="K",
        show_default=False,
        rich_help_panel=o.MEASUREMENT,
        help="Fit again from this direction on.",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        show_default=False,
        rich_help_panel=o.RESULT,
        help="Write a page for a browser as well: one file, opens offline.",
    ),
]


def check_page(html: Path | None) -> None:
    """Refuse a page that could not be written, before any long work.

    Raises:
        OptionError: it cannot.
    """
    if html is not None:
        check_writable(html)
