"""``--memory``: gradients and tangents stay within it, in more passes and with the same numbers; what is no memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import OptionError
from spectrascope.measure import room
from spectrascope.measure.division import Division
from spectrascope.measure.inspect import inspect_headers, inspect_model
from spectrascope.measure.ranks import ALONE
from spectrascope.measure.run import run_probe, run_share
from spectrascope.measure.run_folder import RunFolder
from spectrascope.records.inspection import CostEstimate
from spectrascope.records.report import LayerReport, ModelInfo, ProbeOptions, Report
from spectrascope.records.values import CheckScope, Missing
from spectrascope.text import memory_of, memory_text
from spectrascope.workload import TensorSource
from tests.support.counting import bytes_alive
from tests.support.measure_helpers import small_gpt2
from tests.support.ranks import N, count_samples, kill_when, make_run, numbers_of, on_ranks, probe_job

NUMBER = 24 + 16 * 4  # bytes of gradients for each number of a weight: the batch's and its halves', sixteen groups'
CONVOLUTION, FIRST, LAST = 4 * 9, 8 * 36, 5 * 8
INFO = ModelInfo("net", "net", "python", Missing("in memory"), Missing("in memory"), "in memory", 1)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (1, 1), ("12", 12), ("7B", 7), ("8GiB", 8 << 30), ("8gib", 8 << 30), ("8 GB", 8 * 10**9), ("500MB", 5 * 10**8),
        ("2KiB", 2048), ("3MiB", 3 << 20), ("1TiB", 1 << 40), ("2TB", 2 * 10**12), ("4kB", 4000), ("1.5KiB", 1536),
        ("0.3KiB", 307), ("auto", "auto"),
    ],
)  # fmt: skip
def test_amounts_of_memory(given: int | str, size: int | str) -> None:
    assert memory_of(given) == size


BAD = [
    "", "0", "0GiB", 0, -1, "-1GiB", "GiB", "8G", "8Gb/s", "8 potatoes", "8  GiB", "1.5", 1.5, 8e9, "1e9", "nan",
    "\u0668GiB", "8GiB\n", "9" * 5000, "0.1B", True, None, "all", "Auto",
]  # fmt: skip


@pytest.mark.parametrize("given", BAD)
def test_what_is_no_amount_of_memory_is_refused_in_one_line(given: object) -> None:
    batch = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)
    for call in (
        lambda: spectrascope.probe(nn.Linear(3, 2), batch, memory=given, on_progress=False),  # type: ignore[arg-type]
        lambda: spectrascope.inspect(nn.Linear(3, 2), batch, memory=given),  # type: ignore[arg-type]
        lambda: run_probe(make_run("smooth", memory=given)),
    ):
        with pytest.raises(
            OptionError, match=r"^(--)?memory .*: expected auto or a number of bytes from 1 on, as 8GiB"
        ):
            call()


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 1_000_000_000, (5 << 40) + 1])
def test_a_size_that_is_suggested_is_enough(size: int) -> None:
    assert size <= memory_of(memory_text(size)) <= 1.1 * size


@pytest.mark.parametrize(
    ("memory", "passes"),
    [
        ("auto", 1),
        (NUMBER * (CONVOLUTION + FIRST + LAST), 1),
        (NUMBER * (CONVOLUTION + FIRST + LAST) - 1, 2),
        (NUMBER * (CONVOLUTION + FIRST) - 1, 3),
        (1, 3),
    ],
)
def test_less_memory_takes_more_gradient_passes(memory: int | str, passes: int) -> None:
    """Samples that go forward, counted; and the dry run counts the same passes and bytes."""
    run, seen = count_samples(make_run("class factors", self_check=CheckScope.OFF, memory=memory))
    roomy, once = count_samples(make_run("class factors", self_check=CheckScope.OFF, memory=1 << 40))
    run_probe(run)
    run_probe(roomy)
    assert seen[0] - once[0] == (passes - 1) * N
    cost = inspect_model(run.model, run.source, options=run.options, model_info=INFO).cost
    assert cost.gradient_passes == 3 * passes
    held = {1: CONVOLUTION + FIRST + LAST, 2: CONVOLUTION + FIRST, 3: FIRST}[passes]
    assert cost.memory.gradient_bytes == NUMBER * held


def test_of_headers_alone_the_same_bytes() -> None:
    network = make_run("class factors").model
    for memory, numbers in (("auto", CONVOLUTION + FIRST + LAST), (1, FIRST), (NUMBER * (FIRST + 9), FIRST + 9)):
        options = ProbeOptions(num_samples=N, memory=memory)
        cost = inspect_headers(network.state_dict(), "not known", options=options, model_info=INFO).cost
        assert cost.memory.gradient_bytes == NUMBER * numbers


def test_what_does_not_fit_is_told_the_memory_that_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "resident_bytes", lambda: 0)
    monkeypatch.setattr(room, "available_bytes", lambda device: 1000)
    net = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(64, 64, bias=False), nn.GELU())))
    source = TensorSource(torch.zeros(16, 64), torch.zeros(16, dtype=torch.long))

    def cost_of(memory: int | str) -> CostEstimate:
        options = ProbeOptions(num_samples=16, top_k=1, memory=memory, device="cpu", self_check=CheckScope.OFF)
        return inspect_model(net, source, options=options, model_info=INFO).cost

    helps = {remedy.option: remedy.left for remedy in cost_of("auto").memory.helps}
    (named,) = (option for option in helps if option.startswith("--memory "))
    assert named == "--memory 352KiB"  # 64 × 64 numbers
    followed = cost_of(named.partition(" ")[2]).memory
    assert followed.total_bytes == helps[named]
    assert not [remedy for remedy in followed.helps if remedy.option.startswith("--memory ")]


def matrices_of(report: Report) -> list[np.ndarray]:
    rows = [row for row in report.layers if isinstance(row, LayerReport)]
    assert len(rows) == 3
    return [np.array(row.measurement.curvature_matrix) for row in rows]


@pytest.mark.parametrize("kind", ["class factors", "smooth"])
def test_every_weight_by_itself_has_the_same_numbers(kind: str) -> None:
    """Bit for bit; of tangents, of which one or several meet other kernels, to rounding."""
    parts = [run_probe(make_run(kind, dtype="float64", memory=memory)) for memory in ("auto", 1)]
    together, alone = (numbers_of(report) for report in parts)
    assert (together["options"].pop("memory"), alone["options"].pop("memory")) == ("auto", 1)
    for one, other in zip(*map(matrices_of, parts), strict=True):
        assert np.abs(one - other).max() <= 1e-13 * np.abs(one).max()
    if kind == "class factors":
        assert alone == together


@pytest.mark.parametrize("across", [False, True])
def test_tangents_stay_within_it(across: bool) -> None:
    workload = small_gpt2(1, 4)
    layers = ["*.attn.c_proj.weight", f"*.mlp.{'c_proj' if across else 'c_fc'}.weight"]

    def peak(memory: int | str) -> int:
        with bytes_alive() as alive:
            report = spectrascope.probe(
                workload.model, workload.source.fetch(0, 4), workload.loss_fn, memory=memory, top_k=40, groups=2,
                layers=layers, estimate="published", self_check="off", micro_batch=1, across_weights=across,
                on_progress=False,
            )  # fmt: skip
        assert report.provenance.engines == {"tangent": 2}
        return alive.peak

    size = 8 << 20
    assert 0.4 * size <= peak(size) <= size < peak("1GiB")


def test_a_run_goes_on_with_less(tmp_path: Path) -> None:
    """Begun by a shard with another amount, or killed on the way; every part counts."""

    def kept_in(folder: Path, **how: object) -> Division:
        return Division(ALONE, RunFolder(folder), **how)  # type: ignore[arg-type]

    how = {"dtype": "float64"}
    truth = numbers_of(run_probe(make_run("class factors", **how, memory=1)))
    assert run_share(make_run("class factors", **how), kept_in(tmp_path / "shards", shard=(0, 2)))
    assert numbers_of(run_probe(make_run("class factors", **how, memory=1), kept_in(tmp_path / "shards"))) == truth
    folder = tmp_path / "killed"
    job = partial(probe_job, run=partial(make_run, "class factors", **how, memory=1 << 30), folder=str(folder))
    assert kill_when(job, lambda: folder.exists() and len([*folder.rglob("*.safetensors")]) >= 3)
    assert numbers_of(run_probe(make_run("class factors", **how, memory=1), kept_in(folder))) == truth


def test_ranks_take_the_same_blocks(tmp_path: Path) -> None:
    truth = numbers_of(run_probe(make_run("class factors", memory=1)))
    outcome, _ = on_ranks(2, partial(probe_job, run=partial(make_run, "class factors", memory=1)), tmp_path)
    assert outcome.report is not None, outcome.error
    assert numbers_of(outcome.report) == truth
