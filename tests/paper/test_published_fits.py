"""The paper's published fits, recomputed from the spectra it froze.

``results_alpha_triangle.json`` holds sigma and h of 24 layers with every exponent fitted to them;
``results_model_fit_comparison.json`` the rank models of the same layers, fitted to the same sigma. The paper
did not cut at the numerical rank, so "as published" means all directions that were measured.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectrascope.numerics import analyse
from spectrascope.records.report import Analysis, Measurement
from spectrascope.records.values import EngineName, Missing, PowerFit, RankComparison, RankModel, Triangle

TOLERANCE = 1e-9
FLOAT32_EPS = float(np.finfo(np.float32).eps)

LAYERS = [
    *(
        ("resnet18_triangle", name)
        for name in (
            "conv1",
            *(f"layer{stage}.0.conv{conv}" for stage in (1, 2, 3, 4) for conv in (1, 2)),
            "fc",
        )
    ),
    *(("gpt2_triangle", f"block{block}.mlp.{part}") for block in (0, 2, 5) for part in (0, 2)),
    ("gpt2_triangle", "output_head"),
    *(
        ("vgg11_triangle", name)
        for name in (
            *(f"features.{index}" for index in (0, 3, 6, 11, 16)),
            "classifier.0",
            "classifier.3",
        )
    ),
]
# 10-class heads: Σ_c δ_c = 0 leaves 9 directions, the tenth singular value is rounding (1e-7 sigma_1).
HEADS = {
    ("resnet18_triangle", "fc"): (0.74246, 0.14413),
    ("vgg11_triangle", "classifier.3"): (1.57052, 0.05896),
}

INPUTS = {"name", "shape", "top_k", "sigma", "h_exact"}
RECOMPUTED = {
    "alpha",
    "r2_alpha",
    "gamma",
    "r2_gamma",
    "s_hessian",
    "r2_s_hessian",
    "predicted_s",
    "triangle_error",
    "triangle_relative_error",
}
# Published, but the arrays behind them are not: s_weight is the rank slope of the WEIGHT's singular values,
# and neither the weights nor their spectra were released.
NOT_RECOMPUTABLE = {"s_weight", "r2_s_weight"}

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=[f"{net}-{name}" for net, name in LAYERS])


@pytest.fixture(scope="module")
def triangles(shared: Path) -> dict[tuple[str, str], dict[str, Any]]:
    experiments = json.loads((shared / "paper/results/results_alpha_triangle.json").read_text())
    return {(exp["experiment"], row["name"]): row for exp in experiments for row in exp["results"]}


@pytest.fixture(scope="module")
def comparison(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "paper/results/results_model_fit_comparison.json").read_text())


def count_rank(row: dict[str, Any]) -> int:
    sigma = np.array(row["sigma"])
    return int(np.sum(sigma > max(row["shape"]) * FLOAT32_EPS * sigma[0]))


def analyse_frozen(row: dict[str, Any], *, rank_cut: bool = False) -> Analysis:
    measurement = Measurement(
        sigma=tuple(row["sigma"]),
        h=tuple(row["h_exact"]),
        curvature_matrix=tuple(tuple(line) for line in np.diag(row["h_exact"]).tolist()),
        group_sizes=(),
        group_sigma=(),
        group_h=(),
        rank=count_rank(row) if rank_cut else len(row["sigma"]),
        full_rank=min(row["shape"]) if "shape" in row and len(row["shape"]) == 2 else len(row["sigma"]),
        pr_g=Missing("only the top directions were released"),
        effective_rank_g=Missing("only the top directions were released"),
        noise_floor=Missing("not released"),
        engine=EngineName.DOUBLE_BACKPROP,
        engine_reason="the paper's protocol",
        exact=True,
        residual=Missing("not released"),
    )
    return analyse(measurement, top_k=row["top_k"])


def published_names(analysis: Analysis) -> dict[str, float]:
    """The analysis under the names of the paper's files."""
    assert isinstance(analysis.beta, PowerFit)
    assert isinstance(analysis.alpha_g, PowerFit)
    assert isinstance(analysis.alpha_h, PowerFit)
    assert isinstance(analysis.triangle, Triangle)
    return {
        "alpha": analysis.beta.value,
        "r2_alpha": analysis.beta.r2,
        "gamma": analysis.alpha_g.value,
        "r2_gamma": analysis.alpha_g.r2,
        "s_hessian": analysis.alpha_h.value,
        "r2_s_hessian": analysis.alpha_h.r2,
        "predicted_s": analysis.triangle.predicted,
        "triangle_error": abs(analysis.alpha_h.value - analysis.triangle.predicted),
        "triangle_relative_error": analysis.triangle.relative_error,
    }


def test_all_published_layers_and_numbers_are_accounted_for(triangles: dict, comparison: dict) -> None:
    assert list(triangles) == LAYERS
    assert [(row["experiment"], row["name"]) for row in comparison["layers"]] == LAYERS
    for row in triangles.values():
        assert set(row) == INPUTS | RECOMPUTED | NOT_RECOMPUTABLE
        assert len(row["sigma"]) == len(row["h_exact"]) == row["top_k"]
    for row in comparison["layers"]:
        assert set(row) - {"experiment", "name", "layer_type", "top_k"} == {
            "gamma_reported",
            "best_model_bic",
            "delta_bic",
            "fits",
        }
        assert set(row["fits"]) == {model.value for model in RankModel}
        assert all(fit["valid"] for fit in row["fits"].values())


