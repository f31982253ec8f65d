"""Every number of a report can be named as JSON names it, and has the value that JSON has."""

import json
import re
from dataclasses import dataclass, replace

import pytest

from spectrascope.errors import PolicyError
from spectrascope.gating.grammar import parse_rule
from spectrascope.gating.numbers import (
    SUMMARY_HEADLINES,
    canonical,
    headlines,
    is_of_report,
    layer_value,
    list_numbers,
    report_value,
    require_known,
)
from spectrascope.records.report import LayerReport
from spectrascope.records.values import Missing, PowerFit
from spectrascope.reports.json import report_to_json
from tests.support.gate_reports import network
from tests.support.made_up_reports import make_info, make_layer, make_measurement, mixed_report

WIDE = make_layer(make_info("wide"), make_measurement(k=44), top_k=44)
REPORT = mixed_report()
ROWS = [row for row in REPORT.layers if isinstance(row, LayerReport)]


def _in_json(record: object, path: str) -> object:
    """Follow a dotted name through JSON, the slow obvious way."""
    for key in path.split("."):
        if isinstance(record, dict) and set(record) == {"missing"}:
            return record
        if isinstance(record, list) and key in ("low", "high"):
            record = record[key == "high"]
        elif isinstance(record, list):
            record = next(item for item in record if item.get("name", item.get("kind")) == key)
        else:
            record = record[key]
    if isinstance(record, dict) and set(record) != {"missing"}:
        record = next(record[key] for key in ("value", "relative_error", "best") if key in record)
    return record


@pytest.mark.parametrize("row", [*ROWS, WIDE], ids=lambda row: row.info.name[:12])
def test_every_listed_number_is_what_json_says(row: LayerReport) -> None:
    report = replace(REPORT, layers=(row,))
    (record,) = json.loads(report_to_json(report))["layers"]
    names = list_numbers(row)
    assert len(names) > 15
    for name in names:
        expected = _in_json(record, name)
        if isinstance(expected, dict):
            expected = Missing(expected["missing"])
        assert layer_value(row, name) == expected, name
        assert parse_rule(f"{name}: same").number == canonical(name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigma[1]", ROWS[0].measurement.sigma[0]),
        ("h[20]", ROWS[0].measurement.h[19]),
        ("curvature_matrix[2][3]", ROWS[0].measurement.curvature_matrix[1][2]),
        ("window[2]", 20),
        ("r2", ROWS[0].analysis.beta.r2),
        ("beta.value", ROWS[0].analysis.beta.value),
        ("beta.jackknife_ci95.low", ROWS[0].analysis.beta.jackknife_ci95.low),
        ("rank_models.params.lognormal[3]", ROWS[0].analysis.rank_models.fits[2].params[2]),
        ("engine", "gauss-newton"),
        ("exact", True),
        ("sigma[21]", Missing("sigma[21]: there are 20")),
        ("info.frozen", False),
    ],
)
def test_single_entries(name: str, value: object) -> None:
    parse_rule(f"{name}: same")
    assert layer_value(ROWS[0], name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", 0.71234),
        ("accuracy", 0.8027),
        ("provenance.seconds.curvature", 7.25),
        ("provenance.seconds.coffee", Missing("no coffee in this report")),
        ("provenance.self_check.residual", 2.2e-6),
        ("summary.n_failed", REPORT.summary.n_failed),
        ("summary.beta_median", REPORT.summary.overall.beta_median),
        ("summary.overall.beta_median", REPORT.summary.overall.beta_median),
        ("summary.conv.beta_median", REPORT.summary.by_kind[-1].beta_median),
        ("summary.embedding.beta_median", Missing("no measured layer of kind embedding")),
        ("summary.bic_wins.lognormal", REPORT.summary.overall.bic_wins["lognormal"]),
    ],
)
def test_numbers_of_the_whole_report(name: str, value: object) -> None:
    parse_rule(f"{name}: same")
    assert is_of_report(name)
    assert report_value(REPORT, name) == value


def test_headlines_exist() -> None:
    for name in headlines():
        assert not is_of_report(name)
        assert not isinstance(layer_value(network().layers[0], name), Missing)
    for name in SUMMARY_HEADLINES:
        assert is_of_report(name)
        assert not isinstance(report_value(network(), name), Missing)


@pytest.mark.parametrize("name", ["sigma", "groups", "beta.", "x[", "beta[1]", "rank_models.bic", "summary", "info"])
def test_what_is_no_single_number(name: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(f"no report holds a number {name!r}")):
        require_known(name, of_layers=False, rule="r")


def test_a_block_that_a_later_release_adds_can_be_named_at_once() -> None:
    @dataclass(frozen=True)
    class Extended:
        info: object
        measurement: object
        analysis: object
        decomposition: PowerFit

    fit = ROWS[0].analysis.beta
    row = Extended(ROWS[0].info, ROWS[0].measurement, ROWS[0].analysis, fit)
    assert layer_value(row, "decomposition.r2") == fit.r2
    assert layer_value(row, "beta") == fit.value
