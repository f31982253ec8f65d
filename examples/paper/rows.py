"""The paper's claims as ranges of measured quantities: stated here, judged by :mod:`examples.paper.rules`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from examples.paper.arrays import Arrays, checks
from examples.paper.lab import Lab
from examples.paper.rules import Figure, Maybe, Row, difference, mean_of, median_of, share_of
from spectrascope.records.decomposition import Alignment, Decomposition
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import HeldOut, StepExponent
from spectrascope.records.values import Missing, PowerFit, RankComparison, RankModel, Triangle, ZetaBound
from spectrascope.reports.fields import plain

Quantity = Callable[[Report], Maybe]
ANY = math.inf
NO_NULL = Missing("both sides share the noise")
NO_ARRAYS = Missing("no array of it was released")


# -- quantities of a report -----------------------------------------------------------------------------------------


def layers(report: Report, *globs: str) -> list[LayerReport]:
    """Measured weights whose names match."""
    rows = [row for row in report.layers if isinstance(row, LayerReport)]
    return [row for row in rows if not globs or any(fnmatchcase(row.info.name, glob) for glob in globs)]


def _numbers(values: Iterable[object]) -> list[float]:
    return [float(value) for value in map(plain, values) if isinstance(value, int | float)]


def beta(*globs: str) -> Quantity:
    """Mean published β over weights; of a single weight with the interval of its fit."""

    def take(report: Report) -> Maybe:
        fits = [row.analysis.beta for row in layers(report, *globs) if isinstance(row.analysis.beta, PowerFit)]
        if len(fits) == 1:
            return Figure(fits[0].value, fits[0].interval.low, fits[0].interval.high)
        return mean_of([fit.value for fit in fits])

    return take


def held_out_beta(*globs: str) -> Quantity:
    """Mean β with slopes and curvature on held-out samples."""

    def take(report: Report) -> Maybe:
        held = [row.held_out for row in layers(report, *globs)]
        fits = _numbers(h.beta for h in held if isinstance(h, HeldOut) and isinstance(h.beta, PowerFit))
        return mean_of(fits) if fits else Missing("no weight has four slopes of two standard errors")

    return take


def step_exponent(*globs: str) -> Quantity:
    """Mean step exponent on held-out samples, of the weights that determine one; of a single one with its interval."""

    def take(report: Report) -> Maybe:
        steps = [row.held_out.step_exponent for row in layers(report, *globs) if isinstance(row.held_out, HeldOut)]
        known = [step for step in steps if isinstance(step, StepExponent) and step.determined]
        if len(known) == 1:
            return Figure(known[0].value, known[0].interval.low, known[0].interval.high)
        return mean_of([step.value for step in known]) if known else Missing("no weight determines a step exponent")

    return take


def alignment(take: Callable[[Alignment], object], *globs: str) -> Quantity:
    """Mean of a number of the decomposition."""

    def of(report: Report) -> Maybe:
        rows = [row.decomposition for row in layers(report, *globs)]
        return mean_of(_numbers(take(row.alignment) for row in rows if isinstance(row, Decomposition)))

    return of


def triangle_error(report: Report) -> Maybe:
    """Median relative error of α_H against β·α_G."""
    found = [row.analysis.triangle for row in layers(report)]
    return median_of([triangle.relative_error for triangle in found if isinstance(triangle, Triangle)])


def rank_share(model: RankModel) -> Quantity:
    """Share of weights on which a rank model has the lowest BIC."""

    def take(report: Report) -> Maybe:
        found = [row.analysis.rank_models for row in layers(report)]
        known = [item for item in found if isinstance(item, RankComparison)]
        return share_of(sum(item.best is model for item in known), len(known))

    return take


def zeta_holds(report: Report) -> Maybe:
    """Share of weights on which the finite zeta bound on the participation ratio holds."""
    found = [row.analysis.zeta_bound for row in layers(report)]
    known = [item for item in found if isinstance(item, ZetaBound)]
    return share_of(sum(item.finite_holds for item in known), len(known))


def participation(*globs: str) -> Quantity:
    """Mean participation ratio of the curvature."""
    return lambda report: mean_of(_numbers(row.analysis.pr_h for row in layers(report, *globs)))


def quartile_spread(report: Report) -> Maybe:
    """Largest less smallest β over quarters of the directions, where there are 40 directions."""
    spreads = []
    for row in layers(report):
        quarters = row.analysis.beta_quartiles
        if not isinstance(quarters, Missing):
            values = _numbers(quarter.fit for quarter in quarters)
            if len(values) == 4:
                spreads.append(max(values) - min(values))
    return mean_of(spreads) if spreads else Missing("no weight has 40 directions in its window")


def factor_matches(report: Report) -> Maybe:
    """Share of weights where a Kronecker factor has the gradient's rank model."""
    rows = [row.decomposition for row in layers(report)]
    known = [row.alignment.reading.matches for row in rows if isinstance(row, Decomposition)]
    told = [match for match in known if not isinstance(match, Missing)]
    return share_of(sum(told), len(told))


