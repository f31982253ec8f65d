"""Second derivatives across weights: every engine against the dense Hessian of a joint step, on tiny networks."""

from __future__ import annotations

import functools

import pytest
import torch

from spectrascope.curvature.choose import ENGINES
from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.engine import JointForm
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.curvature.tangent import joint
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.records.values import EngineName
from tests.support import oracles
from tests.support.cases import CASES, make_workload
from tests.support.measure_helpers import assert_close, hold, layers_of, parameter_name, stored_directions, targets_of

N = 5
STRAIGHT = [name for name, case in CASES.items() if not case.smooth]
MANY = ["mlp_relu", "attention", "layer_norm", "conv_groups", "residual", "product_of_branches", "stacked_experts",
        "shared_sequence", "tied_tokens", "fused_conv1d_on_single_rows", "squeeze_excite"]  # fmt: skip


@functools.cache
def _prepared(name: str):
    """The workload, its targets, and the dense Hessian's and Gauss-Newton forms on all their directions."""
    workload = make_workload(CASES[name], N)
    layers = layers_of(workload, include=["*"]) if name == "tied_tokens" else layers_of(workload)
    with hold(workload, layers):
        targets = targets_of(workload, layers, 3)
    steps = [(parameter_name(t.layer), d) for t in targets for d in stored_directions(t)]
    return workload, targets, oracles.joint_forms(workload.model, steps, *workload.source.fetch(0, N), workload.loss_fn)


def _measured(engine, workload, targets):
    with hold(workload, [t.layer for t in targets]):
        return engine.measure_joint(workload, targets)


def _require_equal(found, truth, what, tolerance=1e-10):
    assert float(truth.abs().max()) > 1e-8
    assert_close(found, truth, float(truth.abs().max()), tolerance, what)


@pytest.mark.parametrize("name", CASES)
def test_tangents(name):
    workload, targets, (hessian, _) = _prepared(name)
    _require_equal(_measured(Tangents(2), workload, targets), hessian, name)


@pytest.mark.parametrize("name", MANY)
def test_double_backprop(name):
    workload, targets, (hessian, _) = _prepared(name)
    _require_equal(_measured(DoubleBackprop(3), workload, targets), hessian, name)


@pytest.mark.parametrize("name", STRAIGHT)
def test_class_factors_give_the_gauss_newton_part(name):
    workload, targets, (hessian, gauss_newton) = _prepared(name)
    found = _measured(GaussNewton(2, None), workload, targets)
    _require_equal(found, gauss_newton, name)
    at = 0
    for target in targets:
        block = slice(at, at + target.directions.k)
        _require_equal(found[block, block], hessian[block, block], f"{name}:{target.layer.name}")
        at = block.stop


def test_between_weights_class_factors_are_an_approximation():
    _, targets, (hessian, gauss_newton) = _prepared("mlp_relu")
    assert len(targets) > 1
    assert float((hessian - gauss_newton).abs().max()) > 1e-3 * float(hessian.abs().max())
    forms = {engine.name: engine.joint for engine in ENGINES}
    assert forms.pop(EngineName.GAUSS_NEWTON) is JointForm.GAUSS_NEWTON
    exact = {name for name, form in forms.items() if form is JointForm.HESSIAN}
    assert exact == {EngineName.TANGENT, EngineName.DOUBLE_BACKPROP}


@pytest.mark.parametrize("name", ["attention", "gelu", "stacked_experts"])
def test_blocks_add_up_to_the_curvature_of_a_step_of_everything(name):
    """c^T M c is the second derivative of the loss along the step with coefficients c, of all weights at once."""
    workload, targets, _ = _prepared(name)
    found = _measured(Tangents(None), workload, targets)
    directions = [(parameter_name(t.layer), d) for t in targets for d in stored_directions(t)]
    coefficients = torch.randn(len(directions), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step: dict[str, torch.Tensor] = {}
    for c, (weight, direction) in zip(coefficients, directions, strict=True):
        step[weight] = step.get(weight, 0) + c * direction
    own = dict(workload.model.named_parameters())
    inputs, labels = workload.source.fetch(0, N)

    def loss(length: torch.Tensor) -> torch.Tensor:
        moved = {weight: own[weight].detach() + length * d for weight, d in step.items()}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return workload.loss_fn(torch.func.functional_call(workload.model, moved, (inputs,)), labels)

    truth = torch.autograd.functional.hessian(loss, torch.zeros((), dtype=torch.float64))
    assert float(coefficients @ found @ coefficients) == pytest.approx(float(truth), rel=1e-10)


@pytest.mark.parametrize("name", ["conv_groups", "layer_norm", "stacked_experts"])
def test_what_does_not_fit_together_goes_pair_by_pair(name, monkeypatch):
    workload, targets, (hessian, _) = _prepared(name)
    walks = []
    monkeypatch.setattr(joint, "_form", lambda plan, seeds, form=joint._form: walks.append(1) or form(plan, seeds))
    whole = _measured(Tangents(1), workload, targets)
    assert len(walks) == N
    walks.clear()
    with hold(workload, [t.layer for t in targets]):
        parts = joint.measure_joint(workload, targets, 1, 0, None)
    assert len(walks) > N
    _require_equal(parts, hessian, name)
    assert_close(parts, whole, float(whole.abs().max()), 1e-12, name)


@pytest.mark.parametrize("engine", [e for e in ENGINES if e.joint is None])
def test_estimates_refuse(engine):
    workload, targets, _ = _prepared("mlp_relu")
    with pytest.raises(NotImplementedError, match=engine.name.value):
        engine.make(None, 0, None).measure_joint(workload, targets)
