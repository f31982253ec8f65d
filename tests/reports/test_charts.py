"""Charts as data: what they show is what the report says; inks that keep apart; inline SVG that is well formed."""

import doctest
import itertools
import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import HeldOut, NullDraws
from spectrascope.records.values import Interval, LayerKind, Missing, PowerFit
from spectrascope.reports.charts import axes, names
from spectrascope.reports.charts.axes import linear_axis, log_axis, names_axis
from spectrascope.reports.charts.chart import Band, Bars, Chart, Ink, Line, Points
from spectrascope.reports.charts.decomposition_chart import decomposition_chart
from spectrascope.reports.charts.inks import DARK, KIND_INKS, KIND_MARKS, LIGHT, MODEL_INKS, Paper
from spectrascope.reports.charts.layer_charts import curvature_chart, rank_chart, rank_model_value
from spectrascope.reports.charts.names import short_names
from spectrascope.reports.charts.network_charts import (
    depth_chart,
    measured_layers,
    participation_chart,
    rank_model_chart,
    step_chart,
    triangle_chart,
)
from spectrascope.reports.charts.pictures import FEW, PANELS, PictureKind, report_pictures
from spectrascope.reports.charts.sparklines import log_sparkline, sparkline
from spectrascope.reports.charts.svg import chart_svg
from tests.support.chart_cases import HOSTILE_NAMES, decomposed_layer, hostile_report, one_layer_report, skipped_report
from tests.support.counting import calls_of
from tests.support.made_up_reports import make_info, make_layer, make_measurement, make_report

SVG = "{http://www.w3.org/2000/svg}"


def _first(chart: Chart, cls: type, label: str = ""):
    return next(part for part in chart.parts if isinstance(part, cls) and label in part.label)


def _layer(report: Report) -> LayerReport:
    return measured_layers(report)[0]


@pytest.mark.parametrize("module", [axes, names])
def test_examples_in_docstrings(module) -> None:
    results = doctest.testmod(module)
    assert results.attempted
    assert not results.failed


@example([3.0])
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20))
def test_a_linear_axis_holds_its_values_and_ticks(values: list[float]) -> None:
    axis = linear_axis("x", values)
    assert all(axis.holds(value) for value in values)
    assert 1 <= len(axis.ticks) <= 13
    assert all(axis.holds(value) for value, _ in axis.ticks)
    assert [value for value, _ in axis.ticks] == sorted({value for value, _ in axis.ticks})


@given(st.lists(st.floats(1e-200, 1e200), min_size=1, max_size=20))
def test_a_logarithmic_axis_holds_its_values_and_ticks(values: list[float]) -> None:
    axis = log_axis("x", values)
    assert all(axis.holds(value) for value in values)
    assert 1 <= len(axis.ticks) <= 10
    assert all(axis.low * 0.999 <= value <= axis.high * 1.001 for value, _ in axis.ticks)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, 20], ["1", "2", "5", "10", "20"]),
        ([1e-9, 1e-2], ["10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²"]),
        ([0.02, 0.09], ["0.02", "0.03", "0.05", "0.07"]),
        ([-1, 0], ["1", "2", "5", "10"]),  # nothing positive: some axis all the same
    ],
)
def test_ticks_of_logarithmic_axes(values: list[float], texts: list[str]) -> None:
    assert [text for _, text in log_axis("x", values).ticks] == texts


def test_impossible_charts_are_refused() -> None:
    with pytest.raises(ValueError, match="no axis from 2"):
        axes.Axis("x", 2.0, 1.0, ())
    with pytest.raises(ValueError, match="no axis from 0"):
        axes.Axis("x", 0.0, 1.0, (), log=True)
    with pytest.raises(ValueError, match="points of different number"):
        Points((1.0,), (1.0, 2.0), Ink.BLUE)
    with pytest.raises(ValueError, match="a line of 1 xs and 2 ys"):
        Line((1.0,), (1.0, 2.0), Ink.BLUE)
    with pytest.raises(ValueError, match="a band of 1 xs, 1 lows and 0 highs"):
        Band((1.0,), (1.0,), (), Ink.BLUE)
    with pytest.raises(ValueError, match="bars of 1 xs, 1 lows and 0 highs"):
        Bars((1.0,), (1.0,), (), Ink.BLUE)


