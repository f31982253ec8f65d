"""Cross-validated eigenvalues of Kronecker factors: explicit sums over halves, and a planted spectrum."""

import numpy as np
import pytest
import torch
from torch import Tensor

from spectrascope.curvature import factor_sums
from spectrascope.curvature.factor_sums import GramSum
from spectrascope.measure.signal import deal_samples
from spectrascope.records.decomposition import Factor
from spectrascope.records.values import Missing, PowerFit
from spectrascope.workload import TensorSource
from tests.curvature.test_kronecker import CASES, K, decomposed, directions, explicit, only

SAMPLES = 16


def forms_across(first: Tensor, second: Tensor) -> list[float]:
    """q_kᵀ C q_k with the eigenvectors of one half and C of the other, the mean of both ways round."""
    found = []
    for chosen, held in ((first, second), (second, first)):
        vectors = torch.linalg.eigh(chosen).eigenvectors.flip(1)[:, :K]
        found.append([float(q @ held @ q) for q in vectors.T])
    mean = np.mean(found, 0).tolist()
    return mean + [0.0] * (K - len(mean))


@pytest.mark.parametrize("engine", ["auto", "double-backprop"])
@pytest.mark.parametrize("name", ["conv", "conv_groups", "linear", "tokens", "twice"])
def test_cross_validated_eigenvalues_are_explicit_sums_over_halves(name: str, engine: str) -> None:
    torch.manual_seed(1)
    build, shape, weight = CASES[name]
    model, x, y = build(), torch.randn(SAMPLES, *shape).double(), torch.arange(SAMPLES) % 3
    model(x.float())
    model = model.double()
    # Five groups of unequal size: the halves are of six and ten samples, and micro-batches of four meet the border.
    _, found = only(decomposed(model, x, y, engine=engine, layers=[weight], groups=5, micro_batch=4))
    u, v = directions(model, weight, x, y)
    dealt = deal_samples(TensorSource(x, y), groups=5, folds=1, curvature_samples=SAMPLES, seed=0)
    middle = dealt.borders[2]
    inputs, _ = dealt.source.fetch(0, SAMPLES)
    assert isinstance(inputs, Tensor)
    halves = [explicit(model, weight, part, u, v) for part in (inputs[:middle], inputs[middle:])]
    for factor, key in ((found.factors.delta, "c_delta"), (found.factors.a, "c_a")):
        assert factor.cross_validated == pytest.approx(
            forms_across(halves[0][key], halves[1][key])[: u.shape[1]], rel=1e-7, abs=1e-12
        )
    assert isinstance(found.alignment.beta_lambda_cv, PowerFit | Missing)


def test_raw_eigenvalues_of_few_samples_are_too_large_and_cross_validated_ones_are_not() -> None:
    """Half as many dimensions as samples: raw eigenvalues are spread, the others are right along their vectors."""
    d, n, k, seeds = 40, 80, 10, 200
    planted = np.where(np.arange(d) < 3, [6.0, 4.0, 3.0, *[1.0] * (d - 3)], 1.0)
    raw, crossed, truth = (np.zeros((seeds, k)) for _ in range(3))
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.tensor(planted).sqrt()
        gram = GramSum(1, d, torch.eye(d, k).double(), torch.device("cpu"), torch.float64)
        for half, part in enumerate(rows.chunk(2)):
            gram.add(part[:, None], half=half)
            vectors = torch.linalg.eigh(part.T @ part).eigenvectors.flip(1)[:, :k]
            truth[seed] += (vectors.square().T @ torch.tensor(planted)).numpy() / 2
        raw[seed] = gram.finish(n)[0][:k]
        found = gram.cross_validate(n, (0.5, 0.5), k)
        assert not isinstance(found, Missing)
        crossed[seed] = found
    error = (crossed - truth).mean(0) / ((crossed - truth).std(0) / seeds**0.5)
    assert np.abs(error).max() < 3.5
    assert abs((crossed - truth).mean()) < 0.03
    # All leading raw eigenvalues lie above the planted ones; those of the bulk by half and more.
    assert (raw.mean(0) > planted[:k]).all()
    assert (raw.mean(0)[3:] > 1.5).all()
    assert crossed.mean(0)[3:].max() < 1.5


def test_equal_eigenvalues_stay_equal() -> None:
    """White noise: raw eigenvalues fall with rank, cross-validated ones are flat."""
    d, n = 50, 100
    flat, raw = np.zeros(10), np.zeros(10)
    for seed in range(40):
        rows = torch.randn(n, 1, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gram = GramSum(1, d, torch.eye(d, 3).double(), torch.device("cpu"), torch.float64)
        for half, part in enumerate(rows.chunk(2)):
            gram.add(part, half=half)
        found = gram.cross_validate(n, (0.5, 0.5), 10)
        assert not isinstance(found, Missing)
        flat += np.array(found) / 40
        raw += gram.finish(n)[0][:10].numpy() / 40
    assert flat == pytest.approx(np.ones(10), abs=0.1)
    assert raw[0] > 2.4
    assert raw[0] / raw[-1] > 1.4


def test_one_sample_group_has_no_halves() -> None:
    torch.manual_seed(1)
    build, shape, weight = CASES["linear"]
    _, found = only(decomposed(build().double(), torch.randn(7, *shape).double(), torch.arange(7) % 3, groups=1,
                               layers=[weight]))  # fmt: skip
    why = Missing("cross-validated eigenvalues need at least two sample groups")
    assert found.factors.a.cross_validated == found.factors.delta.cross_validated == why
    assert found.alignment.beta_lambda_cv == why


def test_a_sketch_holds_no_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_sums, "HELD_UP_TO", 5)
    torch.manual_seed(1)
    build, shape, weight = CASES["linear"]
    _, found = only(decomposed(build().double(), torch.randn(30, *shape).double(), torch.arange(30) % 3,
                               layers=[weight], top_k=2))  # fmt: skip
    assert isinstance(found.factors.a, Factor)
    assert isinstance(found.factors.a.cross_validated, Missing)
    assert "larger than 5" in found.factors.a.cross_validated.reason
    assert not isinstance(found.factors.delta.cross_validated, Missing)
    assert found.alignment.beta_lambda_cv == found.factors.a.cross_validated


def test_reports_of_before_say_so() -> None:
    assert "measure again" in Factor(1, (1.0,), 1.0, 1.0, 1.0, True).cross_validated.reason  # type: ignore[union-attr]
