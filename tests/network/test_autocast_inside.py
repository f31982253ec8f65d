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


# --- casts to float32 in a measurement in float64 ---


def _rms(x):
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def _filled(s, x):
    out = torch.zeros(len(x), 4)  # of the default format
    out[:, :] = s.c(torch.tanh(s.a(x)))
    return out


def _spectrum(s, x):
    return s.c(torch.fft.ifft(torch.fft.fft(torch.tanh(s.a(x))).to(torch.complex64)).real.to(s.c.weight.dtype))


_PLAIN = {
    "rms": lambda s, x: s.c(torch.tanh(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) @ s.a.weight.T)),
    "softmax": lambda s, x: s.c(F.softmax(s.a(x), -1)),
    "tanh": lambda s, x: s.c(torch.tanh(s.a(x))),
}
FLOATS = {
    "norm in float32": ("rms", lambda s, x: s.c(torch.tanh(_rms(x) @ s.a.weight.T))),
    "softmax in float32": ("softmax", lambda s, x: s.c(F.softmax(s.a(x), -1, dtype=torch.float32).to(x.dtype))),
    "softmax of float": ("softmax", lambda s, x: s.c(F.softmax(s.a(x).float(), -1).type(x.dtype))),
    "to float32": ("tanh", lambda s, x: s.c(torch.tanh(s.a(x)).to(dtype=torch.float32).to(x.dtype))),
    "to half": ("tanh", lambda s, x: s.c(torch.tanh(s.a(x)).half().to(x.dtype))),
    "a tensor filled": ("tanh", _filled),
    "complex": ("tanh", _spectrum),
}


def _two(run):
    torch.manual_seed(0)
    return Net(run, a=nn.Linear(6, 8), c=nn.Linear(8, 4))


def _require_exact(found, right):
    for one, other in zip(found.layers, right.layers, strict=True):
        largest = max(map(abs, other.measurement.h))
        assert one.measurement.h == pytest.approx(other.measurement.h, rel=1e-10, abs=1e-11 * largest)
        assert one.measurement.exact
        assert one.measurement.residual < 1e-8  # of differences of gradients


@pytest.mark.parametrize("name", FLOATS)
def test_casts_to_float32_are_left_out_of_a_measurement_in_float64(name):
    plain, run = FLOATS[name]
    x, y = torch.randn(24, 6).double(), torch.randint(0, 4, (24,))
    net = _two(run)
    report = spectrascope.probe(net, (x, y), top_k=3, dtype="float64")
    truth = spectrascope.probe(_two(_PLAIN[plain]), (x, y), top_k=3, dtype="float64", engine="double-backprop")
    _require_exact(report, truth)
    kind = {"to half": "float16", "complex": "complex64"}.get(name, "float32")
    assert report.provenance.notes == (
        f"the network's own casts to {kind}: left out; all numbers are of the float64 network",
    )
    if name not in ("to half", "complex"):
        single = spectrascope.probe(net, (x.float(), y), top_k=3)
        assert not single.provenance.notes
        assert max(row.measurement.residual for row in single.layers) < 1e-4
    assert torch.get_default_dtype() is torch.float32


def test_casts_of_the_loss_are_left_out_too():
    x, y = torch.randn(24, 6).double(), torch.randint(0, 4, (24,))

    def in_float32(scores, labels):
        return F.cross_entropy(scores.float(), labels)

    report = spectrascope.probe(_two(_PLAIN["tanh"]), (x, y), in_float32, top_k=3, dtype="float64")
    truth = spectrascope.probe(_two(_PLAIN["tanh"]), (x, y), top_k=3, dtype="float64", engine="double-backprop")
    _require_exact(report, truth)
    assert report.provenance.loss == pytest.approx(truth.provenance.loss, rel=1e-13)
    assert report.provenance.loss_name == "in_float32"
    assert report.provenance.notes == (
        "the network's own casts to float32 in its loss: left out; all numbers are of the float64 network",
    )


def test_constants_of_the_default_format_are_no_casts():
    def run(s, x):
        mask = torch.zeros(4)
        mask[1] = -3.0
        return s.c(torch.tanh(s.a(x))) + mask * torch.arange(4).float()

    net = _two(run)
    x, y = torch.randn(24, 6), torch.randint(0, 4, (24,))
    assert not spectrascope.probe(net, (x, y), dtype="float64").provenance.notes


_HALF = torch.ones(1, dtype=torch.bfloat16)  # no parameter or buffer, so that it is not moved with the network

_SINGLE = torch.ones(1)


def _with_tf32(s, x):
    torch.backends.cuda.matmul.allow_tf32 = True
    return s.c(torch.tanh(s.a(x)))


def _with_less(s, x):
    torch.set_float32_matmul_precision("medium")
    return s.c(torch.tanh(s.a(x)))


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda s, x: s.c(s.a(x).type_as(_HALF).float()), "the network makes casts to bfloat16 that cannot be left"),
        (
            lambda s, x: s.c(s.a(x).type_as(_SINGLE).double()),
            "casts to float32 that cannot be left out, .* or measure with dtype=.float32.",
        ),
        (_with_tf32, "the network switches torch's float32 products to lower precision"),
        (_with_less, "the network switches torch's float32 products to lower precision"),
    ],
    ids=["like another tensor", "like one in float32", "allow_tf32", "matmul precision"],
)
def test_what_cannot_be_left_out_is_refused(run, says):
    net, dtype = Net(run, a=nn.Linear(6, 8), c=nn.Linear(8, 4)), "float64" if "dtype=" in says else "float32"
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32
    try:
        with pytest.raises(UnsupportedModelError, match=says):
            spectrascope.probe(net, (torch.randn(8, 6), torch.randint(0, 4, (8,))), top_k=2, dtype=dtype)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)