def test_names_keep_what_tells_them_apart() -> None:
    found = short_names([f"transformer.h.{i}.attention.output_projection.weight" for i in range(300)], 20)
    assert found == [str(i) for i in range(300)]
    gpt2 = [f"blocks.{i}.{name}" for i in range(12) for name in ("attn.c_attn.weight[q]", "mlp.up.weight")]
    assert len(set(short_names([*gpt2, "lm_head.weight"], 20))) == 24 + 1
    assert short_names(["a.weight", "a.weight"], 20) == ["a", "a"]
    assert short_names(["a", "a.b"], 20) == ["a", "a.b"]
    assert all(len(name) <= 20 for name in short_names([name * 9 for name in HOSTILE_NAMES], 20))


def test_the_line_of_the_fit_goes_where_the_fit_says(report: Report) -> None:
    row = _layer(report)
    fit = row.analysis.beta
    assert isinstance(fit, PowerFit)
    chart = curvature_chart(row)
    line = _first(chart, Line, "β = 2.00")
    for sigma, h in zip(line.xs, line.ys, strict=True):
        assert math.log(h) == pytest.approx(fit.intercept + fit.value * math.log(sigma))
    band = _first(chart, Band)
    assert isinstance(fit.jackknife_ci95, Interval)
    steepness = math.log(band.highs[-1] / band.highs[1]) / math.log(band.xs[-1] / band.xs[1])
    assert steepness == pytest.approx(fit.jackknife_ci95.high)
    assert all(low <= y <= high for low, y, high in zip(band.lows, line.ys, band.highs, strict=True))
    points = _first(chart, Points, "same samples")
    assert points.xs == row.measurement.sigma
    assert points.ys == row.measurement.h
    assert chart.summary.startswith("Published β 2.00 over 20 directions of the same samples; noise gives about 2.")


def test_held_out_points_stand_beside_the_published_ones_and_noise_behind(report: Report) -> None:
    row = _layer(report)
    held, null = row.held_out, row.null
    assert isinstance(held, HeldOut)
    assert isinstance(null, NullDraws)
    chart = curvature_chart(row)
    assert [part.label for part in chart.parts] == [
        "noise alone", "95 % interval of β", "β = 2.00, published", "same samples", "held out",
    ]  # fmt: skip
    cloud, points = _first(chart, Points, "noise alone"), _first(chart, Points, "held out")
    assert cloud.pale
    assert (cloud.xs, cloud.ys) == (sum(null.sigma, ()), sum(null.h, ()))
    assert points.hollow
    n = len(points.xs)
    assert (points.xs, points.ys) == (held.slopes[:n], held.h[:n])
    least = min(row.measurement.sigma) / 10
    assert held.slopes[n - 1] > least > held.slopes[n]
    assert chart.note == "held out: 5 of 20 not shown"
    assert all(
        chart.x.holds(x) and chart.y.holds(y) for part in (cloud, points) for x, y in zip(part.xs, part.ys, strict=True)
    )
    assert all(chart.x.holds(x) for x in row.measurement.sigma)


def test_slopes_that_are_not_positive_are_counted_and_not_drawn(report: Report) -> None:
    row = measured_layers(report)[1]  # every other slope is negative
    chart = curvature_chart(row)
    assert all(x > 0 for x in _first(chart, Points, "held out").xs)
    assert "held out: 12 of 20 not shown" in chart.note


def test_noise_has_its_line_in_the_ranks(report: Report) -> None:
    row = _layer(report)
    assert isinstance(row.null, NullDraws)
    chart = rank_chart(row)
    line = _first(chart, Line, "95 % of noise")
    assert line.ys == (row.null.quantile,) * 2
    assert chart.summary.endswith("3 directions above noise.")
    assert not [part for part in rank_chart(measured_layers(report)[3]).parts if "noise" in part.label]


def test_step_exponents_are_drawn_beside_published_beta_and_noise(report: Report) -> None:
    layers = measured_layers(report)
    chart = step_chart(layers)
    assert chart is not None
    noise, beta, steps = chart.parts
    determined = (layers[0], layers[2])
    assert [part.label for part in chart.parts] == ["β of noise alone", "published β", "step exponent"]
    assert steps.ys == tuple(row.held_out.step_exponent.value for row in determined)
    intervals = [row.held_out.step_exponent.interval for row in determined]
    assert steps.whiskers == tuple((interval.low, interval.high) for interval in intervals)
    assert [round(x) for x in steps.xs] == [1, 3]
    assert beta.ys == tuple(row.analysis.beta.value for row in layers[:3])
    assert noise.ys == tuple(row.null.beta.value for row in layers[:3])
    assert chart.note == "1 weight undetermined"
    assert chart.summary == "2 of 3 weights determine a step exponent on held-out samples."


