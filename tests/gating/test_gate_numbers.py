"""Every number of a report can be named as JSON names it, and has the value that JSON has."""

import json
import re
from dataclasses import dataclass, replace

import pytest

from spectrascope.errors import PolicyError
from spectrascope.gating.grammar import parse_rule
from spectrascope.gating.numbers import (
    SUMMARY_HEADLINES,
    Undetermined,
    canonical,
    headlines,
    is_of_report,
    layer_value,
    list_numbers,
    report_value,
    require_known,
)
from spectrascope.records.report import LayerReport
from spectrascope.records.signal import NOT_HELD_OUT
from spectrascope.records.values import Missing, PowerFit
from spectrascope.reports.codec import LAYER_BLOCKS
from spectrascope.reports.json import report_to_json
from tests.support.gate_reports import network, with_signal
from tests.support.made_up_reports import make_info, make_layer, make_measurement, mixed_report

WIDE = make_layer(make_info("wide"), make_measurement(k=44), top_k=44)
REPORT = mixed_report()
ROWS = [row for row in REPORT.layers if isinstance(row, LayerReport)]
SIGNAL = with_signal(network())
NOISE = with_signal(network(), resolved=0)


def _in_json(record: object, path: str) -> object:
    """Follow a dotted name through JSON, the slow obvious way."""
    for key in path.split("."):
        if isinstance(record, dict) and set(record) == {"missing"}:
            return record
        if isinstance(record, dict) and key not in record and key in LAYER_BLOCKS:
            return {"missing": LAYER_BLOCKS[key].reason}  # a block that only newer reports hold
        if isinstance(record, list) and key in ("low", "high"):
            record = record[key == "high"]
        elif isinstance(record, list):
            record = next(item for item in record if item.get("name", item.get("kind")) == key)
        else:
            record = record[key]
    if isinstance(record, dict) and set(record) != {"missing"}:
        record = next(record[key] for key in ("value", "relative_error", "best") if key in record)
    return record


@pytest.mark.parametrize("row", [*ROWS, WIDE, SIGNAL.layers[1]], ids=lambda row: row.info.name[:12])
def test_every_listed_number_is_what_json_says(row: LayerReport) -> None:
    report = replace(REPORT, layers=(row,))
    (record,) = json.loads(report_to_json(report))["layers"]
    names = list_numbers(row)
    assert len(names) > 15
    for name in names:
        expected = _in_json(record, name)
        if isinstance(expected, dict):
            expected = Missing(expected["missing"])
        value = layer_value(row, name)
        if isinstance(value, Undetermined):  # an exponent that says nothing is no number to compare
            assert value.reason.startswith("undetermined")
        else:
            assert value == expected, name
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
        assert not isinstance(layer_value(SIGNAL.layers[0], name), Missing)
    for name in SUMMARY_HEADLINES:
        assert is_of_report(name)
        assert not isinstance(report_value(SIGNAL, name), Missing)
    assert list(headlines())[:3] == ["beta", "held_out.step_exponent", "samples_needed.n_resolved"]


HELD, ANALYSIS = SIGNAL.layers[0].held_out, SIGNAL.layers[0].analysis


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("held_out.beta", HELD.beta.value),
        ("held_out_beta", HELD.beta.value),
        ("held_out.beta.r2", HELD.beta.r2),
        ("held_out.step_exponent", HELD.step_exponent.value),
        ("held_out.step_exponent.value", HELD.step_exponent.value),
        ("step_exponent", HELD.step_exponent.value),
        ("held_out.step_exponent.interval.low", HELD.step_exponent.interval.low),
        ("held_out.step_exponent.determined", True),
        ("held_out.step_exponent.decrease_1", HELD.step_exponent.decrease_1),
        ("decrease", HELD.step_exponent.decrease),
        ("held_out.h[3]", HELD.h[2]),
        ("held_out.slopes[1]", HELD.slopes[0]),
        ("held_out.t[12]", HELD.t[11]),
        ("held_out.n_folds", 4),
        ("null.beta", SIGNAL.layers[0].null.beta.value),
        ("null_beta", SIGNAL.layers[0].null.beta.value),
        ("null.quantile", SIGNAL.layers[0].null.quantile),
        ("null.contains_beta", SIGNAL.layers[0].null.contains_beta),
        ("n_signal", ANALYSIS.n_signal),
        ("signal_share[1]", ANALYSIS.signal_share[0]),
        ("n_resolved", 8),
        ("samples_needed", 8),
        ("samples_needed.for_4", ANALYSIS.samples_needed.for_4),
        ("summary.signal.n_resolved", 40),
        ("summary.signal.verdict", "signal"),
        ("summary.signal.step_exponent", SIGNAL.summary.signal.step_exponent.value),
        ("summary.signal.exponent_iqr.high", SIGNAL.summary.signal.exponent_iqr.high),
    ],
)
def test_what_is_signal_can_be_named(name: str, value: object) -> None:
    number = parse_rule(f"{name}: same").number
    for spelling in (name, number):
        found = report_value(SIGNAL, spelling) if is_of_report(name) else layer_value(SIGNAL.layers[0], spelling)
        assert found == value


def test_one_name_of_what_is_signal() -> None:
    assert {canonical(n) for n in ("step_exponent", "held_out.step_exponent.value")} == {"held_out.step_exponent"}
    assert {canonical(n) for n in ("n_resolved", "samples_needed")} == {"samples_needed.n_resolved"}
    assert canonical("summary.signal.n_resolved") == "summary.signal.n_resolved"


def test_an_undetermined_exponent_is_no_number() -> None:
    step = NOISE.summary.signal.step_exponent
    assert not step.determined
    for name in ("", ".value", ".interval.low"):
        found = report_value(NOISE, f"summary.signal.step_exponent{name}")
        assert found == Undetermined(f"undetermined: {step.reason}")
    assert report_value(NOISE, "summary.signal.step_exponent.decrease") == step.decrease  # a fall must be seen
    assert report_value(NOISE, "summary.signal.step_exponent.reason") == step.reason
    row = next(row for row in NOISE.layers if not row.held_out.step_exponent.determined)
    assert isinstance(layer_value(row, "step_exponent"), Undetermined)


def test_reports_of_version_1_lack_what_is_signal() -> None:
    for name in ("step_exponent", "held_out.slopes[1]", "null.beta", "n_signal", "n_resolved", "signal_share[2]"):
        assert layer_value(network().layers[0], name) == NOT_HELD_OUT
    assert report_value(network(), "summary.signal.n_resolved") == NOT_HELD_OUT


@pytest.mark.parametrize(
    "name",
    [
        "sigma",
        "groups",
        "beta.",
        "x[",
        "beta[1]",
        "rank_models.bic",
        "summary",
        "info",
        "held_out",
        "held_out.slopes",
        "held_out.group_h[1]",
        "summary.signal",
        "null.sigma",
    ],
)
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
