"""The numbers of a layer: what each is called, how it is read and written, and who shows it.

One list for all readers. The table, CSV, the page, the gate's headlines, trajectories, metrics of a running training
and the orders of a table take from it what is marked for them, so that a new number is a field of its record and one
:class:`Field` here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from spectrascope.records.report import LayerReport
from spectrascope.records.values import Interval, Missing, PowerFit, RankComparison, RankModel, Triangle
from spectrascope.reports.charts.sparklines import log_sparkline
from spectrascope.reports.figures import format_percent

__all__ = [
    "FIELDS", "RANK_MODEL_NAMES", "Columns", "Field", "TrackedNumber", "csv_fields", "fit_columns", "followed",
    "format_rank_model", "headlines", "named", "plain", "rank_columns", "spread", "write", "write_interval",
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
    """Return the one number or word that a record stands for.

    >>> plain(Triangle(1.0, 0.02, True)), plain(RankModel.LOGNORMAL), plain(3)
    (0.02, 'lognormal', 3)
    """
    if isinstance(value, PowerFit):
        return value.value
    if isinstance(value, Triangle):
        return value.relative_error
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


def _first(values: tuple[float, ...]) -> float | Missing:
    return values[0] if values else Missing("no direction was measured")


def _part(record: Any, name: str) -> Any:
    return record if isinstance(record, Missing) else getattr(record, name)


FIELDS: tuple[Field, ...] = (
    Field(
        "rank", "rank", "numerical rank of the gradient / the most it could be",
        lambda row: row.measurement.rank,
        cell=lambda rank, row: f"{rank}/{row.measurement.full_rank}", table=6, headline=2,
    ),
    Field("full_rank", "full rank", "the smaller of m and n", lambda row: row.measurement.full_rank, form="d"),
    Field(
        "window", "window", "ranks that the fits use, first to last",
        lambda row: row.analysis.window,
        cell=lambda window, _: f"{window[0]}-{window[1]}" if window[1] >= window[0] else "none",
        columns=(("k1", lambda window: window[0]), ("k2", lambda window: window[1])), table=9,
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
        "beta", "β", "curvature exponent, ± half its 95 % interval",
        lambda row: row.analysis.beta,
        cell=_exponent, columns=fit_columns("beta"), table=0, page=True, headline=1, followed=0, sort="beta",
        strong=True,
    ),
    Field(
        "beta.r2", "R²", "how straight log h against log σ is",
        lambda row: _part(row.analysis.beta, "r2"),
        form=".3f", columns=(), table=1, page=True, headline=1, sort="r2", better="higher",
    ),
    Field(
        "alpha_g", "α_G", "decay of σ with rank",
        lambda row: row.analysis.alpha_g,
        columns=fit_columns("alpha_g"), table=3, page=True, headline=1, followed=2,
    ),
    Field(
        "alpha_h", "α_H", "decay of h with rank",
        lambda row: row.analysis.alpha_h,
        columns=fit_columns("alpha_h"), table=3, page=True, headline=1, followed=2,
    ),
    Field(
        "triangle.predicted", "β·α_G", "what α_H would be if the three exponents agreed",
        lambda row: _part(row.analysis.triangle, "predicted"),
        columns=(), table=7,
    ),
    Field(
        "triangle", "triangle", "relative error of α_H ≈ β·α_G",
        lambda row: row.analysis.triangle,
        key="triangle_error", label="triangle error", form="%",
        columns=_attributes("triangle_", "predicted", error="relative_error", well_conditioned="well_conditioned"),
        table=1, page=True, headline=1, followed=3, drawn=False, logarithmic=True, sort="triangle", better="lower",
    ),
    Field(
        "", "σ_k", "profile of the singular values", lambda row: row.measurement.sigma,
        cell=lambda sigma, _: log_sparkline(sigma), columns=(), table=8, right=False,
    ),
    Field(
        "", "h_k", "profile of the curvature", lambda row: row.measurement.h,
        cell=lambda h, _: log_sparkline(h), columns=(), table=5, right=False,
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
        table=2, page=True, headline=1, right=False,
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
        table=5, page=True, headline=1, followed=3, logarithmic=True, sort="pr_h",
    ),
    Field(
        "effective_rank_h", "effective rank of h", "exponential of the entropy of the shares of h",
        lambda row: row.analysis.effective_rank_h,
    ),
    Field(
        "pr_g", "PR_g", "participation ratio of the gradient: how many directions carry it",
        lambda row: row.measurement.pr_g,
        form=".1f", csv=2, table=8, page=True, headline=1, followed=7, logarithmic=True,
    ),
    Field(
        "n_negative", "h<0", "directions of negative curvature, left out of logarithms",
        lambda row: row.analysis.n_negative,
        form="d", table=6, page=True, headline=1,
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
        csv=2, table=10, right=False,
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
