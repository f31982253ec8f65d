"""The options of what is signal: what they mean, bad values in one line, a project's own, momentum end to end."""

import json
from pathlib import Path

import pytest
import torch

from spectrascope.cli import main
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.records.signal import Estimate, GradientSource, LabelSource

FEW = ("--dataset", "digits", "--num-samples", "64", "--top-k", "3", "--layers", "fc*", "--quiet")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--null-draws", "x", "'x' is neither auto nor a whole number from 0 on"),
        ("--curvature-samples", "0", "'0' is neither auto nor all nor a whole number from 1 on"),
        ("--num-samples", "none", "'none' is neither all nor a whole number from 1 on"),
        ("--labels", "foo", "'foo' is not one of 'data', 'model', 'shuffled'"),
        ("--gradient", "foo", "'foo' is not one of 'batch', 'momentum'"),
        ("--estimate", "foo", "'foo' is not one of 'both', 'published', 'held-out'"),
    ],
)
def test_bad_values(option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", option, value]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert option in error
    assert len(error.strip().splitlines()) == 1


def test_a_project_may_set_them(calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(
        "[tool.spectrascope]\nnum-samples = 32\nnull-draws = 3\ncurvature-samples = 64\n"
        'estimate = "held-out"\nlabels = "shuffled"\n'
    )
    assert main(["probe", "-q", "--labels", "model"]) == 0
    assert calls.seen["load_dataset"][1]["num_samples"] == 32
    options = calls.seen["run_probe"][0][0].options
    assert (options.null_draws, options.curvature_samples) == (3, 64)
    assert (options.estimate, options.labels) == (Estimate.HELD_OUT, LabelSource.MODEL)
    assert options.gradient is GradientSource.BATCH


def trained(optimizer_of, steps: int = 3):
    """The digits network after a few steps, and its optimizer."""
    loaded = load_model("digits-cnn@early")
    inputs, targets = load_dataset("digits", loaded, num_samples=64, seed=0).source.fetch(0, 64)
    model, optimizer = loaded.model, optimizer_of(loaded.model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("optimizer_of", "buffer"),
    [
        (lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9), "momentum_buffer"),
        (lambda parameters: torch.optim.AdamW(parameters, 1e-3), "exp_avg"),
    ],
)
@pytest.mark.parametrize("place", ["optimizer", "optimizer_states"])
def test_momentum_of_a_checkpoint(optimizer_of, buffer: str, place: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = trained(optimizer_of)
    state = optimizer.state_dict()
    weights = "model" if place == "optimizer" else "state_dict"
    torch.save({weights: model.state_dict(), place: state if place == "optimizer" else [state]}, "ckpt.pt")
    assert main(["probe", "ckpt.pt", "--gradient", "momentum", "--json", *FEW]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["options"]["gradient"] == "momentum"
    sigma = {row["name"]: row["sigma"] for row in report["layers"] if "sigma" in row}
    for name in ("fc1.weight", "fc2.weight"):
        momentum = optimizer.state[dict(model.named_parameters())[name]][buffer].double()
        truth = torch.linalg.svdvals(momentum)[:3]
        assert torch.allclose(torch.tensor(sigma[name], dtype=torch.float64), truth, rtol=1e-4)


def test_momentum_that_is_not_there(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = trained(lambda parameters: torch.optim.SGD(parameters, 0.01))
    torch.save({"model": model.state_dict()}, "bare.pt")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "plain.pt")
    for arguments, code, message in (
        (["bare.pt"], 3, "no optimizer's state found"),
        (["plain.pt"], 3, "expected one with momentum"),
        (["digits-cnn"], 2, "expected a checkpoint of your own, got digits-cnn"),
    ):
        assert main(["probe", *arguments, "--gradient", "momentum", *FEW]) == code
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1
