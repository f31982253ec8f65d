"""Every command shows the same ± for the same β of the same report: that of ``PowerFit.interval``."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from spectrascope.advice.advise import advise
from spectrascope.cli import main
from spectrascope.numerics.mechanisms import suits_kronecker
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Interval, Missing, PowerFit
from spectrascope.reports.charts.layer_charts import curvature_chart
from spectrascope.reports.charts.network_charts import depth_chart
from spectrascope.reports.html.page import report_html
from spectrascope.reports.html.rows import build_layer_table, layer_facts
from spectrascope.reports.json import report_to_json
from spectrascope.reports.render import Format, View, render
from spectrascope.reports.views.advice import build_advice
from tests.support.made_up_reports import decomposed_report, make_info, make_layer, make_measurement, make_report

STRAIGHT = make_layer(make_info("straight.weight"), make_measurement(wobble=0.001))
CROOKED = make_layer(make_info("crooked.weight"), make_measurement(wobble=0.3))
BETA = STRAIGHT.analysis.beta
NO_GROUPS = replace(
    STRAIGHT,
    info=make_info("grouped.not"),
    analysis=replace(STRAIGHT.analysis, beta=replace(BETA, jackknife_ci95=Missing("one group"))),
)
UNSURE = replace(
    STRAIGHT,
    info=make_info("unsure.weight"),
    analysis=replace(
        STRAIGHT.analysis, beta=replace(BETA, jackknife_ci95=Interval(BETA.value - 1.5, BETA.value + 1.5))
    ),
)
ROWS = {row.info.name: row for row in (STRAIGHT, CROOKED, NO_GROUPS, UNSURE)}


@pytest.fixture(params=list(ROWS))
def report(request: pytest.FixtureRequest) -> Report:
    return make_report((ROWS[request.param],))


def _shown(fit: PowerFit) -> str:
    return f"{fit.value:.2f} ±{fit.interval.half_width:.2f}"


def _fit(report: Report) -> tuple[LayerReport, PowerFit]:
    (row,) = report.layers
    assert isinstance(row, LayerReport)
    assert isinstance(row.analysis.beta, PowerFit)
    return row, row.analysis.beta


def _text(report: Report, form: Format, view: View) -> str:
    console = Console(width=1000, color_system=None)
    with console.capture() as capture:
        console.print(render(report, form, view=view))
    return capture.get()


def test_the_interval_is_the_wider_one() -> None:
    widths = [row.analysis.beta.interval.half_width for row in ROWS.values()]
    assert widths[0] == BETA.jackknife_ci95.half_width > BETA.ci95.half_width
    assert widths[1] == CROOKED.analysis.beta.ci95.half_width > CROOKED.analysis.beta.jackknife_ci95.half_width
    assert widths[2:] == [BETA.ci95.half_width, 1.5]


@pytest.mark.parametrize("form", [Format.TABLE, Format.MARKDOWN])
@pytest.mark.parametrize("view", [View.PROBE, View.TRIANGLE])
def test_tables(report: Report, form: Format, view: View) -> None:
    _, fit = _fit(report)
    assert re.findall(r"\d\.\d\d ±\d\.\d\d", _text(report, form, view)) == [_shown(fit)]


def test_words(report: Report) -> None:
    _, fit = _fit(report)
    assert f"β to ±{fit.interval.half_width:.2f} (median)" in _text(report, Format.TABLE, View.PROBE)


def test_the_decomposition() -> None:
    report = decomposed_report()
    found = [row for row in report.layers if isinstance(row, LayerReport)]
    alignments = [row.decomposition.alignment for row in found if not isinstance(row.decomposition, Missing)]
    text = _text(report, Format.TABLE, View.DECOMPOSITION)
    for alignment in alignments:
        if isinstance(alignment.beta_chi, PowerFit):
            assert _shown(alignment.beta) in text
            assert _shown(alignment.beta_chi) in text
            interval = alignment.beta_chi.interval
            said = suits_kronecker(alignment.beta_chi, _array(alignment.chi), 1.0).evidence
            assert f"({interval.low:+.2f} to {interval.high:+.2f})" in said
            assert said.rpartition(",")[0] == alignment.kronecker.evidence.rpartition(",")[0]


def _array(values: tuple[float, ...]):
    import numpy as np

    return np.array(values)


def test_csv_holds_both_intervals_and_the_wider_one_is_it(report: Report) -> None:
    _, fit = _fit(report)
    text = render(report, Format.CSV)
    assert isinstance(text, str)
    (row,) = csv.DictReader(io.StringIO(text))
    ends = [("beta_ci_low", "beta_ci_high"), ("beta_jackknife_low", "beta_jackknife_high")]
    widths = [float(row[high]) - float(row[low]) for low, high in ends if row[low]]
    assert max(widths) / 2 == pytest.approx(fit.interval.half_width)


def test_the_page(report: Report) -> None:
    row, fit = _fit(report)
    table = build_layer_table(report)
    (cell,) = [cell for column, cell in zip(table.columns, table.rows[0].cells, strict=True) if column.title == "β"]
    assert cell.text.rstrip("* ") == _shown(fit)
    (fact,) = [fact for fact in layer_facts(row) if fact.label == "β"]
    assert fact.more.startswith(f"95 %: {fit.interval.low:.3f} to {fit.interval.high:.3f}")
    assert _shown(fit) in report_html(report)


def test_charts(report: Report) -> None:
    row, fit = _fit(report)
    chart = depth_chart([row])
    (points,) = [part for part in chart.parts if getattr(part, "whiskers", ())]
    low, high = max(fit.interval.low, chart.y.low), min(fit.interval.high, chart.y.high)
    assert points.whiskers == ((low, high),)
    (band,) = [part for part in curvature_chart(row).parts if part.label == "95 % interval of β"]
    assert band.highs[0] / band.lows[0] == pytest.approx(
        (band.xs[0] / band.xs[1]) ** (fit.interval.low - fit.interval.high), rel=1e-6
    )


def test_suggest_beta(report: Report) -> None:
    """What was measured is shown as everywhere, beside what is recommended."""
    _, fit = _fit(report)
    advice = advise(report)
    sheet = build_advice(advice).sheets[0]
    cells = dict(zip([column.title for column in sheet.columns], sheet.rows[0].cells, strict=True))
    assert cells["published β"] == _shown(fit)


@pytest.mark.parametrize("command", ["show", "triangle", "suggest-beta"])
def test_commands(report: Report, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, fit = _fit(report)
    path = tmp_path / "saved.json"
    path.write_text(report_to_json(report), encoding="utf-8")
    assert main([command, str(path), "--format", "markdown"]) == 0
    assert re.findall(r"\d\.\d\d ±\d\.\d\d", capsys.readouterr().out) == [_shown(fit)]


def test_gate_and_compare_judge_by_no_other_interval(report: Report, tmp_path: Path, capsys) -> None:
    """They show no ± of β but the error of a *change*; both intervals stand in the numbers that rules may name."""
    _, fit = _fit(report)
    path = tmp_path / "saved.json"
    path.write_text(report_to_json(report), encoding="utf-8")
    given = ["--all", "--number", "beta.*", "--format", "csv"]
    assert main(["compare", str(path), str(path), *given]) == 0
    found = {row["number"]: row["after"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    pairs = [(f"beta.{name}.low", f"beta.{name}.high") for name in ("ci95", "jackknife_ci95")]
    widths = [float(found[high]) - float(found[low]) for low, high in pairs if found.get(low)]
    assert max(widths) / 2 == pytest.approx(fit.interval.half_width)
    assert main(["gate", str(path), "--baseline", str(path), "--format", "markdown"]) == 0
    assert "±" not in capsys.readouterr().out
