"""Measurements on devices that are not the CPU, each held to the same one on the CPU: ``python -m`` this, LIBRARY.

Prints a line of JSON for each case: its name, and what went wrong.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

import spectrascope
from spectrascope.errors import OptionError
from spectrascope.measure import placement
from spectrascope.measure.streamed import Streamed
from spectrascope.records.report import LayerReport, Report
from tests.support import other_device
from tests.support.families import FAMILIES, no_narrowing

Reports: TypeAlias = "tuple[Report, Report]"
CASES: dict[str, Callable[[], None]] = {}
OTHERS = [torch.device("privateuseone", i) for i in range(2)]
QUICK: dict[str, Any] = {"top_k": 3, "groups": 2, "micro_batch": 3, "dtype": "float64", "estimate": "published"}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__.replace("_", " ")] = function
    return function


def on_cpu_and(
    model: nn.Module, there: Any, batches: object, loss: Any = None, **options: Any
) -> tuple[Report, Report]:
    """The same measurement of a network on the CPU and of one elsewhere."""
    asked = {**QUICK, **options}
    with no_narrowing():
        here = spectrascope.probe(copy.deepcopy(model), batches, loss, **{**asked, "device_map": "none"})
        return here, spectrascope.probe(there, batches, loss, **asked)


def compare(reports: Reports, within: float = 1e-9) -> None:
    """Hold every curvature of one report to the other's, and the engines too."""
    here, there = ([row for row in report.layers if isinstance(row, LayerReport)] for report in reports)
    assert [row.info.name for row in here] == [row.info.name for row in there] != [], there
    for a, b in zip(here, there, strict=True):
        assert a.measurement.engine == b.measurement.engine, (a.info.name, b.measurement.engine)
        scale = max(map(abs, a.measurement.h), default=0) or 1
        gap = max((abs(x - y) for x, y in zip(a.measurement.h, b.measurement.h, strict=True)), default=0)
        assert gap <= within * scale, (a.info.name, gap / scale)
        if hasattr(a.held_out, "h"):
            gaps = [abs(x - y) for x, y in zip(a.held_out.h, b.held_out.h, strict=True)]
            assert max(gaps) <= within * scale, (a.info.name, gaps)


def family(name: str) -> Callable[[], None]:
    def measure() -> None:
        made = FAMILIES[name]()
        there = other_device.moved(made.model, "other:0")
        both = on_cpu_and(made.model, there, made.source, made.loss_fn, groups=1, estimate="both", num_samples="all")
        compare(both)

    return measure


for _name in ("resnet-basic", "gpt2", "lstm", "gru", "vit", "swiglu"):
    CASES[f"{_name} on one device"] = family(_name)


