"""Measuring in bfloat16: near the truth of float64, with the error said, and refused where digits are needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.api.inputs import make_run
from spectrascope.curvature.choose import make_engine
from spectrascope.errors import OptionError
from spectrascope.measure.precision import compare_precision
from spectrascope.measure.workloads import prepare_workload
from spectrascope.network.formats import in_format
from spectrascope.records.report import LayerReport, PrecisionError
from spectrascope.records.values import EngineName, Missing, PowerFit
from spectrascope.reports.render import Format, render
from spectrascope.reports.views.facts import describe_run
from tests.support.cases import CASES, make_workload
from tests.support.measure_helpers import hold, layers_of, oracle_curvature, targets_of

NARROW = torch.bfloat16


FLIPS = {"conv1d_max_pool_branch"}
"""Where rounding makes another entry of a pool the largest: all engines then measure that other network alike."""


FEW = (
    "mlp_relu", "bce_3", "label_smoothing", "custom_loss", "conv_stride", "conv_groups_batch_norm", "residual_in_place",
    "transposed_conv_below", "bilinear_pooling", "stacked_experts", "hf_conv1d", "gelu", "layer_norm", "squeeze_excite",
    "attention", "tied_tokens",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_every_exact_engine_is_near_the_dense_hessian(name):
    workload = make_workload(CASES[name], 7)
    layers = layers_of(workload, include=["*"]) if name == "tied_tokens" else layers_of(workload)
    with hold(workload, layers):
        targets = targets_of(workload, layers)
    narrow = replace(workload, model=in_format(workload.model, workload.device, NARROW), dtype=NARROW)
    weights = [narrow.model.get_parameter(t.layer.name.partition("[")[0]) for t in targets]
    moved = [replace(t, layer=replace(t.layer, parameter=w)) for t, w in zip(targets, weights, strict=True)]
    straight = [t for t in moved if t.layer.name not in (CASES[name].smooth or {})]
    truths = {t.layer.name: oracle_curvature(workload, t, 1)[0] for t in targets}
    for engine, chosen in (
        (EngineName.GAUSS_NEWTON, straight), (EngineName.TANGENT, moved), (EngineName.DOUBLE_BACKPROP, moved)
    ):  # fmt: skip
        with hold(narrow, [t.layer for t in moved]):
            found = make_engine(engine, 7).measure(narrow, chosen, groups=1)
        for target, curvature in zip(chosen, found, strict=True):
            truth = truths[target.layer.name]
            off = float((curvature.matrix - truth).abs().max() / truth.abs().max())
            assert 1e-7 < off < (0.4 if name in FLIPS else 0.1), f"{name}:{target.layer.name} by {engine.value}"


# -- what the report says of it --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports():
    found = {
        dtype: spectrascope.probe("digits-cnn@early", num_samples=256, dtype=dtype) for dtype in ("float32", "bfloat16")
    }
    return found["float32"], found["bfloat16"]


def test_the_error_is_measured_in_the_same_run(reports):
    wide, narrow = reports
    assert narrow.provenance.dtype == "bfloat16"
    error = narrow.provenance.precision
    assert isinstance(error, PrecisionError)
    assert error.n_weights == 3
    assert 1e-5 < error.h_median < 0.05
    assert error.h_largest < 0.05
    assert error.beta < 0.05
    assert isinstance(wide.provenance.precision, Missing)


def test_beta_is_what_float32_says_but_for_that_error(reports):
    for one, other in zip(*(report.layers for report in reports), strict=True):
        assert one.info == other.info
        assert other.measurement.rank <= one.measurement.rank  # directions below the rounding are left out
        if other.analysis.window == one.analysis.window:
            assert other.analysis.beta.value == pytest.approx(one.analysis.beta.value, abs=0.05)


def test_the_header_labels_it_an_approximation(reports):
    wide, narrow = (dict(describe_run(report.provenance)) for report in reports)
    assert "precision" not in wide
    assert narrow["precision"].startswith("bfloat16, an approximation: beside float32 h off by ")
    assert "3 weights" in narrow["precision"]


def test_its_error_is_said_once_in_the_table(reports):
    text = render(reports[1], Format.MARKDOWN)
    assert str(text).count("beside float32") == 1
    assert "Measured in bfloat16, an approximation" in str(text)


def test_engines_are_checked_in_float32(reports):
    check = reports[1].provenance.self_check
    assert check.residual < check.tolerance == 1e-3
    assert check.n_weights == 5


def test_the_error_is_that_of_the_numbers():
    (row, *_) = (r for r in spectrascope.probe("digits-cnn@early", num_samples=64).layers if isinstance(r, LayerReport))
    h = row.measurement.h
    fit = row.analysis.beta
    assert isinstance(fit, PowerFit)
    off = replace(
        row,
        measurement=replace(row.measurement, h=tuple(1.1 * x for x in h)),
        analysis=replace(row.analysis, beta=replace(fit, value=fit.value + 0.25)),
    )
    error = compare_precision([off], [row])
    assert isinstance(error, PrecisionError)
    assert error.h_median == pytest.approx(0.1)
    assert error.h_largest == pytest.approx(0.1)
    assert error.beta == pytest.approx(0.25)
    assert error.n_pairs == len(h)


def test_curvature_that_is_zero_has_no_relative_error():
    (row, *_) = (r for r in spectrascope.probe("digits-cnn@early", num_samples=64).layers if isinstance(r, LayerReport))
    flat = replace(row, measurement=replace(row.measurement, h=tuple(0.0 for _ in row.measurement.h)))
    assert "is zero" in compare_precision([row], [flat]).reason


def test_weights_that_have_no_numbers_in_both_formats_say_so():
    assert "none of the weights" in compare_precision([], []).reason


def test_the_loss_is_of_float32():
    net, (x, y) = nn.Linear(4, 3), (torch.randn(2, 4), torch.tensor([0, 2]))
    workload = prepare_workload(make_run("probe", net, (x, y), None, None, {"dtype": "bfloat16"}))
    inputs, labels = workload.fetch(0, 2)
    assert inputs.dtype is NARROW
    assert workload.loss(inputs, labels).dtype is torch.float32


# -- the network -----------------------------------------------------------------------------------------------------


class Rotary(nn.Module):
    """Frequencies that are read in float32, as in LLaMA."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1, 0.01, 0.001]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angle = torch.arange(1000, 1000 + x.shape[1])[:, None] * self.frequencies.float()
        return x * angle.cos().to(x.dtype)


