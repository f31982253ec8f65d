"""A user at a terminal: where results go, what is said, what is refused before anything is measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from spectrascope.cli import main
from spectrascope.cli.app import app
from spectrascope.cli.completion import complete_data, complete_model
from spectrascope.cli.examples import EXAMPLES
from spectrascope.loading.absent import DATASETS, model_names
from spectrascope.records.comparison import Change
from spectrascope.records.values import Missing
from spectrascope.reports.explain import find_pages
from spectrascope.reports.order import ChangeOrder, sort_changes

GROUP = typer.main.get_command(app)


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self, stream) -> None:
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("ending", ["html", "json", "csv", "md", "txt", "HTM"])
def test_the_ending_says_the_form(saved: Path, tmp_path: Path, ending: str, capsys) -> None:
    path = tmp_path / f"out.{ending}"
    assert main(["show", str(saved), "-o", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    start = {"html": "<!doctype", "htm": "<!doctype", "json": "{", "csv": "name,", "md": "## ", "txt": "spectrascope: "}
    assert text.startswith(start[ending.lower()])
    assert capsys.readouterr().err == ""  # no terminal


@pytest.mark.parametrize("name", ["out.xml", "out", "newdir/", "out.tar.gz"])
@pytest.mark.parametrize("command", ["probe", "show"])
def test_an_ending_that_says_nothing_is_refused_before_anything_is_measured(
    calls, saved: Path, tmp_path: Path, command: str, name: str, capsys
) -> None:
    given = ["probe"] if command == "probe" else ["show", str(saved)]
    assert main([*given, "-o", f"{tmp_path}/{name}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert calls.seen == {}
    assert list(tmp_path.iterdir()) in ([], [saved])
    if not name.endswith("/"):  # the form is said beside it
        assert main([*given, "-q", "--json", "-o", f"{tmp_path}/{name}"]) == 0
        json.loads((tmp_path / name).read_text(encoding="utf-8"))


def test_a_terminal_sees_what_came_out_and_what_was_written(calls, tmp_path: Path, capsys, monkeypatch) -> None:
    path, page = tmp_path / "report.json", tmp_path / "page.html"
    monkeypatch.setattr("sys.stderr", Terminal(sys.stderr))
    assert main(["probe", "-q", "-o", str(path)]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["show", str(path), "-o", str(tmp_path / "a.csv"), "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "Signal: 6 of 60 directions resolved" in err
    assert err.endswith(f"wrote {tmp_path / 'a.csv'}\nwrote {page}\n")


def test_columns_are_honoured_in_a_pipe(saved: Path, capsys, monkeypatch) -> None:
    assert main(["show", str(saved)]) == 0
    full = capsys.readouterr().out
    assert "not shown at" not in full
    for value in ("0", "wide", ""):
        monkeypatch.setenv("COLUMNS", value)
        assert main(["show", str(saved)]) == 0
        assert capsys.readouterr().out == full
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", str(saved)]) == 0
    narrow = capsys.readouterr().out
    assert "not shown at 80 columns" in narrow
    assert max(map(len, narrow.splitlines())) <= 80


IMPORTED = """
import sys
from spectrascope.cli import main
code = main(sys.argv[1:])
print(code, len(sys.modules), "torch" in sys.modules, "numpy" in sys.modules)
"""


def _imported(*arguments: str, folder: Path) -> tuple[int, int, list[str], str]:
    """Exit code, number of modules, which heavy ones, and what was said."""
    run = [sys.executable, "-c", IMPORTED, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=600, cwd=folder)
    code, n, *heavy = done.stdout.splitlines()[-1].split()
    return int(code), int(n), heavy, done.stderr


def test_what_is_not_there_is_refused_as_cheaply_as_help_is_given(tmp_path: Path) -> None:
    _, modules, heavy, _ = _imported("--help", folder=tmp_path)
    assert heavy == ["False"] * 2
    for arguments, code, said in (
        (("probe", "no-such-file.pt"), 3, "no-such-file.pt: no such file; expected a checkpoint"),
        (("no-such-file.pt",), 2, "no command 'no-such-file.pt', and no such file: to measure a network"),
        (("probe", "--top-k", "3", "--min-rank", "4"), 2, "--min-rank 4 is beyond --top-k 3"),
        (("probe", "--gradient", "momentum"), 2, "expected a checkpoint of your own"),
        (("suggest-beta", "a/b.safetensors::ema"), 3, "a/b.safetensors: no such file"),
    ):
        found, n, heavy, err = _imported(*arguments, folder=tmp_path)
        assert (found, heavy) == (code, ["False"] * 2), err
        assert said in err
        assert len(err.splitlines()) == 1
        assert n <= 1.5 * modules  # what typer itself imports to read options, and little else


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["probe", "resnt50"], "no network named 'resnt50'; nearest: resnet50"),
        (["probe", "resnet-20"], "nearest: cifar-resnet20"),
        (["inspect", "no.pt"], "no.pt: no such file"),
        (["weights", "no.pt"], "no.pt: no such file"),
        (["bench", "models.py:build"], "no such file models.py; expected file.py:factory"),
        (["gate", "no.pt", "--baseline", "SAVED"], "no.pt: no such file"),
        (["probe", "models.py"], "is Python source; expected models.py:factory"),
        (["probe", "--dataset", "folder:nowhere"], "folder:nowhere: no such folder"),
        (["probe", "--dataset", "npz:x.npz"], "npz:x.npz: no such file; expected a file with arrays"),
        (["probe", "--dataset", "cifar11"], "no dataset named 'cifar11'; nearest: cifar10"),
    ],
)
def test_names_are_refused_before_anything_is_imported(
    arguments: list[str], said: str, saved: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.chdir(tmp_path)
    for place in ("measure", "inspect", "weights"):
        monkeypatch.setattr(f"spectrascope.cli.{place}.follow_progress", fail)
    assert main([str(saved) if word == "SAVED" else word for word in arguments]) == 3
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_what_can_be_refused_without_torch_is_what_sources_know() -> None:
    from spectrascope.loading.data.open import SOURCES as DATA
    from spectrascope.loading.models.open import SOURCES as MODELS

    kinds = {name.rstrip(":") for name in DATASETS}
    assert all(any(source.is_called(kind) for source in DATA) for kind in kinds)
    usages = {usage for source in DATA for usage in source.usages + source.unlisted}
    assert {usage.partition(":")[0].partition("[")[0] for usage in usages} == kinds
    assert {name for source in MODELS for name in source.names()} == set(model_names())


def test_whoever_leaves_the_command_out_is_told_what_to_type(saved: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "net.pt").touch()
    for word, said in (
        ("prob", "did you mean `spectrascope probe`?"),
        (str(tmp_path / "net.pt"), f"to measure it, `spectrascope probe {tmp_path / 'net.pt'}`"),
        (str(saved), f"to see this report, `spectrascope show {saved}`"),
    ):
        assert main([word]) == 2
        assert said in capsys.readouterr().err


def test_quiet_and_html_everywhere() -> None:
    for name, command in GROUP.commands.items():
        if name in ("rerun", "merge"):  # which pass on the options of the command that they go on with
            continue
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"-q", "--quiet", "-o"} <= flags, name
        assert ("--html" in flags) is (name not in ("plot", "explain", "card")), name


def test_the_short_version_and_completion(capsys, monkeypatch) -> None:
    assert main(["-V"]) == 0
    assert capsys.readouterr().out.startswith("spectrascope ")
    monkeypatch.setenv("_SPECTRASCOPE_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "spectrascope sug")
    with pytest.raises(SystemExit):
        main([])
    assert "suggest-beta" in capsys.readouterr().out
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "spectrascope probe cifar-resnet1")
    with pytest.raises(SystemExit):
        main([])
    assert "cifar-resnet110" in capsys.readouterr().out


def test_files_and_data_complete(tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    (tmp_path / "notes.doc").touch()
    (tmp_path / "images").mkdir()
    assert complete_model(f"{tmp_path}/") == [f"{tmp_path}/images/", f"{tmp_path}/net.pt"]
    assert complete_data("cif") == ["cifar10", "cifar100"]
    assert complete_data(f"folder:{tmp_path}/im") == [f"folder:{tmp_path}/images/"]


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_written_as_the_command_takes_them(command: str, tmp_path: Path, monkeypatch, capsys) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    assert main([*([command] if command else []), "--help"]) == 0
    text = capsys.readouterr().out
    for line, _ in EXAMPLES[command]:
        assert f"  {line}\n" in text
        program, name, *arguments = shlex.split(line)
        assert program == "spectrascope"
        GROUP.commands[name].make_context(name, arguments, resilient_parsing=False)
        assert command in ("", name) or name == "show"


def test_every_command_has_examples() -> None:
    assert set(EXAMPLES) == {"", *GROUP.commands}


def test_changes_in_order(saved: Path, capsys) -> None:
    changes = (
        Change("b", "beta", 1.0, 1.5, 0.5, 2.0),
        Change("a", "alpha_g", 10.0, 11.0, 1.0, -4.0),
        Change("a", "rank_model", "power_law", "lognormal", Missing("a word"), Missing("a word")),
    )
    orders = {order: [c.number for c in sort_changes(changes, order)] for order in ChangeOrder}
    assert orders[ChangeOrder.ORDER] == ["beta", "alpha_g", "rank_model"]
    assert orders[ChangeOrder.NUMBER] == ["alpha_g", "beta", "rank_model"]
    assert orders[ChangeOrder.CHANGE] == ["beta", "alpha_g", "rank_model"]
    assert orders[ChangeOrder.Z] == ["alpha_g", "beta", "rank_model"]
    assert main(["compare", str(saved), str(saved), "--all", "--sort", "number", "--format", "csv"]) == 0
    numbers = [line.split(",")[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert numbers == sorted(numbers)


def test_pictures_are_not_drawn_into_a_folder_named_like_one(saved: Path, tmp_path: Path, capsys) -> None:
    assert main(["plot", str(saved), "-o", str(tmp_path / "fig.jpg")]) == 2
    assert "expected a folder or a file ending in .png, .svg, .pdf" in capsys.readouterr().err
    assert not (tmp_path / "fig.jpg").exists()


def test_terms_that_views_point_to_have_a_page() -> None:
    import re

    views = Path(sys.modules["spectrascope.reports"].__file__ or "").parent / "views"
    calls = [
        found for path in views.glob("*.py") for found in re.findall(r"point_to_explain\((.*?)\)", path.read_text())
    ]
    terms = {term for call in calls for term in re.findall(r'"([^"]+)"', call)}
    assert len(terms) > 8
    for term in terms:
        assert find_pages(term)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["show", "SAVED", "--html", "x.json"],
            "x.json: a page is written there, expected a name ending in .html or .htm",
        ),
        (["card", "SAVED", "-o", "x.html"], "x.html: Markdown is written there"),
        (["explain", "beta", "-o", "x.html"], "x.html: Markdown is written there"),
        (["suggest-beta", "SAVED", "--emit", "yaml", "-o", "x.json"], "x.json: YAML is written there"),
        (["suggest-beta", "SAVED", "--emit", "torch", "-o", "x.yaml"], "x.yaml: Python is written there"),
        (["gate", "SAVED", "--baseline", "SAVED", "--junit", "x.md"], "x.md: JUnit XML is written there"),
        (["gate", "SAVED", "--baseline", "SAVED", "--markdown", "x.html"], "x.html: Markdown is written there"),
    ],
)
def test_an_ending_of_another_form_is_refused(
    words: list[str], said: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(saved) if word == "SAVED" else word for word in words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))
