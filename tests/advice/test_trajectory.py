"""Checkpoints in a row: order, matching of layers, what changed in words, every form."""

import csv
import doctest
import io
import json
from dataclasses import replace
from statistics import median

import pytest

import spectrascope.advice.trajectory
from spectrascope.advice.trajectory import MeasuredCheckpoint, build_trajectory, find_step, order_checkpoints
from spectrascope.errors import SpectrascopeError
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.trajectory import LayerTrack, Trajectory
from spectrascope.records.values import SCHEMA_VERSION, LayerKind, Missing, PowerFit, RankModel
from spectrascope.reports.charts.chart import Bars, Line
from spectrascope.reports.charts.training_charts import quality_charts, share_chart, track_chart, trajectory_pictures
from spectrascope.reports.csv import trajectory_columns
from spectrascope.reports.fields import TrackedNumber
from spectrascope.reports.render import Format, render
from spectrascope.reports.views.trajectory import build_trajectory_document, say_trajectory
from tests.support.chart_cases import training_checkpoints
from tests.support.made_up_reports import make_report


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    return build_trajectory(training_checkpoints())


def test_examples_in_docstrings() -> None:
    results = doctest.testmod(spectrascope.advice.trajectory)
    assert results.attempted
    assert not results.failed


@pytest.mark.parametrize(
    ("label", "step"),
    [
        ("epoch_012.pt", 12.0),
        ("checkpoint-500", 500.0),
        ("resnet20-e3-step=40.ckpt", 40.0),
        ("model_0007.safetensors", 7.0),
        ("iteration30000.pth", 30000.0),
        ("resnet20.pt.json", 20.0),
        ("final.pt", None),
    ],
)
def test_steps_in_names(label: str, step: float | None) -> None:
    assert find_step(label, Missing("not measured")) == step


def test_a_step_in_the_report_goes_first() -> None:
    report = replace(make_report(()), extra={"step": 12})
    assert find_step("epoch_3", report) == 12.0
    assert find_step("epoch_3", replace(report, extra={"step": True})) == 3.0
    assert find_step("epoch_3", replace(report, extra={"step": "x"})) == 3.0


def test_checkpoints_without_steps_of_their_own_keep_the_order_given() -> None:
    missing = Missing("-")
    items = [MeasuredCheckpoint(label, missing) for label in ("b_2", "a_1", "last")]
    assert order_checkpoints(items) == ("checkpoint", [(1.0, items[0]), (2.0, items[1]), (3.0, items[2])])
    twice = [MeasuredCheckpoint("x_2", missing), MeasuredCheckpoint("y_2", missing)]
    assert order_checkpoints(twice)[0] == "checkpoint"


def test_medians_and_wins_by_the_slow_way(trajectory: Trajectory) -> None:
    assert [point.step for point in trajectory.points] == [0, 100, 150, 200]
    assert [point.label for point in trajectory.points] == ["early", "middle", "step-150", "late"]
    reports = {item.label: item.report for item in training_checkpoints()}
    for point in trajectory.points:
        report = reports[point.label]
        if isinstance(report, Missing):
            assert point.reason == "the file is empty"
            assert point.medians["beta"] == Missing("the file is empty")
            continue
        rows = [row for row in report.layers if isinstance(row, LayerReport)]
        fits = [row.analysis.beta for row in rows]
        assert point.medians["beta"] == median([fit.value for fit in fits if isinstance(fit, PowerFit)])
        assert point.medians["pr_g"] == rows[0].measurement.pr_g
        assert sum(point.bic_wins.values()) == len(rows)
        assert set(point.bic_wins) == {model.value for model in RankModel}
        assert (point.loss, point.accuracy) == (report.provenance.loss, report.provenance.accuracy)


def test_layers_are_matched_by_name(trajectory: Trajectory) -> None:
    a, b = trajectory.layers
    assert (a.name, b.name) == ("a.weight", "b.weight")
    assert a.values["beta"][0] == pytest.approx(2.4, abs=0.01)
    assert a.values["beta"][1] == pytest.approx(2.2, abs=0.01)
    assert a.values["beta"][2] == Missing("the file is empty")
    assert a.values["beta"][3] == pytest.approx(2.0, abs=0.01)
    assert b.values["beta"][1] == Missing("the gradient is zero")
    assert b.rank_models[1] == Missing("the gradient is zero")
    assert isinstance(b.rank_models[0], RankModel)


def test_a_layer_that_a_checkpoint_lacks() -> None:
    items = training_checkpoints()
    early = items[1].report
    assert isinstance(early, Report)
    items[1] = replace(items[1], report=replace(early, layers=early.layers[:1]))
    track = build_trajectory(items).layers[1]
    assert track.values["beta"][0] == Missing("early has no such layer")


def test_what_differs_is_noted() -> None:
    items = training_checkpoints()
    late = items[0].report
    assert isinstance(late, Report)
    other = replace(late.provenance, data=replace(late.provenance.data, digest="cd" * 32), dtype="float64")
    items[0] = replace(items[0], report=replace(late, provenance=other, options=replace(late.options, top_k=10)))
    notes = build_trajectory(items).notes
    assert len(notes) == 3
    for what in ("samples", "dtypes", "windows"):
        assert any(f"2 different {what}" in note for note in notes)
    assert build_trajectory(training_checkpoints()).notes == ()


def test_nothing_to_put_in_a_row() -> None:
    with pytest.raises(SpectrascopeError, match="at least one report: the file is empty"):
        build_trajectory([MeasuredCheckpoint("x", Missing("the file is empty"))])
    with pytest.raises(SpectrascopeError, match="no checkpoint given"):
        build_trajectory([])


