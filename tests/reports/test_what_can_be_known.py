"""What is signal, wherever it is read: the page, a trajectory, some weights, a report of held-out numbers only."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from spectrascope.advice.trajectory import MeasuredCheckpoint, build_trajectory
from spectrascope.cli import main
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.trajectory import Trajectory
from spectrascope.records.values import Missing
from spectrascope.reports.charts.chart import Line
from spectrascope.reports.charts.pictures import report_pictures
from spectrascope.reports.charts.svg import chart_svg
from spectrascope.reports.charts.training_charts import drawn_fields, layer_chart, track_chart
from spectrascope.reports.html.page import report_html
from spectrascope.reports.html.rows import build_layer_table, layer_facts
from spectrascope.reports.html.trajectory import trajectory_html
from spectrascope.reports.json import report_from_json, report_to_json
from spectrascope.reports.order import Sort, sort_layers
from spectrascope.reports.read import read_report
from spectrascope.reports.render import Format, View, render
from spectrascope.reports.views.signal import say_signal
from spectrascope.reports.views.trajectory import build_trajectory_document, say_trajectory
from tests.support.made_up_reports import (
    held_out_only,
    make_info,
    make_layer,
    make_measurement,
    make_report,
    with_signal,
)

GOLDEN = Path(__file__).parents[1] / "golden"
OLD = Missing("the report was written before held-out numbers were measured: measure again")


# -- the page -------------------------------------------------------------------------------------------------------


def test_the_page_begins_with_what_can_be_known(report: Report) -> None:
    page = report_html(report)
    first = re.search(r'<p class="words known">(.*?)</p>', page)
    assert first is not None
    assert first[1].replace("\u00a0", " ").replace("&#39;", "'") == say_signal(report)
    assert page.index("words known") < page.index("<main>")


def test_the_page_can_be_sorted_by_what_is_known(report: Report) -> None:
    table = build_layer_table(report)
    titles = [column.title for column in table.columns]
    assert titles[3:7] == ["resolved", "step exponent", "β", "null β"]
    resolved, step, null = (
        [row.cells[titles.index(name)] for row in table.rows] for name in ("resolved", "step exponent", "null β")
    )
    assert [cell.value for cell in resolved[:4]] == ["2.0", "0.0", "4.0", ""]
    assert step[0].value == repr(report.layers[0].held_out.step_exponent.value)
    assert (step[1].text, step[1].value) == ("undetermined", "")
    assert step[1].reason == "undetermined: no exponent predicts a decrease beyond its error"
    assert null[3].reason == "the gradient of one fold is zero"


def test_a_layer_sheet_holds_the_held_out_numbers(report: Report) -> None:
    row = report.layers[0]
    assert isinstance(row, LayerReport)
    facts = {fact.label: fact for fact in layer_facts(row)}
    step = row.held_out.step_exponent
    assert facts["what can be known"].text.startswith("2 of 20 directions resolved; ")
    wanted = {"b = 0": step.decrease_0, "b = 1": step.decrease_1, "b = 2": step.decrease_2}
    wanted |= {f"b = {step.value:.2f}": step.decrease, "best combination": step.decrease_best}
    for name, fall in wanted.items():
        assert f"{name} {fall:.3g}" in facts["step exponent"].more
    assert facts["null β"].text == "2.05"
    assert facts["null β"].more.startswith("1.90 to 2.20 over 2 draws")
    assert facts["samples for 4"].text == "7,100"
    page = report_html(report)
    for name in ("slopes", "h"):
        for value in getattr(row.held_out, name):
            assert f'<td class="right">{value:.4g}</td>' in page
    assert f'<td class="right">{row.held_out.t[0]:.1f}</td>' in page


def test_of_an_undetermined_exponent_no_value_is_shown(report: Report) -> None:
    row = report.layers[1]
    assert isinstance(row, LayerReport)
    fact = next(fact for fact in layer_facts(row) if fact.label == "step exponent")
    assert fact.text == "undetermined"
    assert fact.more.startswith("no exponent predicts a decrease beyond its error; predicted decrease")
    assert f"b = {row.held_out.step_exponent.value:.2f} " not in fact.more
    assert "no best combination: the held-out curvature matrix is not positive definite" in fact.more


# -- a report of which only held-out directions were measured, and an old one ---------------------------------------


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("view", [View.PROBE, View.TRIANGLE])
def test_a_report_of_held_out_directions_only_has_every_form(form: Format, view: View) -> None:
    report = make_report((held_out_only(),))
    render(report, form, view=view)
    assert report_from_json(report_to_json(report)) == report
    assert "h held out" in report_html(report)
    for picture in report_pictures(report):
        assert all(chart_svg(chart, "x") for chart in picture.charts)


def test_a_held_out_row_of_another_length_is_refused(report: Report) -> None:
    text = report_to_json(report).replace('"group_slopes": [', '"group_slopes": [[1.0],', 1)
    from spectrascope.errors import ReportFormatError

    with pytest.raises(ReportFormatError, match=r"conv1\.weight\)"):
        report_from_json(text)


def test_layers_are_sorted_by_what_is_known(report: Report) -> None:
    by_steps = [row.info.name for row in sort_layers(report, Sort("step"))][:2]
    assert by_steps == ["conv1.weight", report.layers[2].info.name]
    assert sort_layers(report, Sort("resolved"))[0] is report.layers[2]


@pytest.mark.parametrize("name", ["report-v1.json", "report-v1-first-release.json"])
def test_the_page_of_an_old_report_says_why(name: str) -> None:
    page = report_html(read_report(GOLDEN / name))
    assert f"Not known whether this is signal: {OLD.reason}." in page


# -- show -----------------------------------------------------------------------------------------------------------


def test_show_takes_some_weights(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(saved), "--layers", "conv*", "--format", "csv"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["name", "conv1.weight"]
    assert main(["show", str(saved), "--layers", "a[red]b|c", "--format", "csv"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["name", "a[red]b|c"]
    assert main(["show", str(saved), "--exclude", "*conv*", "--exclude", "a*", "--format", "csv"]) == 0
    assert "conv1" not in capsys.readouterr().out


def test_show_refuses_a_glob_that_leaves_nothing(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(saved), "--layers", "nowhere*"]) == 2
    assert "--layers 'nowhere*' leaves none of the report's 6 layers" in capsys.readouterr().err


def test_of_some_weights_the_first_line_speaks_of_those(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(saved), "--layers", "conv1.weight", "--format", "markdown"]) == 0
    assert "Signal: 2 of 20 directions resolved, on 1 of 1 weight" in capsys.readouterr().out


# -- over training --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    """Two layers early, when both determine an exponent, and late, when one does."""
    layer = make_layer(make_info("a.weight"), make_measurement())
    other = replace(layer, info=make_info("b.weight"))
    noisy = make_layer(make_info("b.weight"), make_measurement(beta=1.6, decay=1.2, n_negative=2, wobble=0.4))
    early = make_report((with_signal(layer), with_signal(other, scatter=0.2)))
    late = make_report((with_signal(layer), with_signal(noisy, share=0.2, fall=-0.9, scatter=0.2, seed=1)))
    return build_trajectory([MeasuredCheckpoint(f"step-{i}", report) for i, report in enumerate((early, late))])


def test_what_is_known_can_be_followed(trajectory: Trajectory) -> None:
    a, b = trajectory.layers
    assert a.values["n_resolved"] == (2, 2)
    assert b.values["n_resolved"] == (3, 0)
    assert isinstance(b.values["step_exponent"][0], float)
    assert b.values["step_exponent"][1] == Missing("undetermined: no exponent predicts a decrease beyond its error")
    assert a.values["null_beta"] == pytest.approx((2.05, 2.05))
    assert set(a.values) >= {"held_out_beta", "beta"}


def test_the_words_say_what_is_undetermined(trajectory: Trajectory) -> None:
    lines = say_trajectory(trajectory)
    early, late = (point.medians["step_exponent"] for point in trajectory.points)
    assert lines[0] == (
        f"Held-out samples, first checkpoint → last: directions resolved 5 → 2, step exponent {early:.2f} (median of 2 "
        f"of 2 layers that determine one) → {late:.2f} (median of 1 of 2 layers that determine one)."
    )
    assert "; noise alone gives β 2.05 → 2.05." in lines[1]
    none = [replace(point, medians={**point.medians, "step_exponent": Missing("-")}) for point in trajectory.points]
    assert "step exponent undetermined → undetermined." in say_trajectory(replace(trajectory, points=tuple(none)))[0]


def test_the_table_of_layers_follows_step_exponents_unless_asked_for_beta(trajectory: Trajectory) -> None:
    sheet = build_trajectory_document(trajectory).sheets[1]
    assert sheet.title == "step exponent by layer"
    assert sheet.footnotes == ("¹ undetermined: no exponent predicts a decrease beyond its error",)
    assert build_trajectory_document(trajectory, "beta").sheets[1].title == "β by layer"


def test_what_is_undetermined_has_no_point_over_training(trajectory: Trajectory) -> None:
    chart = track_chart(trajectory, "step_exponent")
    assert chart.note == "Undetermined or not measured: 1 of 4"
    lines = {part.name: part for part in chart.parts if isinstance(part, Line)}
    assert lines["b.weight"].xs == (0,)
    noise = [part for part in track_chart(trajectory, "beta").parts if part.label == "noise alone, median"]
    assert [part.ys for part in noise if isinstance(part, Line)] == [pytest.approx((2.05, 2.05))]
    assert "step exponent" in [part.label for part in layer_chart(trajectory, trajectory.layers[0]).parts]
    page = trajectory_html(trajectory)
    assert "step exponent over training" in page
    assert "no step exponent, published β" in page


def test_of_old_reports_nothing_is_drawn_that_they_lack() -> None:
    old = make_report((make_layer(make_info("a.weight"), make_measurement()),))
    found = build_trajectory([MeasuredCheckpoint(f"step-{i}", old) for i in range(2)])
    assert {field.flat for field in drawn_fields(found)} >= {"beta", "alpha_g"}
    assert not {field.flat for field in drawn_fields(found)} & {"step_exponent", "n_resolved"}
    assert say_trajectory(found)[0] == f"Not known what of this is signal: {OLD.reason}."
    assert f"¹ {OLD.reason}" in build_trajectory_document(found).sheets[1].footnotes
