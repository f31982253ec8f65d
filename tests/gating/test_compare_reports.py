"""Comparing two reports: what is listed, what is not, and the error beside it."""

from dataclasses import replace

import pytest

from spectrascope.errors import OptionError
from spectrascope.gating.changes import compare
from spectrascope.gating.noise import NoiseMeter
from spectrascope.gating.numbers import SUMMARY_HEADLINES, headlines
from spectrascope.numerics.analysis import analyse
from spectrascope.records.comparison import WHOLE_REPORT, Change
from spectrascope.records.report import Report
from spectrascope.records.values import LayerStatus, Missing
from spectrascope.reports.render import Format, render
from tests.support.gate_reports import NAMES, network, with_measurement, with_run, with_status, without

BASE = network()
DRIFTED = network(layer2_conv_weight={"beta": 2.3})


def test_equal_reports_have_no_changes() -> None:
    found = compare(BASE, BASE)
    assert found.changes == ()
    assert found.n_compared == found.n_unchanged == len(SUMMARY_HEADLINES) + len(NAMES) * len(headlines())
    assert found.comparable
    everything = compare(BASE, BASE, unchanged=True)
    assert len(everything.changes) == found.n_compared
    assert {change.change for change in everything.changes if not isinstance(change.change, Missing)} == {0.0}


def test_a_drift_is_listed_with_its_error() -> None:
    found = compare(BASE, DRIFTED)
    assert {change.layer for change in found.changes} == {WHOLE_REPORT, "layer2.conv.weight"}
    (beta,) = [change for change in found.changes if change.number == "beta"]
    assert beta.change == pytest.approx(0.6, abs=0.05)
    error = NoiseMeter(BASE, DRIFTED, paired=True).of_layer(BASE.layers[2], DRIFTED.layers[2], "beta")
    assert beta.stderrs == pytest.approx(beta.change / error.value)
    assert found.changes[0].layer == WHOLE_REPORT
    assert found.n_compared - found.n_unchanged == len(found.changes)


def test_layers_that_come_and_go() -> None:
    found = compare(without(BASE, "conv1.weight"), with_status(BASE, "fc.weight", LayerStatus.FAILED))
    states = {change.layer: (change.before, change.after) for change in found.changes if change.number == "status"}
    assert states == {"conv1.weight": (Missing("no such layer"), "ok"), "fc.weight": ("ok", "failed")}


def test_which_numbers() -> None:
    found = compare(BASE, DRIFTED, numbers=["rank_models.bic.*", "sigma*"], unchanged=True, layers=["layer2*"])
    assert [change.number for change in found.changes] == [
        f"rank_models.bic.{model}" for model in ("power_law", "exponential", "lognormal")
    ]
    with pytest.raises(OptionError, match=r"--number nope\* matches no number"):
        compare(BASE, DRIFTED, numbers=["nope*"])


def test_a_change_must_show() -> None:
    m = BASE.layers[0].measurement
    nudged = with_measurement(BASE, NAMES[0], pr_g=m.pr_g * (1 + 1e-5))
    assert not compare(BASE, nudged).changes
    (change,) = compare(BASE, nudged, precision=6).changes
    assert (change.layer, change.number) == (NAMES[0], "pr_g")


def test_what_makes_reports_incomparable_is_said_not_refused() -> None:
    found = compare(BASE, with_run(BASE, dtype="float64", device="cuda:0"))
    assert [(d.what, d.forbids) for d in found.differences] == [("dtype", True), ("device", False)]
    assert not found.comparable


def test_unpaired_where_the_samples_differ() -> None:
    other = network(1, "cd" * 32)
    found = compare(BASE, other)
    assert not found.paired
    rare = [c for c in found.changes if not isinstance(c.stderrs, Missing) and abs(c.stderrs) > 4]
    assert not rare


def test_layers_restrict_the_summary_too() -> None:
    found = compare(BASE, DRIFTED, layers=["layer2*"])
    (median,) = [change for change in found.changes if change.number == "summary.beta_median"]
    assert median.after == DRIFTED.layers[2].analysis.beta.value
    assert replace(found, changes=()).n_compared == len(SUMMARY_HEADLINES) + len(headlines())


def test_no_change_has_no_sign() -> None:
    """Numbers and their signs as people read them: 0 and 0.0, never +0 or -0.0."""
    before, after = network(), network(layer2_conv_weight={"beta": 2.3})
    text = render(compare(before, after, unchanged=True), Format.MARKDOWN)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    cells = {(layer, number.replace("\\", "")): changes for layer, number, _, _, *changes in rows}
    assert cells["conv1.weight", "alpha_g"][:2] == ["0", "0.0"]
    assert cells["layer2.conv.weight", "beta"][0].startswith("+0.")
    tiny = replace(compare(before, after), changes=(Change("w", "beta", 2.0, 2.0 - 1e-5, -1e-5, -0.01),))
    assert "| -1e-05 | 0.0 | 0.0 |" in render(tiny, Format.MARKDOWN)


def test_reports_of_held_out_directions_alone() -> None:
    """They hold no curvature along the batch's own directions, of which nothing is then compared."""

    def alone(report: Report) -> Report:
        rows = []
        for row in report.layers:
            m = replace(row.measurement, h=(), group_h=((),) * 16, curvature_matrix=())
            rows.append(replace(row, measurement=m, analysis=analyse(m, top_k=12)))
        return replace(report, layers=tuple(rows))

    found = compare(alone(network(1)), alone(network(2, f"{2:064d}")), numbers=("alpha_g", "beta"), unchanged=True)
    of_layers = [change for change in found.changes if change.layer != WHOLE_REPORT]
    assert of_layers
    for change in of_layers:
        if change.number == "alpha_g":
            assert not isinstance(change.stderrs, Missing)
        else:
            assert isinstance(change.after, Missing)
