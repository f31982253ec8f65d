"""The engines that only estimate: unbiased where they say so, within the error they give, and labelled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.finite_difference import FiniteDifference
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.curvature.sketch import GaussNewtonSketch
from spectrascope.errors import UnsupportedModelError
from spectrascope.losses import make_loss
from spectrascope.records.values import EngineName, Missing
from spectrascope.reports.json import report_from_json, report_to_json
from tests.support import oracles
from tests.support.cases import CASES, make_workload
from tests.support.families import FAMILIES, no_narrowing
from tests.support.measure_helpers import hold, layers_of, parameter_name, stored_directions, targets_of


def _sketches(workload, targets, seeds, probes=64):
    return [GaussNewtonSketch(2, probes, seed).measure(workload, targets, groups=2) for seed in seeds]


@pytest.mark.parametrize("name", ["mlp_relu", "conv_groups", "bce_3", "mse", "label_smoothing"])
def test_a_sketch_is_unbiased_and_knows_its_error(name):
    """On piecewise-linear tails Gauss–Newton is the Hessian, so the exact engine gives the truth."""
    loss = {"bce_3": "bce", "mse": "mse"}.get(name, "cross-entropy")
    workload = replace(make_workload(CASES[name], 6), loss_fn=make_loss(loss))
    layers = layers_of(workload)
    with hold(workload, layers):
        targets = targets_of(workload, layers, 3)
        truth = GaussNewton(3).measure(workload, targets, groups=2)
        runs = _sketches(workload, targets, range(12))
    scores = []
    for i, exact in enumerate(truth):
        for run in runs:
            assert not run[i].exact
            scores.append((run[i].h - exact.h) / run[i].stderr)
        mean = torch.stack([run[i].matrix for run in runs]).mean(0)
        assert float((mean - exact.matrix).abs().max()) <= 0.15 * float(exact.matrix.abs().max())
        assert runs[0][i].group_sigma == pytest.approx(exact.group_sigma, abs=1e-10)
    rms = float(torch.cat(scores).square().mean().sqrt())
    assert 0.6 < rms < 1.5  # the standard error is neither boast nor understatement


def test_a_sketch_of_a_smooth_network_is_of_the_gauss_newton_part():
    workload = make_workload(CASES["gelu"], 6)
    layers = layers_of(workload)
    with hold(workload, layers):
        targets = targets_of(workload, layers, 2)
        runs = _sketches(workload, targets, range(10), probes=128)
        for i, target in enumerate(targets):
            inputs, labels = workload.source.fetch(0, 6)
            block = oracles.gauss_newton_block(
                workload.model, parameter_name(target.layer), inputs, labels, workload.loss_fn
            )
            expected = oracles.curvature_matrix(block, stored_directions(target)).diagonal()
            mean = torch.stack([run[i].h for run in runs]).mean(0)
            assert mean == pytest.approx(expected, rel=0.2)


def test_a_sketch_of_a_language_model_keeps_terms_apart():
    """Independent signs per token estimate the sum of the tokens' blocks, not of all pairs of tokens.

    The untied head is the last operation: its Hessian block is its Gauss–Newton block.
    """
    workload = FAMILIES["llama"]()
    layers = [la for la in layers_of(workload) if la.name == "lm_head.weight"]
    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, 2)
        (exact,) = DoubleBackprop(3).measure(workload, targets, groups=1)
        runs = _sketches(workload, targets, range(10), probes=128)
    mean = torch.stack([run[0].h for run in runs]).mean(0)
    assert mean == pytest.approx(exact.h, rel=0.2)


def test_a_sketch_refuses_a_loss_it_does_not_know():
    workload = make_workload(CASES["mse"], 4)

    def own_loss(output, targets):
        return (output - 1).abs().pow(1.5).mean()

    with pytest.raises(UnsupportedModelError, match="knows cross-entropy, bce, mse and language-model losses"):
        spectrascope.probe(
            workload.model, workload.source.fetch(0, 4), own_loss, engine="gauss-newton-sketch", dtype="float64"
        )


@pytest.mark.parametrize("name", ["gpt2", "vit", "convnext"])
def test_differences_are_as_good_as_they_say(name):
    workload = FAMILIES[name]()
    layers = layers_of(workload)[:4]
    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, 2)
        exact = DoubleBackprop(3).measure(workload, targets, groups=2)
        found = FiniteDifference(3).measure(workload, targets, groups=2)
    for a, b in zip(found, exact, strict=True):
        assert not a.exact
        scale = float(b.h.abs().max())
        assert float((a.matrix - b.matrix).abs().max()) <= 1e-6 * scale
        assert bool(((a.h - b.h).abs() <= 3 * a.stderr + 1e-9 * scale).all())
        assert a.group_sigma == pytest.approx(b.group_sigma, abs=1e-9)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_differences_put_the_weight_back(error):
    workload = FAMILIES["vit"]()
    layers = layers_of(workload)[:1]
    weight = layers[0].parameter
    before = weight.detach().clone()
    calls = [0]

    def loss(output, targets):
        calls[0] += 1
        if calls[0] == 3:
            raise error("stop")
        return nn.functional.cross_entropy(output, targets)

    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, 2)
        with pytest.raises(error):
            FiniteDifference(3).measure(replace(workload, loss_fn=loss), targets, groups=1)
    assert torch.equal(weight.detach(), before)


@pytest.mark.parametrize("engine", ["gauss-newton-sketch", "finite-difference"])
def test_the_report_labels_an_estimate(engine):
    workload = make_workload(CASES["mlp_relu"], 8, torch.float32)
    report = spectrascope.probe(workload.model, workload.source.fetch(0, 8), top_k=3, engine=engine)
    again = report_from_json(report_to_json(report))
    assert again == report
    for row in report.layers:
        assert row.measurement.engine is EngineName(engine)
        assert row.measurement.exact is False
        assert len(row.measurement.h_stderr) == len(row.measurement.h)
        assert all(value >= 0 for value in row.measurement.h_stderr)
        assert isinstance(row.measurement.residual, Missing)
    exact = spectrascope.probe(workload.model, workload.source.fetch(0, 8), top_k=3)
    assert isinstance(exact.layers[0].measurement.h_stderr, Missing)
