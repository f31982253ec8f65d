"""Parametrized weights are measured as what they evaluate to; wrappers do not change a row."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import spectrascope
from spectrascope.errors import OptionError, UnsupportedModelError
from spectrascope.network.effective import copy_of, parametrized_weights, unwrapped, with_effective_weights
from spectrascope.network.layers import WeightLayer, find_layers, find_vectors
from spectrascope.records.report import LayerReport, SkippedLayer
from spectrascope.records.values import LayerKind, LayerRole
from tests.support.cases import Net

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(24) % 3


class LowRank(nn.Module):
    """W + B A, as LoRA has it."""

    def __init__(self, out: int, inside: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(2, inside) * 0.3)
        self.b = nn.Parameter(torch.randn(out, 2) * 0.3)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


def _plain() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def _old(function):
    def apply(net: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            function(net[0])
            function(net[4])
        net.eval()
        net(X)  # computes the weights, and leaves them hanging on a graph

    return apply


def _low_rank(net: nn.Module) -> None:
    for i in (0, 4):
        parametrize.register_parametrization(net[i], "weight", LowRank(*net[i].weight.shape).double())


PARAMETRIZATIONS = {
    "weight_norm": lambda net: [parametrizations.weight_norm(net[i]) for i in (0, 4)],
    "spectral_norm": lambda net: [parametrizations.spectral_norm(net[i]) for i in (0, 4)],
    "orthogonal": lambda net: [parametrizations.orthogonal(net[i]) for i in (0, 4)],
    "low_rank": _low_rank,
    "old_weight_norm": _old(nn.utils.weight_norm),
    "old_spectral_norm": _old(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("engine", ["auto", "double-backprop"])
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_same_rows_and_numbers_as_the_plain_network(name, engine):
    net = _plain()
    PARAMETRIZATIONS[name](net)
    net.eval()
    plain = _plain()
    with torch.no_grad():
        for i in (0, 2, 4):
            plain[i].weight.copy_(net[i].weight)
            plain[i].bias.copy_(net[i].bias)
        assert torch.allclose(net(X), plain(X))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    found = spectrascope.probe(net, (X, Y), engine=engine, top_k=3)
    truth = spectrascope.probe(plain, (X, Y), engine=engine, top_k=3)
    assert [row.info.name for row in found.layers] == ["0.weight", "2.weight", "4.weight"]
    for a, b in zip(found.layers, truth.layers, strict=True):
        assert a.measurement.sigma == pytest.approx(b.measurement.sigma, rel=1e-9)
        assert a.measurement.h == pytest.approx(b.measurement.h, rel=1e-7, abs=1e-12)
        assert a.measurement.engine is b.measurement.engine
    assert found.provenance.notes == (
        "2 parametrized weights (0.weight, 4.weight) measured as the effective weight they evaluate to",
    )
    assert truth.provenance.notes == ()
    assert parametrized_weights(net) == ["0.weight", "4.weight"]
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_frozen_weights_stay_frozen_in_the_rows():
    net = _plain()
    parametrizations.weight_norm(net[0])
    net[0].requires_grad_(False)
    rows = spectrascope.probe(net, (X, Y), top_k=2).layers
    assert [row.info.frozen for row in rows] == [True, False, False]
    assert all(isinstance(row, LayerReport) for row in rows)


def test_a_parametrization_that_cannot_be_evaluated_is_refused():
    class Broken(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            if weight.abs().sum() > 1e9:
                raise RuntimeError("no table for this weight\nsecond line")
            return weight

    net = _plain()
    parametrize.register_parametrization(net[0], "weight", Broken())
    with torch.no_grad():
        net[0].parametrizations.weight.original.fill_(1e10)
    with pytest.raises(UnsupportedModelError, match=r"0\.weight cannot be evaluated: no table for this weight$"):
        with_effective_weights(net)


def test_recurrent_networks_use_the_effective_weight():
    net = nn.LSTM(3, 4, batch_first=True).double()
    parametrizations.weight_norm(net, "weight_hh_l0")
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    before = net(x)[0]
    plain = with_effective_weights(net)
    assert torch.allclose(plain(x)[0], before)
    with torch.no_grad():
        plain.weight_hh_l0.zero_()
    assert not torch.allclose(plain(x)[0], before)


def test_a_copy_leaves_computed_tensors_where_they_are():
    net = _plain()
    PARAMETRIZATIONS["old_weight_norm"](net)
    before = net[0].weight
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    twin = copy_of(net)
    assert net[0].weight is before
    assert torch.equal(twin(X), net(X))


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda net: torch.compile(nn.DataParallel(net))],
    ids=["data_parallel", "compiled", "both"],
)
def test_wrappers_change_nothing(wrap):
    net = _plain()
    wrapped = wrap(net)
    assert unwrapped(wrapped) is net
    found = spectrascope.probe(wrapped, (X, Y), top_k=3, micro_batch=8)  # a size chosen by timing moves the last digits
    truth = spectrascope.probe(net, (X, Y), top_k=3, micro_batch=8)
    assert found.layers == truth.layers
    assert found.provenance.model == truth.provenance.model


# -- what is a matrix, and what is not ------------------------------------------------------------------------


def test_stacked_experts_are_one_row_each():
    net = Net(lambda s, x: x, experts=nn.Module())
    net.experts.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))
    net.stack = nn.Parameter(torch.randn(3, 8, 4))
    *experts, stack = find_layers(net)[1:] + find_layers(net)[:1]
    assert [(e.info.name, e.info.shape, e.info.role) for e in experts] == [
        (f"experts.gate_up_proj[{i}]", (8, 4), LayerRole.EXPERT) for i in range(3)
    ]
    assert all(e.info.stored_shape == (3, 8, 4) for e in experts)
    assert isinstance(stack, SkippedLayer)


def test_experts_in_a_list_have_the_role():
    net = Net(lambda s, x: x, experts=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), expertise=nn.Linear(4, 4))
    assert [layer.info.role for layer in find_layers(net)] == [LayerRole.EXPERT, LayerRole.EXPERT, LayerRole.MATRIX]


def test_tables_and_biases_are_not_matrices():
    net = Net(
        lambda s, x: x,
        pos_embed=nn.Parameter(torch.randn(5, 4)),
        relative_position_bias_table=nn.Parameter(torch.randn(9, 2)),
        cls_token=nn.Parameter(torch.randn(1, 1, 4)),
        mix=nn.Parameter(torch.randn(4, 4)),
        empty=nn.Parameter(torch.randn(0, 4)),
    )
    found = {layer.info.name: layer for layer in find_layers(net)}
    assert isinstance(found["mix"], WeightLayer)
    assert (found["mix"].info.kind, found["mix"].info.role) == (LayerKind.OTHER, LayerRole.MATRIX)
    roles = {name: layer.info.role for name, layer in found.items() if isinstance(layer, SkippedLayer)}
    assert roles == {
        "pos_embed": LayerRole.EMBEDDING,
        "relative_position_bias_table": LayerRole.BIAS,
        "cls_token": LayerRole.EMBEDDING,
        "empty": LayerRole.OTHER,
    }
    named = {layer.info.name: layer for layer in find_layers(net, ["pos_embed"])}
    assert isinstance(named["pos_embed"], WeightLayer)


def test_vectors_are_listed_apart():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.PReLU())
    assert [(v.info.name, v.info.kind, v.info.role) for v in find_vectors(net)] == [
        ("0.bias", LayerKind.BIAS, LayerRole.BIAS),
        ("1.weight", LayerKind.NORM, LayerRole.NORM),
        ("1.bias", LayerKind.BIAS, LayerRole.BIAS),
        ("2.weight", LayerKind.NORM, LayerRole.NORM),
        ("2.bias", LayerKind.BIAS, LayerRole.BIAS),
        ("3.weight", LayerKind.OTHER, LayerRole.OTHER),
    ]
    assert all("no singular directions" in v.reason for v in find_vectors(net))


def test_quantized_weights_are_refused():
    net = _plain().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear})
    with pytest.raises(UnsupportedModelError, match=r"'0' is quantized \(Linear\).*load the checkpoint it was"):
        spectrascope.probe(packed, (X.float(), Y))
    stored = Net(lambda s, x: F.linear(x, s.w.float()), w=nn.Parameter(torch.ones(3, 6).byte(), requires_grad=False))
    with pytest.raises(UnsupportedModelError, match="'w' is quantized"):
        spectrascope.probe(stored, (X.float(), Y))


def test_nothing_to_measure():
    with pytest.raises(OptionError, match="no weight of two or more dimensions"):
        find_layers(nn.PReLU())
