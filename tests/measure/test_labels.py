"""Labels drawn from the model itself: a network whose true gradient is zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spectrascope.errors import OptionError
from spectrascope.losses import BinaryCrossEntropy, CausalLM, CrossEntropy, Loss, MeanSquaredError
from spectrascope.measure.labels import relabel
from spectrascope.records.signal import LabelSource
from spectrascope.workload import TensorSource, Workload


class _Tokens(nn.Module):
    """Scores (b, t, V) that depend on the token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens) * 2


def workload(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, loss: Loss) -> Workload:
    return Workload(model.eval(), TensorSource(inputs, targets), loss, torch.device("cpu"), torch.float32)


def test_labels_of_the_model_follow_its_softmax() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4), torch.randn(1, 3).expand(20_000, 3)
    made = relabel(workload(model, x, torch.zeros(20_000, dtype=torch.int64), CrossEntropy()), LabelSource.MODEL, 0)
    share = torch.bincount(made.fetch(0, 20_000)[1], minlength=4) / 20_000
    assert torch.allclose(share, model(x[0]).softmax(-1), atol=0.015)


def test_labels_of_a_language_model_are_those_of_the_token_before() -> None:
    torch.manual_seed(0)
    model, tokens = _Tokens(), torch.randint(6, (4000, 5))
    tokens[:, 2] = 3
    made = relabel(workload(model, tokens, tokens, CausalLM()), LabelSource.MODEL, 0)
    inputs, targets = made.fetch(0, 4000)
    assert torch.equal(inputs, tokens)  # what the network reads stays
    assert torch.equal(targets[:, 0], tokens[:, 0])  # nothing comes before it
    share = torch.bincount(targets[:, 3], minlength=6) / 4000
    assert torch.allclose(share, model(torch.tensor(3)).softmax(-1), atol=0.03)


def test_ignored_positions_stay_ignored() -> None:
    tokens = torch.randint(6, (8, 5))
    targets = tokens.clone()
    targets[:, 3:] = -100
    made = relabel(workload(_Tokens(), tokens, targets, CausalLM()), LabelSource.MODEL, 0)
    assert bool((made.fetch(0, 8)[1][:, 3:] == -100).all())
    assert torch.equal(targets[:, 1:3], tokens[:, 1:3])  # the user's own tensor is as it was


def test_several_labels_are_drawn_from_a_sigmoid() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(2, 3), torch.randn(1, 2).expand(9000, 2)
    made = relabel(workload(model, x, torch.zeros(9000, 3), BinaryCrossEntropy()), LabelSource.MODEL, 0)
    assert torch.allclose(made.fetch(0, 9000)[1].mean(0), model(x[0]).sigmoid(), atol=0.02)


def test_shuffled_labels_are_the_same_labels() -> None:
    y = torch.arange(100) % 7
    made = relabel(workload(nn.Linear(2, 7), torch.randn(100, 2), y, CrossEntropy()), LabelSource.SHUFFLED, 3)
    found = made.fetch(0, 100)[1]
    assert not torch.equal(found, y)
    assert torch.equal(found.sort().values, y.sort().values)
    again = relabel(workload(nn.Linear(2, 7), torch.randn(100, 2), y, CrossEntropy()), LabelSource.SHUFFLED, 3)
    assert torch.equal(again.fetch(0, 100)[1], found)


@pytest.mark.parametrize("loss", [MeanSquaredError(), CrossEntropy(label_smoothing=0.1)])
def test_losses_without_labels_to_draw_are_refused(loss: Loss) -> None:
    y = torch.randn(8, 3) if isinstance(loss, MeanSquaredError) else torch.zeros(8, dtype=torch.int64)
    with pytest.raises(OptionError, match="--labels model needs a loss of class labels"):
        relabel(workload(nn.Linear(2, 3), torch.randn(8, 2), y, loss), LabelSource.MODEL, 0)
