"""Which pictures a report has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import Enum

from spectrascope.records.report import LayerReport, Report
from spectrascope.reports.charts.chart import Chart, Picture
from spectrascope.reports.charts.decomposition_chart import decomposition_chart
from spectrascope.reports.charts.layer_charts import curvature_chart, rank_chart
from spectrascope.reports.charts.names import short_names
from spectrascope.reports.charts.network_charts import (
    depth_chart,
    measured_layers,
    participation_chart,
    rank_model_chart,
    step_chart,
    triangle_chart,
)
from spectrascope.reports.figures import format_count

__all__ = ["FEW", "LAYER_CHARTS", "NETWORK_CHARTS", "PANELS", "PictureKind", "network_charts", "report_pictures"]

PANELS = 24
"""Layers on one page of small multiples, at most."""

FEW = 12
"""Layers shown of a network that does not fit on a page."""


class PictureKind(str, Enum):
    """Pictures by name, as spelled on the command line and in file names."""

    OVERVIEW = "overview"
    CURVATURE = "curvature"
    RANKS = "ranks"
    STEPS = "step-exponents"
    TRIANGLE = "triangle"
    DEPTH = "depth"
    PARTICIPATION = "participation"
    RANK_MODELS = "rank-models"
    DECOMPOSITION = "decomposition"


LAYER_CHARTS: dict[PictureKind, tuple[Callable[[LayerReport], Chart], str]] = {
    PictureKind.CURVATURE: (curvature_chart, "h against σ"),
    PictureKind.RANKS: (rank_chart, "σ against rank, and three models of it (solid: lowest BIC)"),
}
"""Charts of one layer, and what they show."""

NETWORK_CHARTS: dict[PictureKind, Callable[[Report, Sequence[LayerReport]], Chart | None]] = {
    PictureKind.STEPS: lambda _, layers: step_chart(layers),
    PictureKind.DEPTH: lambda _, layers: depth_chart(layers),
    PictureKind.TRIANGLE: lambda _, layers: triangle_chart(layers),
    PictureKind.PARTICIPATION: lambda _, layers: participation_chart(layers),
    PictureKind.RANK_MODELS: lambda report, _: rank_model_chart(report),
    PictureKind.DECOMPOSITION: lambda _, layers: decomposition_chart(layers),
}
"""Charts of the network as a whole, in the order of the page."""

_OVERVIEW = (
    PictureKind.STEPS,
    PictureKind.DEPTH,
    PictureKind.TRIANGLE,
    PictureKind.PARTICIPATION,
    PictureKind.RANK_MODELS,
)
"""What the overview shows: of the first two one, which is β along depth where nothing was held out."""


def report_pictures(
    report: Report, kinds: Sequence[PictureKind] = tuple(PictureKind), *, all_layers: bool = False
) -> list[Picture]:
    """The pictures of a report, in the order of ``kinds``.

    Args:
        report: what to draw; layers without numbers are left out and counted. There is no picture of decompositions
            where no layer has one.
        kinds: which pictures.
        all_layers: pages of 24 layers each for ``curvature`` and ``ranks``, instead of 12 spread evenly along depth.
    """
    layers = measured_layers(report)
    model = report.provenance.model.id
    found: list[Picture] = []
    for kind in kinds:
        if kind in LAYER_CHARTS:
            found += _layer_pages(kind, model, layers, all_layers)
        elif kind is PictureKind.OVERVIEW:
            first, *others = network_charts(report, _OVERVIEW)
            charts = (first, *others[-3:])
            found.append(Picture(kind.value, f"{model}: curvature along gradient directions", charts, columns=2))
        else:
            charts = tuple(network_charts(report, [kind]))
            found += [Picture(kind.value, f"{model}: {chart.title}", (chart,)) for chart in charts]
    return found


def network_charts(report: Report, kinds: Iterable[PictureKind]) -> list[Chart]:
    """Charts of the network as a whole; without those that nothing in the report is for."""
    layers = measured_layers(report)
    charts = [NETWORK_CHARTS[kind](report, layers) for kind in kinds]
    return [chart for chart in charts if chart is not None]


def _layer_pages(kind: PictureKind, model: str, layers: Sequence[LayerReport], all_layers: bool) -> list[Picture]:
    draw, what = LAYER_CHARTS[kind]
    names = short_names([row.info.name for row in layers], 32)
    title = f"{model}: {what}"

    def page(members: Sequence[int]) -> tuple[Chart, ...]:
        return tuple(replace(draw(layers[i]), title=names[i]) for i in members)

    n = len(layers)
    if n <= PANELS:
        return [Picture(kind.value, title, page(range(n)), _columns(n))]
    if all_layers:
        pages = [range(start, min(start + PANELS, n)) for start in range(0, n, PANELS)]
        return [
            Picture(
                f"{kind.value}-{number:02d}",
                f"{title}, page {number} of {len(pages)}",
                page(members),
                _columns(PANELS),
            )
            for number, members in enumerate(pages, start=1)
        ]
    chosen = [round(i * (n - 1) / (FEW - 1)) for i in range(FEW)]
    title += f" ({FEW} of {format_count(n, 'layer')}, evenly along depth)"
    return [Picture(kind.value, title, page(chosen), _columns(FEW))]


def _columns(n: int) -> int:
    return max(1, min(n, 2 if n <= 4 else 3 if n <= 9 else 4))