# -- claims -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A quantity of one network, and the range that bears the claim out."""

    place: str
    claim: str
    paper: str
    allowed: tuple[float, float]
    network: str
    quantity: Quantity
    held_out: Quantity | None = None
    check: str = ""


CONV = ("*conv*", "*features*")
QKV, PROJ, UP, DOWN = ("*qkv*",), ("*proj*",), ("*up*",), ("*down*",)

CLAIMS = (
    Claim("Table 1", "convolutions have β near 2", "1.97 to 2.17 ± 0.12", (1.85, 2.29), "cnn", beta(*CONV),
          step_exponent(*CONV), "ResNet-50 on Tiny-ImageNet, 49 convolutions: mean β"),
    Claim("Table 1", "dense layers of a plain MLP have β near 2.2", "2.18 ± 0.10", (1.98, 2.38), "mlp",
          beta("1.*", "3.*", "5.*"), step_exponent("1.*", "3.*", "5.*")),
    Claim("Table 1", "a ten-class classifier has β below 2", "1.23 to 1.65 ± 0.07", (1.09, 1.79), "cnn",
          beta("fc2*", "linear*"), step_exponent("fc2*", "linear*"), "VGG-11 classifier: β"),
    Claim("Table 1", "attention of a GPT-2 has β near 1.3", "1.30 ± 0.15", (1.0, 1.6), "gpt",
          beta(*QKV, *PROJ), step_exponent(*QKV, *PROJ)),
    Claim("Table 1", "the MLP of a GPT-2 has β near 1", "1.00 ± 0.18", (0.64, 1.36), "gpt", beta(*UP, *DOWN),
          step_exponent(*UP, *DOWN), "GPT-2, MLP: mean β"),
    Claim("Table 1", "the head of a GPT-2 has β above 2", "4.53", (2.5, ANY), "gpt", beta("head*"),
          step_exponent("head*")),
    Claim("Theorem 3", "with LayerNorm ρ^A does not depend on the direction", "slope about 0", (-0.25, 0.25), "gpt",
          alignment(lambda a: a.beta_rho_a, *QKV, *UP)),
    Claim("Proposition 5", "with residual connections ρ^δ does not depend on the direction", "slope about 0",
          (-0.25, 0.25), "gpt", alignment(lambda a: a.beta_rho_delta, *PROJ, *DOWN)),
    Claim("Appendix D", "the concentration ratio of convolutions is of order 1", "0.59 to 0.98", (0.3, 3.0), "cnn",
          alignment(lambda a: a.concentration_ratio, *CONV), None, "layer2.0.conv1: concentration ratio"),
    Claim("Appendix D", "χ of convolutions is large (10³ to 10⁷)", "10³ to 10⁷", (1e3, 1e7), "cnn",
          alignment(lambda a: a.chi_median, *CONV)),
    Claim("Appendix F", "β is the same over quarters of the spectrum", "2.07 to 2.59 over quarters", (0.0, 0.72), "mlp",
          quartile_spread),
    Claim("Appendix G", "σ is log-normal in rank on most layers", "21 of 24", (0.5, 1.0), "cnn",
          rank_share(RankModel.LOGNORMAL), None, "CIFAR: layers that are log-normal in rank"),
    Claim("Appendix H", "α_H = β·α_G to 2 % in the median", "1.9 %", (0.0, 0.03), "cnn", triangle_error, None,
          "CIFAR triangle, “20 layers”: median error"),
    Claim("Appendix H", "… on a GPT-2", "1.9 %", (0.0, 0.03), "gpt", triangle_error),
    Claim("Theorem 9", "the zeta bound holds", "all layers", (0.9, 1.0), "cnn", zeta_holds),
    Claim("Section 7.2", "curvature lies in about one direction", "1.0 to 1.8", (1.0, 2.0), "cnn",
          participation(*CONV), None, "ResNet conv1: curvature participation ratio"),
    Claim("Appendix L", "the Kronecker product's curvature follows σ²", "r = 0.974", (0.92, 1.0), "cnn",
          alignment(lambda a: a.r_h_kron_sigma2), None, "ResNet-50: mean correlation of h_Kron with σ²"),
    Claim("Appendix L", "a factor has the gradient's rank model", "87 %", (0.6, 1.0), "cnn", factor_matches, None,
          "… layers where a factor has the gradient's rank model"),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The sign of a difference of one quantity between two networks."""

    place: str
    claim: str
    paper: str
    allowed: tuple[float, float]
    after: str
    before: str
    quantity: Quantity
    held_out: Quantity | None = None


COMPARISONS = (
    Comparison("Theorem 3", "LayerNorm lowers the slope of ρ^A", "lower with it", (-ANY, 0.0), "gpt", "gpt-no-norm",
               alignment(lambda a: a.beta_rho_a, *QKV, *UP)),
    Comparison("Theorem 3", "LayerNorm lowers β", "lower with it", (-ANY, 0.0), "gpt", "gpt-no-norm",
               beta("blocks*"), step_exponent("blocks*")),
    Comparison("Proposition 5", "residual connections lower β", "lower with them", (-ANY, 0.0), "gpt",
               "gpt-no-residual", beta("blocks*"), step_exponent("blocks*")),
    Comparison("Appendix C", "100 classes instead of 10 lower β of a ViT", "2.25 to 1.74, 2.12 to 1.62", (-ANY, 0.0),
               "vit-100", "vit-10", beta("blocks*"), step_exponent("blocks*")),
    Comparison("Appendix C", "two classes instead of a language model raise β of the MLP", "0.73 to 1.59",
               (0.0, ANY), "gpt-classes", "gpt", beta(*UP, *DOWN), step_exponent(*UP, *DOWN)),
    Comparison("Appendix E", "β of convolutions rises while training", "1.45 to 1.81", (0.0, ANY), "cnn-late",
               "cnn-early", beta("conv*"), step_exponent("conv*")),
    Comparison("Appendix E", "β of the classifier falls while training", "1.99 to 1.57", (-ANY, 0.0), "cnn-late",
               "cnn-early", beta("fc2*"), step_exponent("fc2*")),
    Comparison("Appendix K", "fewer layers are log-normal in rank after training", "11 to 6 of 15", (-ANY, 0.0), "gpt",
               "gpt-untrained", rank_share(RankModel.LOGNORMAL)),
    Comparison("Appendix I", "the participation ratio grows by less than 1 from width 64 to 512", "2.5 to 3.3",
               (-ANY, 1.0), "mlp-512", "mlp-64", participation("1.*")),
)  # fmt: skip

OPTIMIZERS = (
    ("Table 3", "Spectral Newton beats AdamW (accuracy, %)", "+1.1 to +3.5 %", (0.0, ANY), "SN, paper",
     "AdamW"),
    ("Table 3", "… with damping relative to the gradient", "+1.1 to +3.5 %", (0.0, ANY), "SN, β = 2", "AdamW"),
    ("Table 3", "… and Muon", "not compared", (0.0, ANY), "SN, β = 2", "Muon"),
    ("Section 7.3", "held-out exponents are not behind Muon", "not claimed", (-0.5, ANY), "SN, held-out β", "Muon"),
    ("Appendix M", "one learning rate per layer from α_H changes nothing (accuracy, %)", "at most 0.2 %", (-0.5, 0.5),
     "scalar control", "AdamW"),
)  # fmt: skip

OPEN = (
    ("Section 8", "attention of a ViT-Large lies in the range of LayerNorm networks", "β 1.3 to 1.8"),
    ("Section 8", "the MLP of a LLaMA-7B has β near 1", "β about 1"),
)
"""Predictions of networks whose trained weights are neither here nor small enough for this."""


def claim_rows(lab: Lab, arrays: Arrays) -> list[Row]:
    """Every claim about one network."""
    known = {check.claim: check.recomputed for check in checks(arrays)}
    rows = []
    for claim in CLAIMS:
        report, null = lab.report(claim.network), lab.null(claim.network)
        rows.append(
            Row(
                claim.place, claim.claim, claim.paper, claim.allowed, claim.network,
                known.get(claim.check, NO_ARRAYS), claim.quantity(report), claim.quantity(null),
                Missing("it has no counterpart on held-out samples") if claim.held_out is None
                else claim.held_out(report),
            )
        )  # fmt: skip
    return rows


def comparison_rows(lab: Lab) -> list[Row]:
    """Every claim about a difference."""
    rows = []
    for item in COMPARISONS:
        after, before = lab.report(item.after), lab.report(item.before)
        held: Maybe = Missing("it has no counterpart on held-out samples")
        if item.held_out is not None:
            held = difference(item.held_out(after), item.held_out(before))
        null = difference(item.quantity(lab.null(item.after)), item.quantity(lab.null(item.before)))
        rows.append(
            Row(
                item.place, item.claim, item.paper, item.allowed, f"{item.after} less {item.before}", NO_ARRAYS,
                difference(item.quantity(after), item.quantity(before)), null, held,
            )
        )  # fmt: skip
    return rows


def open_rows() -> list[Row]:
    """Predictions that cannot be measured here, said so."""
    why = Missing("no trained weights of that size are here: spectrascope probe hf:… measures them where they are")
    return [
        Row(place, claim, paper, (-ANY, ANY), "not measured", NO_ARRAYS, why, why, why) for place, claim, paper in OPEN
    ]


def optimizer_rows(summary: dict[str, Any] | None) -> list[Row]:
    """Claims about training, from the comparison in ``examples/optimizers``: paired by seed, at equal steps."""
    rows = []
    for place, claim, paper, allowed, one, other in OPTIMIZERS:
        found = Missing("the comparison was left out") if summary is None else _paired(summary, one, other)
        on = "not trained" if summary is None else f"{summary['task']}: {one} less {other}"
        rows.append(Row(place, claim, paper, allowed, on, NO_ARRAYS, found, NO_NULL, Missing("it is about training")))
    return rows


def _paired(summary: dict[str, Any], one: str, other: str) -> Maybe:
    scores = {
        row["contender"]: dict(zip(row["seeds"], row["scores"], strict=True))
        for row in summary["rows"]
        if row["budget"] == "steps"
    }
    if one not in scores or other not in scores:
        return Missing(f"{one if one not in scores else other} was not trained")
    shared = scores[one].keys() & scores[other].keys()
    if any(scores[name][seed] is None for name in (one, other) for seed in shared):
        return Missing("a run diverged")
    if len(shared) < 3:
        return Missing(f"{len(shared)} seeds: an interval needs 3")
    return mean_of([scores[one][seed] - scores[other][seed] for seed in sorted(shared)], "seed")
