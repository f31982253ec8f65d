"""``[tool.spectrascope]``: found upward, checked, limited in what it can do."""

import json
import re
from pathlib import Path

import pytest

from spectrascope.cli import main
from spectrascope.config import OPTIONS, Configuration, find_configuration, read_policy_table
from spectrascope.errors import OptionError, PolicyError
from spectrascope.gating.grammar import parse_rule
from spectrascope.gating.policy import DEFAULT_RULES, policy_from_table
from spectrascope.records.values import EngineName
from tests.support.fixtures import Calls

FULL = """
[tool.spectrascope]
dataset = "folder:images"
data-root = "data"
num-samples = 64
top-k = 7
layers = ["conv*", "fc*"]
split-fused = false
engine = "double-backprop"
micro-batch = 16
memory = "500MB"

[tool.spectrascope.gate]
baseline = "curvature/base.json"
rules = ["beta: +-0.5"]
new = "inform"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a full configuration; the command runs in a folder below it."""
    (tmp_path / "pyproject.toml").write_text(FULL)
    (tmp_path / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "down")
    return tmp_path


def test_the_nearest_table_counts(project: Path) -> None:
    (project / "deep" / "pyproject.toml").write_text("[tool.black]\n")  # not ours: look further up
    found = find_configuration(project / "deep" / "down")
    assert found.path == project / "pyproject.toml"
    assert found.baseline == project / "curvature" / "base.json"
    assert found.policy == {"rules": ["beta: +-0.5"], "new": "inform"}
    assert found.options["dataset"] == f"folder:{project / 'images'}"
    assert found.options["data-root"] == str(project / "data")
    (project / "deep" / "pyproject.toml").write_text("[tool.spectrascope]\nseed = 3\n")
    assert find_configuration(project / "deep" / "down").options == {"seed": 3}


def test_nothing_found(tmp_path: Path) -> None:
    assert find_configuration(tmp_path) == Configuration()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[tool.spectrascope]\ntopk = 3", r"pyproject\.toml: .* cannot set 'topk'; did you mean top-k\?"),
        ("[tool.spectrascope]\ntrust-remote-code = true", "cannot set 'trust-remote-code'"),
        ('[tool.spectrascope]\narch = "evil.py:run"', "cannot set 'arch'"),
        ("[tool.spectrascope]\ndownload = true", "cannot set 'download'"),
        ('[tool.spectrascope]\nlayers = "conv*"', "layers must be a list of strings"),
        ("[tool.spectrascope]\ntop-k = [3]", "top-k must be a single value"),
        ("[tool]\nspectrascope = 3", "tool.spectrascope must be a table"),
        ("[tool.spectrascope]\ngate = 3", "tool.spectrascope.gate must be a table"),
        ("[tool.spectrascope.gate]\nbaseline = 3", "baseline must be the name of a report"),
        ("[tool.spectrascope", r"pyproject\.toml: not TOML"),
    ],
)  # fmt: skip
def test_malformed_tables(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(OptionError, match=match):
        find_configuration(tmp_path)


def test_policy_files(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('rules = ["beta: any"]\n')
    assert read_policy_table(path) == {"rules": ["beta: any"]}
    path.write_text(FULL)
    assert read_policy_table(path) == {"rules": ["beta: +-0.5"], "new": "inform"}
    path.write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="not UTF-8"):
        read_policy_table(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        read_policy_table(tmp_path)


def test_every_option_is_one_of_probe() -> None:
    import typer.main

    from spectrascope.cli.app import app

    flags = {flag for parameter in typer.main.get_command(app).commands["probe"].params for flag in parameter.opts}
    assert {f"--{name}" for name in OPTIONS} <= flags


def test_defaults_reach_the_measurement(project: Path, calls: Calls, capsys) -> None:
    assert main(["probe", "net.pt", "--top-k", "9"]) == 0
    (spec, _), data = calls.seen["load_dataset"]
    (run, *_), _ = calls.seen["run_probe"]
    options, command = run.options, run.command
    assert (spec, data["num_samples"], data["data_root"]) == (f"folder:{project / 'images'}", 64, project / "data")
    assert (options.top_k, options.layers, options.split_fused) == (9, ("conv*", "fc*"), False)
    assert (options.engine, options.micro_batch, options.memory) == (EngineName.DOUBLE_BACKPROP, 16, 500_000_000)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "spectrascope: dataset, data-root, num-samples, layers, split-fused, engine, micro-batch, memory from "
        f"{project / 'pyproject.toml'}"
    )
    # The record can be run again where there is no such file.
    assert command.startswith("spectrascope probe net.pt --top-k 9 --dataset folder:")
    assert "--num-samples 64 --layers 'conv*' --layers 'fc*' --no-split-fused" in command
    calls.seen.clear()
    (project / "pyproject.toml").unlink()
    assert main([*command.replace("'", "").split()[1:], "-q"]) == 0
    assert calls.seen["run_probe"][0][0].options == options
    assert capsys.readouterr().err == ""


def test_quiet_and_help_say_nothing(project: Path, calls: Calls, capsys) -> None:
    assert main(["probe", "net.pt", "-q"]) == 0
    assert capsys.readouterr().err == ""
    (project / "pyproject.toml").write_text("[tool.spectrascope]\ntopk = 3")
    assert main(["probe", "--help"]) == 0
    assert main(["probe", "net.pt"]) == 2
    assert "did you mean top-k?" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("engine", '"magic"'), ("memory", '"8G"'), ("memory", "8e9")])
