"""``plot`` and pages for a browser: files, refusals, no torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.records.report import Report
from spectrascope.reports import report_to_json
from spectrascope.reports.charts.chart import Picture
from spectrascope.reports.read import read_report
from tests.support.chart_cases import training_checkpoints
from tests.support.fixtures import Calls
from tests.support.made_up_reports import big_report

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["overview", "curvature", "ranks", "step-exponents", "triangle", "depth", "participation", "rank-models"]


def test_a_folder_of_pictures(saved: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "new" / "pictures"
    assert main(["plot", str(saved), "-o", str(folder), "--format", "svg"]) == 0
    files = [folder / f"saved-{name}.svg" for name in NAMES]
    assert capsys.readouterr().out.splitlines() == [str(path) for path in files]
    assert sorted(os.listdir(folder)) == sorted(path.name for path in files)


@pytest.mark.parametrize("target", ["pictures", "pages.pdf"])
def test_progress_of_several_pictures_goes_to_stderr_unless_quiet(saved: Path, tmp_path: Path, capsys, target) -> None:
    given = ["plot", str(saved), "-o", str(tmp_path / target), "--format", "svg"]
    assert main([*given, "--picture", "depth", "--picture", "triangle"]) == 0
    assert capsys.readouterr().err == "spectrascope: draw\n"
    assert main([*given, "--picture", "depth"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*given, "-q"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert len(said.out.splitlines()) == (1 if target.endswith(".pdf") else len(NAMES))


def test_an_interrupted_run_names_what_it_has_written(saved: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    drawn = []

    def draw(picture: Picture, *_: object, **__: object) -> bytes:
        drawn.append(picture.name)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return b"drawn"

    monkeypatch.setattr("spectrascope.cli.pictures.draw_picture", draw)
    assert main(["plot", str(saved), "-o", str(tmp_path)]) == 130
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / f"saved-{name}.png") for name in NAMES[:2]]
    assert said.err.splitlines()[-1] == "error: interrupted"
    assert sorted(os.listdir(tmp_path)) == ["saved-curvature.png", "saved-overview.png", "saved.json"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_one_file(saved: Path, tmp_path: Path, capsys, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    assert main(["plot", str(saved), "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.stat().st_size > 5000


def test_one_picture_of_some_layers(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    given = ["plot", str(saved), "-o", str(path), "--picture", "curvature", "--theme", "dark"]
    assert main([*given, "--layers", "conv*", "--top-k", "10"]) == 0
    text = path.read_text()
    assert "conv1" in text
    assert "a[red]b|c" not in text


def test_reports_of_one_run_are_drawn_over_training(tmp_path: Path, capsys) -> None:
    reports = []
    for item in training_checkpoints():
        if isinstance(item.report, Report):
            reports.append(tmp_path / f"{item.label}.json")
            reports[-1].write_text(report_to_json(item.report))
    assert main(["plot", *map(str, reports), "-o", str(tmp_path / "out"), "--format", "svg"]) == 0
    written = {Path(line).name for line in capsys.readouterr().out.splitlines()}
    assert {"early-depth.svg", "late-depth.svg", "training-overview.svg", "training-beta.svg"} <= written
    assert main(["plot", *map(str, reports), "-o", str(tmp_path / "one.svg")]) == 0
    assert "loss over training" in (tmp_path / "one.svg").read_text()


def test_two_reports_of_the_same_name(saved: Path, tmp_path: Path, capsys) -> None:
    again = tmp_path / "again"
    again.mkdir()
    (again / "saved.json").write_text(saved.read_text())
    given = ["plot", str(saved), str(again / "saved.json"), "-o", str(tmp_path / "out"), "--picture", "depth"]
    assert main(given) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == [
        "saved-depth.png",
        "saved-2-depth.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "x.png", "--picture", "depth", "--picture", "ranks"], 2, "2 pictures do not fit into x.png"),
        (["-o", "file"], 2, "cannot draw into file: expected a folder or a file ending in .png, .svg, .pdf"),
        (["-o", "file/x"], 2, "cannot make the folder file/x: Not a directory"),
        (["-o", "no/x.png"], 2, "cannot write no/x.png: the folder no does not exist"),
        (["-o", "x.png", "--layers", "nope*"], 2, "--layers 'nope*' leaves none of the report's 6 layers"),
        (["-o", "x.png", "--exclude", "*"], 2, "--exclude '*' leaves none"),
        (["-o", "x.png", "--top-k", "50"], 2, "more directions than the 20 that were measured"),
        (["-o", "x.png", "--picture", "decomposition"], 2, "nothing to draw for --picture decomposition"),
        (["-o", "x.png", "--picture", "bars"], 2, "'bars' is not one of 'overview'"),
        ([], 2, "Missing option '--output' / '-o'"),
    ],
)
def test_refusals(saved: Path, tmp_path: Path, monkeypatch, capsys, arguments, code: int, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    assert main(["plot", str(saved), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("x.png").exists()


def test_no_report(tmp_path: Path, capsys) -> None:
    assert main(["plot", str(tmp_path / "no.json"), "-o", str(tmp_path / "x.png")]) == 3
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["report-v1.json", "report-v1-first-release.json"])
def test_reports_of_the_first_schema_version(name: str, tmp_path: Path, capsys) -> None:
    path = str(GOLDEN / name)
    assert main(["plot", path, "-o", str(tmp_path / "x.pdf")]) == 0
    assert main(["show", path, "--html", str(tmp_path / "x.html")]) == 0
    assert main(["trajectory", path, path, "--html", str(tmp_path / "t.html")]) == 0
    for page in ("x.html", "t.html"):
        assert (tmp_path / page).read_text().startswith("<!doctype html>")


def test_probe_writes_a_page(calls: Calls, tmp_path: Path, capsys) -> None:
    page = tmp_path / "x.html"
    assert main(["probe", "--quiet", "--html", str(page), "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("name,kind")
    assert "my net[red].pt" in page.read_text()


def test_a_page_that_cannot_be_written_is_refused_before_the_work(calls: Calls, capsys) -> None:
    assert main(["probe", "--html", "/no/such/x.html"]) == 2
    assert "cannot write /no/such/x.html: the folder /no/such does not exist" in capsys.readouterr().err
    assert not calls.seen


def test_three_hundred_layers_without_torch_and_with_few_figures(tmp_path: Path) -> None:
    source = tmp_path / "big.json"
    source.write_text(report_to_json(big_report()))
    code = (
        "import sys; from spectrascope.cli import main; figures = []\n"
        "if sys.argv[1] == 'plot':\n"
        "    from matplotlib.figure import Figure; start = Figure.__init__\n"
        "    Figure.__init__ = lambda self, *a, **k: figures.append(self) or start(self, *a, **k)\n"
        "code = main(sys.argv[1:]); axes = sum(len(figure.axes) for figure in figures)\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "print(code, len(figures), axes, *sorted(heavy), file=sys.stderr)"
    )
    for arguments, expected in (
        (["show", str(source), "--html", str(tmp_path / "x.html"), "-o", str(tmp_path / "x.txt")], "0 0 0"),
        (["plot", str(source), "-o", str(tmp_path / "x.png")], "0 1 4 matplotlib"),
        (["plot", str(source), "-o", str(tmp_path / "pictures")], "0 7 32 matplotlib"),
        (["trajectory", str(source), str(source), "-o", str(tmp_path / "t.txt")], "0 0 0"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, timeout=600
        )
        assert done.stderr.splitlines()[-1] == expected, arguments


def test_networks_that_have_nothing_in_common_are_not_drawn_over_training(saved: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.json"
    other.write_text(report_to_json(big_report()), encoding="utf-8")
    folder = tmp_path / "pictures"
    assert main(["plot", str(saved), str(other), "-o", str(folder), "--picture", "depth", "--format", "svg"]) == 0
    assert capsys.readouterr().err == "spectrascope: draw\n"
    assert main(["plot", str(saved), str(other), "-o", str(tmp_path / "all.pdf")]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("spectrascope: not drawn over training: ")
    assert said[0].endswith("share 0 of 6 weights")
    assert main(["trajectory", str(saved), str(other)]) == 0
    assert re.search(r"\nNot checkpoints of one training: .* share 0 of 6 weights\.\n", capsys.readouterr().out)
    unrelated = [read_report(path) for path in (saved, other)]
    assert report_pictures_over_training(unrelated) == []
    assert report_pictures_over_training(unrelated[:1] * 2)


def report_pictures_over_training(reports: list[Report]) -> list[Picture]:
    from spectrascope.cli.pictures import _over_training

    return _over_training([(Path(f"step-{i}.json"), report) for i, report in enumerate(reports)], None)


def test_a_title_and_the_width_of_a_column(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    given = ["plot", str(saved), "-o", str(path), "--picture", "depth"]
    assert main([*given, "--title", "Mine", "--width", "one-column"]) == 0
    text = path.read_text()
    assert "Mine" in text
    assert 'width="244.8pt"' in text


def test_a_width_that_is_none_is_refused_at_once(saved: Path, tmp_path: Path, capsys) -> None:
    assert main(["plot", str(saved), "-o", str(tmp_path / "x.svg"), "--width", "column"]) == 2
    assert "expected one-column, two-column, or 2 to 40 inches" in capsys.readouterr().err
    assert not (tmp_path / "x.svg").exists()
