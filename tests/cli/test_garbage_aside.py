"""Searches for garbage while a command measures."""

from __future__ import annotations

import gc

import pytest

from spectrascope.cli.garbage import set_aside


def _fail(before: int) -> None:
    assert gc.get_freeze_count() > before + 1000
    raise RuntimeError("measuring failed")


def test_what_is_loaded_is_left_out_of_searches_only_while_measuring() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(RuntimeError, match="measuring failed"), set_aside():
        _fail(before)
    assert gc.get_freeze_count() <= before
