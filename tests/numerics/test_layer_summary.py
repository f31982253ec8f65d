import math
from dataclasses import replace

import numpy as np
import pytest

from spectrascope.numerics.analysis import analyse
from spectrascope.numerics.summary import summarise
from spectrascope.records.report import LayerInfo, LayerReport, SkippedLayer
from spectrascope.records.values import Interval, LayerKind, LayerRole, LayerStatus, Missing, RankModel
from tests.support.numerics_cases import make_measurement, power_law, walk_floats


def make_info(kind: LayerKind) -> LayerInfo:
    return LayerInfo("layer", kind, LayerRole.MATRIX, (20, 20), (20, 20))


def make_layer(beta: float, kind: LayerKind = LayerKind.CONV, *, bend: float = 0.0, n: int = 20) -> LayerReport:
    """A layer with the given beta; ``bend`` shifts log h at even ranks and so spoils the triangle."""
    sigma = power_law(1.5, n)
    measurement = make_measurement(sigma, sigma**beta * np.exp(bend * (np.arange(n) % 2)))
    return LayerReport(make_info(kind), measurement, analyse(measurement, top_k=20))


def make_exponential_layer(kind: LayerKind) -> LayerReport:
    sigma = np.exp(-0.3 * np.arange(1.0, 21.0))
    measurement = make_measurement(sigma, sigma**2)
    return LayerReport(make_info(kind), measurement, analyse(measurement, top_k=20))


def skip(status: LayerStatus = LayerStatus.SKIPPED) -> SkippedLayer:
    return SkippedLayer(make_info(LayerKind.EMBEDDING), status, "not asked for")


def test_medians_quartiles_and_counts() -> None:
    rows = [make_layer(1.0), skip(), make_layer(2.0), make_layer(4.0), skip(LayerStatus.FAILED), skip()]
    summary = summarise(rows)
    assert (summary.n_ok, summary.n_skipped, summary.n_failed) == (3, 2, 1)
    assert (summary.overall.kind, summary.overall.n) == ("all", 3)
    assert summary.overall.beta_median == pytest.approx(2.0, abs=1e-12)
    assert isinstance(summary.overall.beta_iqr, Interval)
    assert summary.overall.beta_iqr.low == pytest.approx(1.5, abs=1e-12)
    assert summary.overall.beta_iqr.high == pytest.approx(3.0, abs=1e-12)
    assert summary.overall.bic_wins == {"power_law": 3, "exponential": 0, "lognormal": 0}


def test_by_kind_lists_only_measured_kinds_in_order() -> None:
    rows = [
        make_exponential_layer(LayerKind.CONV),
        make_layer(3.0, LayerKind.LINEAR),
        make_layer(1.0, LayerKind.LINEAR),
        skip(),
    ]
    linear, conv = summarise(rows).by_kind
    assert (linear.kind, linear.n, conv.kind, conv.n) == ("linear", 2, "conv", 1)
    assert linear.beta_median == pytest.approx(2.0, abs=1e-12)
    assert conv.beta_median == pytest.approx(2.0, abs=1e-12)
    assert linear.bic_wins == {"power_law": 2, "exponential": 0, "lognormal": 0}
    assert conv.bic_wins == {"power_law": 0, "exponential": 1, "lognormal": 0}


def test_missing_values_never_enter_an_average() -> None:
    short = make_layer(9.0, n=3)
    assert isinstance(short.analysis.beta, Missing)
    plain, with_short = (
        summarise([make_layer(1.0), make_layer(2.0)]),
        summarise([make_layer(1.0), short, make_layer(2.0)]),
    )
    assert with_short.overall.n == 3
    assert with_short.overall.beta_median == plain.overall.beta_median == pytest.approx(1.5, abs=1e-12)
    assert with_short.overall.beta_iqr == plain.overall.beta_iqr
    assert with_short.overall.triangle_error_median == plain.overall.triangle_error_median
    assert with_short.overall.bic_wins == plain.overall.bic_wins
    assert with_short.well_conditioned_median == plain.well_conditioned_median


def test_well_conditioned_medians_leave_the_others_out() -> None:
    good, bad = make_layer(2.0), make_layer(0.3, bend=3.0)
    assert bad.analysis.triangle.relative_error > 0.1
    summary = summarise([good, bad])
    assert summary.overall.n_well_conditioned == 1
    assert summary.well_conditioned_median == pytest.approx(
        {"beta": 2.0, "alpha_g": 1.5, "alpha_h": 3.0, "triangle_error": 0.0}, abs=1e-12
    )
    errors = [good.analysis.triangle.relative_error, bad.analysis.triangle.relative_error]
    assert summary.overall.triangle_error_median == pytest.approx(sum(errors) / 2, rel=1e-12)
    assert summarise([bad]).well_conditioned_median == Missing("no layer's triangle is well conditioned")


@pytest.mark.parametrize("rows", [[], [skip(), skip(LayerStatus.FAILED)], [make_layer(1.0, n=3)]])
def test_nothing_to_average_is_missing(rows: list) -> None:
    summary = summarise(rows)
    assert summary.overall.beta_median == Missing("no layer has a beta")
    assert summary.overall.beta_iqr == Missing("no layer has a beta")
    assert summary.overall.triangle_error_median == Missing("no layer has a triangle")
    assert summary.overall.bic_wins == {"power_law": 0, "exponential": 0, "lognormal": 0}
    assert summary.overall.n_well_conditioned == 0
    assert summary.well_conditioned_median == Missing("no layer's triangle is well conditioned")
    assert len(summary.by_kind) == len([row for row in rows if row.status is LayerStatus.OK])


def test_bic_not_aic_decides_a_win() -> None:
    layer = make_layer(2.0)
    models = replace(layer.analysis.rank_models, best_aic=RankModel.LOGNORMAL)
    row = replace(layer, analysis=replace(layer.analysis, rank_models=models))
    assert summarise([row]).overall.bic_wins == {"power_law": 1, "exponential": 0, "lognormal": 0}


def test_one_layer_is_its_own_median() -> None:
    summary = summarise([make_layer(1.7)])
    assert summary.overall.beta_median == summary.overall.beta_iqr.low == summary.overall.beta_iqr.high
    assert all(map(math.isfinite, walk_floats(summary)))
