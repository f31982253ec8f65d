"""The spectral alignment decomposition as a document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

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
from spectrascope.reports.views.words import warn

__all__ = ["build_decomposition"]

_FISHERS = {
    FisherType.GGN: "columns of the loss's curvature",
    FisherType.MC: "labels drawn from the model",
    FisherType.EMPIRICAL: "true labels",
}
_SHARINGS = {Sharing.EXPAND: "each position by itself", Sharing.REDUCE: "positions summed first"}

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
        closing=(*((line, Tone.PLAIN) for line in _closing(report, found)), *warn(report)),
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
    (Column("β_Λ"), _slope_and_interval("beta_lambda")),
    (Column("β_Λ c.v."), _slope("beta_lambda_cv")),
    (Column("β_Φ"), _slope_and_interval("beta_phi")),
    (Column("β_χ"), _slope_and_interval("beta_chi")),
    (Column("Λ^δ", drop_order=3), _slope("beta_lambda_delta")),
    (Column("Λ^A", drop_order=3), _slope("beta_lambda_a")),
    (Column("ρ^δ", drop_order=2), _slope("beta_rho_delta")),
    (Column("ρ^A", drop_order=2), _slope("beta_rho_a")),
    (Column("|β − sum|", drop_order=1), _number(lambda d: d.alignment.identity_residual, ".0e")),
)

_FACTORS: tuple[tuple[Column, Cell], ...] = (
    (Column("χ", strong=True), lambda d: _chi(d.alignment)),
    (Column("conc."), _number(lambda d: d.alignment.concentration_ratio)),
    (Column("top 1 %", drop_order=3), lambda d: write(d.factors.concentration.top_1_percent, "%")),
    (Column("top 10 %", drop_order=5), lambda d: write(d.factors.concentration.top_10_percent, "%")),
    (Column("Gini samples", drop_order=6), _number(lambda d: d.factors.concentration.gini_samples)),
    (Column("Gini positions", drop_order=7), _number(lambda d: d.factors.concentration.gini_positions)),
    (Column("R²(h, σ²)", drop_order=4), _number(lambda d: d.alignment.r2_h_sigma2, ".3f")),
    (Column("R²(h_GN, σ²)", drop_order=8), _number(lambda d: d.alignment.r2_h_gn_sigma2, ".3f")),
    (Column("R²(h, h_GN)", drop_order=8), _number(lambda d: d.alignment.r2_h_h_gn, ".3f")),
    (Column("r(h_Kron, σ²)", drop_order=2), _number(lambda d: d.alignment.r_h_kron_sigma2, ".3f")),
    (Column("r_eff δ", drop_order=1), _number(lambda d: d.factors.delta.effective_rank, ".1f")),
    (Column("r_eff A", drop_order=1), _number(lambda d: d.factors.a.effective_rank, ".1f")),
    (Column("s_weight", drop_order=9), lambda d: write(d.factors.s_weight)),
    (Column("σ-profile off by", drop_order=4), lambda d: _percent_of_log(d.alignment.profile_distance)),
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
        Column("K-FAC, Shampoo", right=False),
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
    lines = [
        "Slopes of logarithms on log σ over the same directions: h = Λ·Φ·χ, so β = β_Λ + β_Φ + β_χ (checked to 1e-8). "
        "Λ: eigenvalues of the Kronecker factors C_δ and C_A; Φ = ρ^δ·ρ^A: how the gradient's singular directions lie "
        "in their eigenbases (1: aligned); χ = h / h_Kron: what the product of factors leaves out.",
        "Factors are per sample and not divided by the batch size, so χ is of order 1 where the product is a good "
        "model. ± is the wider of the straight-line and the jackknife interval (β and β_χ have both).",
        "conc. is the mean of (u·δ)²(v·a)² over the product of the means; top 1 % the share of curvature that the "
        "hundredth of the samples with most of it holds. σ-profile: how far the gradient's singular values are from "
        "those of noise with the factors' spectra, once scaled to fit.",
    ]
    if not found:
        return lines
    lines.append(
        "Sampling spreads a factor of d dimensions by (1 ± √(d/N))² and biases β_Λ upwards; β_Λ c.v. is fitted to "
        "eigenvalues cross-validated: eigenvectors of one half of the sample groups, factor of the other."
    )
    suits = Counter(d.alignment.kronecker.verdict for d in found)
    lines.append(
        f"A Kronecker preconditioner suits {suits[Determination.YES]} of {format_count(len(found), 'layer')}, "
        f"does not suit {suits[Determination.NO]}, and is undetermined on {suits[Determination.UNDETERMINED]}: "
        "suited where χ is flat (its slope within ±0.25) and varies by less than 3 times."
    )
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
