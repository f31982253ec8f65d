"""Weight tails as a document, as CSV and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spectrascope.records.report import NOT_SELECTED, SkippedLayer
from spectrascope.records.values import LayerStatus, Missing, PowerFit, RankModel
from spectrascope.records.weights import ConvView, TailFit, TailRow, WeightsReport, WeightTail
from spectrascope.reports.csv import missing_apart, write_csv
from spectrascope.reports.figures import format_count, format_seconds
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_model
from spectrascope.reports.views.layer_sheet import RANK_MODEL_NAMES

__all__ = ["build_weights", "weights_to_csv"]

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


_CELLS: tuple[tuple[Column, Callable[[WeightTail], str | Missing]], ...] = (
    (Column("Q", drop_order=2), lambda row: f"{row.Q:.2f}"),
    (Column("evals", drop_order=5), lambda row: str(row.num_evals)),
    (Column("alpha", strong=True), lambda row: _alpha(row.tail)),
    (Column("D", drop_order=3), lambda row: row.tail if isinstance(row.tail, Missing) else f"{row.tail.D:.3f}"),
    (Column("xmin", drop_order=6), lambda row: row.tail if isinstance(row.tail, Missing) else f"{row.tail.xmin:.3g}"),
    (
        Column("in tail", drop_order=4),
        lambda row: row.tail if isinstance(row.tail, Missing) else str(row.tail.num_pl_spikes),
    ),
    (Column("alpha_weighted", drop_order=8), lambda row: _two(row.alpha_weighted)),
    (Column("stable rank", drop_order=1), lambda row: f"{row.stable_rank:.1f}"),
    (Column("spectral norm", drop_order=7), lambda row: f"{row.spectral_norm:.3g}"),
    (Column("s_weight"), lambda row: _slope(row.s_weight)),
    (
        Column("rank model", right=False, drop_order=9),
        lambda row: (
            row.rank_models
            if isinstance(row.rank_models, Missing)
            else ("~" if row.rank_models.tie else "") + RANK_MODEL_NAMES[row.rank_models.best]
        ),
    ),
)


def _alpha(tail: TailFit | Missing) -> str | Missing:
    return tail if isinstance(tail, Missing) else f"{tail.alpha:.2f} ±{tail.sigma:.2f}"


def _two(value: float | Missing) -> str | Missing:
    return value if isinstance(value, Missing) else f"{value:.2f}"


def _slope(fit: PowerFit | Missing) -> str | Missing:
    return fit if isinstance(fit, Missing) else f"{fit.value:.2f}"


def _sheet(report: WeightsReport) -> Sheet:
    notes = Footnotes()
    cells = list(_CELLS)
    if report.summary.n_compared:
        cells.insert(10, (Column("α_H"), lambda row: _slope(row.alpha_h)))
    shown = [row for row in report.rows if not (isinstance(row, SkippedLayer) and row.reason == NOT_SELECTED)]
    hidden = len(report.rows) - len(shown)
    all_ok = all(row.status is LayerStatus.OK for row in shown)
    columns = (
        Column("weight", right=False),
        Column("m × n", drop_order=4),
        *(column for column, _ in cells),
        Column("status", right=False, drop_order=10 if all_ok else 0),
    )
    lines = []
    for row in shown:
        m, n = row.info.shape
        head = (row.info.name, f"{m}×{n}")
        if isinstance(row, WeightTail):
            values = [cell(row) for _, cell in cells]
            texts = [notes.missing(value) if isinstance(value, Missing) else value for value in values]
            lines.append(Row((*head, *texts, "ok")))
        else:
            failed = row.status is LayerStatus.FAILED
            status = notes.mark("FAILED" if failed else row.status.value, row.reason)
            lines.append(Row((*head, *[DASH] * len(cells), status), Tone.ALARM if failed else Tone.QUIET))
    left_out = (f"{hidden} of {len(report.rows)} weights {NOT_SELECTED} are not listed.",) if hidden else ()
    return Sheet("Weights", columns, tuple(lines), (*notes.lines(), *left_out))


def _closing(report: WeightsReport) -> list[tuple[str, Tone]]:
    summary = report.summary
    first, last = report.options.min_rank, report.options.top_k
    lines = [
        "alpha is the exponent of the density of the eigenvalues of WᵀW from xmin on, with its standard error; D is "
        "how far the fitted distribution is from them. It is WeightWatcher's alpha.",
        f"s_weight is minus the slope of log singular value on log rank, ranks {first} to {last}: a rank decay like "
        "α_G and α_H, not an exponent of a density.",
    ]
    if not isinstance(summary.alpha_median, Missing) and not isinstance(summary.alpha_quartiles, Missing):
        spread = summary.alpha_quartiles
        lines.append(
            f"Median alpha {summary.alpha_median:.2f} (middle half {spread.low:.2f} to {spread.high:.2f}); below 2 on "
            f"{summary.n_below_2}, above 6 on {summary.n_above_6} of {format_count(summary.n_ok, 'weight')} "
            "(WeightWatcher calls 2 to 6 well trained)."
        )
    if summary.n_compared:
        lines.append(
            f"s_weight is below α_H on {summary.n_s_weight_below} of {format_count(summary.n_compared, 'weight')}."
        )
    closing = [(line, Tone.PLAIN) for line in lines]
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
    return closing


_COLUMNS = (
    "name", "kind", "role", "status", "reason", "missing", "outputs", "inputs", "M", "N", "Q", "num_evals", "alpha",
    "sigma", "D", "xmin", "xmax", "num_pl_spikes", "alpha_weighted", "norm", "spectral_norm", "sv_max", "stable_rank",
    "matrix_rank", "s_weight", "s_weight_stderr", "s_weight_ci_low", "s_weight_ci_high", "s_weight_r2", "s_weight_n",
    "rank_model", "rank_model_delta_bic", *(f"bic_{model.value}" for model in RankModel), "alpha_h",
)  # fmt: skip
"""As in WeightWatcher's table where the quantity is the same; its N is the larger side, M the smaller."""


