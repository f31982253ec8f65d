"""What must not change h, and what must change it by a known factor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.engine import Target
from spectrascope.curvature.gauss_newton import GaussNewton
from spectrascope.numerics.directions import Directions
from spectrascope.workload import TensorSource, Workload
from tests.support.cases import CASES, batch_norm, make_workload
from tests.support.measure_helpers import hold, layers_of, targets_of

FEW = settings(max_examples=12, deadline=None, derandomize=True)
ENGINES = st.sampled_from([GaussNewton, DoubleBackprop])


def _workload(seed: int, n: int, loss=F.cross_entropy) -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            batch_norm(nn.BatchNorm2d, 3),
            nn.LeakyReLU(0.2),
            nn.Conv2d(3, 4, 2, stride=2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        inputs, labels = torch.randn(n, 2, 4, 4), torch.randint(3, (n,))
    source = TensorSource(inputs.double(), labels)
    return Workload(model.double().eval(), source, loss, torch.device("cpu"), torch.float64)


def _targets(workload: Workload) -> list[Target]:
    layers = layers_of(workload)
    with hold(workload, layers):
        return targets_of(workload, layers)


def _measure(workload, targets, engine=GaussNewton, micro_batch=4, groups=1):
    with hold(workload, [t.layer for t in targets]):
        return engine(micro_batch).measure(workload, targets, groups=groups)


def _same(found, expected, factor=1.0):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.matrix, b.matrix * factor, rtol=1e-9, atol=1e-11 * float(b.matrix.abs().max()))


def _with(workload: Workload, inputs: torch.Tensor, labels: torch.Tensor, loss=None) -> Workload:
    return Workload(
        workload.model, TensorSource(inputs, labels), loss or workload.loss_fn, workload.device, workload.dtype
    )


@FEW
@given(seed=st.integers(0, 99), n=st.integers(2, 9), micro=st.integers(1, 9), groups=st.integers(1, 9), engine=ENGINES)
def test_batch_splitting(seed, n, micro, groups, engine):
    workload = _workload(seed, n)
    targets = _targets(workload)
    whole = _measure(workload, targets, engine, n)
    _same(_measure(workload, targets, engine, micro, groups), whole)


@FEW
@given(seed=st.integers(0, 99), factor=st.floats(0.01, 100), engine=ENGINES)
def test_scaling_the_loss_scales_sigma_and_h(seed, factor, engine):
    workload = _workload(seed, 6)
    scaled = _with(workload, *workload.source.fetch(0, 6), lambda o, t: factor * F.cross_entropy(o, t))
    targets, bigger = _targets(workload), _targets(scaled)
    for a, b in zip(targets, bigger, strict=True):
        torch.testing.assert_close(b.directions.sigma, factor * a.directions.sigma, rtol=1e-9, atol=0)
    _same(_measure(scaled, targets, engine), _measure(workload, targets, engine), factor)


@FEW
@given(seed=st.integers(0, 99), engine=ENGINES)
def test_order_and_duplication_of_samples(seed, engine):
    workload = _workload(seed, 6)
    targets = _targets(workload)
    expected = _measure(workload, targets, engine)
    inputs, labels = workload.source.fetch(0, 6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    _same(_measure(_with(workload, inputs[order], labels[order]), targets, engine), expected)
    _same(_measure(_with(workload, inputs.repeat(2, 1, 1, 1), labels.repeat(2)), targets, engine), expected)


@FEW
@given(seed=st.integers(0, 99), flips=st.lists(st.booleans(), min_size=4, max_size=4), engine=ENGINES)
def test_sign_flips_change_only_signs_off_the_diagonal(seed, flips, engine):
    workload = _workload(seed, 5)
    targets = _targets(workload)
    flipped, signs = [], []
    for t in targets:
        d = t.directions
        sign = torch.tensor([-1.0 if f else 1.0 for f in flips[: d.k]], dtype=torch.float64)
        flipped.append(Target(t.layer, Directions(d.sigma, d.left * sign, d.right, d.rank, d.spectrum)))
        signs.append(sign)
    plain, turned = _measure(workload, targets, engine), _measure(workload, flipped, engine)
    for a, b, sign in zip(plain, turned, signs, strict=True):
        torch.testing.assert_close(b.matrix, a.matrix * torch.outer(sign, sign), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(b.h, a.h, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(b.group_sigma, a.group_sigma * sign, rtol=1e-9, atol=1e-12)


@FEW
@given(seed=st.integers(0, 99), shift=st.floats(-50, 50))
def test_cross_entropy_ignores_a_common_shift_of_the_scores(seed, shift):
    workload = _workload(seed, 5)
    targets = _targets(workload)
    expected = _measure(workload, targets)
    with torch.no_grad():
        workload.model[-1].bias += shift
    _same(_measure(workload, targets), expected)


def test_confident_samples_lose_no_digits():
    workload = make_workload(CASES["mlp_relu"], 7)
    with torch.no_grad():
        workload.model[-1].weight *= 300  # softmax saturates: p of the runner-up down to 1e-30
    targets = _targets(workload)
    for a, b in zip(_measure(workload, targets), _measure(workload, targets, DoubleBackprop), strict=True):
        torch.testing.assert_close(a.matrix, b.matrix, rtol=1e-7, atol=1e-9 * float(b.matrix.abs().max()))
