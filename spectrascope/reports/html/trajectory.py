"""A trajectory as one page for a browser; see :mod:`spectrascope.reports.html.page`."""

from __future__ import annotations

from dataclasses import replace

from spectrascope.records.trajectory import LayerTrack, Trajectory
from spectrascope.records.values import Missing
from spectrascope.reports.charts.training_charts import (
    drawn_fields,
    layer_chart,
    quality_charts,
    share_chart,
    track_chart,
)
from spectrascope.reports.fields import RANK_MODEL_NAMES, Field, followed, write
from spectrascope.reports.figures import format_count
from spectrascope.reports.html.page import Files, LayerDetail, PageDirections, draw_figure, fill_page
from spectrascope.reports.html.rows import Choice, LayerFacts, PageCell, PageColumn, PageRow, PageTable
from spectrascope.reports.views.document import DASH, Sheet
from spectrascope.reports.views.facts import describe_run
from spectrascope.reports.views.trajectory import build_checkpoint_sheet, say_trajectory

__all__ = ["trajectory_html"]


def trajectory_html(trajectory: Trajectory, files: Files = ()) -> str:
    """Write a trajectory as a page: the medians and every layer over training, the rank models, the checkpoints."""
    points = trajectory.points
    charts = [
        *quality_charts(trajectory),
        share_chart(trajectory),
        *(track_chart(trajectory, field.flat) for field in drawn_fields(trajectory)),
    ]
    span = f"{trajectory.step_name} {points[0].step:g} to {points[-1].step:g}"
    sheet: Sheet = build_checkpoint_sheet(trajectory)
    return fill_page(
        "report.html.j2",
        files,
        title=f"{trajectory.model}: curvature over training",
        subtitle=f"{format_count(len(points), 'checkpoint')}, {span}",
        words=say_trajectory(trajectory),
        warnings=[(f"{point.label} has no numbers: {point.reason}.", "alarm") for point in points if point.reason]
        + [(f"{note}.", "warning") for note in trajectory.notes],
        pictures_title="Over training",
        charts=[draw_figure(chart, f"training-{i}") for i, chart in enumerate(charts)],
        table=_build_table(trajectory),
        sheets=[sheet],
        meaning=[
            "A line per layer, coloured by kind, and the median over layers; the band is the middle half of β.",
            "resolved: directions whose slope on held-out samples is at least 3 standard errors. Step exponent: of the "
            "step U diag(σ^(1−b)) Vᵀ that lowers the loss most on held-out samples (0: gradient descent, 1: Muon, 2: "
            "Newton); a layer that does not determine one has none.",
            "β, by the published definition: curvature h grows as σ^β along the gradient's singular directions, all "
            "from the same samples; noise alone gives about 2 (null β). α_G and α_H: how fast σ and h decay with rank. "
            "PR: how many directions carry curvature and gradient.",
            "Rank models: which law σ follows in its rank, by BIC.",
        ],
        layers=[_detail(trajectory, i, track) for i, track in enumerate(trajectory.layers)],
        facts=[
            *describe_run(trajectory.provenance),
            *((f"{trajectory.step_name} {point.step:g}", point.label) for point in points),
        ],
    )


def _shown() -> list[Field]:
    return [field for field in followed() if field.drawn or field.name in ("null.beta", "held_out.beta")]


def _build_table(trajectory: Trajectory) -> PageTable:
    kinds = tuple(dict.fromkeys(track.kind.value for track in trajectory.layers))
    return PageTable(
        id="layer-table",
        label="Layers, first checkpoint → last",
        columns=(
            PageColumn("layer", "name of the parameter", right=False),
            PageColumn("kind", "the operation that uses it", right=False),
            *(PageColumn(field.spoken, "first → last; sorted by the last") for field in _shown()),
            PageColumn("change of β", "last − first"),
            PageColumn("rank model", "first → last", right=False),
        ),
        rows=tuple(_row(i, track) for i, track in enumerate(trajectory.layers)),
        choices=(Choice("Kind", "kind", kinds),) if len(kinds) > 1 else (),
    )


def _row(index: int, track: LayerTrack) -> PageRow:
    beta = _known(track, "beta")
    change = beta[-1] - beta[0] if len(beta) > 1 else None
    models = [RANK_MODEL_NAMES[model] for model in track.rank_models if not isinstance(model, Missing)]
    said = DASH if not models else models[0] if models[0] == models[-1] else f"{models[0]} → {models[-1]}"
    return PageRow(
        track.name,
        (
            PageCell(track.name, track.name),
            PageCell(track.kind.value, track.kind.value),
            *(_ends(track, field) for field in _shown()),
            PageCell(DASH, "") if change is None else PageCell(f"{change:+.2f}".replace("-", "−"), repr(change)),
            PageCell(said, said if models else ""),
        ),
        (("kind", track.kind.value),),
        detail=str(index),
    )


def _ends(track: LayerTrack, field: Field) -> PageCell:
    known = _known(track, field.flat)
    if not known:
        reasons = [value.reason for value in track.values[field.flat] if isinstance(value, Missing)]
        return PageCell(DASH, "", reasons[-1] if reasons else "")
    text = " → ".join(
        str(write(value, field.form)) for value in (known[:1] if len(known) == 1 else (known[0], known[-1]))
    )
    return PageCell(text, repr(known[-1]))


def _known(track: LayerTrack, number: str) -> list[float]:
    return [value for value in track.values[number] if not isinstance(value, Missing)]


def _detail(trajectory: Trajectory, index: int, track: LayerTrack) -> LayerDetail:
    chart = layer_chart(trajectory, track)
    return LayerDetail(
        index,
        tuple(_at_checkpoint(trajectory, track, place) for place in range(len(trajectory.points))),
        (draw_figure(replace(chart, title="Exponents over training"), f"layer-{index}"),),
        PageDirections(),
    )


def _at_checkpoint(trajectory: Trajectory, track: LayerTrack, place: int) -> LayerFacts:
    point, model = trajectory.points[place], track.rank_models[place]
    label = f"{trajectory.step_name} {point.step:g}"
    step, beta = track.values["step_exponent"][place], track.values["beta"][place]
    if isinstance(beta, Missing) and isinstance(step, Missing):
        return LayerFacts(label, DASH, step.reason if step.reason == beta.reason else f"{step.reason}; {beta.reason}")
    others = [
        f"{field.spoken} {write(value, field.form)}"
        for field in sorted(followed(), key=lambda field: not field.drawn)
        if field.name not in ("beta", "held_out.step_exponent")
        and not isinstance(value := track.values[field.flat][place], Missing)
    ]
    if not isinstance(model, Missing):
        others.append(RANK_MODEL_NAMES[model])
    said = "no step exponent" if isinstance(step, Missing) else f"step exponent {step:.2f}"
    if isinstance(step, Missing):
        others.append(step.reason)
    beta_said = "no β" if isinstance(beta, Missing) else f"published β {beta:.2f}"
    return LayerFacts(label, f"{said}, {beta_said}", ", ".join(others))