def weights_to_csv(report: WeightsReport) -> str:
    """Write one row per weight with every number in full."""
    return write_csv(_COLUMNS, (_values(row) for row in report.rows))


def _values(row: TailRow) -> dict[str, Any]:
    info = row.info
    values: dict[str, Any] = {
        "name": info.name,
        "kind": info.kind.value,
        "role": info.role.value,
        "status": row.status.value,
        "outputs": info.shape[0],
        "inputs": info.shape[1],
        "M": min(info.shape),
        "N": max(info.shape),
    }
    if not isinstance(row, WeightTail):
        return {**values, "reason": row.reason}
    for name in ("Q", "num_evals", "norm", "spectral_norm", "sv_max", "stable_rank", "matrix_rank", "alpha_weighted"):
        values[name] = getattr(row, name)
    if isinstance(row.tail, Missing):
        values["alpha"] = row.tail
    else:
        for name in ("alpha", "sigma", "D", "xmin", "xmax", "num_pl_spikes"):
            values[name] = getattr(row.tail, name)
    if isinstance(row.s_weight, Missing):
        values["s_weight"] = row.s_weight
    else:
        fit = row.s_weight
        values |= {"s_weight": fit.value, "s_weight_stderr": fit.stderr, "s_weight_r2": fit.r2, "s_weight_n": fit.n}
        values |= {"s_weight_ci_low": fit.ci95.low, "s_weight_ci_high": fit.ci95.high}
    if isinstance(row.rank_models, Missing):
        values["rank_model"] = row.rank_models
    else:
        values |= {"rank_model": row.rank_models.best.value, "rank_model_delta_bic": row.rank_models.delta_bic}
        values |= {f"bic_{fit.model.value}": fit.bic for fit in row.rank_models.fits}
    values["alpha_h"] = row.alpha_h if isinstance(row.alpha_h, Missing) else row.alpha_h.value
    return missing_apart(values)
