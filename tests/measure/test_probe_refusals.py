"""Bad input: one line, the right error, the right exit code."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.errors import (
    DataError,
    NondeterministicError,
    NonFiniteError,
    OptionError,
    SelfCheckError,
    SpectrascopeError,
    UnsupportedModelError,
)
from spectrascope.records.values import LayerStatus
from tests.curvature.test_engine_choice_traps import Lie
from tests.support import oracles
from tests.support.cases import Net, labels

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(3)), labels(12, 4)


def _mlp(act: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), act or nn.ReLU(), nn.Linear(5, 4))


def _damaged():
    net = _mlp()
    net[2].weight.data[1, 2] = float("nan")
    return net


def _reentrant(s, x):
    return s.c(F.tanh(torch.utils.checkpoint.checkpoint(s.b, F.relu(s.a(x)), use_reentrant=True)))


def _silent():
    net = _mlp()
    net[2].weight.data.zero_()
    net[0].weight.data.zero_()
    net[0].bias.data.zero_()
    return net


REFUSALS = {
    "nan weight": (NonFiniteError, r"parameter '2.weight' holds NaN or infinity in 1 of 20", {"model": _damaged}),
    "nan input": (NonFiniteError, r"the loss on the first 12 samples is nan", {"batches": (X * float("nan"), Y)}),
    "nan input late": (
        NonFiniteError,
        r"the mean loss over 40 samples is nan",
        {"batches": (torch.cat([X, X, X, X[:3], X[:1] * float("nan")]), torch.cat([Y, Y, Y, Y[:4]]))},
    ),
    "all gradients zero": (
        UnsupportedModelError,
        r"no weight could be measured \(2 failed\): the gradient is exactly zero",
        {"model": _silent, "loss_fn": lambda o, t: (o * 0).sum(1).mean()},
    ),
    "label too large": (DataError, r"label 4 does not fit a model with 4 outputs", {"batches": (X, Y % 3 + 2)}),
    "label too large, late": (
        DataError,
        r"label 9 does not fit",
        {"batches": (X, torch.cat([Y[:-1], torch.tensor([9])]))},
    ),
    "label negative": (DataError, r"label -1 does not fit", {"batches": (X, Y - 1)}),
    "labels ignored": (
        DataError,
        r"all labels of the batch are -100, which the loss ignores",
        {"batches": (X, torch.full((12,), -100))},
    ),
    "wrong width": (DataError, r"the model does not accept inputs of shape \(2, 5\)", {"batches": (X[:, :5], Y)}),
    "target shape": (
        DataError,
        r"the loss does not accept the model's output and targets of shape",
        {"batches": (X, torch.randn(12, 3)), "loss_fn": F.cross_entropy},
    ),
    "loss not scalar": (
        DataError,
        r"must return a scalar tensor",
        {"loss_fn": lambda o, t: F.cross_entropy(o, t, reduction="none")},
    ),
    "loss is a sum": (
        UnsupportedModelError,
        r"mean over independent samples",
        {"loss_fn": lambda o, t: F.cross_entropy(o, t, reduction="sum")},
    ),
    "lengths": (DataError, r"inputs and targets differ in length: 12 and 11", {"batches": (X, Y[:-1])}),
    "no samples": (DataError, r"no samples found", {"batches": []}),
    "no samples asked": (OptionError, r"num_samples 0: must be at least 1, or 'all'", {"num_samples": 0}),
    "crossed": (
        DataError,
        r"MSELoss does not compare sample by sample: outputs \(12, 1\) and targets \(12,\) are broadcast to \(12, 12\)",
        {"model": lambda: nn.Linear(6, 1), "batches": (X, X[:, 0]), "loss_fn": nn.MSELoss()},
    ),
    "crossed by a loss of one's own": (
        UnsupportedModelError,
        r"mean over independent samples, and outputs \(\d+, 1\) and targets \(\d+,\) are broadcast",
        {"model": lambda: nn.Linear(6, 1), "batches": (X, X[:, 0]), "loss_fn": lambda o, t: (o - t).square().mean()},
    ),
    "no second derivative of the loss": (
        UnsupportedModelError,
        r"multi_margin_loss_backward is not implemented; engine finite-difference would estimate it",
        {"loss_fn": nn.MultiMarginLoss()},
    ),
    "not pairs": (DataError, r"each item must be a pair of tensors", {"batches": [X, X, X]}),
    "not batches": (DataError, r"expected tensors \(inputs, targets\)", {"batches": 3}),
    "engine": (
        OptionError,
        r"engine 'fast': expected one of auto, gauss-newton, tangent, double-backprop, ",
        {"engine": "fast"},
    ),
    "dtype": (OptionError, r"dtype 'float16': expected float32, float64, bfloat16", {"dtype": "float16"}),
    "device": (OptionError, r"device 'gpu': expected auto, cpu", {"device": "gpu"}),
    "device meta": (OptionError, r"device 'meta': expected auto, cpu", {"device": "meta"}),
    "top_k": (OptionError, r"top_k 0: must be at least 1", {"top_k": 0}),
    "min_rank": (OptionError, r"min_rank 0: must be at least 1", {"min_rank": 0}),
    "min_rank beyond": (OptionError, r"min_rank 9 is beyond top_k 4", {"min_rank": 9, "top_k": 4}),
    "seed": (OptionError, r"seed -1: must be at least 0", {"seed": -1}),
    "groups": (OptionError, r"groups 0: must be at least 1", {"groups": 0}),
    "micro_batch word": (
        OptionError,
        r"micro_batch 'big': expected auto or a positive number",
        {"micro_batch": "big"},
    ),
    "micro_batch zero": (OptionError, r"micro_batch 0: expected auto", {"micro_batch": 0}),
    "layers": (OptionError, r"layers 'conv\*' matches none of the 2 weights", {"layers": ["conv*"]}),
    "exclude": (OptionError, r"exclude 'conv\*' matches none of the 2 weights", {"exclude": ["conv*"]}),
    "all excluded": (OptionError, r"every weight is left out", {"exclude": ["*"]}),
    "gauss-newton": (
        UnsupportedModelError,
        r"gauss-newton is not exact for weight '0.weight': gelu is not piecewise linear",
        {"model": lambda: _mlp(nn.GELU()), "engine": "gauss-newton"},
    ),
    "no_grad": (
        UnsupportedModelError,
        r"does not depend on any measured weight through autograd",
        {"model": lambda: Net(torch.no_grad()(lambda s, x: s.a(x)), a=nn.Linear(6, 4))},
    ),
    "reentrant checkpoint": (
        UnsupportedModelError,
        r"autograd cannot differentiate this network: When use_reentrant=True",
        {"model": lambda: Net(_reentrant, a=nn.Linear(6, 5), b=nn.Linear(5, 4), c=nn.Linear(4, 4))},
    ),
    "activation overwritten": (
        UnsupportedModelError,
        r"autograd cannot differentiate this network: .*modified by an inplace operation",
        {"model": lambda: Net(lambda s, x: s.b(F.relu(s.a(x)).mul_(2)), a=nn.Linear(6, 5), b=nn.Linear(5, 4))},
    ),
    "dropout": (
        NondeterministicError,
        r"two identical passes gave losses",
        {"model": lambda: Net(lambda s, x: F.dropout(s.a(x), 0.5, True), a=nn.Linear(6, 4))},
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name):
    kind, words, rest = REFUSALS[name]
    rest = dict(rest)
    net = rest.pop("model", _mlp)()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(kind, match=words) as caught:
        spectrascope.probe(net, rest.pop("batches", (X, Y)), rest.pop("loss_fn", None), **rest)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (2 if kind is OptionError else 3)
    for key, value in net.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[key].nan_to_num())


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_without_cuda(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="no usable CUDA device on this machine; use device='cpu'") as caught:
        spectrascope.probe(_mlp(), (X, Y), device=device)
    assert caught.value.exit_code == 2


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


@pytest.mark.parametrize(
    "run",
    [
        lambda s, x: s.b(_Once.apply(s.a(x))),
        lambda s, x: s.b(F.relu(torch.utils.checkpoint.checkpoint(s.a, x, use_reentrant=True))),
    ],
    ids=["once_differentiable", "reentrant checkpoint"],
)
def test_broken_second_derivatives_never_become_zeros(run):
    net = Net(run, a=nn.Linear(6, 5), b=nn.Linear(5, 4))
    try:
        report = spectrascope.probe(net, (X, Y))
    except SpectrascopeError:
        return
    first = report.layers[0]
    assert first.status.value == "failed"
    assert first.reason


def test_a_hand_made_weight_norm_is_right_or_refused():
    """Some releases of torch have a wrong second derivative of the fused operation; the self-check must see it."""
    net = Net(
        lambda s, x: s.b(F.tanh(F.linear(x, torch._weight_norm(s.v, s.g, 0)))),
        v=nn.Parameter(torch.randn(5, 6, dtype=torch.float64)),
        g=nn.Parameter(torch.rand(5, 1, dtype=torch.float64) + 0.5),
        b=nn.Linear(5, 4).double(),
    )
    v, name = net.v, "v"
    x = X.double()
    gradient = oracles.gradient_of(net, name, x, Y, F.cross_entropy)
    _, left, right, _ = oracles.svd_directions(gradient, 1, 2**-52)
    direction, start = torch.from_numpy(left @ right.T), v.detach().clone()

    def loss(value):
        v.data.copy_(value)
        return F.cross_entropy(net(x), Y)

    expected = oracles.second_difference(loss, start, direction, 1e-2)
    v.data.copy_(start)
    unchecked = spectrascope.probe(net, (x, Y), layers=[name], self_check=False)
    if unchecked.layers[0].measurement.h[0] == pytest.approx(expected, rel=1e-4):
        assert spectrascope.probe(net, (x, Y), layers=[name]).layers[0].measurement.residual < 1e-6
    else:
        with pytest.raises(SelfCheckError, match=f"weight '{name}' differs from the reference"):
            spectrascope.probe(net, (x, Y), layers=[name])


def test_a_lying_backward_is_never_measured_by_gauss_newton():
    net = Net(lambda s, x: s.b(F.relu(Lie.apply(s.a(x)))), a=nn.Linear(6, 5), b=nn.Linear(5, 4))
    with pytest.raises(UnsupportedModelError, match=r"autograd\.Function"):
        spectrascope.probe(net, (X, Y), engine="gauss-newton")
    lied, right = spectrascope.probe(net, (X, Y)).layers
    assert lied.status is LayerStatus.FAILED
    assert "differs from the reference by 2 of its largest curvature" in lied.reason
    assert right.status is LayerStatus.OK
