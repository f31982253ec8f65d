"""Defaults of options that a project sets in its pyproject.toml."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


def set_project_defaults(context: typer.Context, command: Any) -> None:
    """Let options that the command line leaves out take what ``[tool.spectrascope]`` says; tell so on stderr.

    The command line recorded in a report is completed by them, so that it can be run again anywhere.

    Args:
        context: of the application; its ``obj`` holds the command line.
        command: the command that is about to run.

    Raises:
        OptionError: the file is malformed or sets what it may not.
    """
    arguments: Sequence[str] = context.obj or ()
    flags = {flag: parameter for parameter in command.params for flag in parameter.opts}
    measures = "--dataset" in flags  # options of the others default to what a report says
    if not measures or {"-h", "--help"} & set(arguments):
        return
    from spectrascope.config import FROM_BASELINE, find_configuration

    project = find_configuration(Path.cwd())
    followed = {name.replace("_", "-") for name in FROM_BASELINE} if command.name == "gate" else set()
    chosen = {key: value for key, value in project.options.items() if f"--{key}" in flags and key not in followed}
    if not chosen:
        return
    context.default_map = {command.name: {flags[f"--{key}"].name: value for key, value in chosen.items()}}
    left_out = {key: value for key, value in chosen.items() if not _is_given(flags[f"--{key}"], arguments)}
    context.obj = (
        *arguments,
        *(word for key, value in left_out.items() for word in spell_option(flags[f"--{key}"], value)),
    )
    if left_out and not {"-q", "--quiet"} & set(arguments):
        print(f"spectrascope: {', '.join(left_out)} from {project.path}", file=sys.stderr)


def _is_given(parameter: Any, arguments: Sequence[str]) -> bool:
    flags = (*parameter.opts, *parameter.secondary_opts)
    return any(word == flag or word.startswith(f"{flag}=") for word in arguments for flag in flags)


def spell_option(parameter: Any, value: Any) -> list[str]:
    """Words of the command line that give an option this value."""
    flag = parameter.opts[0]
    if value is True:
        return [flag]
    if value is False:
        return list(parameter.secondary_opts[:1])
    if isinstance(value, list) and not parameter.multiple:  # one value per channel
        value = ",".join(map(str, value))
    values = value if isinstance(value, list) else [value]
    return [word for item in values for word in (flag, str(item))]
