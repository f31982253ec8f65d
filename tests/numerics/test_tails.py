"""Power-law tails against a slow version, known exponents, invariances and refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrascope.measure.weights import measure_weight
from spectrascope.numerics.spectra import gram_eigenvalues
from spectrascope.numerics.tails import fit_tail
from spectrascope.records.report import LayerInfo
from spectrascope.records.values import LayerKind, LayerRole, Missing
from spectrascope.records.weights import TailFit, WeightOptions


def slow_tail(values: np.ndarray) -> tuple[float, float, float, int]:
    """alpha, xmin, D and the size of the tail, every candidate in full, in the order of the definition."""
    x = np.sort(values)
    best = (0.0, 0.0, np.inf, 0)
    for i in range(len(x) - 1):
        tail = x[i:]
        n = len(tail)
        alpha = 1 + n / sum(np.log(value / x[i]) for value in tail)
        fitted = [1 - (value / x[i]) ** (1 - alpha) for value in tail]
        distance = max(abs(f - j / n) for j, f in enumerate(fitted))
        if distance < best[2]:
            best = (alpha, x[i], distance, n)
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["pareto", "exponential", "lognormal", "gram"])
def test_tail_is_the_slow_one(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(9, 150))
    values = {
        "pareto": lambda: rng.pareto(1.7, n) + 1,
        "exponential": lambda: rng.exponential(3.0, n),
        "lognormal": lambda: rng.lognormal(0, 2, n),
        "gram": lambda: np.linalg.svd(rng.standard_t(3, (n, 2 * n)), compute_uv=False) ** 2,
    }[kind]()
    fit = fit_tail(values)
    assert isinstance(fit, TailFit)
    alpha, xmin, distance, size = slow_tail(values)
    assert (fit.alpha, fit.xmin, fit.D) == pytest.approx((alpha, xmin, distance), rel=1e-9)
    assert fit.num_pl_spikes == size
    assert fit.sigma == pytest.approx((alpha - 1) / np.sqrt(size), rel=1e-9)
    assert fit.xmax == values.max()


@pytest.mark.parametrize("alpha", [1.5, 2.5, 4.0])
def test_known_exponents_are_recovered_within_their_error(alpha: float) -> None:
    rng = np.random.default_rng(0)
    body = rng.uniform(0, 2, 2000)
    tail = 2 * (1 - rng.uniform(size=3000)) ** (-1 / (alpha - 1))
    fit = fit_tail(np.concatenate([body, tail]))
    assert isinstance(fit, TailFit)
    assert abs(fit.alpha - alpha) < 4 * fit.sigma
    assert fit.xmin == pytest.approx(2, rel=0.35)
    assert 1500 < fit.num_pl_spikes < 3300


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 1e3), min_size=8, max_size=40, unique=True), st.floats(1e-6, 1e6))
def test_scaling_moves_xmin_and_nothing_else(values: list[float], factor: float) -> None:
    one, other = fit_tail(values), fit_tail([v * factor for v in values])
    if isinstance(one, Missing) or isinstance(other, Missing):
        assert isinstance(one, Missing) == isinstance(other, Missing)
        return
    assert pytest.approx(one.D, rel=1e-6, abs=1e-9) == other.D
    if other.num_pl_spikes == one.num_pl_spikes:  # two candidates may be equally near
        assert other.alpha == pytest.approx(one.alpha, rel=1e-6)
        assert other.xmin == pytest.approx(one.xmin * factor, rel=1e-9)


def test_order_does_not_matter_and_zeros_are_left_out() -> None:
    values = np.arange(1.0, 40.0) ** 2
    shuffled = np.random.default_rng(1).permutation(values)
    assert fit_tail(np.concatenate([shuffled, np.zeros(5)])) == fit_tail(values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.ones(7), "7 positive eigenvalues, a tail needs at least 8"),
        (np.full(20, 3.0), "all 20 eigenvalues are equal"),
        (np.array([1.0] * 9 + [np.nan]), "NaN or infinity in 1 of 10"),
        (np.array([]), "0 positive"),
    ],
)
def test_no_tail_says_why(values: np.ndarray, reason: str) -> None:
    found = fit_tail(values)
    assert isinstance(found, Missing)
    assert reason in found.reason


def test_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="one-dimensional"):
        fit_tail(np.ones((3, 3)))


@pytest.mark.parametrize("shape", [(30, 70), (70, 30), (600, 520)])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_gram_eigenvalues_are_squared_singular_values(shape: tuple[int, int], scale: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    values, error = gram_eigenvalues(matrix)
    truth = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    assert np.abs(values.numpy() - truth).max() <= error <= 1e-11 * truth[0]


@pytest.mark.parametrize("spectrum", ["noise", "equal", "power", "exponential", "spike"])
def test_single_precision_is_off_by_no_more_than_it_says(spectrum: str) -> None:
    noise = torch.randn(1100, 1300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(noise, full_matrices=False)
    k = torch.arange(1.0, 1101.0, dtype=torch.float64)
    sigma = {"equal": k**0, "power": 1 / k, "exponential": torch.exp(-k / 120)}.get(spectrum, 0 * k)
    matrix = ((left * sigma) @ right).float() if sigma.any() else noise.float()
    if spectrum == "spike":
        matrix += 1000 * torch.outer(left[:, 0], right[0]).float()
    values, error = gram_eigenvalues(matrix, precise=False)
    truth, _ = gram_eigenvalues(matrix)
    assert 0 < float((values - truth).abs().max()) <= error <= 1e-4 * float(truth[0])


@pytest.mark.parametrize(("tail", "routes"), [(0.3, [False]), (2.5, [False, True])])
def test_double_precision_is_for_tails_that_reach_too_low(
    tail: float, routes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single precision settles alpha where x_min is near the largest eigenvalue, and does not where it is far below."""
    left, _, right = torch.linalg.svd(torch.randn(1100, 1100, generator=torch.Generator().manual_seed(0)))
    matrix = (left * torch.arange(1.0, 1101.0) ** -tail) @ right
    seen = []

    def noted(matrix: torch.Tensor, *, precise: bool) -> tuple[torch.Tensor, float]:
        seen.append(precise)
        return gram_eigenvalues(matrix, precise=precise)

    monkeypatch.setattr("spectrascope.measure.weights.gram_eigenvalues", noted)
    info = LayerInfo("w", LayerKind.LINEAR, LayerRole.MATRIX, (1100, 1100), (1100, 1100))
    row = measure_weight(info, matrix, WeightOptions())
    assert seen == routes
    truth = fit_tail(gram_eigenvalues(matrix)[0].numpy()[: row.matrix_rank])
    assert (row.tail.alpha, row.tail.xmin) == pytest.approx((truth.alpha, truth.xmin), rel=1e-3)


def test_zero_matrix_has_zero_eigenvalues() -> None:
    values, error = gram_eigenvalues(torch.zeros(3, 5))
    assert values.tolist() == [0.0] * 3
    assert error == 0.0
