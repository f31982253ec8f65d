"""Singular directions against numpy, at every scale and shape, by every route."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectrascope.errors import NonFiniteError
from spectrascope.numerics import directions as module
from spectrascope.numerics import leading
from spectrascope.numerics.directions import spectral_norm, top_directions
from spectrascope.numerics.leading import leading_eigenvectors
from tests.support import oracles

EPS = {torch.float32: 2**-23, torch.float64: 2**-52}
SHAPES = [(5, 5), (3, 40), (40, 3), (1, 7), (7, 1), (1, 1)]


def _matrix(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _with_spectrum(sigma: list[float], m: int, n: int) -> torch.Tensor:
    left, _ = torch.linalg.qr(_matrix(m, len(sigma), 1))
    right, _ = torch.linalg.qr(_matrix(n, len(sigma), 2))
    return left @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ right.T


def _assert_svd(matrix: torch.Tensor, k: int, dtype: torch.dtype, tolerance: float = 1e-6) -> None:
    found = top_directions(matrix, k, dtype)
    sigma, left, right, rank = oracles.svd_directions(matrix, k, EPS[dtype])
    assert found.rank == rank
    assert found.k == len(sigma) == min(k, rank)
    np.testing.assert_allclose(found.sigma, sigma, rtol=tolerance)
    eye = np.eye(found.k)
    np.testing.assert_allclose(found.left.T @ found.left, eye, atol=tolerance)
    np.testing.assert_allclose(found.right.T @ found.right, eye, atol=tolerance)
    for i in range(found.k):
        np.testing.assert_allclose(
            torch.outer(found.left[:, i], found.right[:, i]), np.outer(left[:, i], right[:, i]), atol=tolerance
        )
        assert found.left[found.left[:, i].abs().argmax(), i] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-150, 1e30, 1e150])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_numpy(shape, scale, dtype):
    _assert_svd(_matrix(*shape) * scale, 4, dtype)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_float64_route_resolves_what_a_gram_matrix_cannot(shape):
    matrix = _with_spectrum([1.0, 1e-3, 1e-7, 1e-10, 1e-13], *shape)
    _assert_svd(matrix, 5, torch.float64, 1e-2)
    assert top_directions(matrix, 5, torch.float64).rank == 5
    assert top_directions(matrix, 5, torch.float32).rank == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_cut_sits_at_max_side_times_eps(dtype):
    cut = 9 * EPS[dtype]
    above, below = 3 * cut, cut / 3
    assert top_directions(_with_spectrum([1.0, 0.1, above], 6, 9), 6, dtype).rank == 3
    assert top_directions(_with_spectrum([1.0, 0.1, below], 6, 9), 6, dtype).rank == 2


def test_k_above_rank_keeps_the_rank():
    found = top_directions(_with_spectrum([3.0, 2.0, 1.0], 8, 5), 20)
    assert (found.k, found.rank, len(found.spectrum)) == (3, 3, 5)


def test_degenerate_singular_values_span_the_right_space():
    matrix = _with_spectrum([2.0, 2.0, 2.0, 1.0], 7, 6)
    found = top_directions(matrix, 4)
    np.testing.assert_allclose(found.sigma, [2, 2, 2, 1], rtol=1e-9)
    np.testing.assert_allclose(found.left * found.sigma @ found.right.T, matrix, atol=1e-8)


def test_zero_matrix_has_no_directions():
    found = top_directions(torch.zeros(3, 5), 4)
    assert (found.rank, found.k, found.left.shape, found.right.shape) == (0, 0, (3, 0), (5, 0))
    assert found.spectrum.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_is_refused(bad):
    matrix = _matrix(3, 4)
    matrix[1, 2] = bad
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        top_directions(matrix, 2)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_of_a_large_matrix_the_leading_vectors_alone_are_computed(monkeypatch, shape, scale):
    matrix = _with_spectrum([0.8**i for i in range(20)], *shape) * scale
    dense = top_directions(matrix, 6)
    monkeypatch.setattr(module, "_DENSE_MAX", 8)
    calls = []
    monkeypatch.setattr(module, "leading_eigenvectors", lambda *a: calls.append(1) or leading_eigenvectors(*a))
    found = top_directions(matrix, 6)
    assert calls == [1]
    np.testing.assert_allclose(found.sigma, dense.sigma, rtol=1e-9)
    np.testing.assert_allclose(found.left, dense.left, atol=1e-7)
    np.testing.assert_allclose(found.right, dense.right, atol=1e-7)
    np.testing.assert_allclose(found.spectrum, dense.spectrum, atol=2e-8 * float(dense.sigma[0]))
    assert found.rank == dense.rank == 20
    alone = top_directions(matrix, 6, spectrum=False)
    assert alone.spectrum is None
    assert torch.equal(alone.left, found.left)
    monkeypatch.setattr(module, "_SPECTRUM_MAX", 8)
    lower = top_directions(matrix, 6)
    assert lower.spectrum is None
    assert lower.rank == 6
    np.testing.assert_allclose(lower.left, dense.left, atol=1e-7)


def test_vectors_that_do_not_settle_are_found_densely(monkeypatch):
    matrix = _matrix(130, 120)
    dense = top_directions(matrix, 3)
    monkeypatch.setattr(module, "_DENSE_MAX", 8)
    monkeypatch.setattr(leading, "_PASSES", 2)
    assert leading_eigenvectors(lambda x: matrix.T @ (matrix @ x), matrix, 120, 3) is None
    np.testing.assert_allclose(top_directions(matrix, 3).sigma, dense.sigma, rtol=1e-12)
    np.testing.assert_allclose(top_directions(matrix, 3).left, dense.left, atol=1e-12)


_SPECTRA = {
    "power law": [1 / i for i in range(1, 301)],
    "slow": [i**-0.25 for i in range(1, 301)],
    "equal ones": [3.0] * 4 + [2.0] * 6 + [0.5**i for i in range(290)],
    "one alone": [1.0] + [1e-6] * 299,
    "of low rank": [1.0, 0.5, 0.1] + [0.0] * 297,
    "all equal": [1.0] * 300,
}


@pytest.mark.parametrize("name", _SPECTRA)
def test_leading_eigenvectors_of_any_spectrum(name):
    values = torch.tensor(_SPECTRA[name], dtype=torch.float64)
    basis = torch.linalg.qr(_matrix(300, 300, 4)).Q
    matrix = (basis * values) @ basis.T
    products = []
    found = leading_eigenvectors(lambda x: products.append(x.shape[1]) or matrix @ x, matrix, 300, 10)
    assert found is not None
    top, vectors = found
    expected = values.sort(descending=True).values[:10]
    assert float((top - expected).abs().max()) <= 1e-9 * float(expected[0])
    assert float((matrix @ vectors - vectors * top).norm(dim=0).max()) <= 1e-9 * float(expected[0])
    assert float((vectors.T @ vectors - torch.eye(10)).abs().max()) <= 1e-10
    assert sum(products) <= {"slow": 40, "equal ones": 12, "power law": 12}.get(name, 4) * 26


@pytest.mark.parametrize("dense_max", [1024, 8])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-200, 1e200])
def test_spectral_norm(monkeypatch, dense_max, scale):
    monkeypatch.setattr(module, "_DENSE_MAX", dense_max)
    for shape in ((30, 12), (12, 30)):
        matrix = _matrix(*shape)
        expected = np.linalg.norm(matrix.numpy(), 2)
        assert spectral_norm(matrix * scale) / scale == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dense_max", [1024, 8])
def test_spectral_norm_of_zero(monkeypatch, dense_max):
    monkeypatch.setattr(module, "_DENSE_MAX", dense_max)
    assert spectral_norm(torch.zeros(12, 10)) == 0.0


def test_some_directions_are_those_columns() -> None:
    found = top_directions(_matrix(7, 5), 4, torch.float64)
    some = found.pick([0, 2])
    assert some.k == 2
    torch.testing.assert_close(some.sigma, found.sigma[[0, 2]])
    torch.testing.assert_close(
        some.left @ torch.diag(some.sigma) @ some.right.T,
        sum(found.sigma[i] * torch.outer(found.left[:, i], found.right[:, i]) for i in (0, 2)),
    )
    assert (some.rank, some.spectrum is found.spectrum) == (found.rank, True)
