"""The paper, end to end: rules, its arrays, and every claim on reports that are here already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.paper.arrays import Arrays, checks
from examples.paper.networks import Data, loss_of, recipes
from examples.paper.page import markdown, page, summary_line
from examples.paper.rows import CLAIMS, COMPARISONS, claim_rows, comparison_rows, open_rows, optimizer_rows
from examples.paper.rules import Figure, Verdict, difference, judge, mean_of, median_of, share_of
from spectrascope.records.report import Report
from spectrascope.records.values import Missing
from tests.support.gate_reports import network, with_signal

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
        self.report = self.null = lambda name: report


def test_every_claim_has_a_row_and_the_page_shows_it() -> None:
    lab = _Lab(with_signal(network(1), 1))
    rows = [*claim_rows(lab, Arrays(None)), *comparison_rows(lab), *optimizer_rows(None), *open_rows()]  # type: ignore[arg-type]
    assert len(rows) == len(CLAIMS) + len(COMPARISONS) + 5 + 2
    assert {row.verdict for row in rows[-7:]} == {Verdict.UNDETERMINED}
    convolutions = rows[0]
    assert isinstance(convolutions.measured, Figure)
    assert convolutions.verdict is not Verdict.HOLDS or isinstance(convolutions.held_out, Figure)
    text, shown = markdown(rows, [], "setting"), page(rows, [], "setting")
    for row in rows:
        assert f"| {row.claim} |" in text
    assert summary_line(rows) in text
    assert shown.count("<tr>") == len(rows) + 2
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
        data = recipe.data(None)
        few = Data(data.inputs[:6], data.targets[:6], data.classes)
        torch.manual_seed(0)
        model = recipe.build(data)
        loss = loss_of(model(few.inputs), few.targets)
        loss.backward()
        assert torch.isfinite(loss), recipe.name
        assert all(p.grad is not None for p in model.parameters()), recipe.name
