"""Rendering again: every form, to stdout and to files, without torch."""

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.records.report import Report
from spectrascope.reports import Format, Sort, report_from_json, report_to_json
from tests.support.made_up_reports import LONG_NAME, big_report


def _show(capsys, *arguments: str) -> str:
    assert main(["show", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("form", list(Format))
@pytest.mark.parametrize("sort", list(Sort))
def test_every_format_and_order(saved: Path, capsys, form: Format, sort: Sort) -> None:
    text = _show(capsys, str(saved), "--format", form.value, "--sort", sort.value)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "conv1" in text


def test_json_is_the_report(saved: Path, report: Report, capsys) -> None:
    for flag in (["--json"], ["--format", "json"], ["--json", "--format", "json"]):
        assert report_from_json(_show(capsys, str(saved), *flag)) == report


def test_another_window(saved: Path, capsys) -> None:
    document = json.loads(_show(capsys, str(saved), "--json", "--top-k", "8", "--min-rank", "2"))
    assert document["layers"][0]["window"] == [2, 8]
    assert main(["show", str(saved), "--top-k", "21"]) == 2
    assert "more directions than the 20 that were measured" in capsys.readouterr().err


def test_the_triangle_view(saved: Path, capsys) -> None:
    assert "verdict" in _show(capsys, str(saved), "--view", "triangle")
    rows = list(csv.DictReader(io.StringIO(_show(capsys, str(saved), "--view", "triangle", "--format", "csv"))))
    assert "pr_h" not in rows[0]


@pytest.mark.parametrize("form", list(Format))
def test_a_file_holds_what_stdout_would(saved: Path, tmp_path: Path, capsys, form: Format) -> None:
    shown = _show(capsys, str(saved), "--format", form.value)
    path = tmp_path / "out"
    assert _show(capsys, str(saved), "--format", form.value, "--output", str(path)) == ""
    assert path.read_text(encoding="utf-8") == shown


def test_a_report_can_be_rewritten_in_place(saved: Path, report: Report, capsys) -> None:
    assert _show(capsys, str(saved), "--json", "-o", str(saved)) == ""
    assert report_from_json(saved.read_text()) == report


def test_nothing_is_cut_outside_a_terminal(tmp_path: Path, run_command) -> None:
    path = tmp_path / "big.json"
    path.write_text(report_to_json(big_report()))
    base = {key: value for key, value in os.environ.items() if key != "COLUMNS"}  # which would ask for a width
    done = run_command("show", str(path), env={**base, "FORCE_COLOR": "1"})
    assert done.returncode == 0
    for index in range(300):
        assert f"transformer.h.{index}.attention.output_projection.weight " in done.stdout
    assert "\x1b" not in done.stdout
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())


def test_show_and_help_do_not_import_the_heavy_packages(saved: Path) -> None:
    code = (
        "import sys; from spectrascope.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'scipy', 'numpy'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    for arguments, allowed in (
        (["show", str(saved)], "0 []"),
        (["show", str(saved), "--json"], "0 []"),
        (["show", str(saved), "--format", "csv"], "0 []"),
        (["show", str(saved), "--format", "markdown"], "0 []"),
        (["triangle", str(saved)], "0 []"),
        (["--help"], "0 []"),
        (["probe", "--help"], "0 []"),
        (["--version"], "0 []"),
        (["probe", "--nope"], "2 []"),
        (["probe", "--output", "/no/such/r.json"], "2 []"),
        (["show", "no.json"], "3 []"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stderr.splitlines()[-1] == allowed, arguments


def test_another_window_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys; from spectrascope.cli import main; code = main(sys.argv[1:])\n"
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    arguments = ["show", str(saved), "--top-k", "8"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr == "0 False\n"


def _on_terminal(arguments: list[str], columns: int, **env: str) -> str:
    """Run on a pseudo-terminal of some width and return what appears on it."""
    parent, child = pty.openpty()
    code = "import sys; from spectrascope.cli import main; sys.exit(main())"
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=child,
        stdin=child,
        stderr=subprocess.DEVNULL,
        env={**base, "TERM": "xterm-256color", "COLUMNS": str(columns), **env},
    )
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(parent)
    assert process.wait(timeout=60) == 0
    return b"".join(chunks).decode("utf-8")


def test_a_terminal_gets_colour_and_its_own_width(saved: Path) -> None:
    wide, narrow = (_on_terminal(["show", str(saved)], columns) for columns in (390, 90))
    assert "\x1b[1m" in wide
    assert LONG_NAME in wide
    assert "not shown at" not in wide
    assert "not shown at 90 columns: " in narrow
    assert LONG_NAME not in narrow


def test_no_color_means_no_escapes(saved: Path) -> None:
    assert "\x1b" not in _on_terminal(["show", str(saved)], 120, NO_COLOR="1")
    assert "\x1b" not in _on_terminal(["show", str(saved)], 120, NO_COLOR="1", FORCE_COLOR="1")


def test_a_narrow_encoding_gets_substitutes(saved: Path, run_command) -> None:
    done = run_command("show", str(saved), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "a[red]b|c" in done.stdout


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.json", "json"), ("a.CSV", "csv"), ("a.md", "markdown"), ("a.txt", "table"), ("a.html", "html")],
)
def test_the_ending_of_a_file_says_its_form(saved: Path, tmp_path: Path, capsys, name: str, form: str) -> None:
    path = tmp_path / name
    assert _show(capsys, str(saved), "-o", str(path)) == ""
    assert path.read_text(encoding="utf-8") == _show(capsys, str(saved), "--format", form)
    _show(capsys, str(saved), "--format", "markdown", "-o", str(path))  # what is asked for comes first
    assert path.read_text(encoding="utf-8") == _show(capsys, str(saved), "--format", "markdown")