def test_without_held_out_numbers_there_is_no_picture_of_step_exponents(report: Report) -> None:
    plain = make_report((make_layer(make_info("x"), make_measurement()),))
    assert step_chart(measured_layers(plain)) is None
    assert report_pictures(plain, [PictureKind.OVERVIEW])[0].charts[0].title == "published β along depth"
    titles = [chart.title for chart in report_pictures(report, [PictureKind.OVERVIEW])[0].charts]
    assert titles == ["step exponents along depth", "α triangle", "participation ratios", "rank models by BIC"]


def test_directions_outside_the_window_and_negative_ones_are_told(report: Report) -> None:
    row = make_layer(make_info("x"), make_measurement(n_negative=2), top_k=10)
    chart = curvature_chart(row)
    assert len(_first(chart, Points, "directions").xs) == 10
    outside = _first(chart, Points, "outside the window")
    assert outside.hollow
    assert len(outside.xs) == 8
    assert chart.note == "2 of 20 directions not shown: h ≤ 0"
    assert _first(chart, Line, "sampling noise").xs == (0.05, 0.05)


def test_a_layer_without_a_fit_is_drawn_without_a_line(report: Report) -> None:
    tiny = measured_layers(report)[3]
    chart = curvature_chart(tiny)
    assert not [part for part in chart.parts if isinstance(part, (Line, Band))]
    assert chart.summary == "No β: 3 usable points of 3, a fit needs at least 4."
    assert rank_chart(tiny).summary.startswith("No rank model: 3 usable points")


def test_rank_models_are_drawn_through_their_own_residuals(report: Report) -> None:
    row = _layer(report)
    comparison = row.analysis.rank_models
    assert not isinstance(comparison, Missing)
    chart = rank_chart(row)
    lines = [part for part in chart.parts if isinstance(part, Line) and part.label != "95 % of noise"]
    assert [line.dashed for line in lines] == [fit.model is not comparison.best for fit in comparison.fits]
    best = _first(chart, Line, "lowest BIC")
    assert best.label == "log-normal, lowest BIC"
    assert best.ink is MODEL_INKS[comparison.best]
    for fit, line in zip(comparison.fits, lines, strict=True):
        squares = [
            (math.log(sigma) - math.log(rank_model_value(fit, k))) ** 2
            for k, sigma in enumerate(row.measurement.sigma, start=1)
        ]
        assert sum(squares) == pytest.approx(fit.rss)
        assert line.ys == tuple(rank_model_value(fit, k) for k in line.xs)
    spread = sorted(fit.bic for fit in comparison.fits)
    assert f"BIC +{spread[-1] - spread[0]:.1f}" in " ".join(line.label for line in lines)


def test_the_triangle_band_is_the_ten_percent_of_the_verdict(report: Report) -> None:
    layers = measured_layers(report)
    chart = triangle_chart(layers)
    band = _first(chart, Band)
    for x, low, high in zip(band.xs, band.lows, band.highs, strict=True):
        for y in (low, high):
            assert y == 0 or abs(y - x) / abs(y) == pytest.approx(0.1)
    points = _first(chart, Points, "conv")
    assert len(points.xs) == 3
    assert chart.note == "1 layer not shown: no triangle"
    assert chart.summary == "α_H is within 10 % of β·α_G on 3 of 3 layers."
    shown = dict(zip(points.xs, points.ys, strict=True))
    for row in layers[:3]:
        assert shown[row.analysis.triangle.predicted] == row.analysis.alpha_h.value  # type: ignore[union-attr]


def test_depth_shows_each_layer_at_its_place_in_the_ink_of_its_kind() -> None:
    betas = (1.0, 1.5, 2.5)
    kinds = (LayerKind.CONV, LayerKind.LINEAR, LayerKind.CONV)
    rows = tuple(
        make_layer(make_info(f"n{i}.weight", kind), make_measurement(beta=beta, wobble=0.001))
        for i, (beta, kind) in enumerate(zip(betas, kinds, strict=True))
    )
    chart = depth_chart(rows)
    conv, linear = _first(chart, Points, "conv"), _first(chart, Points, "linear")
    assert conv.xs == (1.0, 3.0)
    assert linear.xs == (2.0,)
    assert conv.ys == pytest.approx((1.0, 2.5), abs=0.01)
    assert (conv.ink, conv.mark) == (KIND_INKS[LayerKind.CONV], KIND_MARKS[LayerKind.CONV])
    assert conv.ink is not linear.ink
    assert [text for _, text in chart.x.ticks] == ["n0", "n1", "n2"]


