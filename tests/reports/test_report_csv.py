"""CSV, JSON and table tell the same numbers, one row per layer."""

import csv
import io
import json
import re
from statistics import median

import pytest
from rich.console import Console

from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing, PowerFit
from spectrascope.reports.csv import TRIANGLE_COLUMNS, bench_to_csv, report_columns, report_to_csv, triangle_to_csv
from spectrascope.reports.json import report_to_json
from spectrascope.reports.order import Sort
from spectrascope.reports.render import Format, render
from spectrascope.reports.views.layer_sheet import build_layer_sheet
from tests.support.made_up_reports import LONG_NAME


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_one_row_per_layer_with_the_documented_columns(report: Report) -> None:
    text = report_to_csv(report)
    rows = _rows(text)
    assert tuple(rows[0]) == report_columns()
    assert len(set(report_columns())) == len(report_columns())
    assert [row["name"] for row in rows] == [layer.info.name for layer in report.layers]
    assert rows[1]["name"] == "a[red]b|c"
    assert rows[2]["name"] == LONG_NAME


def test_rows_without_numbers(report: Report) -> None:
    failed = _rows(report_to_csv(report))[5]
    filled = {key for key, value in failed.items() if value}
    assert filled == {"name", "kind", "role", "M", "N", "status", "reason"}
    assert failed["status"] == "failed"
    assert failed["reason"] == "the gradient is zero everywhere"


def test_missing_values_are_empty_with_a_reason(report: Report) -> None:
    tiny = _rows(report_to_csv(report))[3]
    assert tiny["beta"] == tiny["alpha_g"] == tiny["triangle_error"] == tiny["rank_model"] == ""
    assert "beta: 3 usable points of 3" in tiny["missing"]
    residual = _rows(report_to_csv(report))[1]
    assert residual["residual"] == ""
    assert "residual: not among the pairs compared" in residual["missing"].split("; ")


def test_what_is_signal_is_in_csv_in_full(report: Report) -> None:
    first, undetermined, third, absent = _rows(report_to_csv(report))[:4]
    layer = report.layers[0]
    assert isinstance(layer, LayerReport)
    held, null, needed = layer.held_out, layer.null, layer.analysis.samples_needed
    step = held.step_exponent
    expected = {
        "n_resolved": needed.n_resolved, "samples_for_4": needed.for_4, "samples_for_all": needed.for_all,
        "n_signal": layer.analysis.n_signal, "signal_share_median": median(layer.analysis.signal_share),
        "step_exponent": step.value, "step_exponent_low": step.interval.low, "step_exponent_high": step.interval.high,
        "decrease": step.decrease, "decrease_stderr": step.decrease_stderr, "decrease_0": step.decrease_0,
        "decrease_1": step.decrease_1, "decrease_2": step.decrease_2, "decrease_best": step.decrease_best,
        "null_beta": null.beta.value, "null_beta_low": null.beta.low, "null_beta_high": null.beta.high,
        "null_beta_draws": 2, "null_quantile": null.quantile, "n_folds": 4,
    }  # fmt: skip
    assert {name: float(first[name]) for name in expected} == expected
    assert (first["step_exponent_determined"], undetermined["step_exponent_determined"]) == ("true", "false")
    assert first["null_contains_beta"] == "true"
    assert float(third["held_out_beta"]) == report.layers[2].held_out.beta.value
    assert undetermined["step_exponent"] == ""
    why = "step_exponent: undetermined: no exponent predicts a decrease beyond its error"
    assert why in undetermined["missing"].split("; ")
    assert absent["n_resolved"] == absent["step_exponent"] == absent["null_beta"] == ""
    assert "null_beta: the gradient of one fold is zero" in absent["missing"].split("; ")


def test_every_number_equals_the_one_in_json(report: Report) -> None:
    document = json.loads(report_to_json(report))
    paths = {
        "rank": ("rank",),
        "full_rank": ("full_rank",),
        "k1": ("window", 0),
        "k2": ("window", 1),
        "M": ("shape", 0),
        "N": ("shape", 1),
        "sigma_1": ("sigma", 0),
        "h_1": ("h", 0),
        "triangle_predicted": ("triangle", "predicted"),
        "triangle_error": ("triangle", "relative_error"),
        "rank_model_delta_bic": ("rank_models", "delta_bic"),
        "bic_lognormal": ("rank_models", "bic", "lognormal"),
        "aic_exponential": ("rank_models", "aic", "exponential"),
        "rss_power_law": ("rank_models", "rss", "power_law"),
        "zeta_finite": ("zeta_bound", "finite"),
    }
    paths |= {name: (name,) for name in ("pr_h", "pr_g", "n_negative", "noise_floor", "off_diagonal_mass")}
    for fit in ("beta", "alpha_g", "alpha_h"):
        paths |= {
            fit: (fit, "value"),
            f"{fit}_stderr": (fit, "stderr"),
            f"{fit}_ci_low": (fit, "ci95", 0),
            f"{fit}_ci_high": (fit, "ci95", 1),
            f"{fit}_jackknife_low": (fit, "jackknife_ci95", 0),
            f"{fit}_jackknife_high": (fit, "jackknife_ci95", 1),
            f"{fit}_r2": (fit, "r2"),
            f"{fit}_n": (fit, "n"),
            f"{fit}_n_dropped": (fit, "n_dropped"),
        }
    for row, layer in zip(_rows(report_to_csv(report))[:3], document["layers"], strict=False):
        for column, path in paths.items():
            value = layer
            for key in path:
                value = value[key]
            assert float(row[column]) == value, (row["name"], column)


