"""Files drawn with matplotlib: the kind they claim to be, the same bytes each time, hostile names harmless."""

import io
import re
import sys
import warnings
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from spectrascope.errors import OptionError
from spectrascope.records.report import Report
from spectrascope.reports.charts.notation import mathtext
from spectrascope.reports.charts.pictures import PictureKind, report_pictures
from spectrascope.reports.charts.plots import draw_pages, draw_picture, make_figure
from spectrascope.reports.charts.svg import chart_svg
from tests.support.chart_cases import HOSTILE_NAMES, blocks_report, hostile_report, one_layer_report, skipped_report
from tests.support.counting import calls_of

matplotlib = pytest.importorskip("matplotlib", reason="pictures need matplotlib")
FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg

SIGNATURES = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}


@pytest.mark.parametrize("suffix", list(SIGNATURES))
def test_every_kind_of_file_is_the_same_each_time(report: Report, suffix: str) -> None:
    (picture,) = report_pictures(report, [PictureKind.TRIANGLE])
    data = draw_picture(picture, suffix)
    assert data.startswith(SIGNATURES[suffix])
    assert data == draw_picture(picture, suffix)
    assert data != draw_picture(picture, suffix, dark=True)


def test_a_page_for_each_picture(report: Report) -> None:
    pictures = report_pictures(report, [PictureKind.DEPTH, PictureKind.PARTICIPATION])
    assert len(re.findall(rb"/Type /Page\b", draw_pages(pictures))) == 2


@pytest.mark.parametrize("make", [hostile_report, one_layer_report, skipped_report])
def test_all_pictures_without_a_complaint(make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for picture in report_pictures(make()):
            ET.fromstring(draw_picture(picture, "svg"))


def test_names_are_shown_as_they_are() -> None:
    (picture,) = report_pictures(hostile_report(), [PictureKind.CURVATURE])
    root = ET.fromstring(draw_picture(picture, "svg"))
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    shown = {name.replace("\x1b", "\\x1b") for name in HOSTILE_NAMES}
    assert shown <= texts


def test_nothing_of_pyplot_or_the_users_settings_is_touched(report: Report) -> None:
    before, pyplot = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    for picture in report_pictures(report, [PictureKind.DEPTH]):
        draw_picture(picture, "png", dark=True)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) is pyplot


def test_three_hundred_layers_in_one_picture_are_little_more_work_than_thirty(big_report: Report) -> None:
    small = replace(big_report, layers=big_report.layers[:30])
    (few, many) = (report_pictures(report, [PictureKind.OVERVIEW])[0] for report in (small, big_report))
    draw_picture(few, "png")  # imports, fonts
    calls = calls_of(lambda: draw_picture(few, "png"))
    assert calls_of(lambda: draw_picture(many, "png")) < 2 * calls  # layers are points of one line, not artists each
    assert calls < 500_000


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"pictures need matplotlib: pip install 'spectrascope\[plot\]'"):
        draw_picture(report_pictures(report, [PictureKind.DEPTH])[0], "png")


def test_a_png_is_opaque_and_as_large_as_asked_for(report: Report) -> None:
    image = pytest.importorskip("PIL.Image", reason="comes with matplotlib")
    (picture,) = report_pictures(report, [PictureKind.DEPTH])
    small, large = (image.open(io.BytesIO(draw_picture(picture, "png", dpi=dpi))) for dpi in (50, 100))
    assert small.mode == large.mode == "RGB"
    assert large.size == pytest.approx([2 * size for size in small.size], abs=2)
    assert large.info["dpi"] == pytest.approx((100, 100), rel=1e-3)
    assert small.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", [PictureKind.CURVATURE, PictureKind.RANKS])
def test_a_panel_says_its_fit_and_the_legend_what_every_panel_shows(kind: PictureKind) -> None:
    (picture,) = report_pictures(blocks_report(), [kind])
    assert picture.columns > 2
    figure = make_figure(picture)
    for chart, axes in zip(picture.charts, figure.axes, strict=True):
        labels = [part.label for part in chart.parts]
        said = [text for text in labels if text.startswith("β =") or "lowest BIC" in text]
        shown = [mathtext(text.replace(", lowest BIC", "").replace(", published", "")) for text in said]
        assert shown
        assert [text.get_text() for text in axes.texts if text.get_text() != chart.note] == shown
    (legend,) = figure.legends
    common = [text.get_text() for text in legend.get_texts()]
    assert len(set(common)) == len(common) > 3
    assert not [text for text in common if "=" in text or "BIC" in text]


