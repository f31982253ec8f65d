"""Write results to stdout or a file: data only, everything else a command says goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from spectrascope.reports.write import write_text_atomically

if TYPE_CHECKING:
    from rich.console import RenderableType

    from spectrascope.records.report import Report
    from spectrascope.records.trajectory import Trajectory


def emit(draw: Callable[[int | None], RenderableType], output: Path | None) -> None:
    """Write a result, in full unless it goes to a terminal, where it may fit itself to the width.

    Args:
        draw: from the terminal's width (``None``: no limit) to text or something rich can draw.
        output: a file, or ``None`` for stdout.

    Raises:
        OptionError: the file cannot be written.
    """
    if output is not None:
        write_text_atomically(output, _to_text(draw(None)) + "\n")
    elif sys.stdout.isatty():
        _print_to_terminal(draw)
    else:
        sys.stdout.write(_to_text(draw(None)) + "\n")
        sys.stdout.flush()


def write_page(path: Path, shown: Report | Trajectory) -> None:
    """Write a report or a trajectory as a page for a browser.

    Raises:
        OptionError: the file cannot be written.
    """
    from spectrascope.records.trajectory import Trajectory

    if isinstance(shown, Trajectory):
        from spectrascope.reports.html.trajectory import trajectory_html

        write_text_atomically(path, trajectory_html(shown))
        return
    from spectrascope.reports.html.page import report_html

    write_text_atomically(path, report_html(shown))


def _print_to_terminal(draw: Callable[[int | None], RenderableType]) -> None:
    from rich.console import Console

    # NO_COLOR asks for no colour; rich alone would still write bold and dim.
    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)
    result = draw(console.width)
    if isinstance(result, str):
        sys.stdout.write(result + "\n")
        sys.stdout.flush()
    else:
        console.print(result)


def _to_text(result: RenderableType) -> str:
    if isinstance(result, str):
        return result
    from spectrascope.reports.table import plain_text

    return plain_text(result)
