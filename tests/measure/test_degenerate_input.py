"""Outputs that a loss takes for something else are refused; input that says little is named in the report."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.errors import DataError, NonFiniteError, UnsupportedModelError
from spectrascope.integrations.monitor import CurvatureMonitor

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(1))
HOT = F.one_hot(Y, 4).float()


def network(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), *last)


REFUSED = {
    "softmax, default": ((nn.Softmax(1),), None, Y, "takes their softmax again: pass lambda p, y:"),
    "softmax, torch's": ((nn.Softmax(1),), nn.CrossEntropyLoss(torch.rand(4)), Y, "CrossEntropyLoss .* softmax"),
    "softmax, function": ((nn.Softmax(1),), F.cross_entropy, Y, "cross_entropy takes their softmax again"),
    "softmax for NLL": ((nn.Softmax(1),), nn.NLLLoss(), Y, "NLLLoss expects their logarithms"),
    "sparse by another road": ((nn.Softmin(1),), "cross-entropy", Y, "takes their softmax again"),
    "sigmoid, named": ((nn.Sigmoid(),), "bce", HOT, r"is a sigmoid\), and bce takes their sigmoid again"),
    "sigmoid, torch's": ((nn.Sigmoid(),), nn.BCEWithLogitsLoss(), HOT, r"pass torch.nn.BCELoss\(\)"),
    "sigmoid, then a view": (
        (nn.Sigmoid(), nn.Flatten()), F.binary_cross_entropy_with_logits, HOT, "takes their sigmoid again",
    ),
}  # fmt: skip
FINE = {
    "logarithms given to cross-entropy": ((nn.LogSoftmax(1),), None, Y),
    "logarithms": ((nn.LogSoftmax(1),), nn.NLLLoss(), Y),
    "its own loss": ((nn.Softmax(1),), lambda p, y: F.nll_loss(p.log(), y), Y),
    "trained so": ((nn.Softmax(1),), lambda p, y: F.cross_entropy(p, y) * 1.0, Y),
    "sigmoid inside": ((nn.Sigmoid(), nn.Linear(4, 4)), "bce", HOT),
    "sigmoid and its loss": ((nn.Sigmoid(),), nn.BCELoss(), HOT),
    "small scores": ((nn.Hardsigmoid(),), None, Y),
}


@pytest.mark.parametrize("case", REFUSED)
def test_probabilities_are_not_taken_for_scores(case):
    last, loss, y, words = REFUSED[case]
    with pytest.raises(DataError, match=r"outputs are probabilities already.*" + words) as refusal:
        spectrascope.probe(network(*last), (X, y), loss)
    assert "\n" not in str(refusal.value)


def test_a_sigmoid_before_a_softmax_is_noted():
    report = spectrascope.probe(network(nn.Sigmoid()), (X, Y))
    assert any("last operation is a sigmoid, and cross-entropy takes the softmax" in n for n in report.provenance.notes)
    assert not spectrascope.probe(network(nn.Sigmoid(), nn.Linear(4, 4)), (X, Y)).provenance.notes


def test_statistics_of_the_batch_are_told_before_anything_is_asked_of_single_samples():
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(UnsupportedModelError, match="a sample changes another's output"):
        spectrascope.probe(network(norm, nn.Softmax(1)), (X, Y))


@pytest.mark.parametrize("case", FINE)
def test_what_a_loss_takes_is_measured(case):
    last, loss, y = FINE[case]
    net = network(*last)
    found = spectrascope.probe(net, (X, y), loss, top_k=1, layers=["0.weight"]).provenance
    assert not any("same" in note or "bound" in note for note in found.notes)


NOTES = {
    "one input": (network, (X[:1].repeat(64, 1), Y), "all samples looked at have the same inputs"),
    "one class": (network, (X, torch.full_like(Y, 2)), "all samples have one label, 2"),
    "one class and no label": (network, (X, torch.where(Y > 1, 3, -100)), "all samples have one label, 3"),
    "one output": (lambda: _silent(network()), (X, Y), "outputs are the same for all samples looked at"),
}


def _silent(net: nn.Module) -> nn.Module:
    nn.init.zeros_(net[2].weight)
    return net


@pytest.mark.parametrize(
    "loss", [nn.NLLLoss(), F.nll_loss, partial(F.nll_loss, ignore_index=3), nn.NLLLoss(torch.rand(4) + 0.5)]
)
def test_scores_given_to_a_loss_of_log_probabilities(loss):
    """What is measured is what was asked for, and one line says that it has no lowest value."""
    report = spectrascope.probe(network(), (X, Y), loss, top_k=1, self_check=False)
    (note,) = report.provenance.notes
    assert "takes log-probabilities, and the network's outputs are none" in note
    images = X[:, :4].reshape(64, 1, 2, 2), torch.randint(0, 3, (64, 2, 2))
    for last, told in ((nn.Identity(), 1), (nn.LogSoftmax(1), 0)):
        convolution = nn.Sequential(nn.Conv2d(1, 3, 1), last)
        report = spectrascope.probe(convolution, images, nn.NLLLoss(), top_k=1, self_check=False)
        assert sum("log-probabilities" in note for note in report.provenance.notes) == told


@pytest.mark.parametrize("case", NOTES)
def test_what_says_little_is_in_the_report(case):
    make, batch, words = NOTES[case]
    report = spectrascope.probe(make(), batch, top_k=1, self_check=False)
    assert sum(words in note for note in report.provenance.notes) == 1
    assert not spectrascope.probe(network(), (X, Y), top_k=1, self_check=False).provenance.notes


def test_labels_out_of_range_and_nan_inputs_are_refused_wherever_they_are():
    for place in (0, 40, 63):
        y, x = Y.clone(), X.clone()
        y[place], x[place, 2] = 4, float("nan")
        with pytest.raises(DataError, match="label 4 does not fit a model with 4 outputs"):
            spectrascope.probe(network(), (X, y))
        with pytest.raises(NonFiniteError, match="is nan"):
            spectrascope.probe(network(), (x, Y))


def test_the_monitor_skips_and_says_why(caplog):
    ticks = iter(range(10_000))
    monitor = CurvatureMonitor(network(nn.Softmax(1)), (X, Y), every=1, budget=9.0, clock=lambda: 1e3 * next(ticks))
    monitor.start()
    assert monitor.step() is None
    assert "outputs are probabilities already" in caplog.text


def test_the_command_line_exits_with_3(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef build():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Softmax(1))\n"
    )
    command = [sys.executable, "-m", "spectrascope", "probe", f"{tmp_path / 'own.py'}:build", "--dataset", "digits"]
    found = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (3, "", 1)
    assert "outputs are probabilities already" in found.stderr
