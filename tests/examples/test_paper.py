"""The paper, end to end: rules, its arrays, and every claim on reports that are here already."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples.paper import __main__ as paper
from examples.paper.arrays import Arrays, checks
from examples.paper.claims import CLAIMS, COMPARISONS, OPEN, OPTIMIZERS
from examples.paper.full import LAYOUT, full_recipes
from examples.paper.lab import Lab
from examples.paper.networks import Data, loss_of, recipes
from examples.paper.page import markdown, page, summary_line
from examples.paper.quantities import effective_rank_tells, quartile_spread, resampled_share
from examples.paper.rows import claim_rows, comparison_rows, open_rows, optimizer_rows, triangle_rows
from examples.paper.rules import Figure, Verdict, difference, judge, mean_of, median_of, share_of
from spectrascope.records.report import Report
from spectrascope.records.values import Missing, RankModel
from tests.support.datasets import whole_datasets
from tests.support.gate_reports import network, with_signal

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "optimizers"))

import tasks

NOTHING = Missing("not here")


def _point(x: float, half: float = 0.05) -> Figure:
    return Figure(x, x - half, x + half)


@pytest.mark.parametrize(
    ("measured", "null", "held_out", "verdict"),
    [
        (NOTHING, NOTHING, NOTHING, Verdict.UNDETERMINED),
        (_point(2.0, 0.8), NOTHING, NOTHING, Verdict.UNDETERMINED),  # as wide as that it says nothing
        (_point(1.2), _point(2.0), NOTHING, Verdict.FAILS),
        (_point(1.75), NOTHING, NOTHING, Verdict.UNDETERMINED),  # across the border, with its middle outside
        (_point(2.0), _point(1.2), NOTHING, Verdict.HOLDS),
        (_point(2.0), _point(2.1), NOTHING, Verdict.NOISE),
        (_point(2.0), _point(2.1), _point(1.2), Verdict.NOISE),
        (_point(2.0), _point(2.1), _point(1.9), Verdict.HOLDS),
    ],
)
def test_rules(measured: object, null: object, held_out: object, verdict: Verdict) -> None:
    assert judge((1.8, 2.2), measured, null, held_out) is verdict  # type: ignore[arg-type]


def test_intervals_by_hand() -> None:
    mean = mean_of([1.0, 2.0, 3.0])
    assert (mean.value, round(mean.high, 3)) == (2.0, round(2 + 4.302653 / 3**0.5, 3))
    apart = difference(Figure(3.0, 2.7, 3.3), Figure(1.0, 0.6, 1.4))
    assert (apart.value, apart.low, apart.high) == (2.0, 1.5, 2.5)
    assert share_of(0, 10).high == pytest.approx(0.3085, abs=1e-4)  # Clopper and Pearson
    assert median_of([5.0]).low == 5.0
    assert isinstance(mean_of([]), Missing)


def test_its_arrays_give_its_figures(shared: Path) -> None:
    found = checks(Arrays(shared / "paper" / "results"))
    assert [check.agrees for check in found].count(None) == 1
    stricter = {check.claim: check for check in found if check.place == "stricter reading"}
    assert stricter["CIFAR triangle, the 21 layers within 10 %: median error"].recomputed.value == pytest.approx(
        0.021, abs=5e-4
    )
    by_claim = {check.claim: check for check in found}
    assert by_claim["ResNet-50 on ImageNet-1K, “14” convolutions: mean β"].recomputed.n == 13
    assert sum(check.place != "stricter reading" for check in found) == 27


def test_without_its_arrays_nothing_is_recomputed() -> None:
    assert all(isinstance(check.recomputed, Missing) for check in checks(Arrays(None)))


class _Lab:
    """One report for every network."""

    def __init__(self, report: Report) -> None:
        self.reports = lambda *_: [report]
        self.measured = lambda: {"network": report}
        self.label = lambda name: name


def test_every_claim_has_a_row_and_the_page_shows_it() -> None:
    lab = _Lab(with_signal(network(1), 1))
    rows = [*claim_rows(lab, Arrays(None)), *comparison_rows(lab), *optimizer_rows(None), *open_rows(lab)]  # type: ignore[arg-type]
    assert len(rows) == len(CLAIMS) + len(COMPARISONS) + len(OPTIMIZERS) + len(OPEN)
    assert {row.verdict for row in rows[-7:]} == {Verdict.UNDETERMINED}
    triangle = triangle_rows(lab, Arrays(None))  # type: ignore[arg-type]
    assert len(triangle) == len(lab.measured()["network"].layers)
    convolutions = rows[0]
    assert isinstance(convolutions.measured, Figure)
    assert convolutions.verdict is not Verdict.HOLDS or isinstance(convolutions.held_out, Figure)
    text, shown = markdown(rows, [], triangle, "setting"), page(rows, [], triangle, "setting")
    for row in rows:
        assert f"| {row.claim} |" in text
    assert summary_line(rows) in text
    assert shown.count("<tr>") == len(rows) + len(triangle) + 3
    assert "<script" not in shown


def test_optimizers_are_paired_by_seed() -> None:
    def row(name: str, scores: list[float]) -> dict:
        return {"contender": name, "budget": "steps", "seeds": [1, 2, 3], "scores": scores}

    summary = {"task": "digits", "rows": [row("SN, β = 2", [98.0, 98.2, 98.4]), row("AdamW", [95.0, 95.2, 95.4])]}
    found = {r.claim: r for r in optimizer_rows(summary)}
    better = found["… with damping relative to the gradient"]
    assert better.measured.value == pytest.approx(3.0)
    assert better.measured.high - better.measured.low < 1e-6
    assert better.verdict is Verdict.HOLDS
    assert found["… and Muon"].verdict is Verdict.UNDETERMINED


def test_every_network_can_be_trained() -> None:
    for recipe in recipes(0.0).values():
        if recipe.name == "conv-200":  # its images are not embedded
            continue
        data = recipe.data(None)
        few = Data(data.inputs[:6], data.targets[:6], data.classes)
        torch.manual_seed(0)
        model = recipe.build(data)
        loss = loss_of(model(few.inputs), few.targets)
        loss.backward()
        assert torch.isfinite(loss), recipe.name
        assert all(p.grad is not None for p in model.parameters()), recipe.name


def test_a_claim_stands_for_the_networks_that_are_here(tmp_path: Path) -> None:
    embedded, real = Lab(tmp_path / "a", None), Lab(tmp_path / "b", tmp_path)
    assert embedded.members("cnn") == ("digits-cnn",)
    assert real.members("cnn") == ("resnet20", "resnet32", "resnet44")
    assert len(embedded.members("mlp-64")) == 5
    assert len(embedded.members("widths")) == 20
    assert isinstance(embedded.reports("conv-200"), Missing)
    networks = [claim.network for claim in CLAIMS] + [name for c in COMPARISONS for name in (c.after, c.before)]
    for lab in (embedded, Lab(tmp_path / "c", None, root=tmp_path)):
        for claimed in networks:
            assert all(name in lab.recipes or name.startswith("digits-cnn") for name in lab.members(claimed)), claimed


def test_quarters_need_forty_directions_and_are_measured_along_fifty(tmp_path: Path) -> None:
    lab = Lab(tmp_path, None, samples=96, scale=0.005)
    reports = lab.reports("mlp", top_k=50)
    assert isinstance(quartile_spread(reports), Figure)
    assert isinstance(resampled_share(RankModel.LOGNORMAL)(reports), Figure)
    assert isinstance(effective_rank_tells(reports), Figure)
    assert (tmp_path / "mlp-data-50.json").exists()


def test_full_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    monkeypatch.setattr("sys.argv", ["paper", "--full", "--data", str(tmp_path), "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as stopped:
        paper.main()
    said = str(stopped.value)
    assert "\n" not in said
    assert str(tmp_path) in said
    assert [name in said for name in LAYOUT] == [True, False, True]
    assert LAYOUT["tiny-imagenet-200"] in said
    assert not (tmp_path / "runs").exists()


def test_networks_of_the_papers_size_read_the_official_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)  # the files' md5 sums
    whole_datasets(tmp_path)
    for recipe in full_recipes(0.0, tmp_path).values():
        data = recipe.data(None)
        few = Data(data.inputs[:2], data.targets[:2], data.classes)
        with torch.no_grad():
            loss = loss_of(recipe.build(data).eval()(few.inputs), few.targets)
        assert torch.isfinite(loss), recipe.name
        if recipe.measured is not None:
            assert recipe.measured(None).inputs.shape[1:] == data.inputs.shape[1:], recipe.name
    model = replace(full_recipes(0.0, tmp_path)["conv-200"], steps=1, batch=2).train(None)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    task = tasks.make_task("cifar100", tmp_path, True, None)
    assert task.train[0].shape == (20, 3, 32, 32)
    assert task.make_model()(task.test[0][:1]).shape == (1, 100)