@pytest.mark.parametrize(
    ("betas", "words"),
    [((), "No layer has a β."), ((1.5, 1.5), "β is 1.50."), ((2.0, 1.5), "β lies between 1.50 and 2.00.")],
)
def test_depth_says_its_range(betas: tuple[float, ...], words: str) -> None:
    rows = [make_layer(make_info(f"n{i}"), make_measurement(beta=beta, wobble=0)) for i, beta in enumerate(betas)]
    assert depth_chart(rows).summary == words


def test_one_bad_interval_does_not_squeeze_the_others() -> None:
    rows = [make_layer(make_info(f"n{i}"), make_measurement(wobble=0.001)) for i in range(3)]
    fit = rows[1].analysis.beta
    assert isinstance(fit, PowerFit)
    wild = replace(fit, jackknife_ci95=Interval(-500.0, 500.0))
    rows[1] = replace(rows[1], analysis=replace(rows[1].analysis, beta=wild))
    axis = depth_chart(rows).y
    assert axis.high - axis.low < 5


def test_bars_of_rank_models_add_up_to_the_layers(report: Report) -> None:
    chart = rank_model_chart(report)
    bars = [part for part in chart.parts if isinstance(part, Bars)]
    assert [bar.label for bar in bars] == ["power law", "exponential", "log-normal"]
    assert bars[-1].highs == (3.0,)
    assert all(a.highs == b.lows for a, b in itertools.pairwise(bars))


def test_the_parts_of_beta_stack_and_sum() -> None:
    plain = make_layer(make_info("plain"), make_measurement())
    chart = decomposition_chart(
        [decomposed_layer("p", (1.5, 0.7, -0.2)), plain, decomposed_layer("q", (-0.5, 1.0, 1.5))]
    )
    assert chart is not None
    bars = [part for part in chart.parts if isinstance(part, Bars)]
    assert [bar.xs for bar in bars] == [(1.0, 3.0)] * 3
    assert bars[0].lows == (0.0, -0.5)
    assert bars[0].highs == (1.5, 0.0)
    assert bars[1].lows == (1.5, 0.0)
    assert bars[1].highs == pytest.approx((2.2, 1.0))
    assert bars[2].lows == (-0.2, 1.0)
    assert _first(chart, Points, "sum").ys == pytest.approx((2.0, 2.0))
    assert chart.note == "1 layer not shown: no decomposition"
    assert decomposition_chart([plain]) is None


def test_pictures_of_a_report(report: Report, big_report: Report) -> None:
    kinds = [kind.value for kind in PictureKind if kind is not PictureKind.DECOMPOSITION]
    assert [picture.name for picture in report_pictures(report)] == kinds
    few = report_pictures(big_report, [PictureKind.CURVATURE])
    assert len(few[0].charts) == FEW
    assert [chart.title for chart in few[0].charts][:: FEW - 1] == ["0", "299"]
    assert "(12 of 300 layers, evenly along depth)" in few[0].title
    pages = report_pictures(big_report, [PictureKind.RANKS], all_layers=True)
    assert [len(page.charts) for page in pages] == [PANELS] * 12 + [12]
    assert pages[-1].title.endswith("page 13 of 13")
    with_parts = make_report((decomposed_layer("p", (1.0, 1.0, 0.0)),))
    assert report_pictures(with_parts)[-1].name == "decomposition"


@pytest.mark.parametrize("make", [hostile_report, one_layer_report, skipped_report])
def test_every_chart_is_well_formed_svg(make) -> None:
    found = make()
    for picture in report_pictures(found):
        for i, chart in enumerate(picture.charts):
            root = ET.fromstring(chart_svg(chart, f"id-{i}").replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))
            assert root.find(f"{SVG}title").text  # type: ignore[union-attr]
            assert not [element for element in root.iter() if element.tag.endswith("script")]
            for element in root.iter():
                for key, value in element.attrib.items():
                    assert "nan" not in value
                    assert "inf" not in value
                    assert not key.startswith(("on", "style"))


def test_svg_shows_as_many_marks_as_there_are_points(report: Report) -> None:
    text = chart_svg(participation_chart(measured_layers(report)), "x")
    assert text.count("<circle") == 4 + 1  # one more in the legend
    assert text.count("<title>") == 8
    assert chart_svg(depth_chart(measured_layers(report)), "x") == chart_svg(depth_chart(measured_layers(report)), "x")


