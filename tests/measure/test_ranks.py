"""Ranks: the same report, bit for bit, whoever measures what; each does its share; what fails on one fails on all."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from spectrascope.measure.ranks import ALONE
from spectrascope.measure.run import run_probe
from spectrascope.records.across import Across
from spectrascope.records.values import EngineName
from tests.support.ranks import N, make_run, numbers_of, on_ranks, probe_job

ENGINES = {"class factors": EngineName.GAUSS_NEWTON, "smooth": EngineName.TANGENT}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", list(ENGINES))
def test_ranks_measure_what_one_process_measures(kind: str, dtype: str, tmp_path: Path) -> None:
    """Sixteen sample groups over two ranks, and unevenly over three."""
    alone = run_probe(make_run(kind, dtype, across_matrix=True))
    assert isinstance(alone.summary.across, Across)
    assert ENGINES[kind].value in alone.provenance.engines
    for count in (2, 3):
        outcomes = on_ranks(count, partial(probe_job, run=partial(make_run, kind, dtype, across_matrix=True)), tmp_path)
        assert [o.error for o in outcomes] == [""] * count
        for outcome in outcomes:
            assert outcome.report is not None
            assert outcome.report.provenance.ranks == count
            assert numbers_of(outcome.report) == numbers_of(alone)


def test_each_rank_sends_its_share_of_the_samples_forward(tmp_path: Path) -> None:
    """Forward passes: checks and self-check are one rank's, gradient and curvature are divided."""
    run = partial(make_run, "class factors", self_check=False)
    (alone,) = on_ranks(1, partial(probe_job, run=run), tmp_path)
    outcomes = on_ranks(2, partial(probe_job, run=run), tmp_path)
    assert alone.samples > 2 * N
    saved = alone.samples - max(o.samples for o in outcomes)
    assert saved >= N  # half of a gradient and half of a curvature pass


def test_more_ranks_than_sample_groups(tmp_path: Path) -> None:
    run = partial(make_run, "class factors", groups=2, micro_batch=20)
    outcomes = on_ranks(3, partial(probe_job, run=run), tmp_path)
    assert outcomes[2].report is not None, outcomes
    assert numbers_of(outcomes[2].report) == numbers_of(run_probe(run()))


def test_what_fails_on_one_rank_is_raised_on_all(tmp_path: Path) -> None:
    job = partial(probe_job, run=partial(make_run, "class factors"), fails=1)
    assert [o.error.partition(": ")[2] for o in on_ranks(2, job, tmp_path)] == [
        "ValueError: rank 1 cannot go on",
        "rank 1 cannot go on",
    ]


def test_one_process_is_all_ranks() -> None:
    with ALONE.together():
        assert ALONE.each(lambda: 3) == [3]
    assert list(ALONE.share(5)) == [0, 1, 2, 3, 4]
