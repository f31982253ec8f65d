"""``spectrascope plot``: pictures of saved reports."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from spectrascope.api.progress import follow_progress
from spectrascope.cli import options as o
from spectrascope.cli.garbage import no_collections
from spectrascope.cli.pictures import Destination, write_pictures
from spectrascope.reports.charts.pictures import PictureKind
from spectrascope.reports.select import read_selected


class Theme(str, Enum):
    """Paper to draw on."""

    LIGHT = "light"
    DARK = "dark"


class PictureFormat(str, Enum):
    """Kinds of picture files."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


def plot(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT.json", help="Saved reports; several of one run.")],
    output: Annotated[
        Path,
        o.result_option(
            "--output",
            "-o",
            metavar="DIR|FILE",
            help="A folder, or one file: FILE.png or FILE.svg for one picture, FILE.pdf for one page each.",
        ),
    ],
    picture: Annotated[
        list[PictureKind] | None, o.result_option(help="Only this picture; may be repeated. All if not given.")
    ] = None,
    format: Annotated[PictureFormat, o.result_option(help="Kind of the files in a folder.")] = PictureFormat.PNG,
    all_layers: Annotated[
        bool, o.result_option("--all-layers", help="Draw every layer, 24 a page, where otherwise 12 are drawn.")
    ] = False,
    theme: Annotated[Theme, o.result_option(help="Paper to draw on.")] = Theme.LIGHT,
    dpi: Annotated[int, o.result_option(min=30, max=1200, metavar="N", help="Dots per inch of a PNG.")] = 150,
    title: Annotated[
        str | None, o.result_option(metavar="TEXT", help="Above the pictures, in the place of their own; '' for none.")
    ] = None,
    width: Annotated[
        str | None,
        o.result_option(
            metavar="WIDTH",
            help="one-column (3.4 inches), two-column (7) or inches; as large as need be if not given.",
        ),
    ] = None,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    top_k: o.RefitTopK = None,
    min_rank: o.RefitMinRank = None,
    quiet: o.Quiet = False,
) -> None:
    """Draw saved reports: h against σ, rank profiles, the α triangle, β along depth, participation ratios, rank models.

    Several reports of one training run are drawn over training too. Nothing is measured and torch is not needed; the
    names of the files written go to stdout.
    """
    kept, left_out = tuple(layers or ()), tuple(exclude or ())
    with no_collections():
        to = Destination(output, format.value, dpi=dpi, dark=theme is Theme.DARK, title=title, width=width)
        found = [read_selected(path, layers=kept, exclude=left_out, top_k=top_k, min_rank=min_rank) for path in reports]
    written: list[Path] = []
    try:
        with follow_progress(quiet=quiet) as on_progress:
            drawn = list(zip(reports, found, strict=True))
            for path in write_pictures(drawn, to, picture, all_layers=all_layers, on_progress=on_progress):
                written.append(path)
    finally:  # not in between: a terminal shows the bar there; and also what an interrupted run has written
        for path in written:
            typer.echo(str(path))
