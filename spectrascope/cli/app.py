"""The application: its commands and what holds for all of them."""

from __future__ import annotations

from typing import Annotated

import typer

from spectrascope.cli.bench import bench
from spectrascope.cli.compare import compare
from spectrascope.cli.decompose import decompose
from spectrascope.cli.defaults import set_project_defaults
from spectrascope.cli.gate import gate
from spectrascope.cli.inspect import inspect
from spectrascope.cli.plot import plot
from spectrascope.cli.probe import probe
from spectrascope.cli.sections import SectionedCommand
from spectrascope.cli.show import show
from spectrascope.cli.suggest_beta import suggest_beta
from spectrascope.cli.trajectory import trajectory
from spectrascope.cli.triangle import triangle
from spectrascope.cli.weights import weights

__all__ = ["app"]

app = typer.Typer(
    name="spectrascope",
    help="How a network's loss curves along the singular directions of each weight's gradient.",
    add_completion=False,
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
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    set_project_defaults(context, context.command.commands[context.invoked_subcommand])  # type: ignore[attr-defined]


app.command(cls=SectionedCommand, short_help="Measure a network.")(probe)
app.command(cls=SectionedCommand, short_help="The α triangle α_H ≈ β·α_G alone, of a network or a saved report.")(
    triangle
)
app.command(
    "suggest-beta", cls=SectionedCommand, short_help="Which exponent fits each weight: gradient descent, Muon, Newton."
)(suggest_beta)
app.command(cls=SectionedCommand, short_help="What probe would measure, and at what cost; measures nothing.")(inspect)
app.command(cls=SectionedCommand, short_help="Render a saved report again; measures nothing.")(show)
app.command(cls=SectionedCommand, short_help="Hold a network or a saved report to a baseline.")(gate)
app.command(cls=SectionedCommand, short_help="What changed between two saved reports.")(compare)
app.command(cls=SectionedCommand, short_help="Draw saved reports as PNG, SVG or PDF.")(plot)
app.command(cls=SectionedCommand, short_help="Checkpoints of one run, in a row.")(trajectory)
app.command(cls=SectionedCommand, short_help="Time this engine against plain double backprop.")(bench)
app.command(cls=SectionedCommand, short_help="Power-law tails of the weights' spectra; needs no data.")(weights)
app.command(cls=SectionedCommand, short_help="Why β is what it is: factors, their alignment, and the rest.")(decompose)
