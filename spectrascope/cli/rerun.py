"""Runs that are kept: ``--run`` of a command, and ``spectrascope rerun`` and ``merge``, which go on with one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from spectrascope.cli import parsers
from spectrascope.cli.defaults import spell_option
from spectrascope.cli.options import measurement_option
from spectrascope.cli.saved import given_options
from spectrascope.config import FROM_BASELINE
from spectrascope.errors import LoadError, OptionError
from spectrascope.records.report import Report
from spectrascope.records.values import ALL_SAMPLES
from spectrascope.reports.render import Format, Rendered, render
from spectrascope.reports.write import write_text_atomically
from spectrascope.text import first_line

PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}
"""Settings of commands that pass on what they do not know."""

_FILE = "config.yaml"
_PANELS = ("Network and data", "Measurement", "Gate", "Checkpoints")
_OF_THE_SITTING = {"run", "shard", "merge", "trust_remote_code", "junit", "markdown", "save_report"}
_Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder named by --run of the command that began it.")]
_Trust = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python that the kept command names, or that comes with its model.")
]


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a run is kept."""

    run: Annotated[
        Path | None,
        measurement_option(
            "--run", metavar="RUN", help="Keep the run in this folder as it goes: killed and started again, it goes on."
        ),
    ] = None

    def keep(self, context: typer.Context, result: Rendered) -> None:
        """Write the command and what came of it, where a folder was named: report.json, or result.json beside it.

        Raises:
            OptionError: the folder cannot be written.
        """
        if self.run is None:
            return
        keep_command(self.run, context, again=True)
        name = "report.json" if isinstance(result, Report) else "result.json"
        write_text_atomically(self.run / name, f"{render(result, Format.JSON)}\n")


@dataclass(frozen=True, slots=True)
class KeptWhole(Kept):
    """Where a command without parts keeps what it found."""

    run: Annotated[
        Path | None,
        measurement_option(
            "--run", metavar="RUN", help="Keep the command and what it found in this folder, for rerun to repeat."
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Parts(Kept):
    """Where a run is kept as it goes, and which part of it to do."""

    shard: Annotated[
        Any,
        measurement_option(
            metavar="I/N", parser=parsers.parse_shard, help="With --run: measure share I of N, and leave (job arrays)."
        ),
    ] = None
    merge: Annotated[
        bool,
        measurement_option("--merge", help="With --run: put the parts together, and say which are missing."),
    ] = False

    def __post_init__(self) -> None:
        if self.run is None and (self.shard is not None or self.merge):
            raise OptionError("--shard and --merge go with --run RUN, the folder that the parts are in")
        if self.shard is not None and self.merge:
            raise OptionError("--shard measures parts, --merge puts them together: give one of them")


def keep_command(folder: Path, context: typer.Context, *, again: bool = False) -> None:
    """Write what a command measures into its run's folder, all defaults said.

    Args:
        folder: of the run.
        context: of the command.
        again: write it over the command that is there: this one has come to its end.

    Raises:
        OptionError: the folder cannot be written.
    """
    path = folder / _FILE
    if path.exists() and not again:
        return
    import yaml

    given = {
        parameter.name: parameter
        for parameter in context.command.params
        if getattr(parameter, "rich_help_panel", None) in _PANELS and parameter.name not in _left_out(context)
    }
    values = {p.opts[0].removeprefix("--"): _plain(context.params.get(name)) for name, p in given.items() if name}
    document = {
        "command": context.command.name,
        "model": _plain(context.params.get("model")),
        "trust-remote-code": bool(context.params.get("trust_remote_code")),
        "options": {name: value for name, value in values.items() if value is not None},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--run {folder}: cannot make the folder: {error.strerror or error}") from error
    about = "# What `spectrascope rerun` measures again, from the folder in which it was begun.\n"
    write_text_atomically(path, about + yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _left_out(context: typer.Context) -> set[str]:
    """Options that are not replayed; of a gate also those that follow its baseline."""
    return _OF_THE_SITTING | (FROM_BASELINE - given_options(context) if context.command.name == "gate" else set())


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value] or None
    return "all" if value == ALL_SAMPLES else value


def rerun(context: typer.Context, run: _Run, *, trust_code: _Trust = False) -> None:
    """Go on with a run that was kept with --run: measure what is missing, and report.

    Options of its command may follow, and count: -o report.json, or --run NEW to measure all of it again.
    """
    replay(context, run, trust_code=trust_code)


def merge(context: typer.Context, run: _Run, *, trust_code: _Trust = False) -> None:
    """Put the parts of a run together that the shards of a job array have measured, and report.

    Nothing more is measured but the self-check; what is missing is named. Options of the run's command may follow, as
    -o report.json.
    """
    replay(context, run, "--merge", trust_code=trust_code)


def replay(context: typer.Context, run: Path, *more: str, trust_code: bool) -> None:
    """Run the command that a folder keeps, with more options.

    Raises:
        LoadError: the folder keeps none.
        OptionError: it would run Python that it names.
    """
    kept = _read(run / _FILE)
    application: Any = context.find_root().command
    command = application.commands.get(kept["command"])
    options = {option: parameter for parameter in command.params for option in parameter.opts} if command else {}
    if "--run" not in options:
        raise LoadError(f"{run / _FILE}: {kept['command']!r} is no command that keeps its run")
    if set(more) - options.keys():
        raise LoadError(f"{run / _FILE}: {kept['command']} is not measured in shards; `spectrascope rerun {run}`")
    words = list(kept["models"])
    for name, value in kept["options"].items():
        parameter = options.get(f"--{name}")
        if parameter is None:
            raise LoadError(f"{run / _FILE}: {kept['command']} has no option {name!r}")
        words += spell_option(parameter, value)
    if trust_code:
        words += ["--trust-remote-code"] if kept["trust-remote-code"] else []
    elif kept["trust-remote-code"] or _names_code(kept):
        what = ", ".join(kept["models"]) or kept["options"].get("arch")
        raise OptionError(f"{run / _FILE} has Python code run that comes with {what}: add --trust-code if you know it")
    arguments = [kept["command"], *words, "--run", str(run), *more, *context.args]
    with application.make_context("spectrascope", arguments, obj=tuple(arguments)) as again:
        application.invoke(again)


def _names_code(kept: dict[str, Any]) -> bool:
    from spectrascope.loading.models.open import runs_code

    return any(runs_code(str(spec)) for spec in (*kept["models"], *map(kept["options"].get, ("arch", "base"))) if spec)


def _words(model: Any) -> list[str]:
    if model is None:
        return []
    return [str(item) for item in model] if isinstance(model, list) else [str(model)]


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            "command": str(kept["command"]),
            "models": _words(kept["model"]),
            "trust-remote-code": bool(kept["trust-remote-code"]),
            "options": dict(kept["options"]),
        }
    except FileNotFoundError:
        raise LoadError(f"{path}: no such file; expected a folder that --run of a command has made") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise LoadError(f"{path}: not the command of a run ({type(error).__name__}: {first_line(error)})") from None
