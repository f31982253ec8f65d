"""The spectral transfer by every route against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectrascope.optim import Precision, Route, apply_transfer
from tests.support.oracles import matrix_with_spectrum, power_law, transfer_by_svd

BETAS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
SHAPES = ((12, 40), (40, 12), (24, 24), (1, 7), (10, 64))


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


def _routes(beta: float) -> list[Route]:
    return [
        Route.AUTO, Route.EIGH, Route.SVD,
        *([Route.CHOLESKY] if beta == 2 else []), *([Route.SCALE] if beta == 0 else []),
    ]  # fmt: skip


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
def test_every_route_matches_the_definition_in_float64(beta: float, shape: tuple[int, int], decay: float) -> None:
    for scale in (1e-3, 1.0, 1e3):
        matrix = scale * matrix_with_spectrum(*shape, power_law(min(shape), decay))
        for damping in (0.1, 1e-3):
            expected = transfer_by_svd(matrix, beta, damping)
            for route in _routes(beta):
                assert _relative(apply_transfer(matrix, beta, damping, route=route), expected) <= 1e-8, (scale, route)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("decay", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("damping", [0.1, 1e-2, 1e-4, 1e-6])
def test_float32_is_accurate_above_the_damping(beta: float, decay: float, damping: float) -> None:
    for scale in (1e-2, 1.0, 1e2):
        matrix = (scale * matrix_with_spectrum(48, 96, power_law(48, decay))).float()
        left, sigma, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        above = sigma**2 > damping
        if not bool(above.any()):
            continue
        found = apply_transfer(matrix, beta, damping)
        assert found.dtype == torch.float32
        wrong = left.T @ (found.double() - transfer_by_svd(matrix, beta, damping)) @ right.T
        largest = (sigma / (sigma**2 + damping) ** (beta / 2))[above].max()
        assert float(wrong[above][:, above].abs().max() / largest) <= 1e-3, scale


def test_beta_one_without_damping_is_the_polar_factor() -> None:
    matrix = matrix_with_spectrum(8, 20, power_law(8, 2.0)).float()
    found = apply_transfer(matrix, beta=1.0, damping=0.0)
    assert torch.allclose(found @ found.T, torch.eye(8), atol=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_damping_rounding_noise_is_dropped(beta: float, dtype: torch.dtype) -> None:
    sigma = torch.cat([power_law(5, 1.0), torch.zeros(7, dtype=torch.float64)])
    matrix = matrix_with_spectrum(12, 30, sigma).to(dtype)
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    core = left[:, :5].T @ apply_transfer(matrix, beta, 0.0).double() @ right[:5].T
    expected = torch.diag(sigma[:5] ** (1 - beta))
    assert torch.allclose(core, expected, rtol=1e-4, atol=1e-4)
    rest = left[:, 5:].T @ apply_transfer(matrix, beta, 0.0).double() @ right.T
    assert float(rest.abs().max()) < 1e-3


@pytest.mark.parametrize("scale", [1e-306, 1e-200, 1e200, 1e306])
@pytest.mark.parametrize("beta", BETAS)
def test_huge_and_tiny_matrices_in_float64(beta: float, scale: float) -> None:
    matrix = matrix_with_spectrum(6, 9, power_law(6, 1.0))
    for route in _routes(beta):
        free = apply_transfer(scale * matrix, beta, 0.05, scale_free=True, route=route)
        assert _relative(free, apply_transfer(matrix, beta, 0.05, scale_free=True)) <= 1e-8, route
        if scale < 1:  # all is below the damping: T(sigma) = sigma / d^(beta/2)
            found = apply_transfer(scale * matrix, beta, 0.1, route=route)
            assert _relative(found / scale, matrix / 0.1 ** (beta / 2)) <= 1e-8, route


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
def test_huge_and_tiny_matrices_in_float32(beta: float, scale: float) -> None:
    base = matrix_with_spectrum(6, 9, power_law(6, 1.0))
    found = apply_transfer((scale * base).float(), beta, damping=0.1)
    expected = transfer_by_svd(scale * base, beta, damping=0.1)
    if float(expected.abs().max()) < 3e38:
        assert torch.isfinite(found).all()
    if 1e-36 < float(expected.abs().max()) < 3e38:
        assert _relative(found, expected) <= 1e-3
    relative = apply_transfer((scale * base).float(), beta, 0.1, scale_free=True)
    assert _relative(relative, apply_transfer(base, beta, 0.1, scale_free=True)) < 1e-4


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("scale_free", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_zero_gives_zero_and_nan_stays_where_it_is(beta: float, scale_free: bool, damping: float) -> None:
    good = matrix_with_spectrum(4, 6, power_law(4, 1.0)).float()
    bad, infinite = good.clone(), good.clone()
    bad[1, 2], infinite[0, 0] = math.nan, math.inf
    stack = torch.stack([torch.zeros(4, 6), bad, good, infinite])
    for route in (Route.AUTO, Route.SVD):
        found = apply_transfer(stack, beta, damping, scale_free=scale_free, route=route)
        assert torch.equal(found[0], torch.zeros(4, 6))
        assert bool(found[1].isnan().all())
        assert bool(found[3].isnan().all())
        alone = apply_transfer(good, beta, damping, scale_free=scale_free, route=route)
        assert torch.allclose(found[2], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_scale_free_has_the_norm_of_an_orthogonal_matrix_and_the_direction_of_the_transfer(beta: float) -> None:
    matrix = matrix_with_spectrum(6, 15, power_law(6, 1.3))
    unit = float((torch.linalg.svdvals(matrix) ** 4).sum() ** 0.25)
    found = apply_transfer(matrix, beta, 0.05, scale_free=True)
    assert float(found.norm()) == pytest.approx(math.sqrt(6), rel=1e-12)
    direction = transfer_by_svd(matrix / unit, beta, 0.05)
    assert torch.allclose(found, direction * math.sqrt(6) / direction.norm(), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), m=st.integers(1, 9), n=st.integers(1, 9),
    beta=st.floats(0, 3), damping=st.floats(1e-3, 10), scale_free=st.booleans(),
)  # fmt: skip
def test_transposing_rotating_and_stacking_commute_with_the_transfer(
    seed: int, m: int, n: int, beta: float, damping: float, scale_free: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, m, n, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))[0]

    def transfer(matrix: Tensor) -> Tensor:
        return apply_transfer(matrix, beta, damping, scale_free=scale_free)

    base = transfer(one)
    assert torch.allclose(transfer(one.T), base.T, atol=1e-9)
    assert torch.allclose(transfer(rotation @ one), rotation @ base, atol=1e-8)
    assert torch.allclose(transfer(-one), -base, atol=1e-9)
    assert torch.allclose(transfer(torch.stack([one, other])), torch.stack([base, transfer(other)]), atol=1e-9)


def test_exponents_and_dampings_of_their_own() -> None:
    stack = torch.stack([matrix_with_spectrum(5, 8, power_law(5, 1.0), seed) for seed in range(3)])
    found = apply_transfer(stack, [0.0, 1.3, 2.0], [0.1, 0.2, 0.3])
    for matrix, result, beta, damping in zip(stack, found, (0.0, 1.3, 2.0), (0.1, 0.2, 0.3), strict=True):
        assert torch.allclose(result, transfer_by_svd(matrix, beta, damping), atol=1e-9)


def test_bfloat16_is_computed_in_float32() -> None:
    matrix = matrix_with_spectrum(8, 16, power_law(8, 1.0)).bfloat16()
    found = apply_transfer(matrix, 2.0, 0.1)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, apply_transfer(matrix.float(), 2.0, 0.1).bfloat16())


def test_forced_float32_says_so_where_the_damping_is_lost() -> None:
    matrix = matrix_with_spectrum(32, 64, power_law(32, 4.0)).float()
    exact = transfer_by_svd(matrix, 2.0, 1e-9)
    assert _relative(apply_transfer(matrix, 2.0, 1e-9), exact) < 1e-3
    forced = apply_transfer(matrix, 2.0, 1e-9, precision=Precision.FLOAT32)
    assert bool(torch.isfinite(forced).all())  # a larger damping than asked for, not garbage
    assert float(forced.abs().max()) < float(exact.abs().max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "beta must be a finite number from 0 on, got -1"),
        ({"damping": math.nan}, "damping must be a finite number from 0 on, got nan"),
        ({"beta": [1.0, 2.0]}, "beta: expected one value, or one for each of 1 matrices, got 2"),
        ({"beta": 1.0, "route": "cholesky"}, "route cholesky is for beta = 2 alone, got 1"),
        ({"beta": 1.0, "route": "scale"}, "route scale is for beta = 0 alone, got 1"),
        ({"beta": 1.1, "route": "roots"}, "route roots is for one beta of ¼, ½, … 3, got 1.1"),
        ({"beta": 1.0, "damping": 0.0, "route": "roots"}, "route roots needs a damping above 0"),
        ({"route": "qr"}, "'qr' is not a valid Route"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_transfer(torch.eye(3), **arguments)


def test_shapes_and_dtypes_that_are_no_matrices() -> None:
    for wrong in (torch.ones(3), torch.ones(2, 2, 2, 2), torch.ones(2, 2, dtype=torch.int64), torch.eye(2) * 1j):
        with pytest.raises(ValueError, match="expected real matrices"):
            apply_transfer(wrong)
    assert apply_transfer(torch.ones(0, 4)).shape == (0, 4)
