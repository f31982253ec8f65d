"""Legends of matplotlib figures: above a chart, or one for a whole grid of panels whose own numbers stay inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spectrascope.reports.charts.chart import Chart
from spectrascope.reports.charts.notation import mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spectrascope.reports.charts.inks import Paper

__all__ = ["add_legend", "add_numbers", "add_shared_legend", "legend_rows", "shared_labels"]

_FIT, _BEST = "β = ", ", lowest BIC"


def legend_rows(chart: Chart, columns: int) -> int:
    """How many rows the legend of a chart takes."""
    return -(-sum(bool(part.label) for part in chart.parts) // columns)


def shared_labels(charts: Sequence[Chart]) -> list[str]:
    """What the legend of a grid of panels says: what any of them shows, without the numbers of each."""
    return list(dict.fromkeys(_shared(part.label) for chart in charts for part in chart.parts if part.label))


def _shared(label: str) -> str:
    """A label without what only one panel can say.

    >>> _shared("β = 1.37, published"), _shared("power law, BIC +2.1"), _shared("held out")
    ('published β', 'power law', 'held out')
    """
    if label.startswith(_FIT):
        return "published β"
    return label.partition(", BIC +")[0].removesuffix(_BEST)


def add_legend(axes: Axes, columns: int) -> None:
    """Say above the axes, where it hides nothing, what they show."""
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), borderaxespad=0.2, ncols=columns, frameon=False,
        columnspacing=1.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(True)
        text.set_text(mathtext(text.get_text()))


def add_shared_legend(figure: Figure, top: float, columns: int, paper: Paper) -> None:
    """Say once what all panels show, below ``top``, a share of the figure's height."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(_shared(label), handle)
    if not found:
        return
    legend = figure.legend(
        list(found.values()), [mathtext(label) for label in found], loc="upper center", bbox_to_anchor=(0.5, top),
        borderaxespad=0.2, ncols=columns, frameon=False, columnspacing=1.2, labelcolor=paper.text,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(True)


def add_numbers(axes: Axes, chart: Chart, paper: Paper, scale: float) -> None:
    """Say in a corner of a panel what its own fit is."""
    from matplotlib.lines import Line2D

    kept = [part for part in chart.parts if part.label.startswith(_FIT) or _BEST in part.label]
    for i, part in enumerate(kept):
        y = 0.93 - 0.08 * i if chart.rises else 0.07 + 0.08 * i
        line = Line2D((0.04, 0.14), (y, y), color=paper.inks[part.ink], linewidth=1.4, transform=axes.transAxes)
        axes.add_artist(line)
        axes.text(
            0.17,
            y,
            mathtext(part.label.replace(_BEST, "").removesuffix(", published")),
            parse_math=True,
            va="center",
            fontsize=7 * scale,
            transform=axes.transAxes,
            bbox={"facecolor": paper.background, "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
        )
