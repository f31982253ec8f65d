"""``spectrascope suggest-beta``: which exponent fits each weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import divide, loaded, measure
from spectrascope.cli.output import emit, tell, write
from spectrascope.cli.parsers import require_ending
from spectrascope.cli.pictures import picture_file, write_picture
from spectrascope.cli.rerun import Kept
from spectrascope.cli.saved import refit_saved
from spectrascope.errors import OptionError
from spectrascope.records.advice import ValidateOn
from spectrascope.records.report import ProbeOptions
from spectrascope.reports.charts.validation_chart import validation_picture
from spectrascope.reports.emit import Emission, emit_advice
from spectrascope.reports.read import is_saved_report

if TYPE_CHECKING:
    from spectrascope.records.advice import Advice

_OF_A_SAVED_REPORT = {
    "model",
    "top_k",
    "min_rank",
    "format",
    "json",
    "output",
    "html",
    "quiet",
    "emit_groups",
    "train_batch",
    "momentum",
}


@dataclass(frozen=True, slots=True)
class EmittedResult(o.Result):
    """The form of the result, or parameter groups in its place."""

    emit_groups: Annotated[
        Emission | None,
        o.result_option(
            "--emit",
            help="Parameter groups instead of a table: Python to paste, or YAML for "
            "spectrascope.optim.parameter_groups.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.emit_groups is None:
            o.Result.__post_init__(self)
        elif self.json or self.format is not None or self.html is not None:
            raise OptionError("--emit is a form of its own: it cannot be combined with --format, --json or --html")
        elif self.emit_groups is Emission.YAML:
            require_ending(self.output, "YAML", ".yaml", ".yml")
        else:
            require_ending(self.output, "Python", ".py")


_Validate = Annotated[
    bool,
    o.measurement_option(
        "--validate",
        help="Measure on half of the samples, take the steps for real, and report the loss on the other half.",
    ),
]
_ValidateOn = Annotated[
    ValidateOn,
    o.measurement_option(
        "--validate-on", help="Whose loss --validate follows: of the other half, or of the measured half itself."
    ),
]
_ValidatePlot = Annotated[
    Path | None,
    o.result_option(
        "--validate-plot",
        metavar="FILE",
        help="Draw predicted against realised decrease of --validate into FILE.png, FILE.svg or FILE.pdf.",
    ),
]
_TrainBatch = Annotated[
    int | None,
    o.measurement_option(
        min=1, metavar="N", help="Samples per training step, for the damping; the measured batch if not given."
    ),
]
_Momentum = Annotated[
    float,
    o.measurement_option(
        metavar="MU",
        help="Momentum of training: with --train-batch, a step averages (1 + MU) / (1 - MU) batches. 0 if not given.",
    ),
]


def suggest_beta(
    context: typer.Context,
    *,
    model: Annotated[str | None, o.MODEL_OR_REPORT] = None,
    target: o.Request,
    options: o.JointOptions,
    train_batch: _TrainBatch = None,
    momentum: _Momentum = 0.0,
    validate: _Validate = False,
    validate_on: _ValidateOn = ValidateOn.HELD_OUT,
    validate_plot: _ValidatePlot = None,
    kept: Kept,
    result: EmittedResult,
) -> None:
    """Suggest an exponent for each weight: gradient descent (0), Muon-like (1), Newton-like (2) or between.

    From samples that did not choose the directions, with its interval and a damping; or "undetermined".
    """
    if validate_on is not ValidateOn.HELD_OUT and not validate:
        raise OptionError("--validate-on goes with --validate")
    if validate_plot is not None and not validate:
        raise OptionError("--validate-plot goes with --validate")
    on = validate_on if validate else None
    picture = None if validate_plot is None else picture_file(validate_plot)
    advice = _advise(context, model, target, options.asked, train_batch, momentum, on, kept, result.quiet)
    if picture is not None:
        write_picture(validation_picture(advice), picture)
    groups = result.emit_groups
    if groups is None:
        emit(advice, result)
    else:
        write(lambda _: emit_advice(advice, groups), result.output)
        tell((f"wrote {path}" for path in (result.output, validate_plot) if path is not None), quiet=result.quiet)


def _advise(
    context: typer.Context,
    model: str | None,
    target: o.Request,
    options: ProbeOptions,
    train_batch: int | None,
    momentum: float,
    validate_on: ValidateOn | None,
    kept: Kept,
    quiet: bool,
) -> Advice:
    if model is not None and is_saved_report(model):
        if validate_on is not None:
            raise OptionError(f"--validate takes steps with the network: name it instead of the report {model}")
        report = refit_saved(context, Path(model), options.top_k, options.min_rank, _OF_A_SAVED_REPORT)
    elif validate_on is not None:
        with loaded(target, options, context, quiet=quiet) as run:
            from spectrascope.measure.validate import advise_and_validate

            division = divide(kept, context)
            advice = advise_and_validate(
                run, train_batch=train_batch, momentum=momentum, on=validate_on, division=division
            )
            kept.keep(context, advice)
            return advice
    else:
        report = measure(target, options, context, quiet=quiet, kept=kept)
    from spectrascope.advice.advise import advise

    advice = advise(report, train_batch=train_batch, momentum=momentum)
    kept.keep(context, advice)
    return advice
