"""From exponents, in memory or in a file, to the groups of an optimizer."""

from pathlib import Path

import pytest
import torch
from torch import nn

from spectrascope.optim import SpectralNewton, parameter_groups
from spectrascope.records.advice import ParameterExponent

EXPONENTS = (
    ParameterExponent("1.weight", 1.5, 0.02, 0.1, "flat"),
    ParameterExponent("2.weight", 1.5, 0.02, 0.1, "flat"),
    ParameterExponent("3.weight", 0.8, 0.05, 0.3, "conv_transpose"),
)
YAML = """
schema_version: 2
step: sigma / (sigma^2 + damping)^(beta/2)
parameters:
  1.weight: {beta: 1.5, damping: 0.1, absolute_damping: 0.02, layout: flat}
  2.weight: {beta: 1.5, damping: 0.1, absolute_damping: 0.02}
  3.weight: {beta: 0.8, damping: 0.3, absolute_damping: 0.05, layout: conv_transpose}
adamw: [0.weight]
"""


def _model() -> nn.Sequential:
    return nn.Sequential(
        nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.ConvTranspose1d(4, 3, 2), nn.Linear(3, 2)
    )


def _names(model: nn.Module, group: dict) -> set[str]:
    wanted = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_exponents_make_groups_and_the_rest_goes_to_adamw() -> None:
    model = _model()
    first, second, rest = parameter_groups(model, EXPONENTS)
    assert _names(model, first) == {"1.weight", "2.weight"}
    assert (first["beta"], first["damping"], first["scale_free"]) == (1.5, 0.1, True)
    assert (second["beta"], second["layout"]) == (0.8, "conv_transpose")
    assert rest["beta"] is None
    assert _names(model, rest) == {"0.weight", "1.bias", "2.bias", "3.bias", "4.weight", "4.bias"}


def test_absolute_damping_goes_with_absolute_steps() -> None:
    first, second, _ = parameter_groups(_model(), EXPONENTS, scale_free=False)
    assert (first["damping"], first["scale_free"], second["damping"]) == (0.02, False, 0.05)


def test_a_file_and_its_content_say_the_same(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    path = tmp_path / "betas.yaml"
    path.write_text(YAML, encoding="utf-8")
    model = _model()
    for given in (path, str(path), yaml.safe_load(YAML)):
        groups = parameter_groups(model, given)
        assert [g.get("damping") for g in groups] == [0.1, 0.3, None]
        assert [_names(model, g) for g in groups] == [_names(model, g) for g in parameter_groups(model, EXPONENTS)]


def test_files_that_damp_outside_of_the_root_damp_the_same_directions() -> None:
    yaml = pytest.importorskip("yaml")
    older = {key: value for key, value in yaml.safe_load(YAML).items() if key != "step"}
    for free, damping in ((True, 0.1), (False, 0.02)):
        group = parameter_groups(_model(), older, scale_free=free)[0]
        assert group["damping"] == pytest.approx(damping ** (2 / 1.5))  # sigma^1.5 = d where sigma² = that


def test_exponents_are_rounded_only_where_a_grid_is_named() -> None:
    exponents = [
        ParameterExponent(f"{i}.weight", beta, 0.1, 0.1, "flat") for i, beta in ((1, 1.37), (2, 0.1), (3, 0.0))
    ]
    assert [g["beta"] for g in parameter_groups(_model(), exponents)] == [1.37, 0.1, 0.0, None]
    assert [g["beta"] for g in parameter_groups(_model(), exponents, beta_grid=0.25)] == [1.25, 0.25, 0.0, None]
    with pytest.raises(ValueError, match=r"beta_grid 0: expected a positive number such as 0\.25, or None"):
        parameter_groups(_model(), exponents, beta_grid=0)


def test_an_optimizer_takes_them_and_steps() -> None:
    model = _model()
    optimizer = SpectralNewton(parameter_groups(model, EXPONENTS), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_globs_send_to_adamw() -> None:
    model = _model()
    groups = parameter_groups(model, EXPONENTS, adamw=["1.*", "3.weight"])
    assert [_names(model, g) for g in groups[:-1]] == [{"2.weight"}]
    assert {"1.weight", "3.weight"} < _names(model, groups[-1])


def test_without_exponents_embeddings_and_what_is_tied_to_them_go_to_adamw() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight
    spectral, rest = parameter_groups(model)
    assert "beta" not in spectral
    assert _names(model, spectral) == {"1.weight"}
    assert _names(model, rest) == {"0.weight", "1.bias"}


def test_no_group_is_empty() -> None:
    (only,) = parameter_groups(nn.Linear(3, 3, bias=False))
    assert "beta" not in only
    (rest,) = parameter_groups(nn.LayerNorm(3))
    assert rest["beta"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 1\n- 2\n", "found no table 'parameters'"),
        ("parameters: {1.weight: {beta: 1.0}}", "parameter '1.weight' needs numbers 'beta', 'damping'"),
        ("parameters: {1.weight: 2}", "parameter '1.weight' needs numbers"),
        ("parameters: {1.weight: {beta: x, damping: 1, absolute_damping: 1}}", "needs numbers"),
        ("a: [", "cannot be read as YAML"),
        ("step: sigma\nparameters: {}", "step 'sigma' is not known here, expected 'sigma / "),
        (
            "parameters: {9.weight: {beta: 1, damping: 1, absolute_damping: 1}}",
            "the network has no parameter '9.weight'",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        parameter_groups(_model(), path)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as YAML"):
        parameter_groups(_model(), tmp_path / "missing.yaml")
    with pytest.raises(ValueError, match=r"'head\.\*' matches none of the 9 parameters"):
        parameter_groups(_model(), adamw=["head.*"])


def test_matrices_without_an_exponent_take_muons_only_if_asked() -> None:
    model = _model()
    *_, muon, rest = parameter_groups(model, EXPONENTS, default_beta=1.0)
    assert (_names(model, muon), muon["beta"]) == ({"4.weight"}, 1.0)
    assert "0.weight" in _names(model, rest)
