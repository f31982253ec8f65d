"""Sparse buffers, such as the adjacency of a graph network, are no obstacle."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import NonFiniteError
from tests.support.cases import Net, labels


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_graph_network_is_measured(layout):
    torch.manual_seed(0)
    dense = (torch.rand(6, 6) > 0.5).float()
    net = Net(lambda s, x: s.b(torch.tanh(s.a((s.graph @ x.T).T))), a=nn.Linear(6, 5), b=nn.Linear(5, 4))
    plain = Net(lambda s, x: s.b(torch.tanh(s.a((dense @ x.T).T))), a=net.a, b=net.b)
    net.register_buffer("graph", dense.to_sparse() if layout == "coo" else dense.to_sparse_csr())
    data = torch.randn(12, 6), torch.randint(0, 4, (12,))
    found, right = (spectrascope.probe(n, data, top_k=2) for n in (net, plain))
    for a, b in zip(found.layers, right.layers, strict=True):
        assert a.measurement.h == pytest.approx(b.measurement.h, rel=1e-4, abs=1e-6)
    net.graph = (dense * float("nan")).to_sparse() if layout == "coo" else (dense * float("nan")).to_sparse_csr()
    with pytest.raises(NonFiniteError, match="buffer 'graph' holds NaN"):
        spectrascope.probe(net, data)


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_sparse_weight_is_left_out_and_the_others_measured(layout: str) -> None:
    dense = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).relu()
    sparse = nn.Parameter(dense.to_sparse() if layout == "coo" else dense.to_sparse_csr())
    net = Net(lambda s, x: s.b((s.w @ x.T).T.tanh()), w=sparse, b=nn.Linear(5, 3))
    report = spectrascope.probe(net, (torch.randn(12, 6), labels(12, 3)))
    rows = {row.info.name: row for row in report.layers}
    assert rows["w"].reason == "sparse weights are not measured"
    assert rows["b.weight"].status.value == "ok"
