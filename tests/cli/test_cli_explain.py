"""``spectrascope explain``: pages, help where there is none, and a report in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.records.report import LayerReport
from spectrascope.reports.json import report_to_json
from spectrascope.reports.read import read_report
from tests.support.gate_reports import network, with_signal


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_text(report_to_json(with_signal(network(1), 1)), encoding="utf-8")
    return path


def _say(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


def test_pages_options_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert "- `beta`: β" in _say(capsys)
    assert _say(capsys, "--estimate").startswith("# --estimate")
    assert "JUnit XML" in _say(capsys, "--junit")  # no page of its own: its help
    assert "weight by weight" in _say(capsys, "probe")
    assert _say(capsys, "gate").startswith("# Gate a pipeline")
    both = _say(capsys, "null draws")
    assert "# null β" in both
    assert "# --null-draws" in both


def test_a_number_in_a_report(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read_report(measured)
    text = _say(capsys, "beta", str(measured))
    assert "## In report.json" in text
    for row in report.layers:
        assert isinstance(row, LayerReport)
        fit = row.analysis.beta
        assert f"`{row.info.name}`: {fit.value:.2f}, 95 % interval {fit.interval.low:.2f}" in text
    assert "Median " in text


def test_a_weight_in_words(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read_report(measured)
    row = report.layers[0]
    text = _say(capsys, row.info.name, str(measured))
    for part in ("What is signal", "What to do with it", "Published exponents", "Where curvature lies"):
        assert f"**{part}.**" in text
    assert f"β {row.analysis.beta.value:.2f}" in text
    assert f"{row.analysis.samples_needed.n_resolved} of " in text
    assert "of 1," in text or "sample" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["betta"], 2, "no page 'betta'; nearest: beta"),
        (["conv99.weight", "REPORT"], 2, "names no weight of the report"),
        (["--estimate", "REPORT"], 2, "is no number of a weight"),
        (["conv", "REPORT"], 2, "'conv' is part of "),
        (["beta", "missing.json"], 3, "missing.json"),
    ],
)
def test_refusals(
    measured: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    arguments = [str(measured) if word == "REPORT" else word for word in arguments]
    assert main(["explain", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_it_needs_no_torch(measured: Path) -> None:
    code = (
        "import sys; from spectrascope.cli import main; "
        f"main(['explain', 'beta', {str(measured)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
