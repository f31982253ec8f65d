"""The bench on a tiny network: its fields hang together and the engines agree."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import nn

from spectrascope.curvature import gauss_newton
from spectrascope.errors import OptionError
from spectrascope.measure.bench import run_bench
from spectrascope.records.report import DataInfo, ModelInfo, ProbeOptions
from spectrascope.records.values import Missing
from spectrascope.workload import Run, silent
from tests.support.cases import CASES, make_workload

MODEL = ModelInfo("m", "m", "python", Missing("x"), Missing("x"), "random", 1)
DATA = DataInfo("d", 40, Missing("x"), "", (3, 6, 6), 4, "", "", False)


def _bench(name="residual", n=40, on_progress=silent, **rest):
    workload = make_workload(CASES[name], n, torch.float32)
    options = ProbeOptions(num_samples=n, top_k=4, device="cpu")
    run = Run(workload.model, workload.source, workload.loss_fn, options, MODEL, DATA, on_progress=on_progress)
    return run_bench(
        run,
        **{"rounds": 2, "products_per_layer": 2, "reference_samples": 20} | rest,
    )


def test_fields_are_consistent():
    seen = []
    report = _bench(on_progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert report.engines == {"gauss-newton": 4} or set(report.engines) <= {"gauss-newton", "double-backprop"}
    assert sum(report.engines.values()) == report.n_layers
    assert 0 < report.n_products <= 4 * report.n_layers
    assert report.n_products_timed == 2 * report.n_layers
    assert (report.n_samples, report.n_samples_timed, report.extrapolated) == (40, 20, True)
    assert len(report.ratio_rounds) == report.rounds == 2
    assert report.ratio == pytest.approx(statistics.median(report.ratio_rounds))
    assert min(report.ratio, report.kept_graph_ratio, report.forward_seconds, report.engine_seconds) > 0
    assert report.engine_forward_equivalents == pytest.approx(report.engine_seconds / report.forward_seconds)
    assert report.kept_graph_forward_equivalents == pytest.approx(report.kept_graph_seconds / report.forward_seconds)
    assert report.engine_per_product == pytest.approx(report.engine_forward_equivalents / report.n_products)
    assert report.reference_per_product == pytest.approx(report.reference_forward_equivalents / report.n_products)
    assert report.kept_graph_per_product == pytest.approx(report.kept_graph_forward_equivalents / report.n_products)
    assert report.reference_forward_equivalents == pytest.approx(report.reference_seconds / report.forward_seconds)
    assert 0 <= report.max_relative_difference < 1e-3
    assert seen[0] == ("bench", 0, 6)
    assert seen[-1] == ("bench", 6, 6)


def test_nothing_left_to_extrapolate():
    report = _bench("mlp_relu", 16, rounds=1, products_per_layer=9, reference_samples=99)
    assert report.n_samples_timed == 16
    assert report.n_products_timed == report.n_products
    assert not report.extrapolated


def test_a_wrong_engine_shows_in_the_difference(monkeypatch):
    real = gauss_newton.GaussNewton.measure

    def sabotaged(self, *args, **rest):
        found = real(self, *args, **rest)
        for curvature in found:
            curvature.matrix.mul_(1.05)
        return found

    monkeypatch.setattr(gauss_newton.GaussNewton, "measure", sabotaged)
    assert _bench("mlp_relu", 16, rounds=1).max_relative_difference == pytest.approx(0.05 / 1.05, rel=0.01)


def test_smooth_networks_compare_too():
    assert _bench("layer_norm", 12, rounds=1).max_relative_difference < 1e-3


@pytest.mark.parametrize("option", ["rounds", "products_per_layer", "reference_samples"])
def test_bad_counts(option):
    with pytest.raises(OptionError, match="--rounds, --products and --reference-samples must be at least 1"):
        _bench("mlp_relu", 8, **{option: 0})


def test_the_model_is_left_as_found():
    workload = make_workload(CASES["conv_batch_norm"], 8, torch.float32)
    workload.model.train()
    before = {n: t.clone() for n, t in workload.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt, match="stop here"):
        run_bench(
            Run(
                workload.model,
                workload.source,
                workload.loss_fn,
                ProbeOptions(top_k=2, device="cpu"),
                MODEL,
                DATA,
                on_progress=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt("stop here")),
            )
        )
    assert all(m.training for m in workload.model.modules() if not isinstance(m, nn.Identity))
    for name, value in workload.model.state_dict().items():
        assert torch.equal(value, before[name])
