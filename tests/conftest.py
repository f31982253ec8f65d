import os
from pathlib import Path

import pytest

from tests.support.fixtures import bench, big_report, calls, one_thread, report, run_command, saved

__all__ = ["bench", "big_report", "calls", "one_thread", "report", "run_command", "saved"]

# Networks of a few weights run several times slower on two threads than on one. Pytest reads this file before any
# test module imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# GNU readline, which pytest imports, may set it for child processes unseen by os.environ: tables would be narrow.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's read-only reference material (paper data, checkpoints, images), beside the repository."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference material in {folder}, which is not part of the repository")
    return folder
