"""A loss of the user's own at the scores of sure samples, where p − p² is nothing but rounding in float32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from spectrascope.curvature.loss_root import curvature_columns

LABELS = torch.tensor([0, 1, 2, 3])


def _scores(sure: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 5, generator=generator)
    drawn[1:] += sure * F.one_hot(LABELS, 5)[1:]  # the first sample stays unsure
    return drawn


def _curvature(columns: torch.Tensor, signs: torch.Tensor | None) -> torch.Tensor:
    weights = torch.ones(columns.shape[:2]) if signs is None else signs
    return torch.einsum("cb,cbi,cbj->bij", weights, columns, columns)


@pytest.mark.parametrize("sure", [0.0, 5.0, 10.0, 20.0, 60.0])
def test_cross_entropy_written_by_hand_is_as_convex_as_torchs(sure: float) -> None:
    scores = _scores(sure)
    columns, signs = curvature_columns(scores, LABELS, lambda x, y: F.cross_entropy(x.flatten(0, -2), y.flatten()))
    assert signs is None
    exact, _ = curvature_columns(scores, LABELS, torch.nn.CrossEntropyLoss())
    expected = _curvature(exact, None)
    scale = expected.abs().amax((1, 2), keepdim=True)
    apart = (_curvature(columns, signs) - expected).abs() / scale
    assert float(apart[scale.flatten() > 1e-12].max()) < 1e-5


def test_a_loss_that_holds_tensors_of_its_own_in_float32() -> None:
    weight = torch.eye(5) * 2
    columns, signs = curvature_columns(_scores(2.0), LABELS, lambda x, y: F.cross_entropy(x @ weight, y))
    assert signs is None
    assert columns.dtype == torch.float32
    exact, _ = curvature_columns(2 * _scores(2.0), LABELS, torch.nn.CrossEntropyLoss())
    assert torch.allclose(_curvature(columns, signs), 4 * _curvature(exact, None), rtol=1e-3, atol=1e-6)


def test_a_loss_that_is_not_convex_says_so() -> None:
    _, signs = curvature_columns(_scores(1.0), LABELS, lambda x, y: (F.one_hot(y, 5) - x.sigmoid()).square().mean())
    assert signs is not None
    assert bool((signs < 0).any())
