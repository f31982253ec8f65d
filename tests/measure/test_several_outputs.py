"""Networks that return several tensors: the loss takes them whole, or the scores are named; none is guessed."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.errors import DataError
from spectrascope.integrations.monitor import CurvatureMonitor
from tests.support import oracles

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(0, 4, (24,), generator=torch.Generator().manual_seed(1))
Pair = namedtuple("Pair", ["features", "head"])


@dataclass
class Held:
    features: torch.Tensor
    head: torch.Tensor
    step: int = 3


class Several(nn.Module):
    def __init__(self, form) -> None:
        super().__init__()
        self.inner, self.outer, self.form = nn.Linear(6, 5), nn.Linear(5, 4), form

    def forward(self, x):
        features = torch.tanh(self.inner(x))
        return self.form(features, self.outer(features))


FORMS = {
    "tuple": (lambda f, s: (f, s), "1"),
    "list": (lambda f, s: [s, f], "0"),
    "dict": (lambda f, s: {"features": f, "head": s}, "head"),
    "named tuple": (Pair, "head"),
    "dataclass": (Held, "head"),
}


def network(form) -> nn.Module:
    torch.manual_seed(0)
    return Several(form).double()


def truth() -> tuple[float, list[float]]:
    net = network(lambda f, s: s)

    def loss():
        return F.cross_entropy(net(X), Y)

    weight = net.inner.weight
    gradient = torch.autograd.grad(loss(), weight)[0]
    _, left, right, _ = oracles.svd_directions(gradient, 2, 2**-52)
    along = [torch.outer(torch.from_numpy(left[:, i]), torch.from_numpy(right[:, i])) for i in range(2)]
    (matrix,) = oracles.curvature_of_weights(loss, [weight], [along])
    return loss().item(), matrix.diagonal().tolist()


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_named_or_taken_whole_but_not_guessed(form):
    make, name = FORMS[form]
    net = network(make)
    loss, h = truth()
    listed = r"returns 2 tensors \((0|features) \(2, \d\), .* no name says which holds the scores: name it with"
    with pytest.raises(DataError, match=listed):
        spectrascope.probe(net, (X, Y))
    with pytest.raises(DataError, match="none is called 'scores'"):
        spectrascope.probe(net, (X, Y), scores="scores")

    def whole(output, labels):
        if isinstance(output, (Held, Pair)):
            return F.cross_entropy(output.head, labels)
        return F.cross_entropy(output[name if isinstance(output, dict) else int(name)], labels)

    chosen = int(name) if name.isdigit() else name
    for given in ((None, {"scores": chosen}), (nn.CrossEntropyLoss(), {"scores": name}), (whole, {})):
        report = spectrascope.probe(net, (X, Y), given[0], top_k=2, curvature_samples="all", **given[1])
        assert report.provenance.loss == pytest.approx(loss, rel=1e-12)
        assert list(report.layers[0].measurement.h) == pytest.approx(h, rel=1e-8)
    assert report.provenance.loss_name == "whole"
    named = spectrascope.decompose(net, (X, Y), scores=name, top_k=2)
    assert named.provenance.loss_name == f"cross-entropy of output {name}"


def test_what_is_beyond_doubt_needs_no_name():
    loss, _ = truth()
    for form in (lambda f, s: {"features": f, "logits": s}, lambda f, s: (s, None), lambda f, s: {"out": s, "n": 3}):
        assert spectrascope.probe(network(form), (X, Y), top_k=1).provenance.loss == pytest.approx(loss, rel=1e-12)
    with pytest.raises(DataError, match=r"scores '1': the model returns one tensor, of shape \(2, 4\)"):
        spectrascope.probe(network(lambda f, s: s), (X, Y), scores=1)


def test_a_recurrent_layer_with_its_state_is_not_guessed():
    net = nn.GRU(6, 4, batch_first=True).double()
    with pytest.raises(DataError, match=r"2 tensors \(0 \(2, 3, 4\), 1 \(1, 2, 4\)\)"):
        spectrascope.probe(net, (torch.randn(8, 3, 6).double(), torch.randint(0, 4, (8, 3))))


def test_the_monitor_names_them_too():
    net = network(FORMS["tuple"][0])
    monitor = CurvatureMonitor(net, (X, Y), every=1, budget=9.0, scores=1, top_k=1, dtype="float64")
    assert monitor.measure().provenance.loss == pytest.approx(truth()[0], rel=1e-12)


def test_the_command_line_names_them(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.inner, self.outer = torch.nn.Linear(192, 8), torch.nn.Linear(8, 10)\n"
        "    def forward(self, x):\n        f = self.inner(x.flatten(1)).relu()\n        return f, self.outer(f)\n"
    )

    def run(*more: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "spectrascope", "probe", f"{tmp_path / 'own.py'}:Net", "--dataset", "digits"]
        command += ["--num-samples", "32", "--top-k", "2", "--quiet", "--format", "json", *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused, named = run(), run("--scores", "1")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (3, "", 1)
    assert "returns 2 tensors (0 (2, 8), 1 (2, 10)), and no name says which holds the scores" in refused.stderr
    assert named.returncode == 0, named.stderr
    assert '"cross-entropy of output 1"' in named.stdout
