"""Another window from a saved report."""

from dataclasses import replace

import pytest

from spectrascope.errors import OptionError
from spectrascope.records.report import LayerReport, Report
from spectrascope.reports.json import report_from_json, report_to_json
from spectrascope.reports.refit import refit


def _beta(report: Report) -> float:
    layer = report.layers[0]
    assert isinstance(layer, LayerReport)
    return layer.analysis.beta.value


def test_the_same_window_is_the_same_report(report: Report) -> None:
    assert refit(report) is report
    assert refit(report, top_k=20, min_rank=1) is report


def test_a_narrower_window(report: Report) -> None:
    narrow = refit(report, top_k=10, min_rank=3)
    layer = narrow.layers[0]
    assert isinstance(layer, LayerReport)
    assert layer.analysis.window == (3, 10)
    assert layer.measurement == report.layers[0].measurement
    assert (narrow.options.top_k, narrow.options.min_rank) == (10, 3)
    assert _beta(narrow) != _beta(report)
    assert narrow.summary.overall.beta_median != report.summary.overall.beta_median
    assert narrow.provenance.notes[-1] == "fitted again over ranks 3 to 10; before that, over ranks 1 to 20"
    assert narrow.layers[4:] == report.layers[4:]
    assert report_from_json(report_to_json(narrow)) == narrow


def test_it_can_be_widened_again(report: Report) -> None:
    again = refit(refit(report, top_k=10), top_k=20)
    assert again.layers == report.layers
    assert again.summary == report.summary


def test_more_than_was_measured_is_refused(report: Report) -> None:
    with pytest.raises(OptionError, match="--top-k 21 asks for more directions than the 20 that were measured"):
        refit(report, top_k=21)
    with pytest.raises(OptionError, match="more directions than the 20"):
        refit(refit(report, top_k=5), top_k=21)
    smaller = replace(report, options=replace(report.options, top_k=32))  # asked for 32, full rank was 20
    assert refit(smaller, top_k=32) is smaller


@pytest.mark.parametrize(("top_k", "min_rank"), [(5, 6), (None, 21), (None, 0), (0, None)])
def test_an_empty_window_is_refused(report: Report, top_k: int | None, min_rank: int | None) -> None:
    with pytest.raises(OptionError, match=r"--min-rank \d+ must lie between 1 and --top-k \d+"):
        refit(report, top_k=top_k, min_rank=min_rank)
