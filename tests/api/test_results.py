"""What comes back to Python: short to look at, whole in frames and files, and still the record it was."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import spectrascope
from spectrascope.api.results import ComparisonResult, ProbeReport, TrajectoryResult, VerdictResult, shown
from spectrascope.errors import OptionError, ReportFormatError
from spectrascope.records.report import Report
from spectrascope.reports import report_to_json
from spectrascope.reports.csv import report_columns
from spectrascope.reports.render import Format, render


@pytest.fixture
def shown_report(report: Report) -> ProbeReport:
    return shown(report, ProbeReport)


def test_the_repr_is_a_few_lines(shown_report: ProbeReport) -> None:
    text = repr(shown_report)
    assert len(text.splitlines()) <= 9
    assert max(map(len, text.splitlines())) <= 101
    assert text.startswith(f"<spectrascope.Report of {shown_report.provenance.model.id}\n")
    assert f"of {len(shown_report.layers)} weights measured, 1 FAILED" in text


def test_printing_it_is_the_table_of_the_terminal(shown_report: ProbeReport) -> None:
    assert "Layers" in str(shown_report)
    assert max(map(len, shown_report.to_text(width=80).splitlines())) <= 80
    assert "verdict" in shown_report.to_text(view="triangle")


def test_it_is_equal_to_its_record_both_ways_and_survives_copying(report: Report, shown_report: ProbeReport) -> None:
    assert shown_report == report
    assert report == shown_report
    assert shown_report != replace(report, extra={"step": 3})
    changed = replace(shown_report, extra={"step": 3})
    assert isinstance(changed, ProbeReport)
    assert changed.extra == {"step": 3}
    for other in (pickle.loads(pickle.dumps(shown_report)), copy.deepcopy(shown_report)):
        assert type(other) is ProbeReport
        assert other == report
    assert report_to_json(shown_report) == report_to_json(report)


def test_weights_by_name(shown_report: ProbeReport) -> None:
    names = [row.info.name for row in shown_report.layers]
    assert list(shown_report) == names
    assert len(shown_report) == len(names)
    assert names[0] in shown_report
    assert "nothing" not in shown_report
    assert all(shown_report[name] is row for name, row in zip(names, shown_report.layers, strict=True))


@pytest.mark.parametrize("wrong", ["conv1", "conv1.wieght"])
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(report: Report, wrong: str) -> None:
    row = replace(report.layers[0], info=replace(report.layers[0].info, name="conv1.weight"))
    with pytest.raises(KeyError, match=r"nearest: conv1\.weight"):
        shown(replace(report, layers=(row, *report.layers[1:])), ProbeReport)[wrong]


def test_a_frame_is_the_csv(shown_report: ProbeReport) -> None:
    frame = shown_report.to_frame()
    assert tuple(frame.columns) == report_columns()
    assert list(frame["name"]) == list(shown_report)
    row = shown_report.layers[0]
    assert frame["beta"][0] == row.analysis.beta.value
    assert frame["beta"].dtype == float
    assert len(shown_report.to_frame(view="triangle").columns) < len(frame.columns)


def test_polars_is_used_where_pandas_is_not_there(shown_report: ProbeReport, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    polars = type(sys)("polars")
    polars.read_csv = lambda text, **_: read.append(text.decode()) or "a frame"
    _hide(monkeypatch, "pandas")
    monkeypatch.setitem(sys.modules, "polars", polars)
    assert shown_report.to_frame() == "a frame"
    assert read == [render(shown_report, Format.CSV)]


def test_without_either_a_frame_says_what_to_install(
    shown_report: ProbeReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hide(monkeypatch, "pandas", "polars")
    with pytest.raises(OptionError, match="pip install pandas"):
        shown_report.to_frame()


def _hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name in names:
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


@pytest.mark.parametrize("ending", ["json", "csv", "md", "tex", "txt", "html"])
def test_the_ending_says_the_form(shown_report: ProbeReport, tmp_path: Path, ending: str) -> None:
    path = shown_report.save(tmp_path / f"report.{ending}")
    begins = {"json": "{", "csv": "name,", "md": "## ", "tex": "% ", "txt": "spectrascope", "html": "<!doctype html>"}
    assert path.read_text().lower().startswith(begins[ending])
    if ending == "json":
        assert spectrascope.load(path) == shown_report
        assert json.loads(path.read_text()) == shown_report.to_dict()


def test_another_ending_is_refused(shown_report: ProbeReport, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"report.xlsx.*\.json, \.csv"):
        shown_report.save(tmp_path / "report.xlsx")
    assert not list(tmp_path.iterdir())


def test_what_is_no_report_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(ReportFormatError, match="no such file"):
        spectrascope.Report.load(tmp_path / "none.json")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr", "path", "rect", "circle", "polygon"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_a_notebook_shows_a_table_and_pictures_and_runs_nothing(shown_report: ProbeReport) -> None:
    tags = _Tags()
    tags.feed(shown_report._repr_html_())
    assert not tags.open
    names = [tag for tag, _ in tags.seen]
    assert "script" not in names
    assert names.count("svg") == 2
    assert names.count("table") == 2
    ids = [attrs["id"] for _, attrs in tags.seen if attrs.get("id")]
    assert len(set(ids)) == len(ids)
    # another report in the next cell shares no clip path with this one
    other = shown(replace(shown_report, extra={"step": 1}), ProbeReport)._repr_html_()
    assert not [name for name in ids if f'"{name}"' in other]


def test_names_in_a_notebook_are_no_markup(report: Report) -> None:
    row = replace(report.layers[0], info=replace(report.layers[0].info, name="<script>alert(1)</script>"))
    html = shown(replace(report, layers=(row, *report.layers[1:])), ProbeReport)._repr_html_()
    assert "<script" not in html


def test_styles_of_a_notebook_stay_inside(shown_report: ProbeReport) -> None:
    style = shown_report._repr_html_().partition("<style>")[2].partition("</style>")[0]
    depth, selectors, text = 0, [], ""
    for char in style:
        if char == "{":
            if depth == 0:
                selectors.append(text.strip())
            depth, text = depth + 1, ""
        elif char == "}":
            depth, text = depth - 1, ""
        else:
            text += char
    assert depth == 0
    assert all(".spectrascope" in part for s in selectors if not s.startswith("@media") for part in s.split(","))


def test_a_figure_of_a_picture(shown_report: ProbeReport) -> None:
    figure = shown_report.plot("depth", title="mine")
    assert figure.get_suptitle() == "mine"
    assert len(figure.axes) == 1
    name = next(iter(shown_report))
    assert len(shown_report.plot("curvature", layers=name).axes) == 1
    with pytest.raises(OptionError, match="no picture 'curve': expected one of overview, curvature"):
        shown_report.plot("curve")


def test_other_results_show_themselves_too(shown_report: ProbeReport) -> None:
    worse = replace(shown_report, provenance=replace(shown_report.provenance, loss=2.5))
    compared = spectrascope.compare(shown_report, worse)
    verdict = spectrascope.gate(shown_report, shown_report)
    followed = spectrascope.trajectory({"step-1": shown_report, "step-2": shown_report})
    for result, kind in ((compared, ComparisonResult), (verdict, VerdictResult), (followed, TrajectoryResult)):
        assert type(result) is kind
        assert len(repr(result)) < 600
        assert "<table" in result._repr_html_()
        assert list(result.to_frame().columns)
        assert result.to_dict()["schema_version"] == 2
        assert {item.name for item in fields(result)} == {item.name for item in fields(kind.__mro__[2])}
    assert verdict
    assert "<svg" in followed.to_html()


def test_reading_and_judging_reports_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys, spectrascope as s; r = s.load(sys.argv[1]); r.to_dict(); repr(r); r._repr_html_();"
        "s.gate(r, r); s.compare(r, sys.argv[1]); s.suggest(r); s.trajectory([r]);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(saved)], check=True, cwd=Path(__file__).parents[2])
