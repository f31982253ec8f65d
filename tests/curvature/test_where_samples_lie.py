"""Sample groups kept apart in one sweep wherever samples lie in the values of a network, and where that is not seen."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spectrascope.curvature.double_backprop import DoubleBackprop
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.curvature.tangent.sweep import sweep
from spectrascope.workload import TensorSource, Workload
from tests.support.families import FAMILIES, no_narrowing
from tests.support.measure_helpers import hold, layers_of, targets_of


@pytest.fixture
def swept(monkeypatch):
    """The borders of sample groups that each sweep spanned."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        "spectrascope.curvature.tangent.sweeps.sweep",
        lambda plan, seeds: seen.append(plan.borders) or sweep(plan, seeds),
    )
    return seen


def _agrees(workload: Workload, groups) -> None:
    """Every number of every group is that of double backprop."""
    layers = layers_of(workload)
    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, 3)
        found = Tangents(micro_batch=workload.source.n, stacked=1 << 15).measure(workload, targets, groups=groups)
        truth = DoubleBackprop(micro_batch=workload.source.n).measure(workload, targets, groups=groups)
    for target, one, other in zip(targets, found, truth, strict=True):
        for field in ("matrix", "group_h", "group_sigma"):
            a, b = getattr(one, field), getattr(other, field)
            assert float((a - b).abs().max()) <= 1e-12 * float(b.abs().max()), (target.layer.name, field)


_RECURRENT = ("lstm", "lstm-bidirectional", "gru")
_ATTENDING = ("vit", "transformer-encoder", "transformer-encoder-post-norm", "multihead-attention", "cross-attention")


@pytest.mark.parametrize("name", [*_ATTENDING, *_RECURRENT])
def test_families_that_put_tokens_before_samples_take_one_sweep(name, swept):
    _agrees(FAMILIES[name](), (1, 2))
    assert swept == [(0, 1, 3)]


class _Heads(nn.Module):
    """Attention written out, heads merged with samples into one axis: ``first`` says which of them comes first."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.first = first
        self.qkv, self.out, self.head = nn.Linear(5, 18), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        batch, tokens, _ = x.shape
        if self.first == "tokens":  # what is bent has samples in the middle of an axis
            parts = torch.sin(self.qkv(x).transpose(0, 1).reshape(tokens, batch * 2, 9)).transpose(0, 1).chunk(3, -1)
        else:
            order = (3, 0, 2, 1, 4) if self.first == "samples" else (3, 2, 0, 1, 4)
            parts = self.qkv(x).view(batch, tokens, 2, 3, 3).permute(order).flatten(1, 2).unbind()
        q, k, v = parts
        p = (torch.bmm(q, k.transpose(1, 2)) / 3**0.5).softmax(-1)
        o = torch.bmm(p, v)
        o = o.unflatten(0, (2, batch)).transpose(0, 1) if self.first == "heads" else o.unflatten(0, (batch, 2))
        return self.head(torch.tanh(self.out(o.transpose(1, 2).flatten(2))).mean(1))


class _TokensFirst(nn.Module):
    """Everything runs on (tokens, samples, width): products of a weight with itself, norms, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(5, 5), nn.Linear(5, 3), nn.LayerNorm(5)

    def forward(self, x):
        h = torch.tanh(self.a(x.transpose(0, 1)))
        h = self.norm(self.a(h) * h.softmax(-1))
        return self.b(h).sigmoid().mean(0)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 10, dropout=0.0, activation="gelu")  # tokens first
        self.into, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layer(self.into(x.transpose(0, 1)))[-1])


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class _AcrossSamples(_Plain):
    """What one sample gives depends on the others."""

    def forward(self, x):
        h = torch.tanh(self.a(x))
        return self.b(torch.tanh(h - h.mean(0)))


class _Queries(_Plain):
    """Learned queries, a copy per sample, tokens first, that go through a weight before they meet what samples hold."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.register_buffer("queries", torch.randn(3, 1, 5))
        self.c = nn.Linear(5, 4)
        self.flat = flat

    def forward(self, x):
        copies = self.queries.repeat(1, len(x), 1)
        asked = torch.tanh(self.a(copies.flatten(0, 1) if self.flat else copies)).view(3, len(x), 4).transpose(0, 1)
        return self.b(torch.tanh(asked * self.c(x[:, :1]))).mean(1)


def _unequal_terms(scores, targets):
    return F.cross_entropy(scores, targets, weight=torch.tensor([1.0, 5.0, 2.0]).to(scores))


def _workload(model, shape: tuple[int, ...], loss=F.cross_entropy) -> Workload:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 2, 1, 1])
    source = TensorSource(torch.randn(7, *shape).double(), labels)
    return Workload(model().double(), source, loss, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("tokens", [3, 4])  # 3: as many as the samples looked at
@pytest.mark.parametrize(
    "model",
    [
        *(partial(_Heads, first) for first in ("samples", "heads", "tokens")),
        _TokensFirst,
        _Encoder,
        partial(_Queries, flat=False),
    ],
    ids=["samples, heads", "heads, samples", "tokens, samples and heads", "tokens", "encoder", "copies of weights"],
)
def test_groups_are_told_apart_on_whatever_axis_samples_lie(model, tokens, swept):
    for groups in ((1, 2, 4), 7):  # of other sizes, and of one
        _agrees(_workload(model, (tokens, 5)), groups)
    assert [len(borders) for borders in swept] == [4, 8]


@pytest.mark.parametrize(
    ("model", "shape", "loss"),
    [
        (_AcrossSamples, (5,), F.cross_entropy),
        (partial(_Queries, flat=True), (1, 5), F.cross_entropy),
        (_Plain, (5,), _unequal_terms),
    ],
    ids=["across samples", "copies of weights in one axis", "a mean with unequal weights"],
)
def test_groups_that_cannot_be_told_apart_are_swept_one_by_one(model, shape, loss, swept):
    _agrees(_workload(model, shape, loss), (1, 2, 4))
    assert swept == [(0, 1), (0, 2), (0, 4)]