def test_the_table_shows_the_same_numbers_rounded(report: Report) -> None:
    sheet = build_layer_sheet(report.layers)
    titles = [column.title for column in sheet.columns]
    for layer, line in zip(report.layers, sheet.rows, strict=True):
        cells = dict(zip(titles, line.cells, strict=True))
        if not isinstance(layer, LayerReport) or isinstance(layer.analysis.beta, Missing):
            assert cells["β"].startswith("–")
            continue
        analysis = layer.analysis
        assert isinstance(analysis.alpha_g, PowerFit)
        assert isinstance(analysis.alpha_h, PowerFit)
        value, spread = (float(part.strip("*± ")) for part in cells["β"].split(" ", 1))
        interval = analysis.beta.interval
        assert value == pytest.approx(analysis.beta.value, abs=0.005001)
        assert spread == pytest.approx((interval.high - interval.low) / 2, abs=0.005001)
        assert float(cells["R²"]) == pytest.approx(analysis.beta.r2, abs=0.00051)
        assert float(cells["α_G"]) == pytest.approx(analysis.alpha_g.value, abs=0.0051)
        assert float(cells["α_H"]) == pytest.approx(analysis.alpha_h.value, abs=0.0051)
        assert float(cells["β·α_G"]) == pytest.approx(analysis.triangle.predicted, abs=0.0051)
        error = float(re.sub(r"[ %]", "", cells["triangle"])) / 100
        assert error == pytest.approx(analysis.triangle.relative_error, abs=0.00051)
        assert cells["h<0"] == str(analysis.n_negative)
        assert float(cells["PR_h"]) == pytest.approx(analysis.pr_h, abs=0.0051)


def test_the_drawn_table_holds_every_cell(report: Report) -> None:
    console = Console(width=10_000, color_system=None)
    with console.capture() as capture:
        console.print(render(report, Format.TABLE))
    drawn = capture.get()
    for line in build_layer_sheet(report.layers).rows:
        shown = next(text for text in drawn.splitlines() if text.startswith(line.cells[0] + " "))
        assert shown.split() == " ".join(line.cells).split()


def test_triangle_columns(report: Report) -> None:
    rows = _rows(triangle_to_csv(report, Sort.TRIANGLE))
    assert tuple(rows[0]) == TRIANGLE_COLUMNS
    errors = [float(row["triangle_error"]) for row in rows if row["triangle_error"]]
    assert errors == sorted(errors, reverse=True)
    assert {row["triangle_well_conditioned"] for row in rows} <= {"true", "false", ""}


def test_bench_is_one_row(bench) -> None:
    (row,) = _rows(bench_to_csv(bench))
    assert row["model"] == "my net[red].pt"
    assert float(row["ratio"]) == bench.ratio
    assert row["extrapolated"] == "true"
    assert (row["PyHessian_version"], float(row["PyHessian_ratio"])) == ("0.1", 105.0)
    assert row["curvlinops_ratio"] == ""


@pytest.mark.parametrize("sort", list(Sort))
def test_every_order_keeps_every_row(report: Report, sort: Sort) -> None:
    names = [row["name"] for row in _rows(report_to_csv(report, sort))]
    assert sorted(names) == sorted(layer.info.name for layer in report.layers)


def test_orders(report: Report) -> None:
    def names(sort: Sort) -> list[str]:
        return [row["name"] for row in _rows(report_to_csv(report, sort))]

    short = {"conv1.weight": "conv1", "a[red]b|c": "a", LONG_NAME: "long"}
    assert [short.get(name) for name in names(Sort.BETA)[:3]] == ["conv1", "a", "long"]
    assert [short.get(name) for name in names(Sort.R2)[:3]] == ["a", "long", "conv1"]
    assert names(Sort.STATUS)[0] == "dead.weight"
    assert names(Sort.STATUS)[-1] == "head.bias"
    assert names(Sort.NAME) == sorted(names(Sort.ORDER))
    assert names(Sort.RESIDUAL)[3:] == ["a[red]b|c", "head.bias", "dead.weight"]
