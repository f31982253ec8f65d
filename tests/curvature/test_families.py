"""The catalogue of families is what it claims to be, and its reference agrees with differences of the loss."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch

from spectrascope.loading.checkpoints.skeleton import build_skeleton
from spectrascope.loading.models import torchvision as torchvision_models
from tests.support import oracles
from tests.support.families import FAMILIES, no_narrowing
from tests.support.families_torchvision import TORCHVISION
from tests.support.measure_helpers import hold, layers_of, stored_directions, targets_of

NAMES = torchvision_models.list_names()
IN_BUILDERS = {"Identity"}  # stands for blocks left out of the tiny networks


def kinds_of_modules(model: torch.nn.Module) -> set[str]:
    return {type(m).__name__ for m in model.modules() if not list(m.children())} - IN_BUILDERS


@pytest.mark.parametrize("name", NAMES)
def test_every_torchvision_network_belongs_to_one_family_of_the_same_parts(name):
    (family,) = [f for f in TORCHVISION.values() if any(fnmatchcase(name, glob) for glob in f.names)]
    published = build_skeleton(lambda: torchvision_models.build_model(name, 1000))
    assert kinds_of_modules(published) <= kinds_of_modules(family.model())


@pytest.mark.parametrize("name", FAMILIES)
def test_double_backprop_is_the_second_difference_of_the_loss(name):
    """Of a few weights of each family, an early and a late one among them, along the first direction."""
    family = FAMILIES[name]
    workload = family()
    layers = layers_of(workload)
    with no_narrowing(), hold(workload, layers):
        targets = targets_of(workload, layers, 2)
        inputs, labels = workload.fetch(0, workload.source.n)

        def loss() -> torch.Tensor:
            return workload.loss(inputs, labels)

        assert loss().dtype == torch.float64
        chosen = targets[:: max(1, len(targets) // 2)]
        along = [stored_directions(target) for target in chosen]
        found = oracles.curvature_of_weights(loss, [t.layer.parameter for t in chosen], along)
        for target, directions, matrix in zip(chosen, along, found, strict=True):
            scale = float(matrix.diagonal().abs().max())
            assert scale > 1e-6, f"{target.layer.name} has no curvature, so nothing is tested"
            if not family.surrogate:
                expected, spread = oracles.difference_of_losses(
                    loss, target.layer.parameter, directions[0], kinks=family.kinks
                )
                tolerance = (1e-2 if family.kinks else 1e-6) * scale
                assert spread <= tolerance, f"{target.layer.name}: differences of the loss did not converge"
                assert float(matrix[0, 0]) == pytest.approx(expected, abs=tolerance), target.layer.name


@pytest.mark.parametrize("name", ["llama", "swin", "mamba", "lstm"])
def test_a_family_is_the_same_every_time(name):
    first, second = (FAMILIES[name]() for _ in range(2))
    assert first.source.digest() == second.source.digest()
    for (one, p), (other, q) in zip(first.model.state_dict().items(), second.model.state_dict().items(), strict=True):
        assert one == other
        assert torch.equal(p, q)


def test_the_float32_inside_a_hugging_face_model_is_switched_off_and_on_again():
    workload = FAMILIES["llama-eager"]()
    norm = workload.model.model.norm
    hidden = torch.randn(2, 8, dtype=torch.float64)
    exact = norm.weight * hidden / (hidden.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    with no_narrowing():
        assert float((norm(hidden) - exact).abs().max()) < 1e-15
    assert float((norm(hidden) - exact).abs().max()) > 1e-10  # so that the line above tests something
    assert torch.get_default_dtype() is torch.float32
