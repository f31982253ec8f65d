"""Fixtures of several rooms: made-up reports and the command line. ``tests/conftest.py`` gives them to every test."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from spectrascope.records.bench import BenchReport
from spectrascope.records.report import Report
from spectrascope.reports import report_to_json
from tests.support import made_up_reports as made_up

START = "import sys; from spectrascope.cli import main; sys.exit(main())"


@dataclass
class Calls:
    """What a command asked the layers below for; set ``error`` to have the measurement fail."""

    seen: dict[str, tuple[tuple, dict[str, Any]]] = field(default_factory=dict)
    error: BaseException | None = None


@pytest.fixture(scope="session")
def report() -> Report:
    """Ok, skipped and failed layers; names that look like markup, hold a pipe, or are 119 characters long."""
    return made_up.mixed_report()


@pytest.fixture(scope="session")
def big_report() -> Report:
    """Three hundred layers with long names."""
    return made_up.big_report()


@pytest.fixture(scope="session")
def bench() -> BenchReport:
    """A made-up benchmark."""
    return made_up.made_up_bench()


@pytest.fixture
def saved(tmp_path: Path, report: Report) -> Path:
    """A saved report."""
    path = tmp_path / "saved.json"
    path.write_text(report_to_json(report), encoding="utf-8")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order, whatever else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for loading and measuring, which need torch and take time."""
    calls = Calls()
    model_info = made_up.mixed_report().provenance.model
    loaded = SimpleNamespace(model="model", info=model_info, workload=None, notes=(), owned=True)
    data = SimpleNamespace(source="source", info="data info", notes=("a note",))

    for name in ("refuse_absent_model", "refuse_absent_data"):
        monkeypatch.setattr(f"spectrascope.cli.load.{name}", lambda spec: None)

    def stand_in(module: str, name: str, result: object) -> None:
        def function(*args: object, **kwargs: Any) -> object:
            calls.seen[name] = (args, kwargs)
            if name.startswith("run_"):
                run = args[0]
                run.on_progress("check", 0, 1)
                run.on_progress("gradient", 1, 10)
                if calls.error is not None:
                    raise calls.error
            return result

        fake = ModuleType(module)
        setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, module, fake)

    stand_in("spectrascope.loading.models.open", "load_model", loaded)
    setattr(sys.modules["spectrascope.loading.models.open"], "find_step", lambda spec: None)  # noqa: B010
    stand_in("spectrascope.loading.data.open", "load_dataset", data)
    stand_in("spectrascope.measure.run", "run_probe", made_up.mixed_report())
    stand_in("spectrascope.measure.bench", "run_bench", made_up.made_up_bench())
    return calls


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``spectrascope ARGUMENTS`` as a user would, in a process of its own."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", START, *arguments],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            encoding="utf-8",
            **options,
        )

    return run
