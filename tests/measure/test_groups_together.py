"""Sample groups measured at once, where no other process could be asked for one of them, or each by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spectrascope.curvature.tangent.engine import Tangents
from spectrascope.measure.curvatures import measure_targets
from spectrascope.measure.division import Division
from spectrascope.measure.prepare import prepare
from spectrascope.measure.run_folder import RunFolder
from spectrascope.records.report import ProbeOptions
from spectrascope.workload import Run
from tests.measure.test_bench_report import DATA, MODEL
from tests.support.cases import CASES, make_workload


@pytest.fixture
def asked(monkeypatch):
    """The sample groups that each call of the engine was for."""
    seen = []
    real = Tangents.measure_each

    def measure_each(self, workload, targets, *, groups=16, progress=None):
        seen.append(tuple(groups))
        return real(self, workload, targets, groups=groups, progress=progress)

    monkeypatch.setattr(Tangents, "measure_each", measure_each)
    return seen


def _measured(division=Division(), **options):  # noqa: B008
    workload = make_workload(CASES["layer_norm"], 40, torch.float64)
    asked = {"num_samples": 40, "top_k": 3, "groups": 8, "device": "cpu", "dtype": "float64", "null_draws": 0}
    run = Run(workload.model, workload.source, workload.loss_fn, ProbeOptions(**(asked | options)), MODEL, DATA)
    with prepare(run, division) as ready:
        return measure_targets(ready.workload, ready.layers, ready.choices, run, division=division)


def test_a_fold_at_once_gives_what_its_groups_give_one_by_one(asked):
    together = _measured()
    assert asked == [(5, 5)] * 4
    asked.clear()
    alone = _measured(micro_batch=5)
    assert asked == [(5,)] * 8
    for one, other in zip(together.curvatures, alone.curvatures, strict=True):
        for field in ("matrix", "group_h", "group_sigma"):
            torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=1e-10, atol=1e-13)
        assert one.group_sizes == other.group_sizes
    for name, held_out in together.held_out.items():
        other = alone.held_out[name]
        torch.testing.assert_close(torch.tensor(held_out.h), torch.tensor(other.h), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(torch.tensor(held_out.group_h), torch.tensor(other.group_h), rtol=1e-9, atol=1e-12)


def test_a_kept_run_is_measured_group_by_group(asked, tmp_path):
    division = replace(Division(), folder=RunFolder(tmp_path / "run"))
    _measured(division)
    assert asked == [(5,)] * 8
    assert len(list((tmp_path / "run" / "parts").iterdir())) == 8
