"""``spectrascope probe``: measure a network."""

from __future__ import annotations

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import Target, measure, spell_command
from spectrascope.cli.output import emit
from spectrascope.records import EngineName, ProbeOptions
from spectrascope.reports.order import Sort
from spectrascope.reports.render import render
from spectrascope.reports.write import check_writable

__all__ = ["probe"]


def probe(
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
    min_rank: o.MinRank = 1,
    layers: o.Layers = None,
    exclude: o.Exclude = None,
    engine: o.Engine = EngineName.AUTO,
    device: o.Device = "auto",
    dtype: o.Dtype = o.Precision.FLOAT32,
    micro_batch: o.MicroBatch = "auto",
    seed: o.Seed = 0,
    groups: o.Groups = 16,
    format: o.FormatOption = None,
    json: o.Json = False,
    sort: o.SortOption = Sort.ORDER,
    output: o.Output = None,
    quiet: o.Quiet = False,
) -> None:
    """Measure how the loss curves along the gradient's singular directions, weight by weight.

    Without arguments: the embedded digits-cnn on handwritten digits.
    """
    form = o.choose_format(format, json)
    if output is not None:
        check_writable(output)
    report = measure(
        Target(model, arch, num_classes, dataset, data_root, download, image_size),
        ProbeOptions(
            num_samples=num_samples,
            top_k=top_k,
            min_rank=min_rank,
            layers=tuple(layers or ()),
            exclude=tuple(exclude or ()),
            engine=engine,
            device=device,
            dtype=dtype.value,
            micro_batch=micro_batch if micro_batch == "auto" else int(micro_batch),
            seed=seed,
            groups=groups,
        ),
        command=spell_command(context.obj or ()),
        quiet=quiet,
    )
    emit(lambda width: render(report, form, sort=sort, width=width), output)
