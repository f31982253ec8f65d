"""Write results to stdout or a file: data only, everything else a command says goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrascope.errors import OptionError
from spectrascope.reports.render import Format, Rendered, View, render, say_bottom_line
from spectrascope.reports.write import write_text_atomically
from spectrascope.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from spectrascope.cli.options import Result


def emit(record: Rendered, to: Result, *, view: View = View.PROBE, **how: Any) -> None:
    """Write a result in the form and to the place asked for, and its page where one is asked for.

    A table is in full, unless it goes to a terminal or ``COLUMNS`` is set: then it fits itself to the width. Where the
    result goes to a file, a terminal shows what came out in a sentence, and which files were written.

    Args:
        record: the result.
        to: its form and place.
        view: of a report, what of it is shown.
        how: as :func:`spectrascope.reports.render.render` takes it.

    Raises:
        OptionError: a file cannot be written.
    """
    if to.html is not None:
        write_text_atomically(to.html, _to_text(render(record, Format.HTML, view=view, **how)) + "\n")
    write(lambda width: render(record, to.form, view=view, width=width, **how), to.output)
    if to.output is not None:
        tell((text for text, _ in say_bottom_line(record, view=view)), quiet=to.quiet)
    tell((f"wrote {path}" for path in (to.output, to.html) if path is not None), quiet=to.quiet)


def write(draw: Callable[[int | None], RenderableType], output: Path | None) -> None:
    """Write what is drawn for a width (``None``: no limit) to a file, or to stdout for ``None``.

    Raises:
        OptionError: the file cannot be written, or stdout is closed.
    """
    if output is not None:
        write_text_atomically(output, _to_text(draw(None)) + "\n")
    elif sys.stdout is None:
        raise OptionError("stdout is closed: name a file with --output")
    elif sys.stdout.isatty():
        _print_to_terminal(draw)
    else:
        width = _columns_asked_for()
        sys.stdout.write(_to_text(draw(width), width) + "\n")
        sys.stdout.flush()


@contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Have what the user's own code prints on stderr: stdout is for results, which others parse."""
    with redirect_stdout(sys.stderr):
        yield


def tell(lines: Iterable[str], *, quiet: bool) -> None:
    """Say something on stderr to who sits at a terminal."""
    if not quiet and sys.stderr.isatty():
        for line in lines:
            print(printable(line), file=sys.stderr)


def _columns_asked_for() -> int | None:
    """What ``COLUMNS`` says, as for a terminal; ``None`` where it says nothing."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isascii() and text.isdigit() and int(text) else None


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


def _to_text(result: RenderableType, width: int | None = None) -> str:
    if isinstance(result, str):
        return result
    from spectrascope.reports.table import plain_text

    return plain_text(result, width)
