"""Axes of picture files: every tick's text once, nothing over anything else, no artist per tick but its text."""

import itertools

import pytest

from spectrascope.reports.charts.axes import Axis, linear_axis, log_axis, names_axis
from spectrascope.reports.charts.inks import LIGHT
from spectrascope.reports.charts.notation import mathtext
from spectrascope.reports.charts.plot_axes import draw_axes, room_below, room_beside

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WIDE, HIGH = 4.0, 3.0
LONG = ["model.MMM_Attention.W_mm", "backbone.stage.2.bottleneck_1.w", "conv1"]
NAMES = [*LONG, *[f"blocks.{i}.mlp.up" for i in range(30)]]
PLAIN = linear_axis("predicted, β·α_G", [0, 2.7])
VERTICAL = [
    linear_axis("curvature exponent, β", [0, 2.4]),
    linear_axis("loss", [0, 1_000_000]),
    linear_axis("rounding", [-3e-6, 5e-6]),
    log_axis("curvature, h", [1e-12, 1e3]),
    log_axis("singular value of the gradient, σ", [2e-5, 6e-5]),
]


def figure_with(x: Axis, y: Axis) -> Figure:
    """Axes of 4 × 3 inches in a figure that has just the room said to be needed."""
    beside, below = room_beside(x, y, WIDE), room_below(x)
    size = (beside + WIDE + 0.3, below + HIGH + 0.3)
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((beside / size[0], below / size[1], WIDE / size[0], HIGH / size[1]))
    draw_axes(axes, x, y, LIGHT, labelled=(True, True), wide=WIDE)
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize("x", [PLAIN, names_axis(NAMES), log_axis("rank, k", [1, 20])], ids=lambda axis: axis.label)
@pytest.mark.parametrize("y", VERTICAL, ids=lambda axis: axis.label)
def test_texts_keep_off_each_other_and_within_the_figure(x: Axis, y: Axis) -> None:
    figure = figure_with(x, y)
    boxes = {text.get_text(): text.get_window_extent() for text in figure.texts}
    width, height = figure.bbox.size
    frame = figure.axes[0].get_window_extent()
    for label in map(mathtext, (x.label, y.label)):
        box = boxes[label]
        assert box.x0 >= 0, label
        assert box.y0 >= 0, label
        assert box.x1 <= width, label
        assert box.y1 <= height, label
        for text, other in boxes.items():
            assert text == label or not box.overlaps(other), f"{label} lies over {text}"
    for text, box in boxes.items():
        assert box.x0 >= 0, f"{text} is cut off"
        assert not box.overlaps(frame), f"{text} lies over what is drawn"


def test_ticks_are_where_and_what_the_chart_says() -> None:
    y = log_axis("curvature, h", [1e-3, 1.0])
    figure = figure_with(PLAIN, y)
    (axes,) = figure.axes
    shown = []
    for text in figure.texts:
        box = text.get_window_extent()
        middle = axes.transData.inverted().transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        shown.append((text.get_text(), middle[0], middle[1]))
    for value, said in PLAIN.ticks:
        assert any(text == said and x == pytest.approx(value, abs=0.02) for text, x, _ in shown), said
    for value, said in y.ticks:
        assert any(text == said and x < PLAIN.low and h == pytest.approx(value, rel=0.1) for text, x, h in shown), said
    assert len(shown) == len(PLAIN.ticks) + len(y.ticks) + 2


def test_an_axis_without_a_label_has_none() -> None:
    figure = Figure()
    draw_axes(figure.add_axes((0.2, 0.2, 0.7, 0.7)), PLAIN, VERTICAL[0], LIGHT, labelled=(False, True), wide=WIDE)
    texts = [text.get_text() for text in figure.texts]
    assert mathtext(PLAIN.label) not in texts
    assert mathtext(VERTICAL[0].label) in texts


def test_more_ticks_are_no_more_lines() -> None:
    """matplotlib's own axes have three lines for each tick, which took half the time of a page of panels."""
    few, many = (figure_with(names_axis([f"layer{i}" for i in range(n)]), VERTICAL[0]) for n in (2, 30))
    for figure in (few, many):
        (axes,) = figure.axes
        assert len(axes.lines) == 4
        assert not axes.xaxis.get_visible()
        assert not axes.yaxis.get_visible()


@pytest.mark.parametrize("x", [names_axis([f"layer{i}.conv" for i in range(30)]), log_axis("σ", [0.004, 0.2])])
def test_texts_below_narrow_axes_keep_off_each_other(x: Axis) -> None:
    figure = Figure(figsize=(1.6, 2.0))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.3, 0.5, 0.5, 0.4))
    draw_axes(axes, x, VERTICAL[0], LIGHT, labelled=(False, False), wide=0.8)
    figure.canvas.draw()
    below = [text for text in figure.texts if text.get_text() in {said for _, said in x.ticks}]
    ends = sorted(text.get_window_extent().x1 for text in below)
    assert len(ends) > 1
    assert min(b - a for a, b in itertools.pairwise(ends)) > 0.1 * figure.dpi