def test_a_trajectory_that_contradicts_itself(trajectory: Trajectory) -> None:
    with pytest.raises(ValueError, match="not in order"):
        replace(trajectory, points=trajectory.points[::-1])
    short = LayerTrack("x", LayerKind.CONV, {}, ())
    with pytest.raises(ValueError, match="layer 'x' has not one value per checkpoint"):
        replace(trajectory, layers=(short,))


def test_what_changed_in_words(trajectory: Trajectory) -> None:
    unknown, moves, models, prevailing = say_trajectory(trajectory)
    assert unknown.startswith("Not known what of this is signal: the report was written before held-out numbers")
    first, last = trajectory.points[0].medians["beta"], trajectory.points[-1].medians["beta"]
    assert moves.startswith(
        f"Published definitions, medians, first checkpoint → last: β {first:.2f} → {last:.2f}, α_G "
    )
    assert models.startswith("Rank models by BIC (power law/exponential/log-normal): ")
    assert "prevailing rank model" in prevailing


def _with_wins(trajectory: Trajectory, *wins: tuple[int, int, int]) -> Trajectory:
    names = [model.value for model in RankModel]
    points = [
        replace(trajectory.points[0], step=float(i), bic_wins=dict(zip(names, counts, strict=True)))
        for i, counts in enumerate(wins)
    ]
    return replace(trajectory, points=tuple(points), layers=())


def test_a_level_count_is_no_change(trajectory: Trajectory) -> None:
    found = say_trajectory(_with_wins(trajectory, (2, 1, 0), (2, 2, 0), (1, 2, 0), (2, 2, 1)))
    assert found[-1] == "The prevailing rank model changes at step 2 (power law → exponential)."
    assert say_trajectory(_with_wins(trajectory, (0, 0, 3), (1, 0, 2)))[-1].endswith("stays log-normal.")
    back_and_forth = _with_wins(trajectory, *[(2, 1, 0), (1, 2, 0)] * 3)
    assert say_trajectory(back_and_forth)[-1].endswith("step 4 (exponential → power law) and 1 more time.")


@pytest.mark.parametrize("number", list(TrackedNumber))
def test_the_table_follows_any_number(trajectory: Trajectory, number: TrackedNumber) -> None:
    document = build_trajectory_document(trajectory, number)
    checkpoints, layers = document.sheets
    assert [row.cells[0] for row in checkpoints.rows] == ["0", "100", "150", "200"]
    assert [row.cells[0] for row in layers.rows] == ["a.weight", "b.weight"]
    assert all(len(row.cells) == len(sheet.columns) for sheet in document.sheets for row in sheet.rows)
    assert "the file is empty" in " ".join(checkpoints.footnotes)
    assert "step-150 has no numbers: the file is empty." in [line for line, _ in document.opening]


def test_many_checkpoints_show_some_columns_and_a_profile_of_all(trajectory: Trajectory) -> None:
    point, track = trajectory.points[0], trajectory.layers[0]
    values = {number.value: tuple(float(i) for i in range(30)) for number in TrackedNumber}
    many = replace(
        trajectory,
        points=tuple(replace(point, step=float(i)) for i in range(30)),
        layers=(replace(track, values=values, rank_models=(RankModel.LOGNORMAL,) * 30),),
    )
    sheet = build_trajectory_document(many).sheets[1]
    titles = [column.title for column in sheet.columns]
    assert titles[2:10] == ["0", "4", "8", "12", "17", "21", "25", "29"]
    assert sheet.title == "step exponent by layer (at 8 of 30 checkpoints)"
    assert sheet.rows[0].cells[10] == "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"
    assert sheet.rows[0].cells[11:] == ("+29.00", "log-normal")


def test_json_and_csv_hold_every_number(trajectory: Trajectory) -> None:
    document = json.loads(render(trajectory, Format.JSON))  # type: ignore[arg-type]
    assert document["schema_version"] == SCHEMA_VERSION
    assert [point["step"] for point in document["points"]] == [0, 100, 150, 200]
    assert document["layers"][1]["values"]["beta"][1] == {"missing": "the gradient is zero"}
    rows = list(csv.DictReader(io.StringIO(render(trajectory, Format.CSV))))  # type: ignore[arg-type]
    assert list(rows[0]) == list(trajectory_columns())
    assert len(rows) == 8
    assert float(rows[0]["beta"]) == document["layers"][0]["values"]["beta"][0]
    assert rows[3]["beta"] == ""
    assert "beta: the gradient is zero" in rows[3]["missing"]


def test_charts_over_training(trajectory: Trajectory) -> None:
    chart = track_chart(trajectory, "beta")
    lines = {line.name or line.label: line for line in chart.parts if isinstance(line, Line)}
    assert lines["a.weight"].xs == (0, 100, 200)
    assert lines["b.weight"].xs == (0, 200)
    assert lines["median"].ys == tuple(trajectory.points[i].medians["beta"] for i in (0, 1, 3))
    bars = [part for part in share_chart(trajectory).parts if isinstance(part, Bars)]
    assert bars[-1].highs == pytest.approx((100.0,) * 3)
    assert bars[0].xs == (0, 100, 200)
    names = [picture.name for picture in trajectory_pictures(trajectory)]
    assert names[:3] == ["training-overview", "training-loss", "training-accuracy"]
    assert names[3:5] == ["training-rank-models", "training-beta"]
    loss, accuracy = quality_charts(trajectory)
    assert loss.parts[0].ys == tuple(point.loss for point in trajectory.points if not point.reason)
    assert accuracy.parts[0].xs == lines["median"].xs
