"""``--run``, ``--shard``, ``rerun``, ``merge`` and torchrun, as a user meets them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from spectrascope.cli import main
from spectrascope.cli.app import app
from spectrascope.cli.job import rank_in_job
from spectrascope.cli.rerun import keep_command, replay
from spectrascope.errors import OptionError
from spectrascope.measure import stages
from spectrascope.measure.run_folder import PieceCurvature, RunFolder

SMALL = ["digits-cnn@final", "--num-samples", "32", "--top-k", "2", "--groups", "8", "--micro-batch", "4", "-q"]
FACTORY = """
import torch
from spectrascope.workload import TensorSource, Workload
def build():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    x, y = torch.randn(16, 4), torch.randint(0, 2, (16,))
    return net, (x, y), torch.nn.functional.cross_entropy
"""


def numbers_in(path: Path) -> dict[str, Any]:
    """A report but for its timings, its command and who measured it."""
    report: dict[str, Any] = json.loads(path.read_text())
    for name in ("seconds", "created", "command", "ranks", "versions"):
        report["provenance"].pop(name, None)
    return report


def test_a_run_is_kept_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    shard = ["probe", *SMALL[:-1], "--run", "RUN", "--shard"]
    assert main([*shard, "2/2"]) == 0
    text = capsys.readouterr()
    assert text.out == ""
    assert "spectrascope: shard 2 of 2 is done; 4 parts of the run still missing" in text.err
    assert main(["merge", "RUN", "-q"]) == 3
    assert capsys.readouterr().err == (
        "error: RUN lacks 4 parts of 8: curvature-g00, curvature-g01, curvature-g02, curvature-g03; run the shards "
        "that should have made them, or the same command without --shard\n"
    )
    assert main([*shard, "1/2"]) == 0
    assert "no part of the run is missing" in capsys.readouterr().err
    assert main(["merge", "RUN", "-q", "-o", "merged.json"]) == 0
    assert main(["rerun", "RUN", "-q", "-o", "again.json"]) == 0
    assert main(["rerun", "RUN", "-q", "--run", "NEW", "-o", "new.json"]) == 0
    assert main(["probe", *SMALL, "--run", "RUN", "-o", "same.json"]) == 0
    merged = numbers_in(tmp_path / "merged.json")
    assert merged == numbers_in(tmp_path / "again.json") == numbers_in(tmp_path / "new.json")
    assert merged == numbers_in(tmp_path / "same.json")
    kept = yaml.safe_load((tmp_path / "RUN" / "config.yaml").read_text())
    assert (kept["command"], kept["model"]) == ("probe", "digits-cnn@final")
    assert {"num-samples": 32, "top-k": 2, "groups": 8, "seed": 0, "split-fused": True}.items() <= kept[
        "options"
    ].items()
    capsys.readouterr()
    assert main(["probe", *SMALL, "--seed", "1", "--run", "RUN"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --run RUN holds another measurement (")
    assert "--seed: 0 there, 1 here" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard", "1/2"], "--shard and --merge go with --run RUN"),
        (["--run", "RUN", "--shard", "0/2"], "'0/2' is not I/N with I from 1 to N, as 2/8"),
        (["--run", "RUN", "--shard", "1/2", "--merge"], "give one of them"),
        (
            ["--run", "RUN", "--merge"],
            "RUN: nothing to merge, as it holds no directions.safetensors: run a shard first",
        ),
        (["--run", "a-file/RUN"], "cannot make the folder"),
    ],
)
def test_refusals(options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    assert main(["probe", *SMALL, *options]) in (2, 3)
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1


def test_no_code_runs_because_a_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FACTORY)
    assert main(["probe", "net.py:build", "--groups", "4", "--top-k", "2", "-q", "--run", "RUN"]) == 0
    capsys.readouterr()
    for command in ("rerun", "merge"):
        assert main([command, "RUN", "-q"]) == 2
        assert "has Python code run that comes with net.py:build: add --trust-code" in capsys.readouterr().err
        assert main([command, "RUN", "-q", "--trust-code"]) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "not the command of a run"),
        ("a: !!python/object/apply:os.system ['true']", "not the command of a run"),
        ("{command: show, model: x, trust-remote-code: false, options: {}}", "'show' is no command that keeps its run"),
        ("{command: probe, model: x, trust-remote-code: false, options: {nope: 1}}", "probe has no option 'nope'"),
    ],
)
def test_damaged_commands(text: str, said: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert main(["rerun", str(tmp_path)]) == 3
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1


def test_a_rank_is_taken_from_a_launcher_of_this_module_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a training script starts inherits its rank and is not part of that job."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert rank_in_job() is None
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": "spectrascope.__main__"})())
    assert rank_in_job() == (1, 2)
    monkeypatch.setenv("MASTER_PORT", "0")
    with pytest.raises(OptionError, match="MASTER_PORT is 0"):
        rank_in_job()


def result_in(folder: Path) -> Any:
    """What a command leaves in its run's folder, but for what clocks and sittings decide."""
    path = folder / "result.json"
    text = (path if path.exists() else folder / "report.json").read_text()
    return _timeless(json.loads(re.sub(r"\d{4}-\d\d-\d\dT[\d:+]+", "now", text)))