class Table(nn.Module):
    """A position table that is added as it is, so that it must have the weights' format."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table


@pytest.mark.parametrize(("middle", "kept"), [(Rotary, torch.float32), (Table, NARROW)])
def test_buffers_without_weights_stay_in_float32_where_the_network_takes_them(middle, kept):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), middle(), nn.Flatten(), nn.Linear(12, 3))
    before = {name: tensor.clone() for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    x, y = torch.randn(8, 3, 4), torch.randint(0, 3, (8,))
    workload = prepare_workload(make_run("probe", net, (x, y), None, None, {"dtype": "bfloat16"}))
    assert {b.dtype for b in workload.model.buffers()} == {kept}
    assert {p.dtype for p in workload.model.parameters()} == {NARROW}
    calls = []
    net[1].register_forward_pre_hook(lambda module, args: calls.append(1))
    report = spectrascope.probe(net, (x, y), dtype="bfloat16")
    assert not calls  # what the network's forward pass leaves behind is put back
    assert all(row.status.value == "ok" for row in report.layers)
    assert all(
        torch.equal(before[name], tensor) and tensor.dtype is torch.float32
        for name, tensor in (*net.named_parameters(), *net.named_buffers())
    )


def test_a_network_of_bfloat16_weights_is_not_copied():
    net = nn.Linear(4, 3).to(NARROW)
    assert in_format(net, torch.device("cpu"), NARROW) is net


def test_the_rank_is_not_that_of_rounding():
    """Ten classes leave nine directions of the last weight; the tenth singular value is rounding."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    batch = torch.randn(200, 20), torch.randint(0, 10, (200,))
    report = spectrascope.probe(net, batch, dtype="bfloat16")
    assert report["2.weight"].measurement.rank == 9


def test_what_needs_more_digits_refuses_it():
    for ask in (spectrascope.decompose, lambda *a, **k: spectrascope.suggest(*a, validate=True, **k)):
        with pytest.raises(OptionError, match=r"bfloat16: .* need float32 or float64"):
            ask("digits-cnn@early", num_samples=64, dtype="bfloat16")