def test_a_value_that_an_option_does_not_take(project: Path, calls: Calls, capsys, option: str, value: str) -> None:
    (project / "pyproject.toml").write_text(f"[tool.spectrascope]\n{option} = {value}")
    assert main(["probe", "net.pt"]) == 2
    said = f"{option} from {project / 'pyproject.toml'}\nerror: Invalid value for '--{option}'"
    assert said in capsys.readouterr().err
    assert not calls.seen


def test_show_keeps_to_its_report(project: Path, saved: Path, capsys) -> None:
    assert main(["show", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["top_k"] == 20
    assert main(["triangle", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["top_k"] == 20


def test_the_gate_takes_baseline_and_policy(project: Path, saved: Path, calls: Calls, capsys) -> None:
    (project / "curvature").mkdir()
    (project / "curvature" / "base.json").write_text(saved.read_text())
    assert main(["gate", str(saved), "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["policy"]["source"] == str(project / "pyproject.toml")
    assert [rule["text"] for rule in verdict["policy"]["rules"]] == ["beta: +-0.5"]
    assert verdict["policy"]["layers"] == []  # layers to measure are not layers to judge
    # A network is measured as its baseline was, not as the project would; how, is the project's.
    assert main(["gate", "net.pt", "--json"]) == 0
    options = calls.seen["run_probe"][0][0].options
    assert (options.top_k, options.memory) == (20, 500_000_000)
    assert calls.seen["load_dataset"][0][0] == f"folder:{project / 'images'}"
    assert (
        capsys.readouterr()
        .err.splitlines()[0]
        .startswith("spectrascope: dataset, data-root, micro-batch, memory from ")
    )


def test_a_policy_option_wins_over_the_project(project: Path, saved: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "p.toml").write_text('rules = ["alpha_g: same"]')
    assert main(["gate", str(saved), "--baseline", str(saved), "--policy", str(tmp_path / "p.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["source"] == str(tmp_path / "p.toml")


GUIDE = (Path(__file__).parents[1] / "spectrascope/data/explain/guides/gate.md").read_text(encoding="utf-8")


def test_the_guide_s_table_is_accepted(tmp_path: Path) -> None:
    (table,) = re.findall(r"```toml\n(.*?)```", GUIDE, re.S)
    (tmp_path / "pyproject.toml").write_text(table)
    found = find_configuration(tmp_path)
    policy = policy_from_table(found.policy, "gate.md")
    assert [rule.text for rule in policy.rules] == [*DEFAULT_RULES, "beta @ fc*: +-0.3", "accuracy: -1%"]
    assert found.baseline == tmp_path / "curvature" / "baseline.json"


def test_the_guide_names_the_default_rules_and_every_condition() -> None:
    text = " ".join(GUIDE.split())
    for rule in DEFAULT_RULES:
        assert "(informational)" in rule or f"`{rule}`" in text
    rows = re.findall(r"^\| (`[^|]*`) \| (?:a|the|what|no|anything)", GUIDE, re.M)
    examples = [example for row in rows for example in re.findall(r"`([^`]+)`", row)]
    assert len(examples) >= 12
    for example in examples:
        assert parse_rule(f"beta: {example}").text == f"beta: {example}"
