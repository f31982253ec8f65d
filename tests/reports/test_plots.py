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
from spectrascope.reports.charts.pictures import PictureKind, report_pictures
from spectrascope.reports.charts.plots import draw_pages, draw_picture
from tests.support.chart_cases import HOSTILE_NAMES, blocks_report, hostile_report, one_layer_report, skipped_report
from tests.support.counting import calls_of

matplotlib = pytest.importorskip("matplotlib", reason="pictures need matplotlib")

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
def test_a_panel_says_its_fit_and_nothing_that_every_panel_shows(kind: PictureKind) -> None:
    (picture,) = report_pictures(blocks_report(), [kind])
    assert picture.columns > 2
    root = ET.fromstring(draw_picture(picture, "svg"))
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    labels = [part.label for chart in picture.charts for part in chart.parts if part.label]
    said = [text for text in labels if text.startswith("β =") or "lowest BIC" in text]
    assert said
    for text in said:
        assert text.replace(", lowest BIC", "") in texts
    assert not {text for text in labels if text not in said} & set(texts)
