"""What a GPU would refuse or get wrong, on two devices that are not the CPU (:mod:`tests.support.other_device`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import other_device
from tests.support.other_device_cases import CASES


def test_everything_measured_there_is_as_on_the_cpu(tmp_path: Path) -> None:
    """In one test, as building the devices takes most of its time; the cases are run in a process of their own."""
    library = other_device.build(tmp_path)
    if isinstance(library, str):
        pytest.skip(library)
    command = [sys.executable, "-m", "tests.support.other_device_cases", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = {one["name"]: one["wrong"] for one in map(json.loads, done.stdout.splitlines())}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}, done.stderr[-2000:]
    assert list(found) == list(CASES)
