"""Which weights are candidates, and how each is seen as a matrix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrascope.errors import OptionError
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.records.report import SkippedLayer
from spectrascope.records.values import LayerKind, LayerRole
from tests.support import oracles
from tests.support.cases import CASES, Net

VIEWS = {
    "linear_only": {"weight": (4, 6)},
    "conv_groups": {"stem.weight": (4, 27), "conv.weight": (6, 18), "fc.weight": (4, 6)},
    "conv1d": {"a.weight": (4, 9), "b.weight": (4, 6), "fc.weight": (3, 8)},
    "hf_conv1d": {"0.weight": (5, 6), "2.weight": (4, 5)},
    "conv_transpose": {"t.weight": (4, 27), "fc.weight": (4, 4)},
    "attention": {
        "att.in_proj_weight[q]": (4, 4),
        "att.in_proj_weight[k]": (4, 4),
        "att.in_proj_weight[v]": (4, 4),
        "att.out_proj.weight": (4, 4),
        "up.weight": (5, 12),
        "head.weight": (3, 5),
    },
    "tied_tokens": {"table.weight": (7, 4), "mid.weight": (4, 4)},
}


@pytest.mark.parametrize("name", VIEWS)
def test_names_and_shapes(name):
    found = find_layers(CASES[name].model())
    assert {c.info.name: c.info.shape for c in found} == VIEWS[name]


@pytest.mark.parametrize("name", VIEWS)
def test_matrix_and_tensor_are_inverse_and_as_the_oracle_says(name):
    for layer in find_layers(CASES[name].model()):
        assert isinstance(layer, WeightLayer)
        stored = torch.randn_like(layer.parameter)
        matrix = layer.matrix(stored)
        assert tuple(matrix.shape) == layer.info.shape
        assert torch.equal(matrix, oracles.as_matrix(stored, layer.layout, layer.rows, layer.expert))
        assert torch.equal(layer.matrix(layer.tensor(matrix)), matrix)
        outside = oracles.from_matrix(matrix.double(), stored, layer.layout, layer.rows, layer.expert)
        assert torch.equal(layer.tensor(matrix).double(), outside)


def test_tied_weight_is_one_row_with_both_names():
    table, _ = find_layers(CASES["tied_tokens"].model())
    assert table.info.tied_names == ("head.weight",)
    assert table.info.role is LayerRole.UNEMBEDDING
    assert table.info.kind is LayerKind.LINEAR


def test_embedding_is_left_out_unless_named():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    table, linear = find_layers(net)
    assert isinstance(table, SkippedLayer)
    assert "embedding look-up table" in table.reason
    assert isinstance(linear, WeightLayer)
    named, other = find_layers(net, ["0.*"])
    assert isinstance(named, WeightLayer)
    assert other.reason == "not selected by --layers"


@pytest.mark.parametrize(("option", "rest"), [("--layers", {"include": ["x*"]}), ("--exclude", {"exclude": ["x*"]})])
def test_a_glob_without_match(option, rest):
    with pytest.raises(OptionError, match=rf"{option} 'x\*' matches none of the 3 weights, e.g. '0.weight'"):
        find_layers(CASES["mlp_relu"].model(), **rest)


def test_include_exclude_and_brackets():
    net = CASES["attention"].model()
    found = find_layers(net, ["att.*", "up.weight"], ["att.in_proj_weight[q]"])
    assert [c.info.name for c in found if isinstance(c, WeightLayer)] == [
        "att.in_proj_weight[k]",
        "att.in_proj_weight[v]",
        "att.out_proj.weight",
        "up.weight",
    ]


def test_no_matrices_at_all():
    with pytest.raises(OptionError, match="no weight of two or more dimensions"):
        find_layers(nn.LayerNorm(4))


def test_weights_without_a_matrix_view_are_listed_with_the_reason():
    net = Net(
        lambda s, x: x,
        experts=nn.Parameter(torch.randn(2, 3, 4)),
        wave=nn.Parameter(torch.randn(2, 2, dtype=torch.complex64)),
        lazy=nn.LazyLinear(3),
    )
    reasons = {c.info.name: c.reason for c in find_layers(net)}
    assert "no single matrix view" in reasons["experts"]
    assert "complex" in reasons["wave"]
    assert "not initialised" in reasons["lazy.weight"]