class Halves(nn.Module):
    """Two parts, each on a device of its own."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x).to(next(self.second.parameters()).device))

    def on(self, first: str, second: str) -> Halves:
        return Halves(other_device.moved(self.first, first), other_device.moved(self.second, second))


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(12, 3, 8, 8, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 4, (12,), generator=generator)


def convolutions() -> Halves:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
    second = nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    return Halves(first, second).double().eval()


def smooth() -> Halves:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.GELU(), nn.LayerNorm(10))
    return Halves(first, nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4))).double().eval()


def spread(model: Callable[[], Halves], first: str, second: str, **options: Any) -> None:
    net = model()
    compare(on_cpu_and(net, net.on(first, second), images(), **options))


@case
def convolutions_on_two_devices() -> None:
    spread(convolutions, "other:0", "other:1", estimate="both")


@case
def a_smooth_network_on_two_devices() -> None:
    spread(smooth, "other:1", "other:0", estimate="both")


@case
def a_device_and_the_cpu() -> None:
    spread(smooth, "other:0", "cpu")
    spread(convolutions, "other:0", "cpu", engine="double-backprop")


@case
def the_provenance_names_all_devices() -> None:
    report = spectrascope.probe(smooth().on("other:1", "cpu"), images(), **QUICK)
    assert report.provenance.device.startswith("other:1 (")
    assert ", cpu (" in report.provenance.device


@case
def a_device_that_is_named_gathers_the_network() -> None:
    spread(smooth, "other:0", "other:1", device="cpu")


@case
def curvature_across_weights_on_two_devices() -> None:
    net = smooth()
    here, there = on_cpu_and(net, net.on("other:0", "other:1"), images(), across_matrix=True)
    a, b = (torch.tensor(report.summary.across.matrix) for report in (here, there))
    assert float((a - b).abs().max()) <= 1e-9 * float(a.abs().max())


@case
def factors_on_two_devices() -> None:
    for net in (convolutions(), smooth()):
        options: dict[str, Any] = {"top_k": 3, "groups": 2, "micro_batch": 3, "dtype": "float64"}
        here = spectrascope.decompose(copy.deepcopy(net), images(), **options)
        there = spectrascope.decompose(net.on("other:0", "other:1"), images(), **options)
        for a, b in zip(here.to_dict()["layers"], there.to_dict()["layers"], strict=True):
            _close(a["decomposition"], b["decomposition"], a["name"])


def _close(a: Any, b: Any, where: str) -> None:
    if isinstance(a, dict):
        for key in a:
            _close(a[key], b[key], f"{where} {key}")
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            _close(x, y, where)
    elif isinstance(a, float):
        assert abs(a - b) <= 1e-6 * max(abs(a), 1e-9), (where, a, b)
    else:
        assert a == b, (where, a, b)


# -- networks larger than a device ---------------------------------------------------------------------------------


def text_model() -> tuple[nn.Module, tuple[dict[str, Tensor], Tensor]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=3, n_head=2, n_embd=16, vocab_size=40, n_positions=12, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    tokens = torch.randint(0, 40, (6, 8))
    return GPT2LMHeadModel(config).double().eval(), ({"input_ids": tokens}, tokens)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def with_map(device_map: str | Mapping[str, int | str], room: tuple[int, int] = (0, 0), **options: Any) -> Report:
    """Measure a network with ``--device-map`` and hold it to the CPU; the two devices have room for so many bytes."""
    model, batches = text_model()
    before = values(model)
    rooms = dict(zip(OTHERS, room, strict=True))
    placement.gpus = lambda: OTHERS  # type: ignore[assignment]
    placement.room_for_weights = lambda device: rooms[device]  # type: ignore[assignment]
    few = {"layers": ("*.c_attn*", "*h.2.mlp*"), "self_check": "sampled"}
    both = on_cpu_and(model, model, batches, device_map=device_map, **{**few, **options})
    compare(both)
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(model).items())
    assert all(p.device.type == "cpu" for p in model.parameters())
    return both[1]


@case
def a_map_of_blocks_on_two_devices() -> None:
    blocks = {f"transformer.h.{i}": i % 2 for i in range(3)}
    report = with_map({"transformer.wte": 0, "transformer.wpe": 0, **blocks, "transformer.ln_f": 1, "lm_head": 0})
    assert report.provenance.device.startswith("other:0 (")
    assert "other:1 (" in report.provenance.device


@case
def a_map_with_blocks_in_host_memory() -> None:
    report = with_map({"": 1, "transformer.h.0": "cpu", "transformer.h.2": "cpu"}, estimate="both")
    assert "of weights in the host's memory" in report.provenance.device


@case
def blocks_on_two_devices_and_in_host_memory() -> None:
    with_map({"": 0, "transformer.h.1": 1, "transformer.h.2": "cpu"})


@case
def the_automatic_map_fills_devices_in_order() -> None:
    whole = sum(t.nbytes for t in text_model()[0].state_dict().values())
    report = with_map("auto", (whole // 2, whole))
    assert "other:1" in report.provenance.device
    assert "host" not in report.provenance.device
    report = with_map("auto", (whole // 3, whole // 4))
    assert "other:1" in report.provenance.device
    assert "host" in report.provenance.device


@case
def steps_against_the_gradient_on_streamed_weights() -> None:
    with_map({"": "cpu", "lm_head": 0}, engine="finite-difference", layers="*h.1.mlp.c_fc*", self_check="off")


@case
def streamed_weights_take_no_more_than_their_room() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(256, 256) for _ in range(16)))
    inputs, one = torch.randn(4, 256), net[0].weight.nbytes
    expected = [p.clone() for p in torch.autograd.grad(net(inputs).square().mean(), list(net.parameters()))]
    counts = torch.ops.other_device
    start = counts.held()
    streamed = Streamed(net.parameters(), net, OTHERS[0])
    assert counts.held() == start
    assert streamed.nbytes == 16 * (one + net[0].bias.nbytes)
    counts.forget()
    with streamed:
        with torch.no_grad():
            net(inputs.to(OTHERS[0]))
        assert one < counts.most() - start < 5 * one, (counts.most() - start) / one
        found = torch.autograd.grad(net(inputs.to(OTHERS[0])).square().mean(), list(net.parameters()))
    assert all(torch.allclose(a, b.cpu()) for a, b in zip(expected, found, strict=True))


@case
def what_was_written_to_streamed_weights_is_kept() -> None:
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    streamed = Streamed(net.parameters(), net, OTHERS[0])
    with streamed, torch.no_grad():
        for i, layer in enumerate(net):
            layer.weight.fill_(i)
        assert [float(layer.weight.mean()) for layer in net] == [*range(8)]


@case
def contradictions_are_refused() -> None:
    model, batches = text_model()
    placement.gpus = lambda: OTHERS  # type: ignore[assignment]
    for given, options, words in (
        ({"": 2}, {}, "this machine has 2, numbered from 0"),
        ({"h": 0}, {}, "no module 'h'"),
        ({"transformer.h.0": 0}, {}, "lies in none of its modules"),
        ("auto", {"device": "cpu"}, "drop device"),
    ):
        with pytest.raises(OptionError, match=words):
            spectrascope.probe(model, batches, device_map=given, **{**QUICK, **options})
    with pytest.raises(OptionError, match="measured where its weights lie"):
        spectrascope.probe(other_device.moved(model, "other:0"), batches, device_map="auto", **QUICK)


def main() -> None:
    other_device.load(Path(sys.argv[1]))
    for name in sys.argv[2:] or CASES:
        wrong = ""
        try:
            CASES[name]()
        except Exception:
            wrong = traceback.format_exc(limit=-6)
        print(json.dumps({"name": name, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
