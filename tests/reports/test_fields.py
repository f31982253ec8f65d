"""A number of a layer is added by one Field: every reader shows it; and what is there is what the readers say."""

import csv
import io
from collections.abc import Callable

import pytest

from spectrascope.advice.trajectory import MeasuredCheckpoint, build_trajectory
from spectrascope.errors import PolicyError
from spectrascope.gating.changes import compare
from spectrascope.gating.grammar import parse_rule
from spectrascope.gating.judgement import judge
from spectrascope.gating.numbers import headlines, layer_value, list_numbers
from spectrascope.gating.policy import default_policy
from spectrascope.integrations.metrics import report_metrics
from spectrascope.records.report import LayerReport
from spectrascope.records.values import Missing
from spectrascope.records.verdict import GatePolicy
from spectrascope.reports import fields
from spectrascope.reports.fields import Field
from spectrascope.reports.html.page import report_html
from spectrascope.reports.html.rows import build_layer_table, layer_facts
from spectrascope.reports.html.trajectory import trajectory_html
from spectrascope.reports.order import sort_layers
from spectrascope.reports.render import Format, render
from spectrascope.reports.views.layer_sheet import build_layer_sheet
from tests.support.gate_reports import network

BEFORE = network()
AFTER = network(layer2_conv_weight={"scale": 30.0})


def _stiffness(row: LayerReport) -> float | Missing:
    h = row.measurement.h
    return max(h) if h else Missing("no direction was measured")


STIFFNESS = Field(
    "stiffness", "stiffness", "the largest curvature along a direction", _stiffness,
    form=".3f", table=3, page=True, headline=1, followed=4, logarithmic=True, sort="stiffness",
)  # fmt: skip


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Field:
    monkeypatch.setattr(fields, "FIELDS", (*fields.FIELDS, STIFFNESS))
    return STIFFNESS


def _rows(text: object) -> list[dict[str, str]]:
    assert isinstance(text, str)
    return list(csv.DictReader(io.StringIO(text)))


def _expected() -> list[float]:
    return [max(row.measurement.h) for row in BEFORE.layers if isinstance(row, LayerReport)]


@pytest.mark.usefixtures("added")
def test_one_field_and_the_table_shows_it() -> None:
    sheet = build_layer_sheet(BEFORE.layers)
    place = [column.title for column in sheet.columns].index("stiffness")
    assert sheet.columns[place].drop_order == 3
    assert [row.cells[place] for row in sheet.rows] == [f"{value:.3f}" for value in _expected()]
    assert "stiffness" in str(render(BEFORE, Format.MARKDOWN))


@pytest.mark.usefixtures("added")
def test_one_field_and_csv_holds_it() -> None:
    assert [float(row["stiffness"]) for row in _rows(render(BEFORE, Format.CSV))] == _expected()


@pytest.mark.usefixtures("added")
def test_one_field_and_the_page_shows_it() -> None:
    table = build_layer_table(BEFORE)
    place = [column.title for column in table.columns].index("stiffness")
    assert table.columns[place].about == STIFFNESS.about
    assert [float(row.cells[place].value) for row in table.rows] == _expected()
    assert STIFFNESS.about in [fact.more for fact in layer_facts(BEFORE.layers[0])]
    assert "stiffness" in report_html(BEFORE)


@pytest.mark.usefixtures("added")
def test_one_field_and_the_gate_judges_it() -> None:
    assert "stiffness" in headlines()
    assert layer_value(BEFORE.layers[0], "stiffness") == _expected()[0]
    changes = {change.layer for change in compare(BEFORE, AFTER).changes if change.number == "stiffness"}
    assert changes == {"layer2.conv.weight"}
    assert {c.number for c in compare(BEFORE, AFTER, numbers=["stiff*"]).changes} == {"stiffness"}
    verdict = judge(AFTER, BEFORE, GatePolicy((parse_rule("stiffness: +-10%"),)))
    worst = verdict.findings[0]
    assert (worst.layer, worst.mark.value) == ("layer2.conv.weight", "failed")


@pytest.mark.usefixtures("added")
def test_one_field_and_a_trajectory_follows_it() -> None:
    found = build_trajectory([MeasuredCheckpoint(f"step-{i}", r) for i, r in enumerate((BEFORE, AFTER))])
    tracks = {track.name: track.values["stiffness"] for track in found.layers}
    assert tracks["layer2.conv.weight"][1] == pytest.approx(10 * tracks["layer2.conv.weight"][0])
    assert [float(row["stiffness"]) for row in _rows(render(found, Format.CSV))][: len(BEFORE.layers)] == _expected()
    assert "stiffness by layer" in str(render(found, Format.MARKDOWN, number="stiffness"))
    assert "stiffness over training" in trajectory_html(found)
    metrics = report_metrics(BEFORE)
    assert metrics["curvature/stiffness/fc.weight"] == _expected()[-1]
    assert "curvature/stiffness_median" in metrics


@pytest.mark.usefixtures("added")
def test_one_field_and_the_table_can_be_sorted_by_it() -> None:
    values = [_stiffness(row) for row in sort_layers(AFTER, "stiffness") if isinstance(row, LayerReport)]
    assert values == sorted(values, reverse=True)


def test_nothing_is_left_of_it() -> None:
    assert "stiffness" not in headlines()
    with pytest.raises(PolicyError, match="no report holds a number 'stiffness'"):
        parse_rule("stiffness: same")


@pytest.mark.parametrize("name", headlines())
def test_a_headline_is_what_the_records_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = BEFORE.layers[0]
    assert isinstance(row, LayerReport)
    read = layer_value(row, name)
    listed = list_numbers(row)
    monkeypatch.setattr(fields, "FIELDS", ())
    assert layer_value(row, name) == read
    assert list_numbers(row) == listed


def _is_unique(names: list[str]) -> bool:
    return len(names) == len(set(names))


@pytest.mark.parametrize(
    "names_of",
    [
        lambda: [field.name for field in fields.FIELDS if field.name],
        lambda: [column for field in fields.csv_fields() for column, _ in field.csv_columns],
        lambda: [field.sort for field in fields.FIELDS if field.sort],
        lambda: [field.header for field in fields.FIELDS if field.table is not None],
    ],
    ids=["names", "columns", "orders", "headings"],
)
def test_no_name_stands_twice(names_of: Callable[[], list[str]]) -> None:
    assert _is_unique(names_of())
    assert all(field.about for field in fields.FIELDS)


def test_the_default_policy_speaks_of_fields() -> None:
    known = {field.name for field in fields.FIELDS}
    assert {rule.number for rule in default_policy().rules} - known == {
        "summary.beta_median", "loss", "summary.signal.n_resolved", "summary.signal.n_signal",
        "summary.signal.step_exponent.decrease",
    }  # fmt: skip
