"""Networks that choose a precision in their own forward are measured in the precision that the report states."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.errors import UnsupportedModelError
from tests.support.cases import Net

ACTS = {"relu": F.relu, "tanh": F.tanh, "gelu": F.gelu}


def _with_autocast(act):
    def run(net, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = act(net.a(x))
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=True):
            return net.c(act(net.b(x))).float()

    return run


@pytest.mark.parametrize("decorated", [False, True], ids=["with", "decorator"])
@pytest.mark.parametrize("act", ACTS)
def test_curvature_is_that_of_float32(act, decorated):
    torch.manual_seed(0)
    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 4)}
    run = _with_autocast(ACTS[act])
    net = Net(torch.autocast("cpu", dtype=torch.bfloat16)(run) if decorated else run, **parts)
    plain = Net(lambda s, x: s.c(ACTS[act](s.b(ACTS[act](s.a(x))))), **copy.deepcopy(parts))
    x, y = torch.randn(24, 6), torch.randint(0, 4, (24,))
    enter, before = torch.autocast.__enter__, net(x)
    report = spectrascope.probe(net, (x, y), top_k=3)
    truth = spectrascope.probe(plain, (x, y), top_k=3, dtype="float64")
    assert report.provenance.self_check.residual < 1e-3
    assert torch.autocast.__enter__ is enter
    assert torch.is_autocast_cache_enabled()
    assert torch.equal(net(x), before)  # again in bfloat16
    _require_same(report, truth)
    assert report.provenance.notes == (
        "the network's own torch.autocast to bfloat16: left out; all numbers are of the float32 network",
    )


def _require_same(report, truth):
    for found, right in zip(report.layers, truth.layers, strict=True):
        largest = max(map(abs, right.measurement.h))
        assert found.measurement.h == pytest.approx(right.measurement.h, abs=1e-4 * largest)
        assert found.measurement.exact


def _all_in_bfloat16(s, x):
    x = torch.tanh(F.linear(x.bfloat16(), s.a.weight.bfloat16(), s.a.bias.to(dtype=torch.bfloat16)))
    return F.linear(x, s.c.weight.to(x.dtype)).float()


CASTS = {
    "bfloat16 activations": ("bfloat16", lambda s, x: s.c(F.relu(s.a(x)).bfloat16().float())),
    "float16 activations": ("float16", lambda s, x: s.c(torch.tanh(s.a(x)).half().float())),
    "weights too": ("bfloat16", _all_in_bfloat16),
    "by type": ("bfloat16", lambda s, x: s.c(torch.tanh(s.a(x)).to("cpu", torch.bfloat16).type(torch.float32))),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_to_half_precision_are_left_out_and_said(name):
    torch.manual_seed(0)
    half, run = CASTS[name]
    parts = {"a": nn.Linear(6, 8), "c": nn.Linear(8, 4, bias=False)}
    act = F.relu if name == "bfloat16 activations" else torch.tanh
    x, y = torch.randn(24, 6), torch.randint(0, 4, (24,))
    net, plain = Net(run, **parts), Net(lambda s, x: s.c(act(s.a(x))), **copy.deepcopy(parts))
    before = net(x)
    report = spectrascope.probe(net, (x, y), top_k=3)
    _require_same(report, spectrascope.probe(plain, (x, y), top_k=3, dtype="float64"))
    assert report.provenance.notes == (
        f"the network's own casts to {half}: left out; all numbers are of the float32 network",
    )
    assert torch.equal(net(x), before)
    assert not spectrascope.probe(plain, (x, y), top_k=3).provenance.notes


_HALF = torch.ones(1, dtype=torch.bfloat16)  # no parameter or buffer, so that it is not moved with the network


def _with_tf32(s, x):
    torch.backends.cuda.matmul.allow_tf32 = True
    return s.c(torch.tanh(s.a(x)))


def _with_less(s, x):
    torch.set_float32_matmul_precision("medium")
    return s.c(torch.tanh(s.a(x)))


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda s, x: s.c(s.a(x).type_as(_HALF).float()), "the network computes in bfloat16 inside its forward pass"),
        (_with_tf32, "the network switches torch's float32 products to lower precision"),
        (_with_less, "the network switches torch's float32 products to lower precision"),
    ],
    ids=["like another tensor", "allow_tf32", "matmul precision"],
)
def test_what_cannot_be_left_out_is_refused(run, says):
    net = Net(run, a=nn.Linear(6, 8), c=nn.Linear(8, 4))
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    try:
        with pytest.raises(UnsupportedModelError, match=says):
            spectrascope.probe(net, (torch.randn(8, 6), torch.randint(0, 4, (8,))), top_k=2)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)
