"""``spectrascope suggest-beta``: which exponent fits each weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectrascope.cli import groups
from spectrascope.cli import options as o
from spectrascope.cli.compose import composed
from spectrascope.cli.measure import measure, measure_validated, spell_command
from spectrascope.cli.output import emit
from spectrascope.cli.saved import is_saved_report, refit_saved
from spectrascope.errors import OptionError
from spectrascope.records.advice import ValidateOn
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.emit import Emission, emit_advice
from spectrascope.reports.render import render

if TYPE_CHECKING:
    from spectrascope.records.advice import Advice

__all__ = ["suggest_beta"]

_OF_A_SAVED_REPORT = {"model", "top_k", "min_rank", "format", "json", "output", "quiet", "emit_groups", "train_batch"}

_ModelOrReport = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="As for probe, or a report saved as .json: then nothing is measured.",
    ),
]
_Emit = Annotated[
    Emission | None,
    typer.Option(
        "--emit",
        show_default=False,
        rich_help_panel=o.RESULT,
        help="Parameter groups instead of a table: Python to paste, or YAML for spectrascope.optim.parameter_groups.",
    ),
]
_Validate = Annotated[
    bool,
    typer.Option(
        "--validate",
        rich_help_panel=o.MEASUREMENT,
        help="Measure on half of the samples, take the steps for real, and report the loss on the other half.",
    ),
]
_ValidateOn = Annotated[
    ValidateOn,
    typer.Option(
        "--validate-on",
        rich_help_panel=o.MEASUREMENT,
        help="Whose loss --validate follows: of the other half, or of the measured half itself.",
    ),
]
_TrainBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        show_default=False,
        rich_help_panel=o.MEASUREMENT,
        help="Samples per training step, for the damping; the measured batch if not given.",
    ),
]


@composed(target=groups.network_and_data, options=groups.measurement, window=groups.window, result=groups.result)
def suggest_beta(
    context: typer.Context,
    model: _ModelOrReport = None,
    *,
    target: groups.Request,
    options: ProbeOptions,
    window: groups.Window,
    train_batch: _TrainBatch = None,
    validate: _Validate = False,
    validate_on: _ValidateOn = ValidateOn.HELD_OUT,
    emit_groups: _Emit = None,
    result: groups.Result,
) -> None:
    """Suggest an exponent for each weight: gradient descent (0), Muon-like (1), Newton-like (2) or between.

    With its interval, a damping from the gradient's noise, and how good a step each exponent makes.
    """
    if validate_on is not ValidateOn.HELD_OUT and not validate:
        raise OptionError("--validate-on goes with --validate")
    on = validate_on if validate else None
    advice = _advise(context, model, target, window.of(options), train_batch, on, result.quiet)
    if emit_groups is not None:
        if "format" in context.params and (context.params["format"] is not None or context.params["json"]):
            raise OptionError("--emit is a form of its own: it cannot be combined with --format or --json")
        emit(lambda _: emit_advice(advice, emit_groups), result.output)
    else:
        emit(lambda width: render(advice, result.format, width=width), result.output)


def _advise(
    context: typer.Context,
    model: str | None,
    target: groups.Request,
    options: ProbeOptions,
    train_batch: int | None,
    validate_on: ValidateOn | None,
    quiet: bool,
) -> Advice:
    from spectrascope.advice.advise import advise

    command = spell_command(context.obj or ())
    if model is not None and is_saved_report(model):
        if validate_on is not None:
            raise OptionError(f"--validate takes steps with the network: name it instead of the report {model}")
        return advise(
            refit_saved(context, Path(model), options.top_k, options.min_rank, _OF_A_SAVED_REPORT),
            train_batch=train_batch,
        )
    if validate_on is not None:
        return measure_validated(target, options, train_batch=train_batch, on=validate_on, command=command, quiet=quiet)
    return advise(measure(target, options, command=command, quiet=quiet), train_batch=train_batch)
