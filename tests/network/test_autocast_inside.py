"""Networks that switch autocast on themselves are measured in the precision that the report states."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
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
    for found, right in zip(report.layers, truth.layers, strict=True):
        largest = max(map(abs, right.measurement.h))
        assert found.measurement.h == pytest.approx(right.measurement.h, abs=1e-4 * largest)
