"""``spectrascope triangle``: the α triangle of a network or of a saved report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectrascope.cli import options as o
from spectrascope.cli.measure import Target, measure, spell_command
from spectrascope.cli.output import emit
from spectrascope.errors import OptionError
from spectrascope.records import EngineName, ProbeOptions, Report
from spectrascope.reports.order import Sort
from spectrascope.reports.read import read_report
from spectrascope.reports.refit import refit
from spectrascope.reports.render import View, render
from spectrascope.reports.write import check_writable

__all__ = ["triangle"]

_OF_A_SAVED_REPORT = {"model", "top_k", "min_rank", "format", "json", "sort", "output", "quiet"}

_ModelOrReport = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="As for probe, or a report saved as .json: then nothing is measured.",
    ),
]


def triangle(
    context: typer.Context,
    model: _ModelOrReport,
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
    """Check α_H ≈ β·α_G: the three exponents of each weight, their relative error and a verdict.

    JSON is the whole report, as from probe.
    """
    form = o.choose_format(format, json)
    if output is not None:
        check_writable(output)
    if model.endswith(".json"):
        report = _refit_saved(context, Path(model), top_k, min_rank)
    else:
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
    emit(lambda width: render(report, form, view=View.TRIANGLE, sort=sort, width=width), output)


def _refit_saved(context: typer.Context, path: Path, top_k: int, min_rank: int) -> Report:
    given = {name for name in context.params if not _is_default(context, name)}
    useless = sorted(given - _OF_A_SAVED_REPORT)
    if useless:
        flags = ", ".join("--" + name.replace("_", "-") for name in useless)
        raise OptionError(f"{flags} has no effect on the saved report {path}: nothing is measured")
    return refit(
        read_report(path),
        top_k=top_k if "top_k" in given else None,
        min_rank=min_rank if "min_rank" in given else None,
    )


def _is_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name in ("DEFAULT", "DEFAULT_MAP")
