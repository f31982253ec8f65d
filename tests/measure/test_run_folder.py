"""Run folders: killed and gone on with, in shards, of another measurement, damaged: one report, or one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrascope.curvature import factor_slice, factor_sums
from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.errors import LoadError, OptionError
from spectrascope.measure import curvatures, stages
from spectrascope.measure.decompose import run_decompose
from spectrascope.measure.division import Division
from spectrascope.measure.ranks import ALONE
from spectrascope.measure.run import run_probe, run_share
from spectrascope.measure.run_folder import RunFolder
from spectrascope.records.decomposition import DecomposeOptions, FisherType
from spectrascope.records.signal import Estimate, GradientSource
from spectrascope.records.values import EngineName
from spectrascope.workload import Run
from tests.support.ranks import (
    N,
    decompose_job,
    kill_at_random,
    kill_when,
    make_run,
    numbers_of,
    on_ranks,
    probe_job,
)  # fmt: skip

KINDS = ["class factors", "smooth"]


pytestmark = pytest.mark.usefixtures("one_thread")


def kept_in(folder: Path, **how: object) -> Division:
    return Division(ALONE, RunFolder(folder), **how)  # type: ignore[arg-type]


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_gone_on_with(kind: str, tmp_path: Path) -> None:
    """Before there is anything, with the directions, and with some of the parts; then by two ranks."""
    truth = numbers_of(run_probe(make_run(kind)))
    folder = tmp_path / "run"
    job = partial(probe_job, run=partial(make_run, kind), folder=str(folder))
    for least in (1, 2, 7):
        assert kill_when(job, lambda least=least: folder.exists() and len(files_in(folder)) >= least)
    before = files_in(folder)
    assert 7 <= len(before) < 18
    assert numbers_of(run_probe(make_run(kind), kept_in(folder))) == truth
    assert len(files_in(folder)) == 18
    (outcome, _) = on_ranks(2, job, tmp_path)
    assert outcome.report is not None
    assert numbers_of(outcome.report) == truth


DECOMPOSED = {
    "in one sweep": ("class factors", DecomposeOptions()),
    "drawn labels in one sweep": ("class factors", DecomposeOptions(fisher=FisherType.MC, draws=2)),
    "a sweep, and passes of their own": ("smooth", DecomposeOptions(fisher=FisherType.MC, draws=2)),
    "sketched": ("class factors", DecomposeOptions()),
}


@pytest.mark.parametrize("name", DECOMPOSED)
def test_sums_of_factors_are_gone_on_with(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off after some samples, in either half of them: no sample is summed twice, and the report is the same."""
    kind, asked = DECOMPOSED[name]
    if name == "sketched":
        monkeypatch.setattr(factor_sums, "HELD_UP_TO", 5)
    truth = numbers_of(run_decompose(make_run(kind), asked, kept_in(tmp_path / "whole")))
    assert truth == numbers_of(run_decompose(make_run(kind), asked))
    original, done = RunFolder.write_sums, list[int]()

    def write_sums(self: RunFolder, sums: Mapping[str, Any]) -> None:
        original(self, sums)
        done.append(sums["done"])
        if len(done) in (3, 16, 27):
            raise KeyboardInterrupt

    monkeypatch.setattr(factor_slice, "_WRITING", 0)
    monkeypatch.setattr(RunFolder, "write_sums", write_sums)
    files = 2 if kind == "smooth" else 1
    for _ in range(files + 1):
        with pytest.raises(KeyboardInterrupt):
            run_decompose(make_run(kind), asked, kept_in(tmp_path / "run"))
    assert numbers_of(run_decompose(make_run(kind), asked, kept_in(tmp_path / "run"))) == truth
    assert done == [*range(2, N + 1, 2)] * files
    file = tmp_path / "run" / "factors.pt"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LoadError, match=r"factors\.pt: damaged .*remove it and run again"):
        run_decompose(make_run(kind), asked, kept_in(tmp_path / "run"))


@pytest.mark.parametrize("name", ["in one sweep", "a sweep, and passes of their own"])
def test_a_decomposition_killed_and_gone_on_with(name: str, tmp_path: Path) -> None:
    """By kill -9: when the first sums lie there, in the midst of writing, and with some of the held-out parts."""
    kind, asked = DECOMPOSED[name]
    truth = numbers_of(run_decompose(make_run(kind), asked))
    folder = tmp_path / "run"
    job = partial(decompose_job, run=partial(make_run, kind), asked=asked, folder=str(folder))
    moments = (
        lambda: any(folder.glob("factors*.pt")),
        lambda: any(folder.glob(".factors*.pt-*")),
        lambda: len(list(folder.glob("parts/*"))) > 3,
    )
    killed = [kill_when(job, moment) for moment in moments]
    assert any(killed)
    assert numbers_of(run_decompose(make_run(kind), asked, kept_in(folder))) == truth


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_twenty_random_moments(kind: str, tmp_path: Path) -> None:
    truth = numbers_of(run_probe(make_run(kind)))
    folders = [tmp_path / str(i) for i in range(22)]
    jobs = [partial(probe_job, run=partial(make_run, kind), folder=str(folder)) for folder in folders]
    killed = sum(kill_at_random(jobs, seed=0))
    for folder in folders[2:]:
        assert numbers_of(run_probe(make_run(kind), kept_in(folder))) == truth
    assert killed >= 10


