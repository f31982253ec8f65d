"""Steps taken for real against what the quadratic model predicts."""

import math

import pytest
import torch
from torch import nn

from spectrascope.api.inputs import describe_source
from spectrascope.errors import DataError
from spectrascope.losses import make_loss
from spectrascope.measure.validate import advise_and_validate, correlate, search_line
from spectrascope.records.advice import Advice, ValidateOn, Validation
from spectrascope.records.report import ModelInfo, ProbeOptions
from spectrascope.records.values import LossName, Missing, Task
from spectrascope.workload import Run, TensorSource
from tests.support.planted_networks import planted_network

INFO = ModelInfo("net", "Sequential", "python", Missing("in memory"), Missing("in memory"), "as given", 0)


def _validate(
    model: nn.Module, inputs, targets, loss: LossName, on: ValidateOn = ValidateOn.HELD_OUT, **options
) -> Advice:
    source = TensorSource(inputs, targets)
    asked = ProbeOptions(num_samples=source.n, **{"dtype": "float64", "self_check": False, **options})
    run = Run(model, source, make_loss(loss, task=Task.UNKNOWN), asked, INFO, describe_source(source))
    return advise_and_validate(run, on=on)


def test_on_a_quadratic_loss_with_equal_halves_the_prediction_is_exact() -> None:
    network, inputs, targets = planted_network(1.5, seed=0, n=128)
    found = _validate(
        network, torch.cat([inputs, inputs]), torch.cat([targets, targets]), LossName.MSE, top_k=12
    ).validation
    assert isinstance(found, Validation)
    assert (found.n_measured, found.n_checked, found.n_layers) == (128, 128, 1)
    assert [step.name for step in found.steps] in (["0", "1", "2", "best"], ["0", "1", "2", "recommended", "best"])
    for step in found.steps:
        assert step.measured == pytest.approx(step.predicted, rel=1e-6)
        assert step.measured_length == pytest.approx(step.predicted_length, rel=1e-6)
        assert step.measured_efficiency == pytest.approx(step.predicted_efficiency, rel=1e-6)
    assert found.steps[-1].predicted_efficiency == pytest.approx(1.0)


def test_the_loss_really_falls_and_the_network_is_left_as_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    model.train()
    inputs = torch.randn(96, 4, 4)
    labels = inputs.flatten(1)[:, :3].argmax(1)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    advice = _validate(model, inputs, labels, LossName.CROSS_ENTROPY, dtype="float32", top_k=8)
    found = advice.validation
    assert isinstance(found, Validation)
    assert advice.data.n == 48
    assert "first half of 96 samples" in advice.data.id
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(inputs[48:]), labels[48:]))
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.n_layers == 3
    assert all(step.measured > 0 for step in found.steps if step.name == "0")  # gradient descent goes down
    assert all(step.measured <= found.loss for step in found.steps)
    assert model.training
    for name, p in model.state_dict().items():
        assert torch.equal(p, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_the_measured_half_shows_the_model_alone() -> None:
    """On a quadratic loss the prediction is exact there, however different the other half."""
    network, inputs, targets = planted_network(2.0, seed=1, n=128)
    found = _validate(
        network, torch.cat([inputs, 3 * inputs]), torch.cat([targets, -targets]), LossName.MSE,
        on=ValidateOn.MEASURED, top_k=12,
    ).validation  # fmt: skip
    assert isinstance(found, Validation)
    assert found.on is ValidateOn.MEASURED
    assert all(step.measured == pytest.approx(step.predicted, rel=1e-6) for step in found.steps)


def test_four_samples_at_least() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(DataError, match="3 samples cannot be halved for --validate: at least 4 are needed"):
        _validate(model, torch.randn(3, 3), torch.tensor([0, 1, 0]), LossName.CROSS_ENTROPY)


@pytest.mark.parametrize("best", [0.003, 0.4, 1.0, 9.0, 700.0])
def test_a_line_search_finds_the_vertex_of_a_parabola(best: float) -> None:
    length, loss = search_line(lambda x: 2 + (x - best) ** 2, 1.0)
    assert length == pytest.approx(best, rel=1e-9)
    assert loss == pytest.approx(2.0)


def test_a_line_search_survives_walls_and_hills() -> None:
    def wall(x: float) -> float:
        return math.nan if x > 1.5 else -x

    length, loss = search_line(wall, 1.0)
    assert (length, loss) == (1.0, -1.0)
    length, loss = search_line(lambda x: x, 1.0, most=3)  # uphill all the way: the shortest length tried
    assert length == 1 / 16


def test_correlations() -> None:
    assert correlate([1, 2, 3], [6, 4, 2]) == -1.0
    assert correlate([1, 1, 1], [1, 2, 3]) == Missing("all values are equal")
