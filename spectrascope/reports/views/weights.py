"""Weight tails as a document."""

from __future__ import annotations

from collections.abc import Callable

from spectrascope.records.values import Missing
from spectrascope.records.weights import ConvView, TailFit, WeightsReport, WeightTail
from spectrascope.reports.fields import format_rank_model, write
from spectrascope.reports.figures import format_count, format_seconds
from spectrascope.reports.views.document import Column, Document, Sheet, Tone
from spectrascope.reports.views.facts import describe_model
from spectrascope.reports.views.layer_sheet import sheet_of_weights
from spectrascope.reports.views.words import point_to_explain

__all__ = ["build_weights"]

_VIEWS = {
    ConvView.FLAT: "outputs × (inputs · kernel)",
    ConvView.SLICES: "one outputs × inputs matrix per kernel position, eigenvalues pooled, as WeightWatcher does",
}


def build_weights(report: WeightsReport) -> Document:
    """Every weight's tail, and what the numbers mean."""
    options = report.options
    told = "by the network" if report.view == "network" else "by name and shape"
    return Document(
        title="spectrascope: tails of the weights' spectra (no data)",
        facts=(
            *describe_model(report.model),
            ("weights", f"told {told}; convolutions as {_VIEWS[options.conv]}"),
            ("time", format_seconds(report.seconds)),
            *(("note", note) for note in report.notes),
        ),
        sheets=(_sheet(report),),
        closing=tuple(_closing(report)),
    )


_ABOUT_ALPHA = "exponent of the density of the eigenvalues of WᵀW from xmin on, ± its standard error"
_ABOUT_DECAY = "minus the slope of log singular value on log rank: a rank decay as α_G and α_H are, not of a density"

_CELLS: tuple[tuple[Column, Callable[[WeightTail], str | Missing]], ...] = (
    (Column("Q", drop_order=2), lambda row: f"{row.Q:.2f}"),
    (Column("evals", drop_order=5), lambda row: str(row.num_evals)),
    (Column("alpha", strong=True, about=_ABOUT_ALPHA), lambda row: _alpha(row.tail)),
    (
        Column("D", drop_order=3, about="how far the fitted distribution is from the eigenvalues"),
        lambda row: row.tail if isinstance(row.tail, Missing) else f"{row.tail.D:.3f}",
    ),
    (Column("xmin", drop_order=6), lambda row: row.tail if isinstance(row.tail, Missing) else f"{row.tail.xmin:.3g}"),
    (
        Column("in tail", drop_order=4),
        lambda row: row.tail if isinstance(row.tail, Missing) else str(row.tail.num_pl_spikes),
    ),
    (Column("alpha_weighted", drop_order=8), lambda row: write(row.alpha_weighted)),
    (Column("stable rank", drop_order=1), lambda row: f"{row.stable_rank:.1f}"),
    (Column("spectral norm", drop_order=7), lambda row: f"{row.spectral_norm:.3g}"),
    (Column("s_weight", about=_ABOUT_DECAY), lambda row: write(row.s_weight)),
    (
        Column("rank model", right=False, drop_order=9),
        lambda row: row.rank_models if isinstance(row.rank_models, Missing) else format_rank_model(row.rank_models),
    ),
)


def _alpha(tail: TailFit | Missing) -> str | Missing:
    return tail if isinstance(tail, Missing) else f"{tail.alpha:.2f} ±{tail.sigma:.2f}"


def _sheet(report: WeightsReport) -> Sheet:
    cells = list(_CELLS)
    if report.summary.n_compared:
        cells.insert(10, (Column("α_H"), lambda row: write(row.alpha_h)))
    return sheet_of_weights("Weights", report.rows, cells, first="weight", kind=False)


def _closing(report: WeightsReport) -> list[tuple[str, Tone]]:
    summary = report.summary
    closing = [point_to_explain("alpha", "s_weight")]
    if summary.n_compared:
        text = f"s_weight is below α_H on {summary.n_s_weight_below} of {format_count(summary.n_compared, 'weight')}."
        closing.append((text, Tone.PLAIN))
    tails = [row for row in report.rows if isinstance(row, WeightTail)]
    if len({round(row.Q, 2) for row in tails}) > 1:
        closing.append(
            (
                "alpha depends on the aspect ratio Q and on the number of eigenvalues: compare weights of one shape, "
                "or one weight over time.",
                Tone.WARNING,
            )
        )
    short = sum(isinstance(row.tail, TailFit) and row.tail.num_pl_spikes < 20 for row in tails)
    if short:
        closing.append(
            (f"Fewer than 20 eigenvalues in the tail on {format_count(short, 'weight')}: read ± first.", Tone.WARNING)
        )
    return [*closing, (_bottom_line(report), Tone.PLAIN)]


def _bottom_line(report: WeightsReport) -> str:
    summary = report.summary
    if isinstance(summary.alpha_median, Missing) or isinstance(summary.alpha_quartiles, Missing):
        reason = next((v.reason for v in (summary.alpha_median, summary.alpha_quartiles) if isinstance(v, Missing)), "")
        return f"Nothing is said of the tails: {reason}."
    spread = summary.alpha_quartiles
    return (
        f"Median alpha {summary.alpha_median:.2f} (middle half {spread.low:.2f} to {spread.high:.2f}); below 2 on "
        f"{summary.n_below_2}, above 6 on {summary.n_above_6} of {format_count(summary.n_ok, 'weight')} "
        "(WeightWatcher calls 2 to 6 well trained)."
    )
