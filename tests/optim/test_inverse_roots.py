"""Matrix functions by products alone: as accurate as promised, for no more than two of Muon's steps."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from spectrascope.optim import SpectralNewton, apply_transfer
from spectrascope.optim import matrix_transfer as module
from spectrascope.optim.inverse_roots import TOLERANCE, apply_inverse_root, plan_inverse_root
from spectrascope.optim.matrix_transfer import choose_route
from spectrascope.optim.precision import full_float32
from tests.support.oracles import matrix_with_spectrum, power_law, transfer_by_svd

GRID = [quarter / 4 for quarter in range(1, 13)]
SHAPES = ((48, 48), (24, 96), (96, 24))


def _worst(found: Tensor, exact: Tensor) -> float:
    """Spectral norm of the error over that of the result."""
    return float(torch.linalg.matrix_norm(found.double() - exact, 2) / torch.linalg.matrix_norm(exact, 2))


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("eighths", range(1, 13))
def test_roots_keep_their_tolerance(eighths: int, condition: float) -> None:
    values = torch.logspace(0, -math.log10(condition), 32, dtype=torch.float64)
    vectors = matrix_with_spectrum(32, 32, torch.ones(32, dtype=torch.float64))
    matrix = (vectors * values) @ vectors.T
    plan = plan_inverse_root(eighths, condition)
    found = vectors.T @ apply_inverse_root(matrix[None], plan)[0] @ vectors
    assert plan.error <= TOLERANCE
    assert float((found.diagonal() * values ** (eighths / 8) - 1).abs().max()) <= 2 * TOLERANCE
    assert float((found - torch.diag(found.diagonal())).abs().max()) <= 1e-6 * float(found.diagonal().max())


@pytest.mark.parametrize("beta", GRID)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damping", [0.1, 1e-2, 1e-4, 1e-6])
def test_roots_match_the_definition(beta: float, shape: tuple[int, int], damping: float) -> None:
    matrix = matrix_with_spectrum(*shape, power_law(min(shape), 2.0))
    exact = transfer_by_svd(matrix, beta, damping)
    assert _worst(apply_transfer(matrix, beta, damping, route="roots"), exact) <= 3e-3
    # Rounded float32 input is another matrix, so it has a definition of its own.
    single = matrix.float()
    found = apply_transfer(single, beta, damping, route="roots")
    assert found.dtype == torch.float32
    assert _worst(found, transfer_by_svd(single.double(), beta, damping)) <= 2e-2


@pytest.mark.parametrize("beta", GRID)
def test_wide_stacks_zeros_nan_low_rank_and_bfloat16(beta: float) -> None:
    good = matrix_with_spectrum(8, 20, power_law(8, 1.0)).float()
    low = matrix_with_spectrum(8, 20, torch.tensor([1.0, 0.5], dtype=torch.float64)).float()
    bad = good.clone()
    bad[0, 0] = math.nan
    for free in (False, True):
        stack = torch.stack([torch.zeros(8, 20), bad, good, low])
        found = apply_transfer(stack, beta, 1e-3, scale_free=free, route="roots")
        reference = apply_transfer(stack, beta, 1e-3, scale_free=free, route="svd")
        assert torch.equal(found[0], torch.zeros(8, 20))
        assert bool(found[1].isnan().all())
        for place in (2, 3):
            assert _worst(found[place], reference[place].double()) <= 5e-3
        half = apply_transfer(good.bfloat16(), beta, 1e-3, scale_free=free, route="roots")
        assert half.dtype == torch.bfloat16
        single = apply_transfer(good.bfloat16().float(), beta, 1e-3, scale_free=free, route="svd")
        assert _worst(half, single.double()) <= 1e-2


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_size_of_the_gradient_does_not_matter_to_scale_free_roots(scale: float) -> None:
    matrix = matrix_with_spectrum(6, 9, power_law(6, 1.0))
    for beta in (0.25, 1.0, 2.75):
        found = apply_transfer((scale * matrix).float(), beta, 0.01, scale_free=True, route="roots")
        assert _worst(found, apply_transfer(matrix, beta, 0.01, scale_free=True, route="svd")) <= 5e-3


@pytest.mark.parametrize("beta", [1.5, 2.0, 2.5, 3.0])
def test_rounding_of_float32_stays_small_where_it_is_trusted(beta: float) -> None:
    matrix = matrix_with_spectrum(128, 128, torch.logspace(0, -2, 128, dtype=torch.float64)).float()
    found = apply_transfer(matrix, beta, 1e-4, route="roots", precision="float32")
    assert _worst(found, transfer_by_svd(matrix.double(), beta, 1e-4)) <= 3e-3


def test_a_compiled_step_on_a_gpu_is_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_route", lambda beta, _="cpu": choose_route(beta, "cuda"))
    options = {"lr": 0.1, "beta": 1.25, "damping": 1e-3, "scale_free": True}
    plain, compiled = _parameter((8, 12)), _parameter((8, 12))
    SpectralNewton([plain], **options).step()
    torch.compile(SpectralNewton([compiled], **options).step, backend="eager", fullgraph=True)()
    assert torch.allclose(plain, compiled, atol=1e-6)


def _products(optimizer: torch.optim.Optimizer) -> int:
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    return counter.get_total_flops()


def _parameter(shape: tuple[int, int]) -> torch.nn.Parameter:
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = matrix_with_spectrum(*shape, power_law(min(shape), 1.0)).float()
    return p


@pytest.mark.parametrize("beta", GRID)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_on_a_gpu_is_made_of_at_most_two_muon_steps_of_products(
    beta: float, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    monkeypatch.setattr(module, "choose_route", lambda beta, _="cpu": choose_route(beta, "cuda"))
    for name in ("eigh", "svd", "cholesky_ex"):
        monkeypatch.setattr(torch.linalg, name, lambda *_, name=name, **__: pytest.fail(f"{name} on a GPU"))
    muon = _products(torch.optim.Muon([_parameter(shape)]))
    ours = _products(SpectralNewton([_parameter(shape)], beta=beta, damping=1e-4, scale_free=True))
    assert 0 < ours <= 2 * muon
    assert ours < 1.3 * muon or beta > 1 or beta == 0.75


def test_planned_products_are_those_made() -> None:
    for eighths in range(1, 13):
        plan = plan_inverse_root(eighths, 1e4)
        with FlopCounterMode(display=False) as counter:
            apply_inverse_root(torch.eye(16)[None], plan)
        assert counter.get_total_flops() == plan.products * 2 * 16**3


def test_routes_by_device() -> None:
    on_gpu = [choose_route(beta, torch.device("cuda")).value for beta in (0, 0.3, 0.25, 2, 3, 3.25)]
    assert on_gpu == ["scale", "eigh", "roots", "roots", "roots", "eigh"]
    assert [choose_route(beta).value for beta in (0, 0.25, 2, 3)] == ["scale", "eigh", "cholesky", "eigh"]


def test_products_are_float32_whatever_the_process_has_set() -> None:
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch 2.9 gave this switch its name")
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with full_float32():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
