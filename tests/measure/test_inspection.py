"""A dry run says what a run would then do, without touching the network or reading a tensor."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from torch import nn

from spectrascope.errors import OptionError, UnsupportedModelError
from spectrascope.losses import CausalLM
from spectrascope.measure.inspect import inspect_headers, inspect_model
from spectrascope.measure.run import run_probe
from spectrascope.records.inspection import Inspection
from spectrascope.records.report import DataInfo, LayerReport, ModelInfo, ProbeOptions
from spectrascope.records.signal import Estimate
from spectrascope.records.values import ALL_SAMPLES, EngineName, LayerRole, Missing
from spectrascope.reports.render import Format, render
from spectrascope.workload import Run, TensorSource
from tests.support.cases import CASES, make_workload

INFO = ModelInfo("net", "net", "python", Missing("in memory"), Missing("in memory"), "in memory", 1)
DATA = DataInfo("x", 7, 7, "0" * 64, (1,), 3, "", "", False)


def _inspect(model: nn.Module, source: TensorSource, **options) -> Inspection:
    return inspect_model(model, source, options=ProbeOptions(**options), model_info=INFO)


@pytest.mark.parametrize(
    "name",
    ["mlp_relu", "gelu", "attention", "conv_groups", "conv_transpose", "tied_tokens", "squeeze_excite",
     "shared_sequence", "fused_conv1d_on_single_rows", "stacked_experts", "frozen_weight"],
)  # fmt: skip
def test_it_says_what_probe_does(name):
    case = make_workload(CASES[name], dtype=torch.float32)
    source = TensorSource(case.source.inputs.float() if case.source.inputs.is_floating_point() else case.source.inputs,
                          case.source.targets)  # fmt: skip
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    options = ProbeOptions(num_samples=7, top_k=3, device="cpu")
    dry = inspect_model(case.model, source, case.loss_fn, options=options, model_info=INFO)
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())
    assert dry.loaded == "weights"
    report = run_probe(Run(case.model, source, case.loss_fn, options, INFO, DATA))
    planned = [row for row in dry.weights if len(row.info.stored_shape) > 1]
    assert [row.info for row in planned] == [row.info for row in report.layers]
    for plan, row in zip(planned, report.layers, strict=True):
        if isinstance(row, LayerReport):
            assert plan.measured
            assert plan.engine is row.measurement.engine
            if name != "attention":  # the CPU's own attention kernel has another name
                assert plan.engine_reason == row.measurement.engine_reason
            assert plan.directions >= len(row.measurement.sigma)
        else:
            assert plan.reason == row.reason
    names = {row.info.name.partition("[")[0] for row in dry.weights}
    assert names == {name for name, _ in case.model.named_parameters()}
    assert dry.n_measured + dry.n_skipped == len(dry.weights)


def test_cost_of_a_linear_layer_by_hand():
    net = nn.Linear(64, 10, bias=False)
    source = TensorSource(torch.zeros(3, 64), torch.zeros(3, dtype=torch.long))
    alone = {"num_samples": 100, "top_k": 4, "estimate": Estimate.PUBLISHED}
    cost = _inspect(net, source, **alone).cost
    assert cost.flops_per_sample == 2 * 64 * 10
    assert (cost.gradient_passes, cost.sweep_passes, cost.tangent_passes) == (3, 0, 4 + 1.2 * 4)
    assert cost.total_flops == pytest.approx((3 + 4 + 1.2 * 4) * 1280 * 100)
    gradients = 640 * (3 * 8 + 16 * 4)  # the batch's, its halves' and each sample group's
    assert cost.fixed_bytes == 640 * 4 + gradients + 4 * (64 + 10) * 8
    assert 64 * 4 <= cost.bytes_per_sample <= 64 * 4 + 20 * 10 * 8
    swept = _inspect(net, source, num_samples=100, top_k=4, engine=EngineName.GAUSS_NEWTON).cost
    assert (swept.gradient_passes, swept.sweep_passes, swept.tangent_passes) == (3, 11, 0)
    assert swept.total_flops == 14 * 1280 * 100
    double = _inspect(net, source, **alone, engine=EngineName.DOUBLE_BACKPROP).cost
    assert (double.sweep_passes, double.product_passes) == (0, 4 + 2.5 * 4)


def test_cost_of_what_is_held_out_by_hand():
    net = nn.Linear(64, 10, bias=False)
    source = TensorSource(torch.zeros(3, 64), torch.zeros(3, dtype=torch.long))
    both = {"num_samples": 4096, "top_k": 4}
    swept = _inspect(net, source, **both).cost  # two sets of directions make sweeps the cheaper way
    assert (swept.gradient_passes, swept.sweep_passes, swept.tangent_passes) == (3, 11 / 2, 0)  # 2,048 of 4,096 samples
    assert swept.fixed_bytes == 640 * 4 + 640 * (3 * 8 + 16 * 4) + (1 + 4 + 2) * 4 * (64 + 10) * 8
    smooth = _inspect(net, source, **both, engine=EngineName.TANGENT).cost
    assert smooth.tangent_passes == (4 + 1.2 * 2 * 4) / 8  # 512 of 4,096 samples
    assert smooth.total_passes == 3 + smooth.tangent_passes
    drawn = _inspect(net, source, **both, engine=EngineName.TANGENT, null_draws=3, curvature_samples="all").cost
    assert drawn.tangent_passes == 4 + 1.2 * 5 * 4
    apart = _inspect(net, source, **both, estimate=Estimate.HELD_OUT, curvature_samples=64, null_draws=0).cost
    assert apart.fixed_bytes == 640 * 4 + 640 * (3 * 8 + 16 * 4) + 4 * 4 * (64 + 10) * 8
    unknown = _inspect(net, source, num_samples=ALL_SAMPLES, top_k=4).cost
    assert unknown.gradient_passes == 3
    assert unknown.sweep_passes == unknown.total_passes == unknown.total_flops
    assert "how many samples" in unknown.total_passes.reason


def test_gradients_in_blocks_take_a_pass_each():
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 10, bias=False))
    source = TensorSource(torch.zeros(3, 64), torch.zeros(3, dtype=torch.long))
    whole, cut = _inspect(net, source).cost, _inspect(net, source, memory=4096 * 88).cost
    assert (whole.gradient_passes, cut.gradient_passes) == (3, 6)
    assert whole.fixed_bytes - cut.fixed_bytes == 640 * 88


def test_products_need_more_memory_than_sweeps():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    source = TensorSource(torch.zeros(3, 64), torch.zeros(3, dtype=torch.long))
    swept = _inspect(net, source).cost
    multiplied = _inspect(net, source, engine=EngineName.DOUBLE_BACKPROP).cost
    assert swept.sweep_passes > 0
    assert multiplied.bytes_per_sample > 1.2 * swept.bytes_per_sample


def test_a_network_without_storage_is_looked_at_all_the_same():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(200_000, 200_000), nn.ReLU(), nn.Linear(200_000, 4))
    source = TensorSource(torch.zeros(2, 200_000), torch.zeros(2, dtype=torch.long))
    dry = _inspect(net, source, layers=("2.*",))
    assert dry.loaded == "headers"
    assert [(row.info.name, row.measured) for row in dry.weights] == [
        ("0.weight", False), ("0.bias", False), ("2.weight", True), ("2.bias", False),
    ]  # fmt: skip
    assert dry.cost.fixed_bytes > 4 * 200_000**2
    assert not any(isinstance(row.engine, Missing) for row in dry.weights if row.measured)


class Nosy(nn.Module):
    """Asks for values in passing, and (``stubborn``) for a number of rows that shapes cannot tell."""

    def __init__(self, stubborn: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.stubborn = stubborn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.isfinite().all().item() and float(x.sum()) != 1.0:
            x = x[x[:, 0] > -1e9] if self.stubborn else x
        return self.fc(x)


def test_code_that_asks_for_values():
    source = TensorSource(torch.zeros(3, 6), torch.zeros(3, dtype=torch.long))
    answered = _inspect(Nosy(False), source)
    assert [row.engine.value for row in answered.weights if row.measured] == ["gauss-newton"]
    silent = _inspect(Nosy(True), source)
    (row,) = (row for row in silent.weights if row.measured)
    assert isinstance(row.engine, Missing)
    assert "does not run on shapes alone" in row.engine.reason
    assert isinstance(silent.cost.total_passes, Missing)
    assert silent.cost.fixed_bytes > 0


def test_refusals():
    net, source = CASES["gelu"].model(), TensorSource(torch.zeros(3, 6), torch.zeros(3, dtype=torch.long))
    with pytest.raises(UnsupportedModelError, match=r"gauss-newton is not exact for weight '0\.weight'"):
        _inspect(net, source, engine=EngineName.GAUSS_NEWTON)
    with pytest.raises(OptionError, match="matches none of the 3 weights"):
        _inspect(net, source, layers=("x",))


LLAMA = {
    "model.embed_tokens.weight": (320, 64),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.layers.0.self_attn.q_proj.bias": (64,),
    "model.layers.0.mlp.experts.gate_up_proj": (2, 128, 64),
    "model.layers.0.mlp.experts.1.w1.weight": (128, 64),
    "model.conv.weight": (8, 3, 3, 3),
    "model.bn1.running_mean": (8,),
    "model.bn1.weight": (8,),
    "model.scale": (),
    "lm_head.weight": (320, 64),
}


def test_a_checkpoint_of_an_unknown_network():
    tensors = {name: torch.empty(shape, device="meta", dtype=torch.bfloat16) for name, shape in LLAMA.items()}
    tensors["steps"] = torch.empty((), device="meta", dtype=torch.long)
    dry = inspect_headers(tensors, "no idea", options=ProbeOptions(top_k=100), model_info=INFO)
    roles = {row.info.name: (row.info.role.value, row.measured) for row in dry.weights}
    layer = "model.layers.0"
    assert roles == {
        "model.embed_tokens.weight": ("embedding", False),
        f"{layer}.input_layernorm.weight": ("norm", False),
        f"{layer}.self_attn.q_proj.weight": ("matrix", True),
        f"{layer}.self_attn.q_proj.bias": ("bias", False),
        f"{layer}.mlp.experts.gate_up_proj[0]": ("expert", True),
        f"{layer}.mlp.experts.gate_up_proj[1]": ("expert", True),
        f"{layer}.mlp.experts.1.w1.weight": ("expert", True),
        "model.conv.weight": ("conv", True),
        "model.bn1.weight": ("norm", False),
        "model.scale": ("other", False),
        "lm_head.weight": ("unembedding", True),
    }
    assert dry.n_measured == 6
    assert all(row.engine == Missing("no idea") for row in dry.weights if row.measured)
    assert {row.info.name: row.directions for row in dry.weights}["model.conv.weight"] == 8
    assert any("read off names" in note for note in dry.notes)
    with pytest.raises(OptionError, match="no floating-point tensor"):
        inspect_headers({"steps": tensors["steps"]}, "no idea", options=ProbeOptions(), model_info=INFO)


@pytest.fixture(scope="module")
def mixed() -> Inspection:
    case = make_workload(CASES["squeeze_excite"], dtype=torch.float32)
    net = nn.Sequential(case.model)
    net[0].extra = nn.Embedding(5, 3)
    net[0].fc.weight.requires_grad_(False)
    return _inspect(net, TensorSource(case.source.inputs.float(), case.source.targets))


def test_json_holds_everything(mixed):
    document = json.loads(render(mixed, Format.JSON))
    assert next(iter(document)) == "schema_version"
    assert len(document["weights"]) == len(mixed.weights)
    by_name = {row["info"]["name"]: row for row in document["weights"]}
    assert by_name["0.a.weight"]["engine"] == "tangent"
    assert by_name["0.fc.weight"]["info"]["frozen"] is True
    assert by_name["0.extra.weight"]["engine"] == {"missing": "the weight would be skipped"}
    assert document["cost"]["total_passes"] == mixed.cost.total_passes


def test_csv_has_a_line_for_every_parameter(mixed):
    rows = list(csv.DictReader(io.StringIO(render(mixed, Format.CSV))))
    assert [row["name"] for row in rows] == [row.info.name for row in mixed.weights]
    by_name = {row["name"]: row for row in rows}
    assert by_name["0.a.weight"]["engine"] == "tangent"
    assert by_name["0.extra.weight"]["reason"].startswith("embedding look-up table")
    assert by_name["0.fc.bias"]["role"] == "bias"


@pytest.mark.parametrize("format", [Format.TABLE, Format.MARKDOWN])
def test_table_and_markdown(mixed, format):
    from rich.console import Console

    drawn = render(mixed, format)
    stream = io.StringIO()
    Console(file=stream, width=200).print(drawn)
    text = stream.getvalue()
    for row in mixed.weights:
        if len(row.info.stored_shape) > 1:
            assert row.info.name.replace("_", r"\_" if format is Format.MARKDOWN else "_") in text
    assert "conv, frozen" not in text
    assert "matrix, frozen" in text
    assert "vectors (biases, gains of normalisations) not listed" in text
    assert "Costs are estimates" in text


def test_roles_of_a_transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3))
    dry = _inspect(net, TensorSource(torch.zeros(3, 3, 8), torch.zeros(3, dtype=torch.long)))
    roles = {row.info.name: row.info.role for row in dry.weights}
    assert roles["0.norm1.weight"] is LayerRole.NORM
    assert roles["0.self_attn.in_proj_bias"] is LayerRole.BIAS
    assert roles["0.self_attn.in_proj_weight[k]"] is LayerRole.MATRIX


def test_vectors_are_not_frozen_by_looking():
    dry = _inspect(nn.Linear(4, 3), TensorSource(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)))
    assert [row.info.frozen for row in dry.weights] == [False, False]


def test_a_mixture_of_experts_is_costed_on_shapes_alone():
    """Its grouped products do not exist on the meta device in float32."""
    from tests.support import hf_networks

    tokens = torch.randint(3, 40, (4, 6))
    model = hf_networks.build("mixtral")
    dry = inspect_model(model, TensorSource(tokens, tokens), CausalLM(), options=ProbeOptions(top_k=2), model_info=INFO)
    options = ProbeOptions(top_k=2, device="cpu", self_check=False)
    report = run_probe(Run(model, TensorSource(tokens, tokens), CausalLM(), options, INFO, DATA))
    planned = [row for row in dry.weights if len(row.info.stored_shape) > 1]
    for plan, row in zip(planned, report.layers, strict=True):
        assert plan.info == row.info
        if isinstance(row, LayerReport):
            assert plan.engine is row.measurement.engine
    assert any(row.info.role is LayerRole.EXPERT for row in planned)
    # Per token: q, k, v, o; the router over 3 experts; gate, up and down of the 2 chosen. Then attention and the head.
    width, inner, n, layers = 8, 12, 6, 2
    weights = layers * (2 * width * width + 2 * width * 4 + 3 * width + 2 * 3 * width * inner) + 40 * width
    attention = layers * 2 * n * width
    assert dry.cost.flops_per_sample == 2 * n * (weights + attention)
    assert dry.cost.bytes_per_sample > 0


def test_weights_are_listed_where_no_sample_is_known():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    known = _inspect(model, TensorSource(torch.zeros(3, 3), torch.zeros(3, dtype=torch.long)), top_k=2)
    why = Missing("nobody knows what it reads")
    found = inspect_model(model, why, options=ProbeOptions(top_k=2), model_info=INFO)
    assert [(row.info, row.measured, row.directions) for row in found.weights] == [
        (row.info, row.measured, row.directions) for row in known.weights
    ]
    assert found.inputs == found.cost.total_passes == why
    assert all(row.engine == why for row in found.weights if row.measured)
    draws = 2 * 8 * sum(2 * size for size in (7, 6))  # directions of noise, which the engine would ride along
    assert found.cost.fixed_bytes == known.cost.fixed_bytes - draws
    assert json.loads(render(found, Format.JSON))["inputs"] == {"missing": why.reason}