def _timeless(found: Any) -> Any:
    if isinstance(found, dict):
        untold = ("seconds", "command", "versions")
        return {name: _timeless(value) for name, value in found.items() if name not in untold}
    return [_timeless(item) for item in found] if isinstance(found, list) else found


TRAINING = ["digits-cnn@early", "digits-cnn@final"]
FEW = ["--num-samples", "16", "--top-k", "2", "--groups", "4", "--micro-batch", "4", "--layers", "fc*", "-q"]
FEW += ["--self-check", "off"]
LITTLE = ["digits-cnn@final", *FEW]
KEEPING = {
    "triangle": LITTLE,
    "suggest-beta": [*LITTLE, "--train-batch", "16", "--momentum", "0.5"],
    "suggest-beta --validate": [*LITTLE, "--validate", "--validate-on", "measured"],
    "decompose": [*LITTLE, "--fisher", "mc", "--draws", "2"],
    "decompose in one sweep": LITTLE,
    "gate": [*LITTLE, "--baseline", "base.json", "--rule", "beta: any", "--force"],
    "trajectory": [*TRAINING, *FEW],
}


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("baseline") / "base.json"
    assert main(["probe", *LITTLE, "-o", str(path)]) == 0
    return path.read_text()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", KEEPING)
def test_killed_on_the_way_a_run_goes_on(
    name: str, baseline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Broken off after some parts, then started again, then replayed: the numbers of a run that never stopped."""
    monkeypatch.chdir(tmp_path)
    Path("base.json").write_text(baseline)
    command = [name.split(maxsplit=1)[0], *KEEPING[name]]
    assert main([*command, "--run", "WHOLE"]) in (0, 1)
    parts = len(list(Path("WHOLE").rglob("curvature*.safetensors")))
    original, written = RunFolder.write_part, [0]

    def write_part(self: RunFolder, group: int, found: PieceCurvature) -> None:
        original(self, group, found)
        written[0] += 1
        if written[0] == parts // 2 + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_part", write_part)
    assert main([*command, "--run", "RUN"]) == 130
    assert not Path("RUN", "result.json").exists()
    capsys.readouterr()
    assert main([*command, "--run", "RUN"]) in (0, 1), capsys.readouterr().err
    assert written[0] == parts
    assert result_in(Path("RUN")) == result_in(Path("WHOLE"))
    Path("RUN", "result.json").unlink(missing_ok=True)
    monkeypatch.setattr(stages, "measure_gradients", None)
    assert main(["rerun", "RUN", "-q"]) in (0, 1), capsys.readouterr().err
    assert written[0] == parts
    assert result_in(Path("RUN")) == result_in(Path("WHOLE"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "command",
    [
        ["weights", "digits-cnn@final", "--top-k", "3", "--conv", "slices"],
        ["inspect", "digits-cnn@final", "--exclude", "conv*"],
        ["bench", "digits-cnn@final", "--num-samples", "8", "--top-k", "1", "--layers", "fc*", "--rounds", "1"],
    ],
    ids=lambda command: command[0],
)
def test_what_has_no_parts_is_kept_as_it_comes(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "-q", "--run", "RUN"]) == 0
    first = result_in(Path("RUN"))
    assert main(["rerun", "RUN", "-q"]) == 0
    again = result_in(Path("RUN"))
    if command[0] != "weights":  # of which all else depends on the clock
        first, again = (
            {name: found.get(name) for name in ("weights", "engines", "rounds")} for found in (first, again)
        )
    assert again == first


def test_every_option_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What config.yaml says of a command, spelt again, is the command."""
    monkeypatch.chdir(tmp_path)
    words = [
        "probe", "m.pt", "--mean", "0.4,0.5,0.6", "--std", "0.25", "--layers", "a*", "--layers", "b*", "--exclude", "c",
        "--num-samples", "all", "--no-split-fused", "--dtype", "float64", "--micro-batch", "7", "--balanced",
        "--label-smoothing", "0.1", "--data-root", "here", "--loss", "mse", "--null-draws", "3",
        "--memory", "2GiB",
    ]  # fmt: skip
    application: Any = typer.main.get_command(app)

    def parsed(arguments: list[str]) -> typer.Context:
        return application.commands["probe"].make_context("probe", arguments)

    given = parsed(words[1:])
    keep_command(Path("RUN"), given)
    again: list[dict[str, Any]] = []
    monkeypatch.setattr(application, "invoke", lambda context: again.append(parsed(list(context.obj[1:])).params))
    context = application.make_context("spectrascope", ["rerun"])
    replay(context, Path("RUN"), trust_code=False)
    assert again == [{**given.params, "run": Path("RUN")}]


def test_a_folder_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["weights", "digits-cnn@final", "-q", "--run", "RUN"]) == 0
    capsys.readouterr()
    for words, said in (
        (["merge", "RUN"], "RUN/config.yaml: weights is not measured in shards; `spectrascope rerun RUN`"),
        (["trajectory", *TRAINING, "--run", "RUN", "--again"], "--run RUN is where reports are kept, once for all"),
    ):
        assert main(words) in (2, 3)
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_the_parts_of_a_probe_serve_others_but_not_a_decomposition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["probe", *LITTLE, "--run", "RUN"]) == 0
    monkeypatch.setattr(stages, "measure_gradients", None)
    assert main(["suggest-beta", *LITTLE, "--run", "RUN"]) == 0
    assert yaml.safe_load(Path("RUN", "config.yaml").read_text())["command"] == "suggest-beta"
    capsys.readouterr()
    assert main(["decompose", *LITTLE, "--run", "RUN"]) == 2
    assert "holds another measurement (decompose: nothing there, ggn expand 8 here)" in capsys.readouterr().err


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
         "spectrascope", *arguments],
        cwd=folder, capture_output=True, text=True, check=False, env=environment, timeout=600,
    )  # fmt: skip


def test_torchrun(tmp_path: Path) -> None:
    """Two ranks print one report, that of one process bit for bit; the report says that there were two."""
    done = torchrun("probe", *SMALL, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "two.json").write_text(done.stdout)
    assert json.loads(done.stdout)["provenance"]["ranks"] == 2
    alone = [sys.executable, "-m", "spectrascope", "probe", *SMALL, "-o", "one.json"]
    subprocess.run(alone, cwd=tmp_path, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert numbers_in(tmp_path / "two.json") == numbers_in(tmp_path / "one.json")


@pytest.mark.slow
def test_torchrun_says_what_is_wrong_once(tmp_path: Path) -> None:
    done = torchrun("probe", "nothere.pt", "-q", folder=tmp_path)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        "error: nothere.pt: no such file; expected a checkpoint (.pt .pth .th .bin .ckpt .safetensors)"
    ]
