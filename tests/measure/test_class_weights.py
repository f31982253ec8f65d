"""Losses that weigh samples: measured as the loss of the whole batch, whatever the order of the samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.errors import UnsupportedModelError
from tests.support import oracles

SIZES = [(512, 4), (1024, 8), (1000, 10), (2048, 2)]


def _problem(n, classes, act, order):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), act, nn.Linear(7, classes)).double()
    x, y = torch.randn(n, 5, dtype=torch.float64), torch.randint(0, classes, (n,))
    if order:
        y = y.sort().values
    return net, x + y[:, None] * 0.1, y, torch.rand(classes).double() * 4 + 0.1


@pytest.mark.parametrize("order", [True, False], ids=["sorted", "mixed"])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()], ids=["gauss-newton", "tangent"])
@pytest.mark.parametrize(("n", "classes"), SIZES)
def test_class_weights_are_those_of_the_whole_batch(n, classes, act, order):
    net, x, y, w = _problem(n, classes, act, order)
    for loss in (nn.CrossEntropyLoss(weight=w, label_smoothing=0.1), nn.CrossEntropyLoss(weight=w)):
        report = spectrascope.probe(net, (x, y), loss, top_k=2, curvature_samples="all")
        assert report.provenance.loss == pytest.approx(loss(net(x), y).item(), rel=1e-12)
        for layer in report.layers:
            weight = net.get_parameter(layer.info.name)
            gradient = torch.autograd.grad(loss(net(x), y), weight)[0]
            sigma, left, right, _ = oracles.svd_directions(gradient, 2, 2**-52)
            k = len(sigma)
            along = [torch.outer(torch.from_numpy(left[:, i]), torch.from_numpy(right[:, i])) for i in range(k)]
            (truth,) = oracles.curvature_of_weights(lambda loss=loss: loss(net(x), y), [weight], [along])
            found = torch.tensor(layer.measurement.h, dtype=torch.float64)
            assert layer.measurement.sigma == pytest.approx(sigma[:k], rel=1e-9, abs=1e-12)
            assert found == pytest.approx(truth.diagonal()[: len(found)], abs=1e-8 * float(truth.abs().max()))


def test_a_weighted_loss_of_the_users_own_is_refused_in_class_order():
    net, x, y, w = _problem(512, 4, nn.Tanh(), True)
    with pytest.raises(UnsupportedModelError, match="it weighs samples by what else is in the batch"):
        spectrascope.probe(net, (x, y), lambda o, t: F.cross_entropy(o, t, weight=w))


def test_the_cause_that_a_refusal_names_is_the_true_one():
    net, x, y, _ = _problem(64, 4, nn.Tanh(), True)
    norm = nn.Sequential(net, nn.BatchNorm1d(4, track_running_stats=False)).double()
    with pytest.raises(UnsupportedModelError, match="a sample changes another's output"):
        spectrascope.probe(norm, (x, y))


def test_nll_and_pos_weight():
    net, x, y, w = _problem(512, 4, nn.Tanh(), True)
    net = nn.Sequential(net, nn.LogSoftmax(1))
    loss = nn.NLLLoss(weight=w)
    assert spectrascope.probe(net, (x, y), loss).provenance.loss == pytest.approx(loss(net(x), y).item(), rel=1e-12)
    several = nn.BCEWithLogitsLoss(pos_weight=w)
    t = F.one_hot(y, 4).double()
    found = spectrascope.probe(net, (x, t), several).provenance.loss
    assert found == pytest.approx(several(net(x), t).item(), rel=1e-12)
