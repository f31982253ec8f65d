"""The exact engines against dense Hessians of tiny networks, for every case and every way of cutting the batch."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from spectrascope.curvature.choose import choose_engines, make_engine
from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.records.values import EngineName
from tests.support import oracles
from tests.support.cases import CASES, make_workload
from tests.support.measure_helpers import (
    assert_close,
    assert_curvature,
    hold,
    layers_of,
    oracle_curvature,
    oracle_hessian,
    parameter_name,
    stored_directions,
    targets_of,
)

N, GROUPS = 7, 3


@functools.cache
def _prepared(name: str):
    """The float64 workload, its targets, which of them Gauss–Newton may measure, and the oracle's numbers."""
    workload = make_workload(CASES[name], N)
    layers = layers_of(workload, include=["*"]) if name == "tied_tokens" else layers_of(workload)
    with hold(workload, layers):
        targets = targets_of(workload, layers)
    smooth = CASES[name].smooth or {}
    truth = [oracle_curvature(workload, t, GROUPS) for t in targets]
    return workload, targets, [t.layer.name not in smooth for t in targets], truth


def _check(name, engine, fast_only, channels_last=False):
    workload, targets, fast, truth = _prepared(name)
    workload = replace(workload, channels_last=channels_last)
    chosen = [i for i, ok in enumerate(fast) if ok or not fast_only]
    with hold(workload, [t.layer for t in targets]):
        found = engine.measure(workload, [targets[i] for i in chosen], groups=GROUPS)
    assert len(found) == len(chosen) > 0
    for i, curvature in zip(chosen, found, strict=True):
        assert curvature.engine is engine.name
        assert curvature.exact
        assert curvature.group_sizes == tuple(b - a for a, b in oracles.group_ranges(N, GROUPS))
        sigma = targets[i].directions.sigma
        assert_curvature(curvature, truth[i], sigma, torch.float64, f"{name}:{targets[i].layer.name}")


@pytest.mark.parametrize("column_batch", [1, 2, None])
@pytest.mark.parametrize("micro_batch", [1, 3, N])
@pytest.mark.parametrize("name", CASES)
def test_gauss_newton(name, micro_batch, column_batch):
    _check(name, GaussNewton(micro_batch, column_batch), True)


@pytest.mark.parametrize("name", [n for n in CASES if "conv" in n or "residual" in n or "pool" in n])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_memory_format_changes_nothing(name, channels_last):
    _check(name, GaussNewton(4, None), True, channels_last=channels_last)


@pytest.mark.parametrize("micro_batch", [1, 3, N])
@pytest.mark.parametrize("name", CASES)
def test_tangents(name, micro_batch):
    _check(name, Tangents(micro_batch), False)


@pytest.mark.parametrize("name", [n for n in CASES if "conv" in n or "residual" in n or "pool" in n])
def test_tangents_of_channels_last_images(name):
    _check(name, Tangents(4), False, channels_last=True)


@pytest.mark.parametrize("micro_batch", [1, 3, N])
@pytest.mark.parametrize("name", CASES)
def test_double_backprop(name, micro_batch):
    _check(name, DoubleBackprop(micro_batch), False)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("engine", [EngineName.GAUSS_NEWTON, EngineName.TANGENT, EngineName.DOUBLE_BACKPROP])
def test_float32(name, engine):
    _, exact_targets, fast, truth = _prepared(name)
    workload = make_workload(CASES[name], N, torch.float32)
    layers = layers_of(workload, include=["*"]) if name == "tied_tokens" else layers_of(workload)
    by_name = {t.layer.name: (t, ok, tr) for t, ok, tr in zip(exact_targets, fast, truth, strict=True)}
    runner = make_engine(engine, 3)
    with hold(workload, layers):
        wanted = [la for la in layers if by_name[la.name][1] or engine is not EngineName.GAUSS_NEWTON]
        targets = [type(by_name[la.name][0])(la, by_name[la.name][0].directions) for la in wanted]
        found = runner.measure(workload, targets, groups=GROUPS)
    for target, curvature in zip(targets, found, strict=True):
        assert curvature.matrix.dtype == torch.float64
        truth_of = by_name[target.layer.name][2]
        assert_curvature(curvature, truth_of, target.directions.sigma, torch.float32, f"{name}:{target.layer.name}")


@pytest.mark.parametrize("name", CASES)
def test_choice_per_weight(name):
    workload, targets, fast, _ = _prepared(name)
    smooth = CASES[name].smooth or {}
    layers = [t.layer for t in targets]
    with hold(workload, layers):
        choices = choose_engines(workload, layers, EngineName.AUTO, 20)
    for layer, ok, choice in zip(layers, fast, choices, strict=True):
        if ok:
            assert "piecewise-linear tail" in choice.reason, (layer.name, choice.reason)
        else:
            assert choice.engine is EngineName.TANGENT, (layer.name, choice.reason)
            words = smooth[layer.name].split("|")
            assert any(word in choice.reason for word in words), (layer.name, choice.reason)


@pytest.mark.parametrize("name", ["mlp_relu", "conv_groups", "bce_3", "product_of_branches", "label_smoothing"])
def test_hessian_is_the_gauss_newton_matrix_on_piecewise_linear_tails(name):
    workload, targets, _, _ = _prepared(name)
    inputs, labels = workload.source.fetch(0, N)
    for target in targets:
        where = parameter_name(target.layer)
        hessian = oracle_hessian(workload, target.layer, 0, N)
        block = oracles.gauss_newton_block(workload.model, where, inputs, labels, workload.loss_fn)
        assert_close(hessian, block, float(hessian.abs().max()), 1e-10, f"{name}:{where}")


@pytest.mark.parametrize("name", ["gelu", "silu_tanh", "layer_norm", "attention"])
def test_double_backprop_is_the_second_difference_of_the_loss(name):
    workload, targets, fast, _ = _prepared(name)
    inputs, labels = workload.source.fetch(0, N)
    smooth = [t for t, ok in zip(targets, fast, strict=True) if not ok]
    with hold(workload, [t.layer for t in targets]):
        found = DoubleBackprop(3).measure(workload, smooth, groups=1)
    for target, curvature in zip(smooth, found, strict=True):
        loss = oracles.loss_of_weight(workload.model, parameter_name(target.layer), inputs, labels, workload.loss_fn)
        weight = target.layer.parameter.detach()
        direction = stored_directions(target)[0]
        expected = oracles.second_difference(loss, weight, direction, 1e-3)
        size = float(curvature.h.abs().max())
        assert float(curvature.h[0]) == pytest.approx(expected, abs=2e-4 * size)
