"""Cutting the batch: every sample exactly once, whatever memory allows."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrascope.curvature.microbatches import OutOfMemoryError, Schedule, group_borders, is_out_of_memory
from tests.support import oracles


def _visits(schedule: Schedule, room: int = 10**9, error: type[Exception] = torch.OutOfMemoryError):
    slices, attempts = [], []

    def work(start: int, stop: int) -> None:
        attempts.append(stop - start)
        if stop - start > room:
            raise error("CUDA out of memory" if error is RuntimeError else "too big")
        slices.append((start, stop))

    schedule.run(work)
    return slices, attempts


def _assert_once(slices, n):
    assert [i for a, b in slices for i in range(a, b)] == list(range(n))
    assert all(a < b for a, b in slices)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 90),
    size=st.one_of(st.none(), st.integers(1, 100)),
    groups=st.integers(1, 9),
    room=st.integers(1, 40),
)
def test_every_sample_once_and_no_border_straddled(n, size, groups, room):
    borders = group_borders(n, groups)
    slices, attempts = _visits(Schedule(n, size, borders, candidates=(4, 8, 16)), room)
    _assert_once(slices, n)
    assert not [(a, b, c) for a, b in slices for c in borders if a < c < b]
    assert all(b - a <= room for a, b in slices)
    if size is not None:
        assert max(attempts) <= size


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_halves_until_it_fits(error):
    schedule = Schedule(20, 16)
    slices, attempts = _visits(schedule, 3, error)
    _assert_once(slices, 20)
    assert attempts[:4] == [16, 8, 4, 2]
    assert schedule.chosen == 2


def test_one_sample_that_does_not_fit():
    with pytest.raises(OutOfMemoryError, match="out of memory with one sample at a time"):
        _visits(Schedule(5, 4), 0)


def test_other_errors_pass_through():
    def work(start: int, stop: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Schedule(5, 4).run(work)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize(("n", "size"), [(1, None), (3, None), (1, 50), (7, 7)])
def test_fewer_samples_than_candidates(n, size):
    slices, _ = _visits(Schedule(n, size, candidates=(16, 32)))
    assert slices == [(0, n)]


def test_the_faster_size_is_kept(monkeypatch):
    from spectrascope.curvature import microbatches as module

    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    cost = {4: 1.0, 8: 0.5, 16: 2.0}
    slices = []

    def work(start: int, stop: int) -> None:
        slices.append(stop - start)
        clock[0] += cost[stop - start] * (stop - start)

    tuned = Schedule(100, candidates=(4, 8, 16))
    tuned.run(work)
    assert tuned.chosen == 8
    assert slices[:4] == [4, 4, 8, 16]
    assert set(slices[4:-1]) == {8}


@pytest.mark.parametrize(("n", "groups"), [(10, 4), (7, 3), (3, 16), (1, 5), (100, 16), (5, 0)])
def test_group_borders(n, groups):
    borders = group_borders(n, groups)
    assert list(itertools.pairwise(borders)) == oracles.group_ranges(n, groups)
    sizes = [b - a for a, b in itertools.pairwise(borders)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    assert len(sizes) == max(1, min(n, groups))


def test_progress_counts_samples():
    seen = []
    Schedule(10, 4).run(lambda a, b: None, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
