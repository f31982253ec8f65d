"""One line on stderr and the right exit code for everything that goes wrong."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.errors import DataError, LoadError, OptionError


def _fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return code, captured.err


def test_zero(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(saved)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "a[red]b|c" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no command 'nope', and no such file: to measure a network"),
        (["--nope"], "No such option: --nope"),
        (["probe", "--nope"], "(see `spectrascope probe --help`)"),
        (["probe", "a", "b"], "Got unexpected extra argument"),
        (["show"], "Missing argument 'REPORT.json'"),
        (["triangle"], "Missing argument 'MODEL'"),
        (["probe", "--engine", "magic"], "'magic' is not one of 'auto', 'gauss-newton', 'tangent', 'double-backprop'"),
        (["probe", "--dtype", "float16"], "'float16' is not one of 'float32', 'float64'"),
        (["probe", "--format", "xml"], "'xml' is not one of 'table', 'json', 'csv', 'markdown'"),
        (["probe", "--sort", "size"], "'size' is not one of 'order', 'name', 'resolved'"),
        (["show", "r.json", "--view", "all"], "'all' is not one of 'probe', 'triangle'"),
        (["probe", "--device", "gpu"], "'gpu' is not one of auto, cpu, cuda, cuda:NUMBER, mps"),
        (["probe", "--device", "cuda:"], "'cuda:' is not one of"),
        (["probe", "--device", "cpu\n"], "is not one of"),
        (["probe", "--micro-batch", "0"], "'0' is neither auto nor a whole number from 1 on"),
        (["probe", "--micro-batch", "many"], "'many' is neither auto nor"),
        (["probe", "--memory", "0GiB"], "'0GiB': expected auto or a number of bytes from 1 on, as 8GiB or 500MB"),
        (["inspect", "--memory", "8G"], "'8G': expected auto or a number of bytes"),
        (["probe", "--num-samples", "0"], "Invalid value for '--num-samples'"),
        (["probe", "--num-samples", "ten"], "Invalid value for '--num-samples'"),
        (["probe", "--top-k", "0"], "Invalid value for '--top-k'"),
        (["probe", "--seed", "-1"], "Invalid value for '--seed'"),
        (["bench", "--rounds", "0"], "Invalid value for '--rounds'"),
        (["probe", "--json", "--format", "csv"], "--json contradicts --format csv: give one of them"),
        (["probe", "--top-k", "5", "--min-rank", "6"], "--min-rank 6 is beyond --top-k 5"),
        (["probe", "--output", "/no/such/folder/r.json"], "cannot write /no/such/folder/r.json: the folder"),
        (["triangle", "m", "-o", "/"], "cannot write /: it is a folder"),
        (["bench", "-o", "/"], "cannot write /: it is a folder"),
        (["show", "r.json", "-o", "/"], "cannot write /: it is a folder"),
    ],
)
def test_two_is_a_wrong_call(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = _fail(capsys, *arguments)
    assert code == 2
    assert line.startswith("error: ")
    assert message in line


def test_two_comes_before_any_measurement(calls, tmp_path: Path) -> None:
    assert main(["probe", "-o", str(tmp_path / "no" / "r.json")]) == 2
    assert calls.seen == {}


@pytest.mark.parametrize("command", ["probe", "triangle", "bench"])
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (LoadError("x.pt: truncated"), 3, "error: x.pt: truncated\n"),
        (DataError("two\nlines"), 3, "error: two lines\n"),
        (OptionError("no CUDA"), 2, "error: no CUDA\n"),
        (LoadError("bad \x1b[31mname"), 3, "error: bad \\x1b[31mname\n"),
        (ZeroDivisionError("by 0"), 70, "internal error (please report): ZeroDivisionError: by 0\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_errors_of_a_measurement(calls, capsys, command: str, error: BaseException, code: int, line: str) -> None:
    calls.error = error
    assert _fail(capsys, command, "m", "--quiet") == (code, line)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
        type("OutOfMemoryError", (RuntimeError,), {})("boom"),
    ],
)
def test_out_of_memory_comes_with_advice(calls, capsys, error: Exception) -> None:
    calls.error = error
    code, line = _fail(capsys, "probe", "-q")
    assert code == 3
    assert line.startswith("error: out of memory (")
    assert "try a smaller --micro-batch" in line


def test_another_runtime_error_is_internal(calls, capsys) -> None:
    calls.error = RuntimeError("shapes differ")
    assert _fail(capsys, "probe", "-q") == (70, "internal error (please report): RuntimeError: shapes differ\n")


def test_the_traceback_is_shown_on_request(calls, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECTRASCOPE_DEBUG", "1")
    calls.error = ZeroDivisionError("by 0")
    assert main(["probe", "-q"]) == 70
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.endswith("internal error (please report): ZeroDivisionError: by 0\n")


def test_three_is_an_unreadable_report(tmp_path: Path, capsys) -> None:
    for command in (["show"], ["triangle"]):
        code, line = _fail(capsys, *command, str(tmp_path / "no.json"))
        assert code == 3
        assert line.endswith("no.json: no such file\n")


def test_a_report_is_no_network(saved: Path, capsys) -> None:
    for command in ("probe", "inspect", "weights", "decompose", "bench"):
        code, line = _fail(capsys, command, str(saved))
        assert code == 3
        assert "holds JSON, no weights; saved reports are read by show, " in line


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "x", "'--seed': not a whole number"),
        ("--label-smoothing", "x", "'--label-smoothing': not a number"),
        ("--label-smoothing", "2", "'--label-smoothing': must be at most 1"),
        ("--folds", "1", "'--folds': must be at least 2"),
    ],
)
def test_numbers_out_of_range_are_told_plainly(option: str, value: str, said: str, capsys) -> None:
    code, line = _fail(capsys, "probe", option, value)
    assert code == 2
    assert f"Invalid value for {said} (see" in line


def test_an_unknown_model_ends_with_three(run_command) -> None:
    done = run_command("probe", "/no/such/model.pt", "--quiet")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_interrupting_the_process_ends_with_130(tmp_path: Path) -> None:
    fifo = tmp_path / "wait.json"
    os.mkfifo(fifo)  # reading it waits for a writer that never comes
    code = "import sys; from spectrascope.cli import main; sys.exit(main())"
    process = subprocess.Popen([sys.executable, "-c", code, "show", str(fifo)], stderr=subprocess.PIPE, text=True)
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "error: interrupted\n"
    assert process.returncode == 130


def test_an_interrupt_that_a_library_swallows_is_the_cause_of_what_fails_then(monkeypatch, capsys) -> None:
    """As numpy's import from within torch does."""

    def swallow(argv: list[str]) -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("cannot load module more than once per process")

    monkeypatch.setattr("spectrascope.cli.entry._run", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert _fail(capsys, "probe") == (130, "error: interrupted\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_closed_pipe_is_quiet(saved: Path) -> None:
    start = "import sys; from spectrascope.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", start, "show", str(saved), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=30) == 141


_OWN = """
import torch
from torch import nn

class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 2)

    def forward(self, x):
        print("forward")
        return self.a(x) if x[0, 0] >= 0 else {}["mask"]

def lost(output, targets):
    return {"loss": 0}["cross_entropy"]

def data(sign=1):
    return [(sign * torch.ones(2, 4), torch.tensor([0, 1]))]

def network():
    print("building")
    return Wrong(), data(-1), nn.functional.cross_entropy

def loss():
    return Wrong(), data(), lost

def fine():
    return Wrong(), data(), nn.functional.cross_entropy
"""


@pytest.mark.parametrize(
    ("factory", "said"),
    [("network", "own.py:12 (forward) raised KeyError: 'mask'"), ("loss", "own.py:15 (lost) raised KeyError")],
)
def test_what_the_users_own_code_raises_is_told_as_theirs(tmp_path: Path, capsys, factory: str, said: str) -> None:
    (tmp_path / "own.py").write_text(_OWN)
    assert main(["probe", f"{tmp_path}/own.py:{factory}", "-q"]) == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {said}")


def test_what_the_users_own_code_prints_is_no_result(tmp_path: Path, capsys) -> None:
    (tmp_path / "own.py").write_text(_OWN)
    assert main(["probe", f"{tmp_path}/own.py:fine", "-q", "--json"]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out)["schema_version"]
    assert "forward\n" in seen.err


@pytest.mark.parametrize(("closed", "code", "said"), [(">&-", 2, "error: stdout is closed"), ("2>&-", 0, "")])
def test_a_closed_stream_is_no_bug(saved: Path, closed: str, code: int, said: str) -> None:
    start = "import sys; from spectrascope.cli import main; sys.exit(main())"
    command = f"exec {sys.executable} -c '{start}' show '{saved}' {closed}"
    found = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    assert found.returncode == code
    assert found.stderr.startswith(said)


def test_where_the_encoding_lacks_greek_its_letters_have_names(saved: Path) -> None:
    start = "import sys; from spectrascope.cli import main; sys.exit(main())"
    found = subprocess.run(
        [sys.executable, "-c", start, "show", str(saved)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    text = found.stdout.decode("ascii")
    assert "sigma" in text
    assert "beta" in text
    assert "?" not in text
