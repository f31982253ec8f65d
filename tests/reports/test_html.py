"""The page as text: everything of the report is in it, nothing is fetched, names cannot break out."""

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from spectrascope.advice.trajectory import build_trajectory
from spectrascope.records.report import LayerReport, Measurement, Report
from spectrascope.records.values import EngineName, Missing
from spectrascope.reports.html.page import report_html
from spectrascope.reports.html.rows import layer_facts
from spectrascope.reports.html.trajectory import trajectory_html
from spectrascope.reports.render import Format, View, render
from spectrascope.reports.views.decomposition import build_decomposition
from spectrascope.reports.views.report import build_triangle
from spectrascope.reports.views.signal import say_signal
from spectrascope.text import printable
from tests.support.chart_cases import HOSTILE_NAMES, decomposed_layer, hostile_report, training_checkpoints
from tests.support.counting import calls_of
from tests.support.made_up_reports import decomposed_report, make_info, make_layer, make_measurement, make_report

VOID = {"meta", "link", "input", "wbr", "img", "br"}


class Strict(HTMLParser):
    """Every element is closed in order; collects texts, and addresses that a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attributes:
            if key in ("src", "href", "action", "xlink:href", "data"):
                self.addresses.append(value)
            if key.startswith("on") or key == "style":
                self.handlers.append(key)

    def handle_startendtag(self, tag, attributes) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("view", [View.TRIANGLE, View.DECOMPOSITION])
def test_the_page_of_a_document_says_all_of_it_and_names_cannot_break_out(view: View) -> None:
    report = decomposed_report() if view is View.DECOMPOSITION else hostile_report()
    text = render(report, Format.HTML, view=view)
    page = Strict(text)
    assert page.handlers == []
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    build = build_decomposition if view is View.DECOMPOSITION else build_triangle
    document = build(report)
    said = " ".join(" ".join(page.texts).split()).replace("\u00a0", " ")
    for line, _ in (*document.opening, *document.closing):
        assert " ".join(printable(line).split()) in said
    for sheet in document.sheets:
        assert sheet.title in said
        for part in (*sheet.footnotes, *sheet.describe_columns()):
            assert " ".join(printable(part).split()) in said
    assert text.count("<svg") >= 1


def test_the_whole_report_is_in_the_page(report: Report) -> None:
    page = Strict(report_html(report))
    text = " ".join(" ".join(page.texts).split())
    run = report.provenance
    for part in (
        "my net[red].pt: curvature along gradient directions",
        say_signal(report),
        "Curvature: median published β 1.64",
        "fewer than 4 directions have a held-out slope",
        "1 layer FAILED and has no numbers: dead.weight (the gradient is zero everywhere).",
        "3 usable points of 3, a fit needs at least 4",
        run.command,
        run.created,
        f"sha256 {run.data.digest}",
        f"sha256 {run.model.sha256}",
        "python 3.11.2, torch 2.9.0",
        "Summary: medians of 4 measured, 1 skipped, 1 failed",
    ):
        assert part in text, part
    for row in report.layers:
        if isinstance(row, LayerReport):
            for sigma, h in zip(row.measurement.sigma, row.measurement.h, strict=True):
                assert f"{sigma:.4g}" in text
                assert f"{h:.4g}" in text


@pytest.mark.parametrize("make", [hostile_report, lambda: build_trajectory(training_checkpoints())])
def test_nothing_is_fetched_and_nothing_runs_but_the_script(make) -> None:
    found = make()
    text = report_html(found) if isinstance(found, Report) else trajectory_html(found)
    page = Strict(text)
    assert all(address.startswith(("#", "data:,")) for address in page.addresses)
    assert not page.handlers
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)  # type: ignore[union-attr]
    assert policy.startswith("default-src 'none'; ")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy.replace("&#39;", "'")


def test_names_cannot_break_out() -> None:
    text = report_html(hostile_report())
    assert text.count("<script>") == 1
    assert "<img" not in text
    assert "\x1b" not in text
    page = Strict(text)
    joined = "".join(page.texts)
    for name in HOSTILE_NAMES:
        assert name.replace("\x1b", "\\x1b") in joined


def test_a_decomposition_is_drawn_where_there_is_one(report: Report) -> None:
    assert "what β is made of" not in report_html(report)
    assert "what β is made of" in report_html(make_report((decomposed_layer("p", (1.0, 1.0, 0.0)),)))


def test_the_parts_of_beta_stand_among_the_facts_of_a_layer(report: Report) -> None:
    facts = {fact.label: fact.text for fact in layer_facts(decomposed_layer("p", (1.5, 0.7, -0.2)))}
    assert facts["β_Λ, eigenvalues of the factors"] == "1.500"
    assert facts["β_Φ, alignment with the gradient"] == "0.700"
    assert facts["β_χ, beyond a Kronecker product"] == "-0.200"
    assert not any("β_" in fact.label for fact in layer_facts(report.layers[0]))


def test_an_estimate_says_how_far_off_it_may_be() -> None:
    exact = make_measurement(k=10)
    estimate = replace(exact, exact=False, engine=EngineName.FINITE_DIFFERENCE, h_stderr=(0.25,) * 9 + (7.0,))
    label = "error of the estimate"

    def shown(measurement: Measurement) -> list[tuple[str, str]]:
        facts = layer_facts(make_layer(make_info("x"), measurement))
        return [(fact.text, fact.more) for fact in facts if fact.label == label]

    assert shown(exact) == []
    assert shown(estimate) == [("±" + " ".join(["0.25"] * 8), "standard errors of h in the first 8 directions")]
    assert shown(replace(estimate, h_stderr=Missing("older"))) == [("–", "the report does not state it")]


def test_work_on_a_page_and_its_size_are_in_proportion_to_its_layers(big_report: Report) -> None:
    small = replace(big_report, layers=big_report.layers[:30])
    report_html(small)  # reads the templates
    few, many = (calls_of(lambda r=r: report_html(r)) for r in (small, big_report))
    assert many <= 10 * few
    assert many < 25_000 * len(big_report.layers)
    assert len(report_html(big_report)) < 6e6


def test_a_trajectory_page_holds_every_checkpoint_and_layer() -> None:
    text = " ".join(Strict(trajectory_html(build_trajectory(training_checkpoints()))).texts)
    for part in (
        "early",
        "middle",
        "late",
        "step-150",
        "the file is empty",
        "a.weight",
        "b.weight",
        "1/1/0" and "2.40",
    ):
        assert part in text