def test_svg_points_lie_where_the_axes_say() -> None:
    axis = axes.Axis("x", 0.0, 10.0, ((0.0, "0"), (10.0, "10")))
    chart = Chart("t", axis, axis, (Points((0.0, 10.0), (0.0, 10.0), Ink.BLUE),))
    root = ET.fromstring(chart_svg(chart, "x"))
    (low, high) = [circle.attrib for circle in root.iter("circle")]
    frame = root.find("clipPath/rect").attrib  # type: ignore[union-attr]
    left, top, width, height = (float(frame[key]) for key in ("x", "y", "width", "height"))
    assert (float(low["cx"]), float(low["cy"])) == (left, top + height)
    assert (float(high["cx"]), float(high["cy"])) == (left + width, top)


def test_a_layers_charts_are_little_work_and_few_elements(big_report: Report) -> None:
    row = measured_layers(big_report)[299]
    for draw in (curvature_chart, rank_chart):
        assert calls_of(lambda draw=draw: chart_svg(draw(row), "x")) < 4000
        text = chart_svg(draw(row), "x")
        assert len(list(ET.fromstring(text).iter())) < 6 * len(row.measurement.sigma)
        assert len(text) < 12_000


def _linear(hexadecimal: str) -> list[float]:
    channels = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def _contrast(a: str, b: str) -> float:
    light = sorted(sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), _linear(h), strict=True)) for h in (a, b))
    return (light[1] + 0.05) / (light[0] + 0.05)


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
DEFICIENCIES = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def _lab(hexadecimal: str, deficiency: str) -> tuple[float, float, float]:
    rgb = _linear(hexadecimal)
    r, g, b = (
        min(max(sum(m * c for m, c in zip(row, rgb, strict=True)), 0.0), 1.0) for row in DEFICIENCIES[deficiency]
    )
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089

    def f(t: float) -> float:
        return t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116

    return 116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))


@pytest.mark.parametrize("paper", [LIGHT, DARK], ids=["light", "dark"])
def test_inks_stand_out_from_their_paper(paper: Paper) -> None:
    for shade in paper.inks.values():
        assert _contrast(shade, paper.background) >= 3
    for text in (paper.text, paper.quiet):
        assert _contrast(text, paper.background) >= 4.5
        assert _contrast(text, paper.raised) >= 4.5
    assert _contrast(paper.inks[Ink.BLUE], paper.background) >= 4.5  # links


@pytest.mark.parametrize("deficiency", list(DEFICIENCIES))
@pytest.mark.parametrize("paper", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    "together",
    [
        set(MODEL_INKS.values()),
        {Ink.BLUE, Ink.ORANGE, Ink.GREEN, Ink.PURPLE},
        {Ink.BLUE, Ink.ORANGE, Ink.PURPLE, Ink.GREY},
    ],
    ids=["rank models", "parts of beta", "tracks"],
)
def test_inks_keep_apart_for_every_kind_of_eye(paper: Paper, deficiency: str, together: set[Ink]) -> None:
    """CIE 1976 colour differences; 2.3 is just noticeable, 18 is plain in small marks."""
    for a, b in itertools.combinations(sorted(together), 2):
        distance = math.dist(_lab(paper.inks[a], deficiency), _lab(paper.inks[b], deficiency))
        assert distance > 18, (a, b)


def test_kinds_that_share_a_chart_differ_in_ink_or_mark() -> None:
    kinds = (LayerKind.CONV, LayerKind.LINEAR, LayerKind.CONV_TRANSPOSE, LayerKind.EMBEDDING, LayerKind.OTHER)
    assert len({KIND_INKS[kind] for kind in kinds}) == len(kinds)
    assert len({KIND_MARKS[kind] for kind in kinds}) == len(kinds)


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, Missing("no"), 2.0]) == "▁ █"
    assert sparkline([Missing("no")]) == ""
    assert sparkline([]) == ""
    assert sparkline(list(range(1000)), 5) == "▁▃▅▆█"
    assert log_sparkline([1.0, 10.0, 0.0]) == "▁█ "


def test_names_axis_thins_out() -> None:
    axis = names_axis([f"n{i}" for i in range(300)])
    assert len(axis.ticks) == 30
    assert axis.holds(1.0)
    assert axis.holds(300.0)
