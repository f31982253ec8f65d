"""The application: its commands and what holds for all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from spectrascope.cli.bench import bench
from spectrascope.cli.card import card
from spectrascope.cli.compare import compare
from spectrascope.cli.compose import Commands, SectionedCommand, composed
from spectrascope.cli.decompose import decompose
from spectrascope.cli.defaults import set_project_defaults
from spectrascope.cli.explain import explain
from spectrascope.cli.gate import gate
from spectrascope.cli.inspect import inspect
from spectrascope.cli.plot import plot
from spectrascope.cli.probe import probe
from spectrascope.cli.rerun import PASSED_ON, merge, rerun
from spectrascope.cli.show import show
from spectrascope.cli.suggest_beta import suggest_beta
from spectrascope.cli.trajectory import trajectory
from spectrascope.cli.triangle import triangle
from spectrascope.cli.weights import weights

app = typer.Typer(
    name="spectrascope",
    help="How a network's loss curves along the singular directions of each weight's gradient.",
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"spectrascope {version('spectrascope')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    set_project_defaults(context, context.command.commands[context.invoked_subcommand])  # type: ignore[attr-defined]


for _command, _short_help in (
    (probe, "Measure how the loss curves along each weight's gradient, and what is signal."),
    (triangle, "The α triangle α_H ≈ β·α_G alone, of a network or a saved report."),
    (suggest_beta, "Which exponent fits each weight: gradient descent, Muon, Newton."),
    (inspect, "What probe would measure, and at what cost; measures nothing."),
    (explain, "What a word of the tables means, and what a report says of it."),
    (show, "Render a saved report again; measures nothing."),
    (gate, "Fail where curvature has changed against a baseline."),
    (compare, "What changed between two saved reports."),
    (card, "A section for a Hub model card, from a saved report."),
    (plot, "Draw saved reports as pictures: PNG, SVG or PDF."),
    (trajectory, "What changes over the checkpoints of a training."),
    (rerun, "Go on with a run kept by --run, or measure it again."),
    (merge, "Put together what the shards of a kept run measured."),
    (bench, "Time spectrascope against double backprop and other tools."),
    (weights, "Power-law tails of the weights' spectra; needs no data."),
    (decompose, "Why β is what it is: factors, their alignment, and the rest."),
):
    _settings = {explain: {"ignore_unknown_options": True}, rerun: PASSED_ON, merge: PASSED_ON}.get(_command, {})
    app.command(cls=SectionedCommand, short_help=_short_help, context_settings=_settings)(composed(_command))
