"""A dry run's seconds and bytes: by a stated formula from a few timed operations, and what would need less."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spectrascope.curvature import references
from spectrascope.curvature.tangent.plan import make_plan, record_loss
from spectrascope.measure import guess, room
from spectrascope.measure.inspect import inspect_model
from spectrascope.records.inspection import CostEstimate, TimeGuess
from spectrascope.records.report import ModelInfo, ProbeOptions
from spectrascope.records.signal import Estimate
from spectrascope.records.values import ALL_SAMPLES, CheckScope, EngineName, Missing
from spectrascope.reports.render import Format, render
from spectrascope.workload import TensorSource
from tests.support.cases import CASES, make_workload

INFO = ModelInfo("net", "net", "python", Missing("in memory"), Missing("in memory"), "in memory", 1)
OPTIONS = {"num_samples": 100, "top_k": 4, "device": "cpu"}


def cost_of(model: nn.Module, inputs: torch.Tensor, *, timed: bool = True, **options) -> CostEstimate:
    source = TensorSource(inputs, torch.zeros(len(inputs), dtype=torch.long))
    asked = ProbeOptions(**{**OPTIONS, **options})
    return inspect_model(model, source, options=asked, model_info=INFO, timed=timed).cost


def conv_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.fixture(autouse=True)
def no_program(monkeypatch) -> None:
    """What the tests themselves have in memory is nobody's business here."""
    monkeypatch.setattr(room, "resident_bytes", lambda: 0)
    monkeypatch.setattr(references, "_SMALL", 0)  # nor the copies that check a small network


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The clock replaced by one that says 0.5 s of everything; every run of what is timed is real, and counted."""
    count = []

    def half_a_second(work, device):
        count.append(1)
        work()
        return 0.5

    monkeypatch.setattr(guess, "seconds_of", half_a_second)
    return count


@pytest.fixture
def no_pass(monkeypatch) -> None:
    """Every network is too large for a pass of its own."""
    monkeypatch.setitem(guess._SCALES, "cpu", guess._Scale(1e6, 1 << 12, 0, 0))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_small_network_is_timed_by_one_pass(runs, dtype):
    cost = cost_of(conv_net(), torch.zeros(3, 3, 6, 6), dtype=dtype)
    time = cost.time
    assert isinstance(time, TimeGuess)
    assert len(runs) == 1
    assert time.basis == "one forward pass over 16 samples"
    assert time.pass_seconds == pytest.approx(0.5 / 16 * 100)
    assert time.total_seconds == pytest.approx(0.5 / 16 * 100 * cost.total_passes)
    assert time.flops_per_second == pytest.approx(cost.flops_per_sample * 16 / 0.5)
    assert time.timed_operations == 3


def test_a_large_network_is_timed_by_its_own_shapes(runs, no_pass):
    cost = cost_of(conv_net(), torch.zeros(3, 3, 6, 6))
    convolution, product = 2 * 36 * 8 * 27, 2 * 288 * 10
    assert cost.flops_per_sample == convolution + product
    assert len(runs) == 2
    assert cost.time.basis == "2 products of the network's own shapes"
    assert cost.time.timed_operations == 6
    # 16 samples of each shape took half a second, so that one sample took a sixteenth of that.
    assert cost.time.pass_seconds == pytest.approx(100 * 2 * 0.5 / 16)


def test_shapes_that_do_little_are_not_timed(runs, no_pass):
    wide = nn.Sequential(nn.Linear(512, 512, bias=False), nn.ReLU(), nn.Linear(512, 2, bias=False))
    cost = cost_of(wide, torch.zeros(3, 512))
    assert len(runs) == 1
    large = 2 * 512 * 512
    assert cost.flops_per_sample == large + 2 * 512 * 2
    time_of_large = 0.5 * large / timed_flops(512, 512)
    assert cost.time.pass_seconds == pytest.approx(100 * time_of_large * cost.flops_per_sample / large)


def timed_flops(inner: int, columns: int) -> int:
    """Of one row of a sample, as many rows as a micro-batch has and the scale allows, cut down to its numbers."""
    rows = min(16, 1_000_000 // (2 * inner * columns))
    while inner * columns > 1 << 12:
        inner, columns = (inner // 2, columns) if inner >= columns else (inner, columns // 2)
    return 2 * max(rows, 1) * inner * columns


@pytest.mark.parametrize("made_of", ["meta", "numbers"])
def test_neither_the_network_nor_chance_is_touched(made_of):
    with torch.device("meta" if made_of == "meta" else "cpu"):
        net = conv_net()
    before = {name: p.clone() for name, p in net.named_parameters()}
    chance = torch.get_rng_state()
    assert isinstance(cost_of(net, torch.zeros(3, 3, 6, 6)).time, TimeGuess)
    assert torch.equal(torch.get_rng_state(), chance)
    for name, p in net.named_parameters():
        assert p.device.type == ("meta" if made_of == "meta" else "cpu")
        assert made_of == "meta" or torch.equal(p, before[name])


@pytest.mark.parametrize("case", ["mlp_relu", "attention", "conv_groups", "conv_transpose", "stacked_experts", "gelu"])
def test_every_kind_of_product_can_be_cut_down(case, no_pass):
    workload = make_workload(CASES[case], dtype=torch.float32)
    options = ProbeOptions(**OPTIONS)
    found = inspect_model(workload.model, workload.source, workload.loss_fn, options=options, model_info=INFO)
    assert isinstance(found.cost.time, TimeGuess), found.cost.time
    assert found.cost.time.total_seconds > 0


def test_what_cannot_be_timed_says_why(runs):
    inputs = torch.zeros(3, 3, 6, 6)
    assert cost_of(conv_net(), inputs, timed=False).time == Missing("not asked for")
    assert "how many samples" in cost_of(conv_net(), inputs, num_samples=ALL_SAMPLES, top_k=4).time.reason
    other = cost_of(conv_net(), inputs, device="cuda:77")
    assert "cuda:77" in other.time.reason
    assert "cuda:77" in other.memory.available_bytes.reason
    assert other.memory.fits == other.memory.available_bytes
    assert not runs


def test_a_long_run_says_what_would_shorten_it(monkeypatch):
    monkeypatch.setattr(guess, "seconds_of", lambda work, device: 1000.0)
    gelu = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
    cost = cost_of(gelu, torch.zeros(3, 64), num_samples=2048, top_k=20, engine=EngineName.TANGENT)
    left = {remedy.option: remedy for remedy in cost.time.helps}
    each = cost.time.total_seconds / cost.total_passes
    assert left["8 ranks (torchrun)"].left == pytest.approx(cost.time.total_seconds / 8)
    fewer = cost_of(
        gelu, torch.zeros(3, 64), num_samples=2048, top_k=20, engine=EngineName.TANGENT, curvature_samples=128
    )
    assert left["--curvature-samples 128"].left == pytest.approx(fewer.total_passes * each)
    half = cost_of(gelu, torch.zeros(3, 64), num_samples=2048, top_k=10, engine=EngineName.TANGENT)
    assert left["--top-k 10"].left == pytest.approx(half.total_passes * each, rel=0.1)
    apart = cost_of(
        gelu, torch.zeros(3, 64), num_samples=2048, top_k=20, engine=EngineName.TANGENT, estimate=Estimate.PUBLISHED
    )
    assert left["--estimate published"].left == pytest.approx(apart.total_passes * each, rel=0.1)
    assert all(remedy.unit == "seconds" for remedy in cost.time.helps)
    monkeypatch.setattr(guess, "seconds_of", lambda work, device: 1e-6)
    assert cost_of(gelu, torch.zeros(3, 64)).time.helps == ()


@pytest.mark.parametrize("case", ["attention", "gelu", "conv_groups", "tied_tokens"])
def test_a_sample_takes_what_the_engine_says(case):
    """Bytes seen in one pass on shapes alone against those that the tangent engine plans with."""
    workload = make_workload(CASES[case], dtype=torch.float32)
    options = ProbeOptions(**OPTIONS, engine=EngineName.TANGENT)
    found = inspect_model(workload.model, workload.source, workload.loss_fn, options=options, model_info=INFO)
    weights = [p for p in workload.model.parameters() if p.dim() > 1]
    recording, loss = record_loss(weights, lambda: workload.loss(*workload.fetch(0, 1)))
    planned = make_plan(recording, weights, loss, 0).footprint.of(1)
    assert found.cost.memory.tangent_bytes == pytest.approx(planned, rel=0.5)


def test_what_does_not_fit_and_what_would(monkeypatch):
    net = nn.Sequential(nn.Linear(256, 256, bias=False), nn.GELU(), nn.Linear(256, 256, bias=False))
    kept = 4 * 2 * 256 * 256
    for free in (1 << 40, kept + 100_000, 1000):
        monkeypatch.setattr(room, "available_bytes", lambda device, free=free: free)
        need = cost_of(net, torch.zeros(3, 256), timed=False).memory
        assert need.weight_bytes == kept
        assert need.copy_bytes == kept  # the values of the caller's own network, to be put back
        assert need.total_bytes == 2 * kept + need.direction_bytes + max(need.gradient_bytes, need.tangent_bytes)
        assert need.fits is (free == 1 << 40)
        assert bool(need.helps) is not need.fits
    by_option = {remedy.option: remedy.left for remedy in need.helps}
    alone = cost_of(net, torch.zeros(3, 256), timed=False, layers=("0.*",)).memory
    assert by_option["--layers with one weight at a time"] == pytest.approx(alone.total_bytes, rel=0.1)


def test_a_map_of_devices_keeps_half_of_a_device_for_weights(monkeypatch):
    deep = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.GELU())))
    kept = sum(4 * p.numel() for p in deep.parameters())
    monkeypatch.setattr(room, "device_asked_for", lambda options: torch.device("cuda"))
    monkeypatch.setattr(room, "available_bytes", lambda device: kept)
    alone = {"timed": False, "memory": 1, "top_k": 1}
    need = cost_of(deep, torch.zeros(3, 64), **alone).memory
    assert need.fits is False
    (told,) = (remedy.left for remedy in need.helps if remedy.option == "--device-map auto")
    mapped = cost_of(deep, torch.zeros(3, 64), device_map="auto", **alone).memory
    assert mapped.total_bytes == told == need.total_bytes - kept // 2
    assert not any("--device-map" in remedy.option for remedy in mapped.helps)


@pytest.mark.parametrize(("dtype", "narrower"), [("float32", "bfloat16"), ("float64", "float32")])
def test_a_narrower_format_needs_less(monkeypatch, dtype, narrower):
    monkeypatch.setattr(room, "available_bytes", lambda device: 1000)
    deep = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(64, 64), nn.GELU())))
    alone = {"timed": False, "memory": 1}  # one weight at a time
    wide, narrow = (cost_of(deep, torch.zeros(3, 64), dtype=name, **alone).memory for name in (dtype, narrower))
    (told,) = (remedy.left for remedy in wide.helps if remedy.option == f"--dtype {narrower}")
    kept = wide.gradient_bytes - narrow.gradient_bytes  # a float64 network's are kept in float64 by sample group
    assert told == pytest.approx(narrow.total_bytes + kept, rel=0.01)


NUMBERS = 16 * 256 * 256


@pytest.mark.parametrize(
    ("given", "dtype", "owned", "copy"),
    [
        (torch.float32, "float32", True, 0),
        (torch.float32, "float32", False, 4 * NUMBERS),  # its values, to be put back
        (torch.float32, "float64", False, 4 * NUMBERS),  # the network as given, beside a copy in float64
        (torch.float32, "float64", True, 0),  # converted in place
        (torch.float32, "bfloat16", True, 4 * NUMBERS),  # to be checked against
        (torch.bfloat16, "bfloat16", True, 0),
    ],
)
def test_a_second_copy_is_counted_where_there_is_one(monkeypatch, given, dtype, owned, copy):
    net = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(16))).to(given)
    source = TensorSource(torch.zeros(3, 256), torch.zeros(3, dtype=torch.long))
    options = ProbeOptions(**{**OPTIONS, "dtype": dtype, "num_samples": 2, "memory": 1})
    need = inspect_model(net, source, options=options, model_info=INFO, owned=owned).cost.memory
    check = 4 * NUMBERS if dtype == "bfloat16" else 0
    assert (need.copy_bytes, need.check_bytes) == (copy, check)
    held = need.weight_bytes + copy + need.direction_bytes + max(need.gradient_bytes, check + need.tangent_bytes)
    assert need.total_bytes == held
    if not check:
        return
    monkeypatch.setattr(room, "available_bytes", lambda device: held - 1)
    tight = inspect_model(net, source, options=options, model_info=INFO, owned=owned).cost.memory
    assert tight.check_bytes == 0  # left out where there is no room for it
    assert tight.fits is True


def test_a_small_network_is_checked_by_a_copy_in_float64(monkeypatch):
    monkeypatch.setattr(references, "_SMALL", 8 * 650)
    net = nn.Linear(64, 10)
    assert cost_of(net, torch.zeros(3, 64), self_check=CheckScope.SAMPLED).memory.check_bytes == 8 * 650
    assert cost_of(net, torch.zeros(3, 64), self_check=CheckScope.OFF).memory.check_bytes == 0
    assert cost_of(net, torch.zeros(3, 64), dtype="bfloat16").memory.check_bytes == 4 * 650 + 8 * 650
    assert cost_of(nn.Linear(65, 10), torch.zeros(3, 65)).memory.check_bytes == 0


def test_reading_a_file_takes_no_second_copy_of_its_content():
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(40)))
    source = TensorSource(torch.zeros(3, 512), torch.zeros(3, dtype=torch.long))
    options = ProbeOptions(**OPTIONS, layers=("0.*",), memory=1)
    need = inspect_model(net, source, options=options, model_info=INFO, owned=True).cost.memory
    assert need.weight_bytes < need.total_bytes < 1.6 * need.weight_bytes
    taken = inspect_model(net, source, options=options, model_info=INFO).cost.memory
    assert taken.total_bytes > 2 * need.weight_bytes


def test_fewer_samples_than_groups_are_as_many_groups():
    net = nn.Linear(64, 64, bias=False)
    assert cost_of(net, torch.zeros(3, 64), num_samples=2).memory.gradient_bytes == 64 * 64 * (24 + 4 * 2)
    assert cost_of(net, torch.zeros(3, 64)).memory.gradient_bytes == 64 * 64 * (24 + 4 * 16)


def test_it_is_said_in_words_and_with_units(monkeypatch):
    monkeypatch.setattr(guess, "seconds_of", lambda work, device: 1000.0)
    monkeypatch.setattr(room, "available_bytes", lambda device: 1000)
    source = TensorSource(torch.zeros(3, 3, 6, 6), torch.zeros(3, dtype=torch.long))
    found = inspect_model(conv_net(), source, options=ProbeOptions(**OPTIONS), model_info=INFO)
    text = render(found, Format.MARKDOWN)
    assert "a guess from one forward pass over 16 samples (cpu, " in text
    assert "does not fit: about" in text
    assert "no option is enough on this device" in text
    cost = json.loads(render(found, Format.JSON))["cost"]
    for kind in ("time", "memory"):
        numbers = [name for name, value in cost[kind].items() if isinstance(value, (int, float)) and value is not True]
        named = ("_seconds", "_bytes", "_per_second", "timed_operations", "threads", "fits")
        assert all(name.endswith(named) for name in numbers), numbers
