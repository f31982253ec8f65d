"""Files that hold several networks, or several sets of weights of one: refused by name, or the choice is stated."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.models.open import load_model


def weights(*widths: int) -> dict[str, torch.Tensor]:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths))).state_dict()


REFUSED = {
    "two networks": ({"gen": weights(3, 4), "disc": weights(4, 3, 1)}, "'gen' (2 tensors), 'disc' (4 tensors)", "gen"),
    "two of one": ({"student": weights(3, 4), "teacher": weights(3, 4)}, "'teacher' (2 tensors), 'student'", "teacher"),
    "two encoders": (
        {"encoder_q": weights(3, 4), "encoder_k": weights(3, 4), "epoch": 3}, "'encoder_q' (2 tensors)", "encoder_q",
    ),
    "below": (
        {"policy": {"actor": weights(3, 4), "critic": weights(3, 1)}, "step": 1}, "'actor' (2 tensors)", "policy.actor",
    ),
    "two averages": ({"ema_fast": weights(3, 4), "ema_slow": weights(3, 4)}, "'ema_fast' (2 tensors)", "ema_fast"),
}  # fmt: skip
CHOSEN = {
    "average beside": ({"model": weights(3, 4), "ema": weights(3, 4)}, "model", ("ema",)),
    "average first": ({"ema_model": weights(3, 4), "online": weights(3, 4)}, "online", ("ema_model",)),
    "best beside": ({"best": weights(3, 4), "state_dict": weights(3, 4)}, "state_dict", ("best",)),
    "average alone": ({"ema": weights(3, 4), "epoch": 3}, "ema", ()),
    "counters beside": ({"net": weights(3, 4), "metrics": {"accuracy": torch.tensor(0.5)}}, "net", ()),
    "optimizer beside": (
        {"model": weights(3, 4), "optimizer": torch.optim.Adam(nn.Linear(2, 2).parameters()).state_dict()}, "model", (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_several_sets_are_listed(tmp_path, case):
    content, listed, first = REFUSED[case]
    path = tmp_path / "a.pt"
    torch.save(content, path)
    with pytest.raises(LoadError) as refusal:
        read_checkpoint(path)
    text = str(refusal.value)
    assert "holds several sets of weights: " in text
    assert listed in text
    assert text.endswith(f"name the one to take, as {path}::{first}")
    named = content
    for part in first.split("."):
        named = named[part]
    found = read_checkpoint(f"{path}::{first}").state_dict
    assert all(torch.equal(found[name], value) for name, value in named.items())


@pytest.mark.parametrize("case", CHOSEN)
def test_a_choice_is_stated(tmp_path, case):
    content, place, others = CHOSEN[case]
    torch.save(content, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt")
    assert (found.place, found.others) == (place, others)
    assert torch.equal(found.state_dict["0.weight"], content[place]["0.weight"])
    assert found.choice == (f"those under {place!r}, not {others[0]!r}" if others else "")


def test_the_report_states_it_and_the_command_line_refuses(tmp_path):
    net = load_model("mlp:64-8-10@none", seed=0).model
    torch.save({"model": net.state_dict(), "ema": net.state_dict()}, tmp_path / "a.pt")
    assert (
        load_model(str(tmp_path / "a.pt"), arch="mlp:64-8-10").info.weights
        == "checkpoint (those under 'model', not 'ema')"
    )
    torch.save({"gen": net.state_dict(), "disc": net.state_dict()}, tmp_path / "b.pt")

    def weights_of(name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "spectrascope", "weights", str(tmp_path / name), "--json", "--quiet"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused, stated = weights_of("b.pt"), weights_of("a.pt")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert refused.stderr.count("\n") == 1
    assert "holds several sets of weights: 'gen' (4 tensors), 'disc' (4 tensors)" in refused.stderr
    assert "those under 'model', not 'ema'" in json.dumps(json.loads(stated.stdout))
