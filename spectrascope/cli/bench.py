"""``spectrascope bench``: speed against plain double backprop."""

from __future__ import annotations

from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import Target, measure_bench, spell_command
from spectrascope.cli.output import emit
from spectrascope.records import EngineName, ProbeOptions
from spectrascope.reports.render import render_bench
from spectrascope.reports.write import check_writable

__all__ = ["bench"]


def bench(
    context: typer.Context,
    model: o.Model = None,
    arch: o.Arch = None,
    num_classes: o.NumClasses = None,
    dataset: o.Dataset = None,
    data_root: o.DataRoot = None,
    download: o.Download = False,
    image_size: o.ImageSize = None,
    num_samples: o.NumSamples = 2048,
    top_k: o.TopK = 20,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    engine: o.Engine = EngineName.AUTO,
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.FLOAT32,
    micro_batch: o.MicroBatch = "auto",
    seed: o.Seed = 0,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", rich_help_panel=o.MEASUREMENT, help="Interleaved rounds of timing.")
    ] = 3,
    format: o.FormatOption = None,
    json: o.Json = False,
    output: o.Output = None,
    quiet: o.Quiet = False,
) -> None:
    """Time this engine against plain double backprop on the same layers and directions, in one run."""
    form = o.choose_format(format, json)
    if output is not None:
        check_writable(output)
    result = measure_bench(
        Target(model, arch, num_classes, dataset, data_root, download, image_size),
        ProbeOptions(
            num_samples=num_samples,
            top_k=top_k,
            layers=tuple(layers or ()),
            exclude=tuple(exclude or ()),
            engine=engine,
            device=device,
            dtype=dtype.value,
            micro_batch=micro_batch if micro_batch == "auto" else int(micro_batch),
            seed=seed,
        ),
        rounds=rounds,
        command=spell_command(context.obj or ()),
        quiet=quiet,
    )
    emit(lambda width: render_bench(result, form, width=width), output)
