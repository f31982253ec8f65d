"""``trajectory``: measures each checkpoint once, keeps reports, goes on after a break, reads reports without torch."""

import json
import os
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.errors import LoadError, OptionError
from spectrascope.records.report import Report
from spectrascope.reports import read_report, report_to_json
from tests.support.chart_cases import training_checkpoints
from tests.support.fixtures import Calls


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """Four files that stand for checkpoints."""
    paths = [tmp_path / f"epoch_{i}.pt" for i in (1, 2, 10, 11)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return [str(path) for path in paths]


@pytest.fixture
def counted(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which checkpoints were measured, in order."""
    import spectrascope.cli.checkpoints as module

    measured: list[str] = []
    original = module.measure

    def measure(target, *args, **kwargs):
        measured.append(Path(target.model).name)
        return original(target, *args, **kwargs)

    monkeypatch.setattr(module, "measure", measure)
    return measured


def _run(names: list[str], tmp_path: Path, *options: str) -> int:
    return main(["trajectory", *names, "--reports", str(tmp_path / "kept"), *options])


def test_each_checkpoint_is_measured_once(counted: list[str], checkpoints, tmp_path: Path, capsys) -> None:
    assert _run(checkpoints, tmp_path) == 0
    assert counted == ["epoch_1.pt", "epoch_2.pt", "epoch_10.pt", "epoch_11.pt"]
    text = capsys.readouterr()
    assert "4 checkpoints, step 1 to 11" in text.out
    assert "checkpoint 3 of 4: epoch_10.pt" in text.err
    assert sorted(os.listdir(tmp_path / "kept")) == [f"epoch_{i}.pt.json" for i in (1, 10, 11, 2)]
    assert _run(checkpoints, tmp_path) == 0
    assert len(counted) == 4
    assert f"epoch_2.pt: kept in {tmp_path / 'kept' / 'epoch_2.pt.json'}" in capsys.readouterr().err


def test_a_broken_run_goes_on(counted: list[str], calls: Calls, checkpoints, tmp_path: Path, capsys) -> None:
    assert _run(checkpoints[:2], tmp_path, "--quiet") == 0
    calls.error = KeyboardInterrupt()
    assert _run(checkpoints, tmp_path, "--quiet") == 130
    calls.error = None
    assert _run(checkpoints, tmp_path, "--quiet") == 0
    assert counted == ["epoch_1.pt", "epoch_2.pt", "epoch_10.pt", "epoch_10.pt", "epoch_11.pt"]


def test_other_bytes_or_options_are_measured_again(counted: list[str], checkpoints, tmp_path: Path) -> None:
    assert _run(checkpoints[:2], tmp_path, "--quiet") == 0
    Path(checkpoints[0]).write_bytes(b"trained a little longer")
    assert _run(checkpoints[:2], tmp_path, "--quiet") == 0
    assert counted[2:] == ["epoch_1.pt"]
    assert _run(checkpoints[:2], tmp_path, "--quiet", "--top-k", "12") == 0
    assert counted[3:] == ["epoch_1.pt", "epoch_2.pt"]
    assert _run(checkpoints[:2], tmp_path, "--quiet", "--top-k", "12", "--memory", "4GiB") == 0  # the same measurement
    assert counted[5:] == []
    assert _run(checkpoints[:2], tmp_path, "--quiet", "--top-k", "12", "--again") == 0
    assert counted[5:] == ["epoch_1.pt", "epoch_2.pt"]
    (tmp_path / "kept" / "epoch_1.pt.json").write_text("{")  # half a file of another tool
    assert _run(checkpoints[:2], tmp_path, "--quiet", "--top-k", "12") == 0
    assert counted[7:] == ["epoch_1.pt"]
    assert isinstance(read_report(tmp_path / "kept" / "epoch_1.pt.json"), Report)


def test_folders_count_by_all_their_files(counted: list[str], tmp_path: Path) -> None:
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    given = ["--glob", str(tmp_path / "checkpoint-*")]
    assert _run([], tmp_path, "--quiet", *given) == 0
    assert counted == ["checkpoint-5", "checkpoint-10"]
    (tmp_path / "checkpoint-5" / "model.safetensors").write_bytes(b"x")
    assert _run([], tmp_path, "--quiet", *given) == 0
    assert counted[2:] == ["checkpoint-5"]


def test_one_that_fails_does_not_stop_the_others(
    calls: Calls, checkpoints, tmp_path: Path, monkeypatch, capsys
) -> None:
    import spectrascope.cli.checkpoints as module

    original = module.measure

    def measure(target, *args, **kwargs):
        if target.model.endswith("epoch_2.pt"):
            raise LoadError("the file\nis empty")
        return original(target, *args, **kwargs)

    monkeypatch.setattr(module, "measure", measure)
    assert _run(checkpoints, tmp_path) == 3
    text = capsys.readouterr()
    assert "epoch_2.pt has no numbers: the file is empty." in text.out
    assert text.err.splitlines()[-1] == "error: 1 of 4 checkpoints could not be measured: epoch_2.pt"
    assert not (tmp_path / "kept" / "epoch_2.pt.json").exists()


def test_a_wrong_option_stops_at_once(calls: Calls, checkpoints, tmp_path: Path, capsys) -> None:
    calls.error = OptionError("--layers 'x' matches none")
    assert _run(checkpoints, tmp_path, "--quiet") == 2
    assert capsys.readouterr().err == "error: --layers 'x' matches none\n"


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_reports_alone_need_no_torch(tmp_path: Path, run_command, form: str) -> None:
    names = []
    for item in training_checkpoints():
        if isinstance(item.report, Report):
            names.append(str(tmp_path / f"{item.label}.json"))
            Path(names[-1]).write_text(report_to_json(item.report))
    blocked = tmp_path / "torch.py"
    blocked.write_text("raise ImportError('torch was imported')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = run_command("trajectory", *names, "--format", form, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "a.weight" in done.stdout
    if form == "json":
        assert [point["label"] for point in json.loads(done.stdout)["points"]] == ["early", "middle", "late"]


def test_a_pattern_is_sorted_naturally_and_named_once(tmp_path: Path) -> None:
    from spectrascope.cli.checkpoints import expand_checkpoints

    for step in (1, 2, 10):
        (tmp_path / f"e{step}.pt").write_text("")
    first, second, tenth = (str(tmp_path / f"e{step}.pt") for step in (1, 2, 10))
    assert expand_checkpoints([second], [str(tmp_path / "*.pt")]) == [second, first, tenth]
    with pytest.raises(OptionError, match="finds no file or folder here"):
        expand_checkpoints([], [str(tmp_path / "*.th")])
    with pytest.raises(OptionError, match="name checkpoints"):
        expand_checkpoints([], [])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "name checkpoints (files, folders, saved reports), or --glob 'runs/*.pt'"),
        (["--glob", "no/*.pt"], 2, "--glob 'no/*.pt' finds no file or folder here"),
        (["x.json"], 3, "x.json: not a spectrascope report"),
        (["x.json", "--html", "no/x.html"], 2, "cannot write no/x.html"),
        (["x.json", "--number", "gamma"], 2, "'gamma' is not one of 'n_resolved', 'step_exponent', 'beta'"),
    ],
)
def test_refusals(tmp_path: Path, monkeypatch, capsys, arguments: list[str], code: int, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_text("{}")
    assert main(["trajectory", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("trajectory").exists()


def test_two_real_checkpoints(tmp_path: Path, capsys) -> None:
    import torch

    from spectrascope.loading.models.open import load_model

    for step in (0, 1):
        model = load_model("digits-cnn@none", seed=step).model
        torch.save(model.state_dict(), tmp_path / f"step_{step}.pt")
    given = ["--dataset", "digits", "--num-samples", "64", "--top-k", "6", "--layers", "fc*", "--json", "--quiet"]
    assert _run([str(tmp_path / f"step_{step}.pt") for step in (0, 1)], tmp_path, *given) == 0
    document = json.loads(capsys.readouterr().out)
    assert [point["step"] for point in document["points"]] == [0, 1]
    a, b = document["layers"][0]["values"]["beta"]
    assert a != b


def test_embedded_stages_in_order(tmp_path: Path, capsys) -> None:
    options = ("--num-samples", "64", "--top-k", "4", "--layers", "fc*", "--estimate", "published", "--quiet")
    assert _run(["digits-cnn@final", "digits-cnn@early"], tmp_path, "--json", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(point["label"], point["step"]) for point in found["points"]] == [
        ("digits-cnn@early", 210.0),
        ("digits-cnn@final", 420.0),
    ]
    assert found["step_name"] == "step"
    assert read_report(tmp_path / "kept" / "digits-cnn@early.json").extra["step"] == 210
