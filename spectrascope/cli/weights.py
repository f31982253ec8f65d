"""``spectrascope weights``: tails of the weights' spectra."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spectrascope.api.progress import follow_progress
from spectrascope.cli import options as o
from spectrascope.cli.load import load_model, read_tensors, refuse_absent
from spectrascope.cli.measure import spell_command
from spectrascope.cli.output import emit
from spectrascope.cli.rerun import KeptWhole
from spectrascope.errors import LoadError, OptionError
from spectrascope.records.weights import ConvView, WeightOptions, WeightsReport
from spectrascope.reports.read import read_report

if TYPE_CHECKING:
    from spectrascope.records.report import Report


@dataclass(frozen=True, slots=True)
class TailOptions:
    """Which weights, seen how: fields of :class:`WeightOptions`."""

    top_k: Annotated[
        int, o.measurement_option(min=1, metavar="K", help="Leading singular values that s_weight is fitted to.")
    ] = 20
    min_rank: Annotated[
        int, o.measurement_option(min=1, metavar="K", help="The first of them that enters the fit.")
    ] = 1
    layers: o.Layers = None
    exclude: o.Exclude = None
    split_fused: o.SplitFused = True
    conv: Annotated[
        ConvView, o.measurement_option(help="Convolutions as one matrix, or as WeightWatcher's pooled slices.")
    ] = ConvView.FLAT


def weights(
    context: typer.Context,
    network: o.Network,
    *,
    seed: Annotated[int, o.input_option(min=0, metavar="N", help="Draws random weights, as of NAME@none.")] = 0,
    options: TailOptions,
    kept: KeptWhole,
    result: o.Result,
    report: Annotated[
        Path | None,
        o.input_option(metavar="REPORT.json", help="A saved report of the same network: its α_H beside s_weight."),
    ] = None,
) -> None:
    """Fit power-law tails to the weights' spectra; needs no data.

    Columns carry WeightWatcher's names where the quantity is the same. A checkpoint of unknown architecture is
    measured too: its weights are told from names and shapes.
    """
    if options.min_rank > options.top_k:
        raise OptionError(f"--min-rank {options.min_rank} is beyond --top-k {options.top_k}")
    refuse_absent(network)
    beside = None if report is None else read_report(report)
    wanted = o.record_of(WeightOptions, options)
    found = _measure(network, seed, wanted, beside, command=spell_command(context), quiet=result.quiet)
    kept.keep(context, found)
    emit(found, result)


def _measure(
    network: o.Network, seed: int, options: WeightOptions, beside: Report | None, *, command: str, quiet: bool
) -> WeightsReport:
    with follow_progress(quiet=quiet) as on_progress:
        on_progress("import", 0, 1)
        from spectrascope.measure.weights import measure_network_weights, measure_tensors

        on_progress("import", 1, 1)
        on_progress("load", 0, 1)
        try:
            loaded = load_model(network, seed)
        except LoadError as error:
            found = read_tensors(network, headers_only=False)
            if found is None:
                raise
            on_progress("load", 1, 1)
            tensors, info = found
            return measure_tensors(
                tensors, str(error), options, model_info=info, command=command, beside=beside, on_progress=on_progress
            )
        on_progress("load", 1, 1)
        return measure_network_weights(
            loaded.model, options, model_info=loaded.info, command=command, beside=beside, on_progress=on_progress
        )
