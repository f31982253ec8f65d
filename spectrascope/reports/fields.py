"""The numbers of a layer: what each is called, how it is read and written, and who shows it.

One list for all readers. The table, CSV, the page, the gate's headlines, trajectories, metrics of a running training
and the orders of a table take from it what is marked for them, so that a new number is a field of its record and one
:class:`Field` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any, TypeAlias

from spectrascope.records.report import LayerReport
from spectrascope.records.signal import NullBeta, StepExponent
from spectrascope.records.values import Interval, Missing, PowerFit, RankComparison, RankModel, Triangle
from spectrascope.reports.charts.sparklines import log_sparkline, sparkline
from spectrascope.reports.figures import format_percent, format_roughly

__all__ = [
    "FIELDS", "RANK_MODEL_NAMES", "UNDETERMINED", "Columns", "Field", "TrackedNumber", "csv_fields", "fit_columns",
    "followed", "format_rank_model", "headlines", "named", "plain", "rank_columns", "spread", "write", "write_interval",
]  # fmt: skip

RANK_MODEL_NAMES = {
    RankModel.POWER_LAW: "power law",
    RankModel.EXPONENTIAL: "exponential",
    RankModel.LOGNORMAL: "log-normal",
}
"""How the rank models are called in tables."""

Columns: TypeAlias = "tuple[tuple[str, Callable[[Any], Any]], ...]"
"""Columns of CSV that one value fills, each with what it holds of the value."""


@dataclass(frozen=True, slots=True)
class Field:
    """One number or word of a measured layer.

    ``name`` is its name in JSON and in the gate's rules, ``key`` that of flat places (trajectories, metrics, the CSV
    column that stands for it) where it differs. ``read`` takes the value from a layer as its record holds it;
    ``form`` is a format of Python's or ``%``, ``cell`` writes what takes more than that. ``columns`` are those of CSV,
    one named like the field by default, none where another field's columns hold it.

    Where it is shown: ``table`` in the per-layer table, leaving a narrow terminal the sooner the higher it is;
    ``page`` in the page's table; ``headline`` among the gate's numbers; ``followed`` over training and by a monitor,
    its column leaving the table of checkpoints like ``table``, and ``drawn`` there. ``csv`` and ``headline`` are
    places: those of 1 come first, then those of 2, each in the order of :data:`FIELDS`; 0 is not shown.
    ``sort`` names an order of the table by it: the largest first, or the smallest where higher is ``better``.
    """

    name: str
    header: str
    about: str
    read: Callable[[LayerReport], Any]
    key: str = ""
    label: str = ""
    form: str = ".2f"
    cell: Callable[[Any, LayerReport], str] | None = None
    columns: Columns | None = None
    csv: int = 1
    table: int | None = None
    page: bool = False
    headline: int = 0
    followed: int | None = None
    drawn: bool = True
    logarithmic: bool = False
    sort: str = ""
    better: str = ""  # "higher" | "lower" | "" where neither is
    right: bool = True
    strong: bool = False

    @property
    def flat(self) -> str:
        """Its name where no dot may stand."""
        return self.key or self.name

    @property
    def spoken(self) -> str:
        """Its name in a sentence or a title."""
        return self.label or self.header

    def value(self, row: LayerReport) -> Any:
        """The one number or word, or why this layer has none."""
        return plain(self.read(row))

    def text(self, row: LayerReport) -> str | Missing:
        """What a cell of a table shows."""
        value = self.read(row)
        return write(value, self.form) if self.cell is None or isinstance(value, Missing) else self.cell(value, row)

    def cells(self, row: LayerReport) -> dict[str, Any]:
        """What CSV holds of it."""
        return spread(self.flat, self.csv_columns, self.read(row))

    @property
    def csv_columns(self) -> Columns:
        """Its columns of CSV."""
        return ((self.flat, plain),) if self.columns is None else self.columns


def plain(value: Any) -> Any:
    """Return the one number or word that a record stands for; a step exponent that is undetermined stands for none.

    >>> plain(Triangle(1.0, 0.02, True)), plain(RankModel.LOGNORMAL), plain(3)
    (0.02, 'lognormal', 3)
    """
    if isinstance(value, PowerFit):
        return value.value
    if isinstance(value, Triangle):
        return value.relative_error
    if isinstance(value, NullBeta):
        return value.value
    if isinstance(value, StepExponent):
        return value.value if value.determined else Missing(f"undetermined: {value.reason}")
    if isinstance(value, RankComparison):
        value = value.best
    return value.value if isinstance(value, Enum) else value


def write(value: Any, form: str = ".2f") -> str | Missing:
    """Write the number a value stands for by a format of Python's, or as a percentage for ``%``.

    >>> write(1.2345), write(0.0123, "%"), write(Missing("no gradient"))
    ('1.23', '1.2 %', Missing(reason='no gradient'))
    """
    if isinstance(value, Missing):
        return value
    return format_percent(plain(value)) if form == "%" else format(plain(value), form)


def write_interval(value: Interval | Missing) -> str | Missing:
    """Write the ends of an interval."""
    return value if isinstance(value, Missing) else f"{value.low:.2f} to {value.high:.2f}"


def format_rank_model(comparison: RankComparison) -> str:
    """Name the rank model that wins, with a ``~`` where it is a tie."""
    return ("~" if comparison.tie else "") + RANK_MODEL_NAMES[comparison.best]


# -- columns of CSV -------------------------------------------------------------------------------------------------


def spread(name: str, columns: Columns, value: Any) -> dict[str, Any]:
    """Lay a value out over its columns; the reason of a missing one stands in the column ``name``."""
    return {name: value} if isinstance(value, Missing) else {column: take(value) for column, take in columns}


_OF_A_FIT: Mapping[str, Callable[[PowerFit], Any]] = {
    "": lambda fit: fit.value,
    "_stderr": lambda fit: fit.stderr,
    "_ci_low": lambda fit: fit.ci95.low,
    "_ci_high": lambda fit: fit.ci95.high,
    "_jackknife_low": lambda fit: (
        fit.jackknife_ci95 if isinstance(fit.jackknife_ci95, Missing) else fit.jackknife_ci95.low
    ),
    "_jackknife_high": lambda fit: "" if isinstance(fit.jackknife_ci95, Missing) else fit.jackknife_ci95.high,
    "_r2": lambda fit: fit.r2,
    "_n": lambda fit: fit.n,
    "_n_dropped": lambda fit: fit.n_dropped,
}


def fit_columns(name: str, *parts: str) -> Columns:
    """Columns of an exponent: the given parts, or all of them.

    >>> [column for column, _ in fit_columns("s_weight", "", "_r2")]
    ['s_weight', 's_weight_r2']
    """
    return tuple((f"{name}{part}", _OF_A_FIT[part]) for part in parts or _OF_A_FIT)


def _of_model(table: str, model: RankModel) -> Callable[[RankComparison], float]:
    return lambda found: next(float(getattr(fit, table)) for fit in found.fits if fit.model is model)


def rank_columns(*tables: str) -> Columns:
    """Columns of the three rank models by ``bic``, ``aic`` or ``rss``."""
    return tuple((f"{table}_{model.value}", _of_model(table, model)) for table in tables for model in RankModel)


def _attributes(prefix: str, *names: str, **others: str) -> Columns:
    """Columns that hold attributes of a record: ``prefix`` and its name, or another one."""
    found = {**{name: name for name in names}, **others}
    return tuple((prefix + column, lambda value, name=name: getattr(value, name)) for column, name in found.items())


# -- what a layer holds ---------------------------------------------------------------------------------------------


def _exponent(fit: PowerFit, _: LayerReport) -> str:
    """With its ±, and a mark where that is of the straight line alone."""
    mark = "*" if isinstance(fit.jackknife_ci95, Missing) else " "
    return f"{fit.value:.2f} ±{fit.interval.half_width:.2f}{mark}"


def _resolved(n: int, row: LayerReport) -> str:
    first, last = row.analysis.window
    return f"{n}/{max(0, last - first + 1)}"


def _samples(n: float, row: LayerReport) -> str:
    return "enough" if _part(row.analysis.samples_needed, "n_resolved") >= 4 else format_roughly(n)


def _held_out_beta(row: LayerReport) -> PowerFit | Missing:
    """The fit; of too few slopes without their number, which would be a footnote of its own for each weight."""
    found: PowerFit | Missing = _part(row.held_out, "beta")
    few = isinstance(found, Missing) and "held-out slopes have t of at least" in found.reason
    return _FEW_SLOPES if few else found


_FEW_SLOPES = Missing("fewer than 4 directions have a held-out slope of 2 standard errors and positive curvature")


def _step(step: StepExponent, _: LayerReport) -> str:
    if not step.determined:
        return UNDETERMINED
    return f"{step.value:.1f} ({step.interval.low:.1f} to {step.interval.high:.1f})"


def _at_step(name: str) -> Callable[[LayerReport], Any]:
    return lambda row: _part(_part(row.held_out, "step_exponent"), name)


def _null_beta(null: NullBeta, _: LayerReport) -> str:
    return f"{null.value:.2f}"


def _of_shares(take: Callable[[tuple[float, ...]], Any]) -> Callable[[LayerReport], Any]:
    def read(row: LayerReport) -> Any:
        share = row.analysis.signal_share
        if isinstance(share, Missing):
            return share
        return take(share) if share else Missing("the window holds no held-out direction")

    return read


def _first(values: tuple[float, ...]) -> float | Missing:
    return values[0] if values else Missing("no direction was measured")


def _part(record: Any, name: str) -> Any:
    return record if isinstance(record, Missing) else getattr(record, name)


UNDETERMINED = "undetermined"
"""What stands for a step exponent that the samples do not determine."""

FIELDS: tuple[Field, ...] = (
    Field(
        "samples_needed.n_resolved", "resolved",
        "directions of the window whose slope on held-out samples is at least 3 standard errors",
        lambda row: _part(row.analysis.samples_needed, "n_resolved"),
        key="n_resolved", label="resolved directions", cell=_resolved, table=0, page=True, followed=1, sort="resolved",
        form="g",
    ),
    Field(
        "held_out.step_exponent", "step exponent",
        "the b whose step U diag(σ^(1−b)) Vᵀ lowers the loss most on held-out samples, with its 95 % interval: "
        "0 gradient descent, 1 Muon, 2 Newton",
        lambda row: _part(row.held_out, "step_exponent"),
        key="step_exponent", cell=_step,
        columns=(
            ("step_exponent", plain),
            ("step_exponent_low", lambda step: step.interval.low),
            ("step_exponent_high", lambda step: step.interval.high),
            ("step_exponent_determined", lambda step: step.determined),
            *_attributes(
                "", "decrease", "decrease_stderr", "decrease_0", "decrease_1", "decrease_2", "decrease_best",
            ),
        ),
        table=1, page=True, followed=0, sort="step", strong=True,
    ),
    Field(
        "beta", "β",
        "curvature exponent by the published definition, from the samples that chose the directions; ± half its 95 % "
        "interval",
        lambda row: row.analysis.beta,
        cell=_exponent, columns=fit_columns("beta"), table=1, page=True, headline=1, followed=0, sort="beta",
        strong=True,
    ),
    Field(
        "null.beta", "null β", "β of the same fit where there is nothing but sampling noise: mean over draws",
        lambda row: _part(row.null, "beta"),
        key="null_beta", cell=_null_beta,
        columns=(
            ("null_beta", plain), ("null_beta_low", lambda null: null.low), ("null_beta_high", lambda null: null.high),
            ("null_beta_draws", lambda null: null.n_draws),
        ),
        table=2, page=True, followed=1, drawn=False,
    ),
    Field(
        "samples_needed.for_4", "samples for 4",
        "samples that bring four directions to 3 standard errors, as t² grows with the samples",
        lambda row: _part(row.analysis.samples_needed, "for_4"),
        key="samples_for_4", label="samples needed for 4 directions", cell=_samples,
        table=3, page=True,
    ),
    Field(
        "samples_needed.for_all", "samples for all", "samples that bring every direction of the window there",
        lambda row: _part(row.analysis.samples_needed, "for_all"),
        key="samples_for_all", cell=lambda n, _: format_roughly(n),
    ),
    Field(
        "signal_share_median", "share", "median over directions of the held-out slope over σ: all signal at 100 %",
        _of_shares(median),
        label="signal share", form="%", table=6, page=True,
    ),
    Field(
        "", "s_k/σ_k", "profile of the signal share", _of_shares(lambda share: share),
        cell=lambda share, _: sparkline([min(max(value, 0.0), 1.0) for value in share]), columns=(), table=8,
        right=False,
    ),
    Field(
        "n_signal", "σ>noise", "leading directions whose σ sampling noise would not reach (95 % of null draws)",
        lambda row: row.analysis.n_signal,
        label="directions above noise", form="d", table=6, page=True,
    ),
    Field(
        "null.quantile", "95 % of noise", "a σ above it is signal: the 95 % quantile of the null draws' largest",
        lambda row: _part(row.null, "quantile"),
        key="null_quantile", form=".4g",
    ),
    Field(
        "null.contains_beta", "β within noise", "whether the measured β lies in the range of the null's",
        lambda row: _part(row.null, "contains_beta"),
        key="null_contains_beta", cell=lambda inside, _: "yes" if inside else "no",
    ),
    Field(
        "held_out.beta", "held-out β",
        "the exponent of curvature against slope, both on held-out samples, over slopes of at least 2 standard errors",
        _held_out_beta,
        key="held_out_beta", cell=_exponent, columns=fit_columns("held_out_beta"), table=7, page=True, followed=4,
        drawn=False,
    ),
    Field(
        "held_out.n_folds", "folds", "parts of the samples that were held out in turn",
        lambda row: _part(row.held_out, "n_folds"),
        key="n_folds", form="d",
    ),
    Field(
        "rank", "rank", "numerical rank of the gradient / the most it could be",
        lambda row: row.measurement.rank,
        cell=lambda rank, row: f"{rank}/{row.measurement.full_rank}", table=11, headline=2,
    ),
    Field("full_rank", "full rank", "the smaller of m and n", lambda row: row.measurement.full_rank, form="d"),
    Field(
        "window", "window", "ranks that the fits use, first to last",
        lambda row: row.analysis.window,
        cell=lambda window, _: f"{window[0]}-{window[1]}" if window[1] >= window[0] else "none",
        columns=(("k1", lambda window: window[0]), ("k2", lambda window: window[1])), table=13,
    ),
    Field(
        "sigma[1]", "σ_1", "largest singular value of the gradient", lambda row: _first(row.measurement.sigma),
        key="sigma_1",
    ),
    Field(
        "h[1]", "h_1", "curvature along the gradient's first direction", lambda row: _first(row.measurement.h),
        key="h_1",
    ),
    Field(
        "beta.r2", "R²", "how straight log h against log σ is; noise alone gives near 0.95",
        lambda row: _part(row.analysis.beta, "r2"),
        form=".3f", columns=(), table=9, page=True, headline=1, sort="r2", better="higher",
    ),
    Field(
        "alpha_g", "α_G", "decay of σ with rank",
        lambda row: row.analysis.alpha_g,
        columns=fit_columns("alpha_g"), table=7, page=True, headline=1, followed=2,
    ),
    Field(
        "alpha_h", "α_H", "decay of h with rank",
        lambda row: row.analysis.alpha_h,
        columns=fit_columns("alpha_h"), table=7, page=True, headline=1, followed=2,
    ),
    Field(
        "triangle.predicted", "β·α_G", "what α_H would be if the three exponents agreed",
        lambda row: _part(row.analysis.triangle, "predicted"),
        columns=(), table=11,
    ),
    Field(
        "triangle", "triangle", "relative error of α_H ≈ β·α_G",
        lambda row: row.analysis.triangle,
        key="triangle_error", label="triangle error", form="%",
        columns=_attributes("triangle_", "predicted", error="relative_error", well_conditioned="well_conditioned"),
        table=8, page=True, headline=1, followed=3, drawn=False, logarithmic=True, sort="triangle", better="lower",
    ),
    Field(
        "", "σ_k", "profile of the singular values", lambda row: row.measurement.sigma,
        cell=lambda sigma, _: log_sparkline(sigma), columns=(), table=12, right=False,
    ),
    Field(
        "", "h_k", "profile of the curvature", lambda row: row.measurement.h,
        cell=lambda h, _: log_sparkline(h), columns=(), table=12, right=False,
    ),
    Field(
        "rank_model", "rank model", "lowest BIC; ~ a tie",
        lambda row: row.analysis.rank_models,
        cell=lambda found, _: format_rank_model(found),
        columns=(
            ("rank_model", plain), ("rank_model_runner_up", lambda found: found.runner_up.value),
            *_attributes("rank_model_", "delta_bic", "tie"), ("rank_model_aic", lambda found: found.best_aic.value),
            *rank_columns("bic", "aic", "rss"),
        ),
        table=8, page=True, headline=1, right=False,
    ),
    Field(
        "zeta_bound", "zeta bound on PR_h", "what curvature falling as a power of the rank allows",
        lambda row: row.analysis.zeta_bound,
        key="zeta_s", cell=lambda bound, _: f"{bound.finite:.3f}",
        columns=_attributes("zeta_", "s", "infinite", "finite", "infinite_holds", "finite_holds"),
    ),
    Field(
        "pr_h", "PR_h", "participation ratio of the curvature: how many directions carry it",
        lambda row: row.analysis.pr_h,
        table=10, page=True, headline=1, followed=3, logarithmic=True, sort="pr_h",
    ),
    Field(
        "effective_rank_h", "effective rank of h", "exponential of the entropy of the shares of h",
        lambda row: row.analysis.effective_rank_h,
    ),
    Field(
        "pr_g", "PR_g", "participation ratio of the gradient: how many directions carry it",
        lambda row: row.measurement.pr_g,
        form=".1f", csv=2, table=12, page=True, headline=1, followed=7, logarithmic=True,
    ),
    Field(
        "n_negative", "h<0", "directions of negative curvature, left out of logarithms",
        lambda row: row.analysis.n_negative,
        form="d", table=11, page=True, headline=1,
    ),
    Field(
        "n_above_noise", "above sampling noise", "directions of the window whose σ is no sampling noise",
        lambda row: row.analysis.n_above_noise, form="d",
    ),
    Field(
        "off_diagonal_mass", "off-diagonal mass", "of the curvature between the directions",
        lambda row: row.analysis.off_diagonal_mass,
    ),
    Field(
        "effective_rank_g", "effective rank of the gradient", "exponential of the entropy of the shares of σ",
        lambda row: row.measurement.effective_rank_g, csv=2,
    ),
    Field(
        "noise_floor", "noise floor", "singular values below it are sampling noise",
        lambda row: row.measurement.noise_floor, csv=2,
    ),
    Field(
        "residual", "self-check", "largest relative difference from the reference",
        lambda row: row.measurement.residual,
        csv=2, sort="residual", better="lower",
    ),
    Field(
        "exact", "exact", "whether h is more than an estimate", lambda row: row.measurement.exact,
        cell=lambda exact, _: "yes" if exact else "no", csv=2,
    ),
    Field(
        "engine", "engine", "what measured the curvature", lambda row: row.measurement.engine,
        cell=lambda engine, row: engine.value + ("" if row.measurement.exact else " (approximate)"),
        csv=2, table=14, right=False,
    ),
)  # fmt: skip
"""Every number of a layer, in the order of the table and the page."""


def named(name: str) -> Field:
    """Return the field of a name, as JSON or as flat places spell it.

    Raises:
        KeyError: there is none.
    """
    found = next((field for field in FIELDS if name and name in (field.name, field.flat)), None)
    if found is None:
        raise KeyError(name)
    return found


def csv_fields() -> tuple[Field, ...]:
    """Fields with columns of CSV, in their order there."""
    return tuple(sorted((field for field in FIELDS if field.csv and field.csv_columns), key=lambda field: field.csv))


def headlines() -> tuple[str, ...]:
    """Names of the numbers of a layer that a comparison shows unless others are asked for."""
    shown = sorted((field for field in FIELDS if field.headline), key=lambda field: field.headline)
    return tuple(field.name for field in shown)


def followed() -> tuple[Field, ...]:
    """Fields that are followed over training."""
    return tuple(field for field in FIELDS if field.followed is not None)


# For the command line; functions take the flat name, which members of it are.
TrackedNumber = Enum("TrackedNumber", {f.flat.upper(): f.flat for f in followed()}, type=str)  # type: ignore[misc]
TrackedNumber.__doc__ = "Numbers of a layer that are followed over training."
