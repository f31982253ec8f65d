"""Refusals name the true cause, whatever the exception was."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.errors import DataError, OptionError, UnsupportedModelError
from tests.support.cases import Net, labels

X, Y = torch.randn(12, 6, generator=torch.Generator().manual_seed(3)), labels(12, 4)


# --- a backward pass without a graph -------------------------------------------------------------------------------


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()


class _Once(_Tanh):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


class _InNumpy(_Tanh):
    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.detach().numpy() * (1 - ctx.saved_tensors[0].detach().numpy() ** 2))


class _WithoutGrad(_Tanh):
    @staticmethod
    def backward(ctx, grad):
        with torch.no_grad():
            return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


@pytest.mark.parametrize("engine", ["auto", "double-backprop"])
@pytest.mark.parametrize("kind", [_Once, _InNumpy, _WithoutGrad])
def test_a_backward_that_builds_no_graph_is_told(kind, engine):
    net = Net(lambda s, x: s.b(kind.apply(s.a(x))), a=nn.Linear(6, 5), b=nn.Linear(5, 4))
    first, second = spectrascope.probe(net, (X, Y), engine=engine).layers
    assert first.reason.startswith(
        "no second derivative for weight 'a.weight': a backward pass between it and the loss"
    )
    assert first.reason.endswith("; --engine finite-difference would estimate it")
    assert second.status.value == "ok"


def _rounded(t):
    return t + ((t * 8).round() / 8 - t).detach()


def _nearest(net, h):
    return h + (net.codes[torch.cdist(h, net.codes).argmin(1)] - h).detach()


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.b(_rounded(s.a(x))),
        lambda s, x: s.b(F.linear(x, _rounded(s.a.weight), s.a.bias).tanh()),
        lambda s, x: s.b(torch.fake_quantize_per_tensor_affine(s.a(x), 0.1, 0, -128, 127).relu()),
        lambda s, x: s.b(_nearest(s, s.a(x))),
        lambda s, x: s.b((s.a(x) / s.a(x).norm(dim=1, keepdim=True).detach()).tanh()),
    ],
    ids=["activations", "weights", "fake-quantize", "codebook", "norm"],
)
def test_a_gradient_that_is_not_the_loss_s_is_told_so_and_not_called_rounding(forward):
    codes = nn.Parameter(torch.randn(16, 5, generator=torch.Generator().manual_seed(4)))
    net = Net(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 4), codes=codes)
    rows = {row.info.name: row for row in spectrascope.probe(net, (X, Y), exclude="codes").layers}
    assert "the network's backward pass is not the derivative of its forward pass" in rows["a.weight"].reason
    assert rows["b.weight"].status.value == "ok"


def test_where_gradients_are_not_the_loss_s_no_weight_is_called_exact():
    deep = nn.ModuleList([nn.Linear(6, 6) for _ in range(7)])  # more than are compared in full

    def forward(s, x):
        for one in s.deep:
            x = F.linear(x, _rounded(one.weight)).tanh()
        return s.b(x)

    report = spectrascope.probe(Net(forward, deep=deep, b=nn.Linear(6, 4)), (X, Y))
    assert [row.status.value for row in report.layers] == ["failed"] * 7 + ["ok"]


def test_a_loss_that_is_linear_in_a_weight_is_told_so():
    net = Net(
        lambda s, x: torch.cat([s.a(x).sum(1, keepdim=True), s.b(x) ** 2], 1), a=nn.Linear(6, 5), b=nn.Linear(6, 1)
    )
    report = spectrascope.probe(net, (X, torch.zeros(12, 2)), lambda o, t: (o - t).mean(), engine="double-backprop")
    assert report.layers[0].reason.startswith("the loss is linear in weight 'a.weight': it has no curvature")
    assert report.layers[1].status.value == "ok"


# --- outputs that go with no loss ----------------------------------------------------------------------------------


class _Detector(nn.Module):
    def __init__(self, kind=list):
        super().__init__()
        self.a, self.kind = nn.Linear(6, 4), kind

    def forward(self, x):
        if self.training:
            return {"loss_box": self.a(x).square().mean()}
        return self.kind({"boxes": self.a(row[None]), "scores": row[:1]} for row in x)


@pytest.mark.parametrize("loss", [None, "cross-entropy", lambda o, t: sum(o.values())], ids=["none", "named", "own"])
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_detection_network_gives_boxes_in_eval_mode(kind, loss):
    with pytest.raises(DataError, match=r"in eval mode, .* the model returns boxes, scores of each sample and no loss"):
        spectrascope.probe(_Detector(kind), (X, Y), loss)


@pytest.mark.parametrize("keep", [lambda e: e.mean(1), lambda e: e[:, -1:], lambda e: e[:, -3:]], ids=["row", "1", "3"])
@pytest.mark.parametrize("loss", ["causal-lm", lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten())])
def test_scores_of_the_last_positions_alone_are_told(keep, loss):
    net = Net(lambda s, x: s.a(keep(s.e(x))), e=nn.Embedding(20, 8), a=nn.Linear(8, 20))
    tokens = torch.randint(0, 20, (12, 7))
    with pytest.raises(DataError, match=r"scores of (1 position|3 positions) for texts of 7 tokens"):
        spectrascope.probe(net, (tokens, tokens), loss)


# --- labels that stand for none ------------------------------------------------------------------------------------

OWN = {
    "255": lambda o, t: F.cross_entropy(o, t, ignore_index=255),
    "-1": lambda o, t: F.cross_entropy(o, t, ignore_index=-1),
    "masked": lambda o, t: (F.cross_entropy(o, t.clamp(0, 4), reduction="none") * (t < 5)).sum() / (t < 5).sum(),
}


@pytest.mark.parametrize("name", OWN)
def test_a_void_label_of_the_users_own_loss(name):
    void = -1 if name == "-1" else 255
    torch.manual_seed(0)
    net, x, y = nn.Conv2d(3, 5, 1), torch.randn(12, 3, 4, 4), torch.randint(0, 5, (12, 4, 4))
    y[:, 0, 0] = void
    known = spectrascope.probe(net, (x, y), functools.partial(F.cross_entropy, ignore_index=void), top_k=2)
    found = spectrascope.probe(net, (x, y), OWN[name], top_k=2)
    assert found.layers[0].measurement.h == pytest.approx(known.layers[0].measurement.h, rel=1e-4)


@pytest.mark.parametrize(
    ("labels", "hint"),
    [(Y % 4 + 1, "counted from 1, subtract 1"), (Y % 4 - 1, "no label is -100"), (Y % 3 + 2, "different classes")],
)
def test_labels_that_do_not_fit_are_told_how_they_are_counted(labels, hint):
    with pytest.raises(DataError, match=hint):
        spectrascope.probe(nn.Linear(6, 4), (X, labels), top_k=2)


def test_a_label_that_the_users_own_loss_does_not_know_either():
    y = Y.clone()
    y[9] = 7
    with pytest.raises(DataError, match=r"label 7 does not fit a model with 4 outputs"):
        spectrascope.probe(nn.Linear(6, 4), (X, y), lambda o, t: 2 * F.cross_entropy(o, t))


# --- weights without values, a mode that is fixed, targets in the shape of the scores ------------------------------


def _plain():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("look", [spectrascope.weights, functools.partial(spectrascope.probe, batches=(X, Y))])
def test_shapes_without_values_are_refused(look):
    with torch.device("meta"):
        net = _plain()
    with pytest.raises(UnsupportedModelError, match=r"'0\.weight' has a shape and no values"):
        look(net)


@pytest.mark.parametrize(
    "look",
    [
        spectrascope.weights,
        functools.partial(spectrascope.probe, batches=(X, Y)),
        functools.partial(spectrascope.inspect, batches=(X, Y)),
    ],
)
def test_weights_without_a_shape_are_refused(look):
    with pytest.raises(UnsupportedModelError, match=r"'0\.weight' has no shape yet"):
        look(nn.Sequential(nn.LazyLinear(4)))


def test_an_exported_program_stays_in_its_mode():
    exported = torch.export.export(_plain(), (X,)).module()
    with pytest.raises(UnsupportedModelError, match="measure the module that it was made from"):
        spectrascope.probe(exported, (X, Y))


@pytest.mark.parametrize(
    ("net", "targets", "loss"),
    [
        (_plain(), F.one_hot(Y, 4), None),
        (nn.Linear(6, 1), (Y > 1).long()[:, None], nn.BCEWithLogitsLoss()),
    ],
)
def test_whole_numbers_in_the_shape_of_the_scores(net, targets, loss):
    with pytest.raises(DataError, match="whole numbers in the shape of the scores"):
        spectrascope.probe(net, (X, targets), loss)


def test_a_network_without_a_matrix_says_why():
    class Bilinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Bilinear(6, 6, 4)

        def forward(self, x):
            return self.b(x, x)

    with pytest.raises(OptionError, match=r"b\.weight is left out: a 3-D parameter of Bilinear"):
        spectrascope.probe(Bilinear(), (X, Y))
