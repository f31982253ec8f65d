"""From Python everything can be asked for that the command line can be asked for, and means the same."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn

import spectrascope
from spectrascope.api.options import DEFAULTS, OPENED
from spectrascope.cli import main
from spectrascope.cli.app import app
from spectrascope.errors import OptionError
from spectrascope.measure import stages
from spectrascope.reports.json import report_to_json

FUNCTIONS = {
    "probe": "probe", "decompose": "decompose", "weights": "weights", "inspect": "inspect", "gate": "gate",
    "compare": "compare", "suggest-beta": "suggest", "trajectory": "trajectory",
}  # fmt: skip
OTHER_NAMES = {"dataset": "batches", "loss": "loss_fn", "rule": "rules", "number": "numbers", "all": "every"}
# Said of a result, of a place that ``run`` is, or of a job that Python's own launcher starts.
OF_THE_COMMAND_LINE = {
    "help", "shard", "merge", "junit", "markdown", "save_report", "glob", "reports", "again", "all",
}  # fmt: skip
NOT_KEPT = {"weights", "inspect"}  # they take seconds; the result has save()


def _options(command: str) -> set[str]:
    application: Any = typer.main.get_command(app)
    found = {
        OTHER_NAMES.get(p.name, p.name)
        for p in application.commands[command].params
        if getattr(p, "rich_help_panel", None) != "Result" and p.param_type_name == "option"
    }
    return found - OF_THE_COMMAND_LINE - {"every"} - ({"run"} if command in NOT_KEPT else set())


@pytest.mark.parametrize("command", FUNCTIONS)
def test_every_option_has_a_keyword(command: str) -> None:
    parameters = inspect.signature(getattr(spectrascope, FUNCTIONS[command])).parameters
    taken = set(parameters)
    if any(p.kind is p.VAR_KEYWORD and p.annotation == "Any" for p in parameters.values()):
        taken |= set(inspect.signature(spectrascope.probe).parameters)  # which gets what is left
    if FUNCTIONS[command] == "compare":
        taken |= {"before", "after"}
    missing = _options(command) - taken
    assert not missing


def test_every_keyword_is_documented() -> None:
    said = spectrascope.probe.__doc__ or ""
    assert not [name for name in {**DEFAULTS, **OPENED, "run": None} if f"\n        {name}: " not in said]


def _numbers(report: dict[str, Any]) -> Any:
    for name in ("seconds", "created", "command", "versions"):
        report["provenance"].pop(name)
    return report


@pytest.mark.usefixtures("one_thread")
def test_what_is_named_is_opened_as_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    words = "--image-size 8 --mean 0.3 --std 0.4 --balanced --label-smoothing 0.1 --num-samples 20 --micro-batch 4"
    words += " --layers fc2.* --top-k 2 --groups 4 -q -o"
    assert main(["probe", "digits-cnn", "--dataset", "digits", *words.split(), str(path)]) == 0
    report = spectrascope.probe(
        "digits-cnn", "digits", image_size=8, mean=0.3, std=[0.4], balanced=True, label_smoothing=0.1, num_samples=20,
        micro_batch=4, layers="fc2.*", top_k=2, groups=4, on_progress=False,
    )  # fmt: skip
    assert _numbers(json.loads(report_to_json(report))) == _numbers(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("model", "batches", "options", "said"),
    [
        (nn.Linear(4, 2), (torch.zeros(4, 4), torch.zeros(4)), {"data_root": "x"}, "data_root: no effect on a network"),
        (
            {"weight": torch.zeros(2, 4)},
            None,
            {"arch": nn.Linear(4, 2)},
            "arch: expected a name, .*, got Linear",
        ),
        (nn.Linear(4, 2), (torch.zeros(4, 4), torch.zeros(4)), {"arch": "resnet18"}, "arch: no effect on a network in"),
        ("digits-cnn", (torch.zeros(4, 1, 8, 8), torch.zeros(4)), {"balanced": True}, "balanced: no effect on samples"),
        ({"w": torch.zeros(2)}, None, {"num_classes": 3}, "num_classes: no effect on a state dict"),
        ("digits-cnn", None, {"mean": "grey"}, "mean 'grey': expected a number, or one per channel"),
    ],
)
def test_what_has_no_effect_is_refused(model: Any, batches: Any, options: dict[str, Any], said: str) -> None:
    for function in (spectrascope.probe, spectrascope.decompose):
        with pytest.raises(OptionError, match=said):
            function(model, batches, on_progress=False, **options)


def test_no_other_keyword_is_taken() -> None:
    for call in (spectrascope.probe, spectrascope.weights, spectrascope.inspect):
        with pytest.raises(TypeError, match=r"\(\) got an unexpected keyword argument 'topk'"):
            call("digits-cnn", topk=3)
    with pytest.raises(TypeError, match=r"argument 'topk': did you mean top_k\?"):
        spectrascope.probe("digits-cnn", topk=3)


@pytest.mark.usefixtures("one_thread")
def test_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function called again with its folder measures nothing again; checkpoints have folders of their own."""
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(2)]
    batch = torch.randn(16, 4), torch.randint(0, 2, (16,))
    how: dict[str, Any] = {"groups": 4, "top_k": 2, "micro_batch": 4, "on_progress": False}
    calls = {
        "probe": lambda run: spectrascope.probe(networks[0], batch, run=run, **how),
        "decompose": lambda run: spectrascope.decompose(networks[0], batch, run=run, **how),
        "suggest": lambda run: spectrascope.suggest(networks[0], batch, run=run, **how),
        "trajectory": lambda run: spectrascope.trajectory(
            dict(zip("ab", networks, strict=True)), batch, run=run, **how
        ),
    }
    first = {name: call(tmp_path / name).to_dict() for name, call in calls.items()}
    assert (tmp_path / "probe" / "report.json").exists()
    assert {path.name for path in (tmp_path / "trajectory").iterdir()} == {"a", "b"}
    with pytest.raises(OptionError, match=r"another measurement \(loss: usual there, <lambda> \w{8} here\)"):
        spectrascope.probe(networks[0], batch, lambda y, t: y.square().mean(), run=tmp_path / "probe", **how)
    monkeypatch.setattr(stages, "measure_gradients", None)
    for name, call in calls.items():
        again = call(tmp_path / name).to_dict()
        assert (
            again["summary" if "summary" in again else "points" if "points" in again else "layers"]
            == (first[name]["summary" if "summary" in again else "points" if "points" in again else "layers"])
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 0}, "^top_k 0: must be at least 1"),
        ({"top_k": "3"}, "^top_k '3': expected a whole number"),
        ({"folds": 2.5}, "^folds 2.5: expected a whole number"),
        ({"num_samples": "some"}, "^num_samples 'some': expected a whole number"),
        ({"layers": "nomatch"}, "^layers 'nomatch' matches none of the 5 weights"),
    ],
)
def test_errors_name_options_as_python_does(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        spectrascope.probe("digits-cnn", **options)


def test_all_samples_are_all() -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    batch = torch.rand(40, 6), torch.arange(40) % 3
    for given, found in (("all", 40), (None, 40), (24, 24)):
        report = spectrascope.probe(network, batch, num_samples=given, top_k=2)
        assert report.provenance.data.n == found


@pytest.mark.parametrize("dtype", [torch.float64, "float64"])
def test_a_format_may_be_torch_s(dtype: Any) -> None:
    report = spectrascope.probe(nn.Linear(4, 2), (torch.randn(8, 4), torch.arange(8) % 2), dtype=dtype)
    assert report.provenance.dtype == "float64"
