"""The spectral alignment decomposition as a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

from spectrascope.records.decomposition import (
    Alignment,
    Decomposition,
    Determination,
    FisherType,
    Sharing,
)
from spectrascope.records.report import NOT_SELECTED, LayerReport, LayerRow, Report
from spectrascope.records.signal import RankResamples
from spectrascope.records.values import Missing, PowerFit, RankComparison, RankModel
from spectrascope.reports.fields import RANK_MODEL_NAMES, write
from spectrascope.reports.figures import format_count
from spectrascope.reports.order import ORDER, Sort, sort_layers
from spectrascope.reports.views.document import DASH, Column, Document, Footnotes, Row, Sheet, Tone
from spectrascope.reports.views.facts import describe_run
from spectrascope.reports.views.layer_sheet import status_cell, status_tone
from spectrascope.reports.views.words import point_to_explain, warn

__all__ = ["build_decomposition"]

_FISHERS = {
    FisherType.GGN: "columns of the loss's curvature",
    FisherType.MC: "labels drawn from the model",
    FisherType.EMPIRICAL: "true labels",
}
_SHARINGS = {Sharing.EXPAND: "each position by itself", Sharing.REDUCE: "positions summed first"}

_ABOUT_CROSS_VALIDATED = (
    "β_Λ of cross-validated eigenvalues; sampling spreads a factor of d dimensions by (1 ± √(d/N))², which makes β_Λ "
    "too large"
)
_ABOUT_TOP = "share of the curvature that the hundredth of the samples with most of it holds"
_ABOUT_PROFILE = (
    "how far the gradient's singular values are from those of noise with the factors' spectra, once scaled to fit"
)
_ABOUT_SUITED = "suited where χ is flat (its slope within ±0.25) and varies by less than 3 times"

Cell = Callable[[Decomposition], "str | Missing"]


def build_decomposition(report: Report, sort: Sort | str = ORDER) -> Document:
    """Three sheets per layer (slopes, factors, words) and how to read them; the first alone where none has factors."""
    rows = [row for row in sort_layers(report, sort) if isinstance(row, LayerReport) or row.reason != NOT_SELECTED]
    found = [d for _, d in _pairs(rows)]
    return Document(
        title="spectrascope: spectral alignment decomposition, β = β_Λ + β_Φ + β_χ",
        facts=(*describe_run(report.provenance), *_describe_factors(found)),
        sheets=(
            _sheet("Where β comes from", rows, _SLOPES),
            *([_sheet("Curvature and its factors", rows, _FACTORS), _words_sheet(rows)] if found else []),
        ),
        closing=(
            *((line, Tone.PLAIN) for line in _closing(report, found)),
            point_to_explain("beta_lambda", "mechanism", "rank model"),
            *warn(report),
            (_bottom_line(found), Tone.PLAIN),
        ),
    )


def _pairs(rows: Sequence[LayerRow]) -> list[tuple[LayerReport, Decomposition]]:
    pairs = [(row, row.decomposition) for row in rows if isinstance(row, LayerReport)]
    return [(row, d) for row, d in pairs if isinstance(d, Decomposition)]


def _describe_factors(found: list[Decomposition]) -> tuple[tuple[str, str], ...]:
    if not found:
        return (("factors", "none"),)
    parts = []
    for factors in {(d.factors.columns, d.factors.exact): d.factors for d in found}.values():
        kind = "exact" if factors.exact else "random: an estimate"
        parts.append(
            f"{factors.fisher.value} ({_FISHERS[factors.fisher]}), {format_count(factors.columns, 'column')} per "
            f"sample, {kind}; {factors.sharing.value} ({_SHARINGS[factors.sharing]})"
        )
    return (("factors", "; ".join(parts)),)


def _number(pick: Callable[[Decomposition], float | Missing], form: str = ".2f") -> Cell:
    return lambda d: write(pick(d), form)


def _slope(name: str) -> Cell:
    return lambda d: write(getattr(d.alignment, name))


def _slope_and_interval(name: str) -> Cell:
    def cell(d: Decomposition) -> str | Missing:
        fit: PowerFit | Missing = getattr(d.alignment, name)
        return fit if isinstance(fit, Missing) else f"{fit.value:.2f} ±{fit.interval.half_width:.2f}"

    return cell


_SLOPES: tuple[tuple[Column, Cell], ...] = (
    (Column("β", strong=True), _slope_and_interval("beta")),
    (
        Column("β_Λ", about="the part of β from the eigenvalues of the Kronecker factors; β = β_Λ + β_Φ + β_χ"),
        _slope_and_interval("beta_lambda"),
    ),
    (Column("β_Λ c.v.", drop_order=1, about=_ABOUT_CROSS_VALIDATED), _slope("beta_lambda_cv")),
    (
        Column("β_Φ", about="from how the gradient's singular directions lie in the factors' eigenbases; 0: aligned"),
        _slope_and_interval("beta_phi"),
    ),
    (
        Column("β_χ", about="from χ = h / h_Kron, what the product of factors leaves out"),
        _slope_and_interval("beta_chi"),
    ),
    (Column("Λ^δ", drop_order=3, together="Λ"), _slope("beta_lambda_delta")),
    (Column("Λ^A", drop_order=3, together="Λ"), _slope("beta_lambda_a")),
    (Column("ρ^δ", drop_order=2, together="ρ"), _slope("beta_rho_delta")),
    (Column("ρ^A", drop_order=2, together="ρ"), _slope("beta_rho_a")),
    (Column("|β − sum|", drop_order=2), _number(lambda d: d.alignment.identity_residual, ".0e")),
)

_FACTORS: tuple[tuple[Column, Cell], ...] = (
    (
        Column("χ", strong=True, about="of order 1 where the product of factors is a good model"),
        lambda d: _chi(d.alignment),
    ),
    (
        Column("conc.", drop_order=2, about="mean of (u·δ)²(v·a)² over the product of the means"),
        _number(lambda d: d.alignment.concentration_ratio),
    ),
    (Column("top 1 %", drop_order=3, about=_ABOUT_TOP), lambda d: write(d.factors.concentration.top_1_percent, "%")),
    (Column("top 10 %", drop_order=5), lambda d: write(d.factors.concentration.top_10_percent, "%")),
    (Column("Gini samples", drop_order=6), _number(lambda d: d.factors.concentration.gini_samples)),
    (Column("Gini positions", drop_order=7), _number(lambda d: d.factors.concentration.gini_positions)),
    (Column("R²(h, σ²)", drop_order=4), _number(lambda d: d.alignment.r2_h_sigma2, ".3f")),
    (Column("R²(h_GN, σ²)", drop_order=8), _number(lambda d: d.alignment.r2_h_gn_sigma2, ".3f")),
    (Column("R²(h, h_GN)", drop_order=8), _number(lambda d: d.alignment.r2_h_h_gn, ".3f")),
    (Column("r(h_Kron, σ²)", drop_order=2), _number(lambda d: d.alignment.r_h_kron_sigma2, ".3f")),
    (Column("r_eff δ", drop_order=1, together="r_eff"), _number(lambda d: d.factors.delta.effective_rank, ".1f")),
    (Column("r_eff A", drop_order=1, together="r_eff"), _number(lambda d: d.factors.a.effective_rank, ".1f")),
    (Column("s_weight", drop_order=9), lambda d: write(d.factors.s_weight)),
    (
        Column("σ-profile off by", drop_order=4, about=_ABOUT_PROFILE),
        lambda d: _percent_of_log(d.alignment.profile_distance),
    ),
)


def _percent_of_log(value: float | Missing) -> str | Missing:
    return value if isinstance(value, Missing) else f"{100 * (2.718281828459045**value - 1):.0f} %"


def _chi(alignment: Alignment) -> str | Missing:
    if isinstance(alignment.chi_median, Missing):
        return alignment.chi_median
    return f"{alignment.chi_median:.2g} ({min(alignment.chi):.2g} to {max(alignment.chi):.2g})"


def _sheet(title: str, rows: Sequence[LayerRow], cells: tuple[tuple[Column, Cell], ...]) -> Sheet:
    notes = Footnotes()
    columns = (Column("layer", right=False), *(column for column, _ in cells))
    return Sheet(title, columns, tuple(_line(row, cells, notes) for row in rows), notes.lines())


def _line(row: LayerRow, cells: tuple[tuple[Column, Cell], ...], notes: Footnotes) -> Row:
    if not isinstance(row, LayerReport):
        return Row((row.info.name, status_cell(row, notes), *[DASH] * (len(cells) - 1)), status_tone(row))
    decomposition = row.decomposition
    if isinstance(decomposition, Missing):
        return Row((row.info.name, notes.missing(decomposition), *[DASH] * (len(cells) - 1)), Tone.QUIET)
    return Row((row.info.name, *(notes.show(cell(decomposition)) for _, cell in cells)))


def _words_sheet(rows: Sequence[LayerRow]) -> Sheet:
    columns = (
        Column("layer", right=False),
        Column("mechanism", right=False),
        Column("K-FAC, Shampoo", right=False, about=_ABOUT_SUITED),
        Column("rank models δ, A → gradient", right=False, drop_order=1),
        Column("evidence", right=False, drop_order=2),
    )
    lines = [Row((row.info.name, _mechanism(d), _suits(d), _models(row, d), _evidence(d))) for row, d in _pairs(rows)]
    return Sheet("Read-out", columns, tuple(lines))


def _mechanism(d: Decomposition) -> str:
    borne_out = [m.name for m in d.alignment.mechanisms if m.verdict is Determination.YES]
    open_ones = [m.name for m in d.alignment.mechanisms if m.verdict is Determination.UNDETERMINED]
    if borne_out:
        return ", ".join("none: factors aligned" if name == "none" else name for name in borne_out)
    return "undetermined" if open_ones else "another than those known"


def _suits(d: Decomposition) -> str:
    return {Determination.YES: "suited", Determination.NO: "not suited", Determination.UNDETERMINED: "undetermined"}[
        d.alignment.kronecker.verdict
    ]


def _models(row: LayerReport, d: Decomposition) -> str:
    reading = d.alignment.reading
    names = [
        DASH if isinstance(model, Missing) else RANK_MODEL_NAMES[model.best]
        for model in (reading.delta_model, reading.a_model)
    ]
    gradient = DASH
    if isinstance(reading.gradient_model, RankModel):
        gradient = RANK_MODEL_NAMES[reading.gradient_model]
        if isinstance(row.rank_resamples, RankResamples):
            gradient += f" {row.rank_resamples.wins[reading.gradient_model.value]} of {len(row.rank_resamples.sigma)}"
    driver = "" if isinstance(reading.driver, Missing) else f" (by {'A' if reading.driver == 'a' else 'δ'})"
    return f"{names[0]}, {names[1]} → {gradient}{driver}"


def _evidence(d: Decomposition) -> str:
    borne_out = [m.evidence for m in d.alignment.mechanisms if m.verdict is Determination.YES]
    return "; ".join(dict.fromkeys([*borne_out, d.alignment.kronecker.evidence]))


def _closing(report: Report, found: list[Decomposition]) -> list[str]:
    if not found:
        return []
    lines = []
    matching = [d.alignment.reading for d in found if not isinstance(d.alignment.reading.matches, Missing)]
    if matching:
        lines.append(
            f"A factor has the gradient's rank model on {sum(bool(r.matches) for r in matching)} of "
            f"{format_count(len(matching), 'layer')}, driven by δ on {sum(r.driver == 'delta' for r in matching)} and "
            f"by A on {sum(r.driver == 'a' for r in matching)}."
        )
    lines += _about_rank_models([row for row, _ in _pairs(report.layers)])
    pairs = [
        (d.factors.s_weight.value, row.analysis.alpha_h.value)
        for row, d in _pairs(report.layers)
        if isinstance(d.factors.s_weight, PowerFit) and isinstance(row.analysis.alpha_h, PowerFit)
    ]
    if pairs:
        below = sum(s < alpha for s, alpha in pairs)
        of = format_count(len(pairs), "layer")
        lines.append(f"s_weight (rank decay of the weight itself) is below α_H on {below} of {of}.")
    return lines


def _bottom_line(found: list[Decomposition]) -> str:
    """Which part of β comes from where, in the median, and whom a Kronecker preconditioner suits."""
    if not found:
        return "Nothing is said of where β comes from: no weight has factors."
    suits = Counter(d.alignment.kronecker.verdict for d in found)
    fitting = (
        f"a Kronecker preconditioner (K-FAC, Shampoo) suits {suits[Determination.YES]} of "
        f"{format_count(len(found), 'weight')}, does not suit {suits[Determination.NO]}, and is undetermined on "
        f"{suits[Determination.UNDETERMINED]}."
    )
    sums = [slopes for d in found if (slopes := _parts_of_beta(d.alignment)) is not None]
    if not sums:
        return f"{fitting[0].upper()}{fitting[1:]}"
    beta, spectra, alignment, rest = (f"{median(values):.2f}" for values in zip(*sums, strict=True))
    return (
        f"Of a β of {beta}, {spectra} comes from the spectra of the factors (β_Λ), {alignment} from how the gradient "
        f"lies in them (β_Φ) and {rest} from what their product leaves out (β_χ), medians over weights; {fitting}"
    )


def _parts_of_beta(alignment: Alignment) -> tuple[float, ...] | None:
    fits = (alignment.beta, alignment.beta_lambda, alignment.beta_phi, alignment.beta_chi)
    values = tuple(fit.value for fit in fits if isinstance(fit, PowerFit))
    return values if len(values) == len(fits) else None


def _about_rank_models(rows: Sequence[LayerReport]) -> list[str]:
    """What the counts behind a rank model say, and what its name means."""
    lines = []
    resampled = [(row.analysis.rank_models, row.rank_resamples) for row in rows]
    counted = [
        (found.best, drawn)
        for found, drawn in resampled
        if isinstance(found, RankComparison) and isinstance(drawn, RankResamples)
    ]
    if counted:
        firm = sum(drawn.wins[best.value] >= 0.95 * len(drawn.sigma) for best, drawn in counted)
        draws = len(counted[0][1].sigma)
        lines.append(
            f"Ordered values are correlated, which ΔBIC does not know: “14 of {draws}” counts on how many bootstrap "
            f"resamples of the sample groups the gradient's model wins too; on {firm} of "
            f"{format_count(len(counted), 'layer')} it does on 95 % of them."
        )
    named = [found for found, _ in resampled if isinstance(found, RankComparison) and found.best is RankModel.LOGNORMAL]
    if named:
        convex = sum(found.fits[2].params[2] > 0 for found in named)
        lines.append(
            "“Log-normal” is the formula log σ quadratic in log rank, not the distribution, whose curve is concave: on "
            f"{convex} of the {format_count(len(named), 'layer')} where it wins the curve is convex."
        )
    return lines
