"""An engine is one class and one line in ``choose.ENGINES``: a toy is registered here and measures a whole report."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrascope
from spectrascope.curvature import choose
from spectrascope.curvature.engine import (
    Curvature,
    CurvatureEngine,
    CurvatureSums,
    Downstream,
    Progress,
    Target,
    UnsupportedOperationError,
)
from spectrascope.records.report import LayerReport
from spectrascope.records.values import EngineName
from spectrascope.workload import Workload
from tests.support.cases import CASES, make_workload
from tests.support.measure_helpers import layers_of

CURVATURE = 2.5


def _spelled(name: str) -> EngineName:
    """A member of the enumeration that only this test knows."""
    member = str.__new__(EngineName, name)
    member._name_, member._value_ = name.upper(), name
    return member


@dataclass(frozen=True)
class Toy(CurvatureEngine):
    """Finds the same curvature everywhere, and gives up narrow weights."""

    name: ClassVar = _spelled("toy")
    exact: ClassVar = True
    next: ClassVar = EngineName.DOUBLE_BACKPROP

    @classmethod
    def cost(cls, weights: Sequence[Downstream], n_outputs: int) -> float:
        return 7.0 * len(weights)

    def measure(
        self, workload: Workload, targets: Sequence[Target], *, groups: int = 16, progress: Progress | None = None
    ) -> list[Curvature]:
        sums = [CurvatureSums(t.directions.k, workload.source.n, groups, workload.device) for t in targets]
        for target, one in zip(targets, sums, strict=True):
            if "b" in target.layer.name:
                raise UnsupportedOperationError("a toy knows no b")
            for group, (start, stop) in enumerate(zip(one.borders, one.borders[1:], strict=False)):
                k = target.directions.k
                one.add(group, target.directions.sigma[:k], CURVATURE * torch.eye(k), stop - start)
        return [s.finish(self.name, self.exact) for s in sums]


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "ENGINES", (Toy, *choose.ENGINES))
    monkeypatch.setattr("spectrascope.measure.curvatures.ENGINES", choose.ENGINES)


@pytest.mark.usefixtures("_toy")
@pytest.mark.parametrize(("exclude", "engine"), [(["b.*"], "toy"), ([], "double-backprop")])
def test_a_registered_engine_measures_and_hands_over(exclude: list[str], engine: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(a=nn.Linear(6, 5), relu=nn.ReLU(), b=nn.Linear(5, 4)))
    data = (torch.randn(12, 6), torch.randint(4, (12,)))
    report = spectrascope.probe(
        model, data, functional.cross_entropy, engine=Toy.name, groups=3, top_k=3, self_check=False, exclude=exclude
    )
    rows = [row.measurement for row in report.layers if isinstance(row, LayerReport)]
    assert {row.engine.value for row in rows} == {engine}
    for row in rows:
        if engine == "toy":
            assert row.h == pytest.approx([CURVATURE] * len(row.h))
        else:
            assert row.engine_reason == "toy gave up: a toy knows no b"


@pytest.mark.usefixtures("_toy")
def test_its_cost_is_in_the_plan() -> None:
    workload = make_workload(CASES["mlp_relu"])
    layers = layers_of(workload)
    plan = choose.plan_engines(workload, layers, Toy.name)
    assert plan.passes[Toy.name] == 7.0 * len(layers)
    assert sum(plan.passes.values()) == plan.passes[Toy.name]
