"""``spectrascope explain``: what a word means, and what a saved report says of it."""

from __future__ import annotations

from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any

import typer

from spectrascope.cli import options as o
from spectrascope.cli.output import tell, write
from spectrascope.cli.parsers import require_ending
from spectrascope.errors import OptionError
from spectrascope.records.report import Report
from spectrascope.reports.explain import Page, contents, find_pages, pages
from spectrascope.reports.markdown import markdown_view

_MOST_NAMED = 3
_MOST_WEIGHTS = 5


def explain(
    context: typer.Context,
    term: Annotated[
        str | None,
        typer.Argument(
            metavar="TERM|WEIGHT",
            help="A column, number, option, engine, warning, exit code or guide; or, with a report, the name of a "
            "weight (a glob, or a part of it that only one has). Without it every page is listed.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Argument(metavar="REPORT.json", help="A saved report.")] = None,
    *,
    output: o.Output = None,
    quiet: o.Quiet = False,
) -> None:
    """Say what a word of the tables, options and messages means: how to read it, its formula, what changes it.

    With a report: what that report says of the number, or of one weight, in words. Nothing is measured.
    """
    require_ending(output, "Markdown", ".md")
    text = contents() if term is None else _help_of(context, term) or _explain(term, report)
    write(lambda width: text if width is None else markdown_view(text), output)
    if output is not None:
        tell([f"wrote {output}"], quiet=quiet)


def _help_of(context: typer.Context, term: str) -> str:
    """What ``--help`` says of a command, or of an option; nothing where there is a page, or it is neither."""
    if any(term in page.names for page in pages()):
        return ""
    commands: dict[str, Any] = context.find_root().command.commands  # type: ignore[attr-defined]
    if term in commands:
        about = cleandoc(commands[term].help or "")
        return f"# spectrascope {term}\n\n{about}\n\nOptions: `spectrascope {term} --help`."
    for name, command in commands.items():
        for parameter in command.params:
            if term.startswith("--") and term in (*parameter.opts, *parameter.secondary_opts):
                return f"# {term}\n\n{parameter.help}\n\nSee `spectrascope {name} --help`."
    return ""


def _explain(term: str, path: Path | None) -> str:
    if path is None:
        return "\n\n".join(_page(page) for page in find_pages(term))
    from spectrascope.reports.read import read_report

    report = read_report(path)
    weights = _weights(term, report)
    if weights is not None:
        return weights
    try:
        said = [(page, text) for page in find_pages(term) if (text := _in_report(page, report))]
    except OptionError:
        _refuse_part(term, report)
        raise
    if not said:
        _refuse_part(term, report)
        raise OptionError(f"{term!r} is no number of a weight, so the report says nothing of it")
    return "\n\n".join(f"{_page(page)}\n\n## In {path.name}\n\n{text}" for page, text in said)


def _refuse_part(term: str, report: Report) -> None:
    """Refuse what is part of several weights' names and nothing else.

    Raises:
        OptionError: it is.
    """
    named = [row.info.name for row in report.layers if term in row.info.name]
    if len(named) > 1:
        some = ", ".join(named[:_MOST_NAMED]) + (", …" if len(named) > _MOST_NAMED else "")
        raise OptionError(
            f"{term!r} is part of {len(named)} names ({some}): name one weight, or all of them as '*{term}*'"
        )


def _weights(term: str, report: Report) -> str | None:
    """The weights of that name in words; nothing where it names none."""
    from spectrascope.advice.explanation import explain_weight, nearest_weights, weights_named

    rows = weights_named(report, term)
    if rows:
        more = f"\n\n… and {len(rows) - _MOST_WEIGHTS} weights more." if len(rows) > _MOST_WEIGHTS else ""
        return "\n\n".join(explain_weight(report, row) for row in rows[:_MOST_WEIGHTS]) + more
    try:
        find_pages(term)
    except OptionError as error:
        _refuse_part(term, report)
        near = ", ".join(nearest_weights(report, term)) or "none is near"
        raise OptionError(f"{term!r} names no weight of the report (nearest: {near}), and {error}") from None
    return None


def _page(page: Page) -> str:
    return f"# {page.title}\n\n{page.text}"


def _in_report(page: Page, report: Report) -> str:
    """What the report says of a page's number; nothing where it is none of a weight's."""
    from spectrascope.advice.explanation import explain_number
    from spectrascope.reports.fields import FIELDS

    numbers = {name for field in FIELDS for name in (field.name, field.flat)}
    name = next((name for name in page.names if name in numbers), None)
    return "" if name is None else explain_number(report, name)
