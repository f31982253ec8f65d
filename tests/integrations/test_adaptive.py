"""Exponents measured while training: within a counted budget, touching nothing else, and never the end of it."""

import logging
import random

import pytest
import torch
from torch import nn

from spectrascope.errors import OptionError
from spectrascope.integrations.adaptive import AdaptiveExponents
from spectrascope.optim import SpectralNewton, apply_transfer, parameter_groups
from spectrascope.records.advice import ParameterExponent
from tests.support.training_runs import image_task, small_cnn

LOSS = nn.functional.cross_entropy


def _training(**options) -> tuple[nn.Module, SpectralNewton, AdaptiveExponents]:
    torch.manual_seed(0)
    model = small_cnn()
    optimizer = SpectralNewton(parameter_groups(model), 0.02, 1.0, 1e-3, scale_free=True)
    given = {"train_batch": 16, "every": 5, "budget": 1e9, "num_samples": 64, "top_k": 6, **options}
    return model, optimizer, AdaptiveExponents(optimizer, model, image_task(), LOSS, **given)


def _steps(model: nn.Module, optimizer: SpectralNewton, adaptive: AdaptiveExponents | None, n: int) -> None:
    images, labels = image_task()
    for i in range(n):
        index = torch.arange(16 * i, 16 * i + 16) % len(labels)
        optimizer.zero_grad()
        LOSS(model(images[index]), labels[index]).backward()
        optimizer.step()
        if adaptive is not None:
            adaptive.step()


def _everything(model: nn.Module, optimizer: SpectralNewton) -> dict:
    own = {"beta", "damping"}
    states = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items() if k not in own}
    tensors = {**model.state_dict(), **states, "rng": torch.random.get_rng_state()}
    gradients = {f"grad {n}": p.grad for n, p in model.named_parameters()}
    found = {name: t.clone() if isinstance(t, torch.Tensor) else t for name, t in {**tensors, **gradients}.items()}
    return found | {"modes": [m.training for m in model.modules()], "python": random.getstate()}


def test_a_measurement_changes_exponents_and_dampings_and_nothing_else() -> None:
    model, optimizer, adaptive = _training()
    _steps(model, optimizer, None, 5)
    before = _everything(model, optimizer)
    advice = adaptive.step(5)
    assert advice is not None
    assert advice.parameters
    after = _everything(model, optimizer)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name], name
    named = dict(model.named_parameters())
    for exponent in advice.parameters:
        state = optimizer.state[named[exponent.name]]
        assert (state["beta"], state["damping"]) == (exponent.beta, exponent.relative_damping)


def test_what_was_measured_is_stepped_by_and_survives_a_state_dict() -> None:
    model, optimizer, _ = _training()
    weight = model.get_parameter("0.weight")
    optimizer.set_exponents({p: ParameterExponent("0.weight", 1.6, 9.0, 0.02, "flat") for p in model.parameters()})
    adamw = [p for group in optimizer.param_groups if group["beta"] is None for p in group["params"]]
    assert adamw
    assert not any("beta" in optimizer.state[p] for p in adamw)
    other = SpectralNewton(parameter_groups(model), 0.02, 1.0, 1e-3, momentum=0.0, scale_free=True)
    other.load_state_dict(optimizer.state_dict())
    for group in other.param_groups:
        group["momentum"] = 0.0
    before = weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    other.step()
    expected = apply_transfer(weight.grad.flatten(1), 1.6, 0.02, scale_free=True).view_as(weight)
    assert torch.allclose(weight, before - 0.02 * expected, atol=1e-6)


def test_the_budget_is_counted_in_forward_passes_and_kept() -> None:
    shares = []
    for _ in range(2):
        model, optimizer, adaptive = _training(budget=0.5)
        _steps(model, optimizer, adaptive, 100)
        shares.append(adaptive.share)
        assert adaptive.monitor.n_probes >= 1
        assert adaptive.monitor.n_skipped >= 1
        assert 0 < adaptive.share <= 0.55  # a micro-batch lies between two looks at the count
        assert "of training" in adaptive.describe()
    assert shares[0] == shares[1]  # no clock is read


@pytest.mark.parametrize("fails_at", ["forward", "advice"])
def test_what_fails_is_left_out_and_the_training_goes_on(fails_at: str, caplog, monkeypatch) -> None:
    model, optimizer, adaptive = _training()

    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    if fails_at == "forward":
        adaptive.monitor._loss_fn = broken
    else:
        monkeypatch.setattr("spectrascope.integrations.adaptive.advise", broken)
    with caplog.at_level(logging.WARNING):
        _steps(model, optimizer, adaptive, 10)
    assert "broken on purpose" in caplog.text
    assert not any("beta" in state for state in optimizer.state.values())
    twin, plain, _ = _training()
    _steps(twin, plain, None, 10)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_refusals() -> None:
    model = small_cnn()
    optimizer = SpectralNewton(model.parameters())
    with pytest.raises(OptionError, match="adaptive exponents are for a SpectralNewton, got SGD"):
        AdaptiveExponents(torch.optim.SGD(model.parameters()), model, image_task(), LOSS, train_batch=16)
    with pytest.raises(OptionError, match="train_batch must be at least 1 sample, got 0"):
        AdaptiveExponents(optimizer, model, image_task(), LOSS, train_batch=0)
    with pytest.raises(OptionError, match="did you mean top_k"):
        AdaptiveExponents(optimizer, model, image_task(), LOSS, train_batch=16, topk=3)
    with pytest.raises(OptionError, match="gradient 'weights': expected one of"):
        AdaptiveExponents(optimizer, model, image_task(), LOSS, train_batch=16, gradient="weights")
