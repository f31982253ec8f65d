"""Quantities of reports, each a figure with its interval over weights: of one network, its seeds, or several alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from examples.paper.rules import Figure, Maybe, mean_of, median_of, share_of
from spectrascope.records.decomposition import Alignment, Decomposition
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.signal import HeldOut, RankResamples, StepExponent
from spectrascope.records.values import Missing, PowerFit, RankComparison, RankModel, Triangle, ZetaBound
from spectrascope.reports.fields import plain

Quantity = Callable[[Sequence[Report]], Maybe]


def layers(reports: Sequence[Report], *globs: str) -> list[LayerReport]:
    """Measured weights whose names match."""
    rows = [row for report in reports for row in report.layers if isinstance(row, LayerReport)]
    return [row for row in rows if not globs or any(fnmatchcase(row.info.name, glob) for glob in globs)]


def _numbers(values: Iterable[object]) -> list[float]:
    return [float(value) for value in map(plain, values) if isinstance(value, int | float)]


def beta(*globs: str) -> Quantity:
    """Mean published β over weights; of a single weight with the interval of its fit."""

    def take(reports: Sequence[Report]) -> Maybe:
        fits = [row.analysis.beta for row in layers(reports, *globs) if isinstance(row.analysis.beta, PowerFit)]
        if len(fits) == 1:
            return Figure(fits[0].value, fits[0].interval.low, fits[0].interval.high)
        return mean_of([fit.value for fit in fits])

    return take


def step_exponent(*globs: str) -> Quantity:
    """Mean step exponent on held-out samples, of the weights that determine one; of a single one with its interval."""

    def take(reports: Sequence[Report]) -> Maybe:
        steps = [row.held_out.step_exponent for row in layers(reports, *globs) if isinstance(row.held_out, HeldOut)]
        known = [step for step in steps if isinstance(step, StepExponent) and step.determined]
        if len(known) == 1:
            return Figure(known[0].value, known[0].interval.low, known[0].interval.high)
        return mean_of([step.value for step in known]) if known else Missing("no weight determines a step exponent")

    return take


def alignment(take: Callable[[Alignment], object], *globs: str) -> Quantity:
    """Mean of a number of the decomposition."""

    def of(reports: Sequence[Report]) -> Maybe:
        rows = [row.decomposition for row in layers(reports, *globs)]
        return mean_of(_numbers(take(row.alignment) for row in rows if isinstance(row, Decomposition)))

    return of


def triangle_error(reports: Sequence[Report]) -> Maybe:
    """Median relative error of α_H against β·α_G."""
    found = [row.analysis.triangle for row in layers(reports)]
    return median_of([triangle.relative_error for triangle in found if isinstance(triangle, Triangle)])


def rank_share(model: RankModel) -> Quantity:
    """Share of weights on which a rank model has the lowest BIC."""

    def take(reports: Sequence[Report]) -> Maybe:
        found = [row.analysis.rank_models for row in layers(reports)]
        known = [item for item in found if isinstance(item, RankComparison)]
        return share_of(sum(item.best is model for item in known), len(known))

    return take


def resampled_share(model: RankModel) -> Quantity:
    """Mean over weights of a rank model's share: of sample groups drawn again, how often it has the lowest BIC."""

    def take(reports: Sequence[Report]) -> Maybe:
        found = [row.rank_resamples for row in layers(reports)]
        known = [item.wins for item in found if isinstance(item, RankResamples) and item.wins]
        return mean_of([wins.get(model.value, 0) / sum(wins.values()) for wins in known])

    return take


def zeta_holds(reports: Sequence[Report]) -> Maybe:
    """Share of weights on which the finite zeta bound on the participation ratio holds."""
    found = [row.analysis.zeta_bound for row in layers(reports)]
    known = [item for item in found if isinstance(item, ZetaBound)]
    return share_of(sum(item.finite_holds for item in known), len(known))


def participation(*globs: str) -> Quantity:
    """Mean participation ratio of the curvature."""
    return lambda reports: mean_of(_numbers(row.analysis.pr_h for row in layers(reports, *globs)))


def quartile_spread(reports: Sequence[Report]) -> Maybe:
    """Largest less smallest β over quarters of the directions, where there are 40 directions."""
    spreads = []
    for row in layers(reports):
        quarters = row.analysis.beta_quartiles
        if not isinstance(quarters, Missing):
            values = _numbers(quarter.fit for quarter in quarters)
            if len(values) == 4:
                spreads.append(max(values) - min(values))
    return mean_of(spreads) if spreads else Missing("no weight has 40 directions in its window")


def factor_matches(reports: Sequence[Report]) -> Maybe:
    """Share of weights where a Kronecker factor has the gradient's rank model."""
    rows = [row.decomposition for row in layers(reports)]
    known = [row.alignment.reading.matches for row in rows if isinstance(row, Decomposition)]
    told = [match for match in known if not isinstance(match, Missing)]
    return share_of(sum(told), len(told))


def effective_rank_tells(reports: Sequence[Report]) -> Maybe:
    """Share of weights whose gradient is exponential where a factor's effective rank is below 10, else log-normal."""
    rows = [row.decomposition for row in layers(reports)]
    readings = [row.alignment.reading for row in rows if isinstance(row, Decomposition)]
    pairs = [(reading.min_effective_rank, reading.gradient_model) for reading in readings]
    known = [(rank, model) for rank, model in pairs if not isinstance(rank, Missing) and not isinstance(model, Missing)]
    hits = sum(model is (RankModel.EXPONENTIAL if rank < 10 else RankModel.LOGNORMAL) for rank, model in known)
    return share_of(hits, len(known))
