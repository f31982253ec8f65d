"""``spectrascope weights``: tails of the weights' spectra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectrascope.cli import groups
from spectrascope.cli import options as o
from spectrascope.cli.compose import composed
from spectrascope.cli.load import read_tensors
from spectrascope.cli.measure import spell_command
from spectrascope.cli.output import emit
from spectrascope.cli.progress import follow_progress
from spectrascope.errors import LoadError, OptionError
from spectrascope.records.weights import ConvView, WeightOptions, WeightsReport
from spectrascope.reports.read import read_report
from spectrascope.reports.render import render

if TYPE_CHECKING:
    from spectrascope.records.report import Report

__all__ = ["weights"]


def _options(
    top_k: o.TopK = 20,
    min_rank: o.MinRank = 1,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    split_fused: o.SplitFused = True,
    conv: Annotated[
        ConvView,
        typer.Option(
            help="Convolutions as one matrix, or as WeightWatcher's pooled slices.", rich_help_panel=o.MEASUREMENT
        ),
    ] = ConvView.FLAT,
) -> WeightOptions:
    """Which weights, seen how."""
    return WeightOptions(top_k, min_rank, tuple(layers or ()), tuple(exclude or ()), split_fused, conv)


def _network(
    model: o.Model = None,
    arch: o.Arch = None,
    base: o.Base = None,
    num_classes: o.NumClasses = None,
    trust_remote_code: o.TrustRemoteCode = False,
    seed: o.Seed = 0,
) -> tuple[groups.Request, int]:
    """The network alone."""
    return groups.Request(model, arch, base, num_classes, trust_remote_code), seed


@composed(network=_network, options=_options, result=groups.result)
def weights(
    context: typer.Context,
    network: tuple[groups.Request, int],
    options: WeightOptions,
    result: groups.Result,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="REPORT.json",
            show_default=False,
            help="A saved report of the same network: its α_H beside s_weight.",
            rich_help_panel=o.INPUT,
        ),
    ] = None,
) -> None:
    """Fit power-law tails to the weights' spectra; needs no data.

    Columns carry WeightWatcher's names where the quantity is the same. A checkpoint of unknown architecture is
    measured too: its weights are told from names and shapes.
    """
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
    beside = None if report is None else read_report(report)
    command = spell_command(context.obj or ())
    found = _measure(network[0], network[1], options, beside, command=command, quiet=result.quiet)
    emit(lambda width: render(found, result.format, width=width), result.output)


def _measure(
    target: groups.Request, seed: int, options: WeightOptions, beside: Report | None, *, command: str, quiet: bool
) -> WeightsReport:
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        from spectrascope.loading.models.open import load_model
        from spectrascope.measure.weights import measure_network_weights, measure_tensors

        on_progress("import", 1, 1)
        on_progress("load", 0, 1)
        try:
            loaded = load_model(
                target.model,
                arch=target.arch,
                base=target.base,
                num_classes=target.num_classes,
                seed=seed,
                trust_remote_code=target.trust_remote_code,
            )
        except LoadError as error:
            found = read_tensors(target, headers_only=False)
            if found is None:
                raise
            on_progress("load", 1, 1)
            tensors, info = found
            return measure_tensors(
                tensors,
                str(error),
                options,
                model_info=info,
                command=command,
                beside=beside,
                on_progress=on_progress,
            )
        on_progress("load", 1, 1)
        return measure_network_weights(
            loaded.model,
            options,
            model_info=loaded.info,
            command=command,
            beside=beside,
            on_progress=on_progress,
        )
