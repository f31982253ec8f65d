"""``spectrascope card``: a saved report as a section of a Hub model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.output import tell, write
from spectrascope.cli.parsers import parse_output, require_ending
from spectrascope.errors import OptionError
from spectrascope.reports.card import insert_section, new_card
from spectrascope.reports.select import read_selected
from spectrascope.reports.write import write_text_atomically


def card(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="A saved report.")],
    into: Annotated[
        Path | None,
        o.result_option(
            "--into",
            metavar="README.md",
            parser=parse_output,
            help="Put the section into this card, in place of an earlier one; its metadata stay as they are.",
        ),
    ] = None,
    *,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    output: o.Output = None,
    quiet: o.Quiet = False,
) -> None:
    """Write a model card for the Hugging Face Hub: metadata (model-index) and a table of the weights.

    Folders of this machine are left out. Nothing is measured.
    """
    if into is not None and output is not None:
        raise OptionError("--into writes the card itself: give it or --output")
    require_ending(output, "Markdown", ".md")
    require_ending(into, "Markdown", ".md")
    shown = read_selected(report, layers=tuple(layers or ()), exclude=tuple(exclude or ()))
    if into is None:
        write(lambda _: new_card(shown), output)
        tell([f"wrote {output}"] if output is not None else [], quiet=quiet)
        return
    try:
        before = into.read_text(encoding="utf-8") if into.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read the card {into}: {error}") from error
    write_text_atomically(into, insert_section(before, shown))
    tell([f"wrote {into}"], quiet=quiet)
