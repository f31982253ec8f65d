"""The spectral transfer and the efficiency of its step under the local quadratic model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from spectrascope.numerics.transfer import (
    LEAST_PIVOT,
    QuadraticModel,
    find_most_efficient,
    make_quadratic_model,
    transfer,
)
from spectrascope.records.values import Missing


def _model(sigma, matrix) -> QuadraticModel:
    found = make_quadratic_model(sigma, matrix)
    assert isinstance(found, QuadraticModel)
    return found


def _random_problem(seed: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sigma = np.sort(rng.uniform(0.1, 3, k))[::-1]
    root = rng.standard_normal((k, k)) + 2 * np.eye(k)
    return sigma, root @ root.T + 0.5 * np.eye(k)


def test_special_cases_of_the_transfer() -> None:
    sigma = np.array([5.0, 2.0, 0.5])
    assert np.allclose(transfer(sigma, 0, 1.0), sigma)
    assert np.allclose(transfer(sigma, 1, 9.0), sigma / np.sqrt(sigma**2 + 9))
    assert np.allclose(transfer(sigma, 1), 1.0)
    assert np.allclose(transfer(sigma, 2, 0.1), sigma / (sigma**2 + 0.1))


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_the_minimum_of_the_model_along_it(seed: int) -> None:
    sigma, matrix = _random_problem(seed, 4)
    model = _model(sigma, matrix)
    assert model.sigma.size == 4
    weights = transfer(sigma, 1.3, 0.2)

    def loss(eta: np.ndarray) -> float:
        step = -eta[0] * weights
        return float(step @ sigma + step @ matrix @ step / 2)

    found = minimize(loss, [0.1], tol=1e-12)
    step = model.step(weights)
    assert not isinstance(step, Missing)
    assert step.length == pytest.approx(found.x[0], rel=1e-5)
    assert step.decrease == pytest.approx(-found.fun, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_step_is_the_minimum_over_all_combinations(seed: int) -> None:
    sigma, matrix = _random_problem(seed, 5)
    model = _model(sigma, matrix)
    found = minimize(lambda x: float(x @ matrix @ x / 2 - x @ sigma), np.zeros(5), tol=1e-12)
    assert model.best_decrease == pytest.approx(-found.fun, rel=1e-8)
    assert np.allclose(model.best, found.x, atol=1e-4)
    best = model.step(model.best)
    assert not isinstance(best, Missing)
    assert best.efficiency == pytest.approx(1.0)
    assert best.length == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 8), b=st.floats(-1, 4), scale=st.floats(1e-6, 1e6))
def test_efficiency_lies_between_0_and_1_and_has_no_scale(seed: int, k: int, b: float, scale: float) -> None:
    sigma, matrix = _random_problem(seed, k)
    model = _model(sigma, matrix)
    step = model.step(transfer(model.sigma, b))
    if isinstance(step, Missing):
        return
    assert 0 < step.efficiency <= 1
    scaled = _model(scale * sigma, scale**1.5 * matrix)
    other = scaled.step(7 * transfer(scaled.sigma, b))
    assert not isinstance(other, Missing)
    assert other.efficiency == pytest.approx(step.efficiency, rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 1.7, 2.0, 3.0])
def test_the_planted_exponent_is_the_perfect_step(beta: float) -> None:
    sigma = np.arange(1, 13) ** -0.9
    model = _model(sigma, np.diag(3 * sigma**beta))
    perfect = model.step(transfer(sigma, beta))
    assert not isinstance(perfect, Missing)
    assert perfect.efficiency == pytest.approx(1.0)
    assert find_most_efficient(model) == pytest.approx(beta, abs=0.011)
    for other in {0.0, 1.0, 2.0} - {beta}:
        step = model.step(transfer(sigma, other))
        assert not isinstance(step, Missing)
        assert step.efficiency < 0.99


def test_gradient_descent_on_a_newton_spectrum_by_hand() -> None:
    """h = sigma²: efficiency of b = 0 is (Σ sigma²)² / (Σ sigma⁴ · K)."""
    sigma = np.array([4.0, 2.0, 1.0])
    step = _model(sigma, np.diag(sigma**2)).step(transfer(sigma, 0.0))
    assert not isinstance(step, Missing)
    assert step.efficiency == pytest.approx(21**2 / (273 * 3))


def test_off_diagonal_curvature_counts() -> None:
    sigma = [1.0, 1.0]
    step = _model(sigma, [[2.0, -1.0], [-1.0, 2.0]]).step([1.0, 1.0])
    assert not isinstance(step, Missing)
    assert step.decrease == pytest.approx(1.0)  # by the diagonal alone it would be ½


def test_the_window_ends_before_negative_or_unresolved_curvature() -> None:
    sigma, matrix = _random_problem(1, 6)
    matrix[3, 3] = -1.0
    model = _model(sigma, matrix)
    assert model.sigma.size == 3
    assert np.allclose(model.matrix, matrix[:3, :3])
    copied = np.array([[2.0, 2.0, 0.0], [2.0, 2.0 + LEAST_PIVOT, 0.0], [0.0, 0.0, 1.0]])
    assert _model([3.0, 2.0, 1.0], copied).sigma.size == 1
    copied[1, 1] = 2.1
    assert _model([3.0, 2.0, 1.0], copied).sigma.size == 3


def test_a_spread_of_twelve_orders_is_no_trouble() -> None:
    sigma = np.array([1e6, 1.0, 1e-6])
    model = _model(sigma, np.diag(sigma**2))
    assert model.best_decrease == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("sigma", "matrix", "reason"),
    [
        ([], np.zeros((0, 0)), "the window holds no direction"),
        ([1.0], [[-1.0]], "the curvature along the first direction is not positive"),
        ([1.0], [[np.nan]], "NaN or infinite"),
    ],
)
def test_no_model(sigma, matrix, reason: str) -> None:
    found = make_quadratic_model(sigma, matrix)
    assert isinstance(found, Missing)
    assert reason in found.reason


def test_no_descent() -> None:
    found = _model([2.0, 1.0], np.eye(2)).step([-1.0, 0.0])
    assert found == Missing("the loss does not fall along this step")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transfer([1.0, 0.0], 1.0), "sigma must be positive"),
        (lambda: transfer([1.0], 1.0, -0.5), "damping must be 0 or more, got -0.5"),
        (lambda: make_quadratic_model([1.0, 1.0], [[1.0]]), r"matrix has shape \(1, 1\), expected \(2, 2\)"),
        (lambda: _model([1.0], [[1.0]]).step([1.0, 2.0]), "transfer has 2 values, the model 1 directions"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
