"""From functions to commands: groups of options taken apart, a help that keeps them together and ends with examples."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from spectrascope.cli.examples import EXAMPLES
from spectrascope.errors import OptionError
from spectrascope.text import printable


def composed(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: each parameter that is annotated with a dataclass becomes its fields.

    An option that the command declares under the same name takes the place of the group's, and both get its value.
    """
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(command, include_extras=True)  # they come from several modules
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    declared = [own for own in inspect.signature(command).parameters if own not in groups]
    for name, own in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(own.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        kinds = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=kinds[item.name]
            )
            for item in fields(groups[name])
            if item.name not in declared
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        built = {
            name: group(**{item.name: given[item.name] for item in fields(group)}) for name, group in groups.items()
        }
        command(**built, **{name: given[name] for name in declared})

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del run.__wrapped__  # typer would read the command's own signature
    return run


class SectionedCommand(TyperCommand):
    """A command whose help lists each option under the panel it was declared for.

    Plain text: drawing it with rich takes twice as long.
    """

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the arguments, then one section of options per panel, then the rest."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        rest: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            panel = getattr(parameter, "rich_help_panel", None)
            if parameter.param_type_name == "argument":
                sections["Arguments"].append(record)
            elif isinstance(panel, str):
                sections.setdefault(panel, []).append(record)
            else:
                rest.append(record)
        for title, records in {**sections, "Other": rest}.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """End with examples."""
        _write_examples(self.name or "", formatter)


class Commands(TyperGroup):
    """The application: its help ends with examples, and whoever leaves the command out is told what to type."""

    def format_epilog(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """End with examples."""
        _write_examples("", formatter)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Find the command that the first word names.

        Raises:
            OptionError: there is none of that name.
        """
        if args[0] == "help":  # as many a program has it
            if not args[1:]:
                typer.echo(ctx.get_help())
                raise typer.Exit
            args = [args[1], "--help"]
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise OptionError(_what_to_type(args[0], list(self.commands)))
        return super().resolve_command(ctx, args)


def _what_to_type(word: str, commands: list[str]) -> str:
    near = difflib.get_close_matches(word, commands, n=1)
    said, name = f"no command {printable(word)!r}", Path(word.partition("::")[0])
    try:
        there = name.exists()
    except (OSError, ValueError):  # no name of a file
        there = False
    if there:
        command = "show" if name.suffix == ".json" else "probe"
        return f"{said}: to {'see this report' if command == 'show' else 'measure it'}, `spectrascope {command} {word}`"
    if near:
        return f"{said}: did you mean `spectrascope {near[0]}`?"
    return (
        f"{said}, and no such file: to measure a network, `spectrascope probe MODEL`; `spectrascope --help` lists the "
        "commands"
    )


def _write_examples(command: str, formatter: Any) -> None:
    """Write each example as it is typed, however long, and beneath it what it is for."""
    if command in EXAMPLES:
        with formatter.section("Examples"):
            for line, about in EXAMPLES[command]:
                formatter.write(f"  {line}\n      {about}\n")