def test_subscripts_are_typeset_and_names_are_not(report: Report) -> None:
    figure = make_figure(report_pictures(report, [PictureKind.TRIANGLE])[0])
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert r"measured, $\alpha_H$" in texts
    assert not [text for text in texts if "α_H" in text]
    row = next(row for row in report.layers if row.status.value == "ok")
    named = replace(report, layers=(replace(row, info=replace(row.info, name="a$h$_b.weight")),) * 2)
    panels = make_figure(report_pictures(named, [PictureKind.CURVATURE])[0])
    assert [axes.get_title() for axes in panels.axes] == ["a$h$_b"] * 2


@pytest.mark.parametrize(("width", "inches"), [("one-column", 3.4), ("two-column", 7.0), (5, 5.0), ("4.5", 4.5)])
@pytest.mark.parametrize("kind", [PictureKind.OVERVIEW, PictureKind.CURVATURE, PictureKind.STEPS])
def test_a_picture_is_as_wide_as_a_column_and_nothing_sticks_out(report, kind, width, inches) -> None:
    (picture,) = report_pictures(report, [kind])
    figure = make_figure(picture, width=width)
    assert figure.get_size_inches()[0] == pytest.approx(inches)
    image = FigureCanvasAgg(figure)
    image.draw()
    edge = figure.bbox
    for text in figure.findobj(matplotlib.text.Text):
        box = text.get_window_extent()
        if text.get_text().strip() and text.get_visible() and box.width > 0 and text.axes is None:
            assert box.x0 >= edge.x0 - 2, text
            assert box.x1 <= edge.x1 + 2, text
    for axes in figure.axes:
        assert axes.get_window_extent().width > 0.2 * inches / 2 * figure.dpi / max(picture.columns, 1)


def test_a_width_that_is_none_is_refused(report: Report) -> None:
    (picture,) = report_pictures(report, [PictureKind.STEPS])
    for width in ("wide", 0.1, "nan"):
        with pytest.raises(OptionError, match="expected one-column, two-column, or 2 to 40 inches"):
            make_figure(picture, width=width)


def test_panels_share_a_legend_without_numbers_of_their_own(big_report: Report) -> None:
    (picture,) = report_pictures(replace(big_report, layers=big_report.layers[:9]), [PictureKind.RANKS])
    figure = make_figure(picture)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert {"power law", "exponential", "log-normal", "directions"} <= set(labels)
    assert not [label for label in labels if "BIC" in label]


def test_exponents_that_are_optimizers_are_named(report: Report) -> None:
    (picture,) = report_pictures(report, [PictureKind.STEPS])
    figure = make_figure(picture)
    assert {"GD", "Muon", "Newton"} <= {text.get_text() for text in figure.axes[0].texts}
    chart = picture.charts[0]
    places = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert (places["GD"], places["Muon"], places["Newton"]) == (0, 1, 2)
    svg = chart_svg(chart, "c")
    assert svg.count('class="guide"') == 6


def test_fonts_go_along_whoever_saves_the_figure(report: Report) -> None:
    (picture,) = report_pictures(report, [PictureKind.TRIANGLE])
    stream = io.BytesIO()
    make_figure(picture).savefig(stream, format="pdf")
    for data in (stream.getvalue(), draw_picture(picture, "pdf"), draw_pages([picture])):
        assert b"/FontFile2" in data
        assert b"/Type3" not in data


def test_a_title_of_ones_own_or_none(report: Report) -> None:
    (picture,) = report_pictures(report, [PictureKind.DEPTH])
    assert make_figure(picture, title="Mine: α_H in $").get_suptitle() == r"Mine: $\alpha_H$ in \$"
    assert make_figure(picture, title="").get_suptitle() == ""