def test_nothing_in_a_measurement_could_give_the_weight_tail(triangles: dict) -> None:
    """The two numbers per layer that stay unchecked: no array in the file has the weights' spectrum in it."""
    arrays = {name for row in triangles.values() for name, value in row.items() if isinstance(value, list)}
    assert arrays == {"shape", "sigma", "h_exact"}
    assert not NOT_RECOMPUTABLE & {field.name for field in fields(Analysis)}


@each_layer
def test_exponents_and_triangle_as_published(layer: tuple[str, str], triangles: dict) -> None:
    row = triangles[layer]
    recomputed = published_names(analyse_frozen(row))
    assert set(recomputed) == RECOMPUTED
    assert recomputed == pytest.approx({name: row[name] for name in RECOMPUTED}, rel=0, abs=TOLERANCE)


@each_layer
def test_rank_models_as_published(layer: tuple[str, str], triangles: dict, comparison: dict) -> None:
    published = comparison["layers"][LAYERS.index(layer)]
    models = analyse_frozen(triangles[layer]).rank_models
    assert isinstance(models, RankComparison)
    assert models.best.value == published["best_model_bic"]
    assert models.fits[0].params[1] == pytest.approx(published["gamma_reported"], rel=0, abs=TOLERANCE)
    for fit in models.fits:
        expected = published["fits"][fit.model.value]
        params = {
            RankModel.POWER_LAW: ("log_c", "gamma"),
            RankModel.EXPONENTIAL: ("log_c", "beta"),
            RankModel.LOGNORMAL: ("log_c", "b", "a"),
        }[fit.model]
        assert (fit.rss, fit.aic, fit.bic) == pytest.approx(
            (expected["rss"], expected["aic"], expected["bic"]), rel=0, abs=TOLERANCE
        )
        assert fit.params == pytest.approx([expected[name] for name in params], rel=0, abs=TOLERANCE)
        assert models.n == expected["n"]
        assert set(expected) == {"valid", "rss", "n", "aic", "bic", *params}
    bic = {fit.model: fit.bic for fit in models.fits}
    assert {
        "exp_minus_pl": bic[RankModel.EXPONENTIAL] - bic[RankModel.POWER_LAW],
        "ln_minus_pl": bic[RankModel.LOGNORMAL] - bic[RankModel.POWER_LAW],
        "ln_minus_exp": bic[RankModel.LOGNORMAL] - bic[RankModel.EXPONENTIAL],
    } == pytest.approx(published["delta_bic"], rel=0, abs=TOLERANCE)


def test_wins_table_as_published(triangles: dict, comparison: dict) -> None:
    wins = dict.fromkeys((model.value for model in RankModel), 0)
    by_type: dict[str, dict[str, int]] = {}
    for published in comparison["layers"]:
        best = analyse_frozen(triangles[published["experiment"], published["name"]]).rank_models.best.value
        wins[best] += 1
        of_type = by_type.setdefault(published["layer_type"], {**dict.fromkeys(wins, 0), "total": 0})
        of_type[best] += 1
        of_type["total"] += 1
    assert wins == comparison["summary"]["wins_by_bic"] == {"power_law": 1, "exponential": 2, "lognormal": 21}
    assert by_type == comparison["summary"]["wins_by_layer_type"]
    shares = {model: 100 * count / 24 for model, count in wins.items()}
    assert shares == pytest.approx(comparison["summary"]["wins_pct"], rel=1e-12)


@pytest.mark.parametrize("layer", HEADS, ids="-".join)
def test_rank_cut_repairs_the_two_heads(layer: tuple[str, str], triangles: dict) -> None:
    row, (uncut, cut) = triangles[layer], HEADS[layer]
    assert count_rank(row) == 9
    assert row["sigma"][9] < 2e-7 * row["sigma"][0]
    before = analyse_frozen(row).triangle
    analysis = analyse_frozen(row, rank_cut=True)
    assert isinstance(before, Triangle)
    assert isinstance(analysis.triangle, Triangle)
    assert analysis.window == (1, 9)
    assert before.relative_error == pytest.approx(uncut, abs=1e-5)
    assert analysis.triangle.relative_error == pytest.approx(cut, abs=1e-5)
    assert analysis.triangle.relative_error < 0.15


def test_rank_cut_leaves_every_other_layer_as_published(triangles: dict) -> None:
    touched = [layer for layer, row in triangles.items() if analyse_frozen(row, rank_cut=True) != analyse_frozen(row)]
    assert touched == list(HEADS)


def test_betas_of_other_architectures_as_published(shared: Path) -> None:
    """``results_predictions.json``: ViT-Tiny, MobileNetV2, ConvNeXt-Tiny and a network without BatchNorm.

    Beyond the two files above, and only to 1e-6: these fits differ from float64 ones by up to 1.6e-7, the
    size of float32 rounding.
    """
    networks = json.loads((shared / "paper/results/results_predictions.json").read_text())
    rows = [row for network in networks for row in network["results"]]
    assert len(rows) == 10
    for row in rows:
        beta = analyse_frozen(row).beta
        assert isinstance(beta, PowerFit)
        assert beta.value == pytest.approx(row["alpha"], rel=0, abs=1e-6), row["name"]
        assert beta.r2 == pytest.approx(row["r2"], rel=0, abs=1e-6), row["name"]
        assert beta.n == row["n_valid"]
