"""Help: instant, complete, documented."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from spectrascope import __version__
from spectrascope.cli import main
from spectrascope.cli.app import app

COMMANDS = [
    "probe", "triangle", "decompose", "weights", "inspect", "suggest-beta", "show", "plot", "trajectory", "bench",
    "gate", "compare", "explain", "card", "rerun", "merge",
]  # fmt: skip
GROUP = typer.main.get_command(app)


HEAVY = {
    "torch", "torchvision", "transformers", "safetensors", "timm", "datasets", "peft", "pydantic", "numpy", "scipy",
    "jinja2", "matplotlib", "PIL", "yaml",
}  # fmt: skip


def test_measuring_does_not_import_the_compiler() -> None:
    """``torch._dynamo`` takes over a second, in each process, for who compiles nothing."""
    code = (
        "import sys\nfrom spectrascope.cli import main\n"
        "assert main('probe digits-cnn --num-samples 4 --groups 2 --folds 2 --top-k 1 --layers fc2* -q'.split()) == 0\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_help_imports_little() -> None:
    code = "import sys; from spectrascope.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    modules = done.stderr.split()
    assert not HEAVY & set(modules)
    assert sum(name.startswith("spectrascope") for name in modules) < 100
    assert len(modules) < 500


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert sorted(GROUP.commands) == sorted(COMMANDS)
    for command in COMMANDS:
        assert f"  {command} " in text
    assert "..." not in text.split("Commands:")[1]
    assert main([]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    for parameter in GROUP.commands[command].params:
        assert parameter.help, parameter.name
        for flag in parameter.opts:
            if flag.startswith("--"):
                assert flag in text
    assert main([command, "-h"]) == 0
    assert capsys.readouterr().out == text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"spectrascope {__version__}\n"


def test_main_reads_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["spectrascope", "--version"])
    assert main() == 0
    assert "spectrascope" in capsys.readouterr().out


def test_command_files_are_thin() -> None:
    folder = Path(sys.modules["spectrascope.cli"].__file__ or "").parent
    for path in folder.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 340, path.name


@pytest.mark.parametrize(
    ("words", "as_if"), [(["help"], ["--help"]), (["help", "gate"], ["gate", "--help"]), (["help", "help"], None)]
)
def test_help_is_a_word_too(words: list[str], as_if: list[str] | None, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(words)
    found = capsys.readouterr()
    if as_if is None:
        assert code == 2
        assert found.err.startswith("error: no command 'help'")
        return
    assert code == main(as_if) == 0
    assert found.out == capsys.readouterr().out