def test_what_is_kept_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_probe(make_run("smooth"), kept_in(tmp_path))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(stages, "measure_gradients", refuse)
    monkeypatch.setattr(curvatures, "make_engine", refuse)
    again = run_probe(replace(make_run("smooth"), command="another"), kept_in(tmp_path))
    assert numbers_of(again) == numbers_of(first)
    assert again.provenance.command == "spectrascope probe"
    assert again.provenance.created == first.provenance.created


def test_shards_put_together(tmp_path: Path) -> None:
    """In any order; what is missing is named; a shard measures its share and no more."""
    truth = numbers_of(run_probe(make_run("smooth")))
    merge = kept_in(tmp_path, assembling=True)
    with pytest.raises(LoadError, match="nothing to merge, as it holds no directions"):
        run_probe(make_run("smooth"), merge)
    assert run_share(make_run("smooth"), kept_in(tmp_path, shard=(2, 3))) == list(range(10))
    assert run_share(make_run("smooth"), kept_in(tmp_path, shard=(0, 3))) == list(range(5, 10))
    with pytest.raises(LoadError, match=r"lacks 5 parts of 16: curvature-g05, .*curvature-g09; run the shards"):
        run_probe(make_run("smooth"), merge)
    assert run_share(make_run("smooth"), kept_in(tmp_path, shard=(1, 3))) == []
    assert numbers_of(run_probe(make_run("smooth"), merge)) == truth


def test_all_that_a_part_holds_comes_back(tmp_path: Path) -> None:
    """Estimates with their errors, null draws, momentum's directions, weights that fail."""
    momentum = {"1.weight": torch.randn(12, 36), "4.weight": torch.randn(8, 12)}
    runs: dict[str, Run] = {
        "nulls": make_run("smooth", null_draws=2, engine=EngineName.GAUSS_NEWTON_SKETCH, micro_batch="auto"),
        "held out": make_run("class factors", dtype="float64", estimate=Estimate.HELD_OUT),
        "momentum": replace(make_run("smooth", gradient=GradientSource.MOMENTUM), momentum=momentum),
    }
    for name, run in runs.items():
        first = run_probe(run, kept_in(tmp_path / name))
        assert numbers_of(run_probe(run, kept_in(tmp_path / name))) == numbers_of(first), name


def test_what_the_self_check_hands_on_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that an engine got wrong are measured again by the next, in files of their own."""
    original = Tangents.measure_each

    def wrong(self: Tangents, *args: Any, **kwargs: Any) -> list[Any]:
        return [c if isinstance(c, str) else replace(c, matrix=1.1 * c.matrix) for c in original(self, *args, **kwargs)]

    monkeypatch.setattr(Tangents, "measure_each", wrong)
    first = run_probe(make_run("smooth"), kept_in(tmp_path))
    assert first.provenance.engines.keys() == {"double-backprop", "gauss-newton"}
    assert {"directions-2.safetensors", "parts/curvature-2-g00.safetensors"} <= set(files_in(tmp_path))
    monkeypatch.setattr(curvatures, "make_engine", None)
    assert numbers_of(run_probe(make_run("smooth"), kept_in(tmp_path))) == numbers_of(first)
    assert numbers_of(run_probe(make_run("smooth"), kept_in(tmp_path, assembling=True))) == numbers_of(first)


def test_a_folder_of_another_measurement(tmp_path: Path) -> None:
    run_probe(make_run("smooth"), kept_in(tmp_path))
    other = make_run("smooth", top_k=2, memory=1)  # an amount of memory is no other measurement
    with pytest.raises(
        OptionError, match=r"holds another measurement \(--top-k: 3 there, 2 here\): name another folder"
    ):
        run_probe(other, kept_in(tmp_path))
    other = make_run("smooth")
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    with pytest.raises(OptionError, match=r"another measurement \(weights: \w+… there, \w+… here\)"):
        run_probe(other, kept_in(tmp_path))
    other = replace(make_run("smooth"), data_info=replace(other.data_info, digest="other"))
    with pytest.raises(OptionError, match=r"another measurement \(samples: digest there, other here\)"):
        run_probe(other, kept_in(tmp_path))


def test_damaged_files(tmp_path: Path) -> None:
    run_probe(make_run("smooth"), kept_in(tmp_path))
    part = tmp_path / "parts" / "curvature-g03.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(LoadError, match=r"curvature-g03.safetensors: damaged .*remove it and run again"):
        run_probe(make_run("smooth"), kept_in(tmp_path))
    part.unlink()
    run_probe(make_run("smooth"), kept_in(tmp_path))
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(LoadError, match=r"run.json: describes no run"):
        run_probe(make_run("smooth"), kept_in(tmp_path))
