"""The guide's table of what is exact says what the engines do, family by family."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.exactness import KINDS, PLACE, engines_of, written
from tests.support.families import FAMILIES

GUIDE = (Path(__file__).parents[2] / PLACE).read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in written(GUIDE).splitlines()[2:]]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_guide_says_which_engine_and_how_exact(name: str) -> None:
    (row,) = [row for row in ROWS if row[0] == KINDS[FAMILIES[name].kind] and name in row[1].split(", ")]
    engines, worst = engines_of(name)
    assert re.findall(r"`([a-z-]+)`", row[2]) == [engine.value for engine in engines]
    assert (FAMILIES[name].fallback or "") in row[2]
    assert worst <= 10 * float(row[3])  # another processor rounds otherwise
    assert float(row[3]) <= 1e-8


def test_the_guide_names_no_other_family() -> None:
    assert sorted(name for row in ROWS for name in row[1].split(", ")) == sorted(FAMILIES)
