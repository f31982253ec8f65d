"""The optimizer: what a step is, what goes to AdamW, and that it behaves as a torch optimizer."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from spectrascope.optim import SpectralNewton
from tests.support.oracles import transfer_by_svd


def _parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    found = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]
    for p in found:
        p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
    return found


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3),
    )  # fmt: skip


def _closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 1, 4, 4, generator=generator)
    labels = inputs.flatten(1)[:, :3].argmax(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("beta", [0.0, 0.7, 1.0, 2.0, 3.0])
def test_one_step_is_the_papers_formula(beta: float) -> None:
    (p,) = _parameters((6, 9))
    before, expected = p.detach().clone(), transfer_by_svd(_gradient(p), beta, 0.3)
    SpectralNewton([p], lr=0.5, beta=beta, damping=0.3, momentum=0.0).step()
    assert torch.allclose(p, before - 0.5 * expected, atol=1e-9)


def test_beta_two_is_the_damped_newton_step_of_the_gram_matrix() -> None:
    (p,) = _parameters((7, 4))
    before, g = p.detach().clone(), _gradient(p)
    SpectralNewton([p], lr=1.0, momentum=0.0).step()
    expected = g @ torch.linalg.inv(g.T @ g + 0.1 * torch.eye(4, dtype=torch.float64))
    assert torch.allclose(p, before - expected, atol=1e-10)


def test_momentum_nesterov_and_weight_decay_are_those_of_muon() -> None:
    """With the transfer that keeps sigma (beta 0, damping 0) the recursions can be written down."""
    for nesterov in (False, True):
        (p,) = _parameters((3, 4))
        optimizer = SpectralNewton([p], 0.1, 0.0, 0.0, momentum=0.9, nesterov=nesterov, weight_decay=0.2)
        weight, buffer = p.detach().clone(), torch.zeros(3, 4, dtype=torch.float64)
        for step in range(3):
            p.grad = torch.full_like(p, 1.0 + step)
            buffer = 0.9 * buffer + 0.1 * p.grad
            direction = 0.1 * p.grad + 0.9 * buffer if nesterov else buffer
            weight = weight * (1 - 0.1 * 0.2) - 0.1 * direction
            optimizer.step()
            assert torch.allclose(p, weight, atol=1e-12)


def test_against_muon_where_they_coincide() -> None:
    """Beta 1 without damping is the exact polar factor, which Muon's iteration comes within 0.3 of."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    (p,) = _parameters((16, 24), dtype=torch.float32)
    q = nn.Parameter(p.detach().clone())
    q.grad = _gradient(p).clone()
    before = p.detach().clone()
    SpectralNewton([p], 1e-2, 1.0, 0.0, weight_decay=0.1).step()
    torch.optim.Muon([q], lr=1e-2, weight_decay=0.1, momentum=0.95).step()
    mine, theirs = (p - before) / 1e-2, (q - before) / 1e-2
    cosine = nn.functional.cosine_similarity(mine.detach().flatten(), theirs.detach().flatten(), dim=0)
    assert float(cosine) > 0.95
    assert float((mine.norm() / theirs.norm()).detach()) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(("rows", "columns"), [(12, 3), (3, 12)])
def test_learning_rate_adjustments_are_those_of_muon(rows: int, columns: int) -> None:
    factors = {None: 1.0, "original": math.sqrt(max(1, rows / columns)), "match_rms_adamw": 0.2 * math.sqrt(12)}
    moves = {}
    for name in factors:
        (p,) = _parameters((rows, columns))
        before = p.detach().clone()
        SpectralNewton([p], 1.0, momentum=0.0, adjust_lr_fn=name).step()
        moves[name] = p.detach() - before
    for name, factor in factors.items():
        assert torch.allclose(moves[name], factor * moves[None])


def test_convolutions_are_flattened_and_layouts_seen() -> None:
    kernel, stacked, transposed = _parameters((5, 3, 2, 2), (3, 4, 6), (4, 5, 3))
    before = [p.detach().clone() for p in (kernel, stacked, transposed)]
    groups = [
        {"params": [kernel]},
        {"params": [stacked], "layout": "stacked"},
        {"params": [transposed], "layout": "conv_transpose"},
    ]
    SpectralNewton(groups, lr=1.0, beta=1.5, damping=0.2, momentum=0.0).step()
    moved = [b - p for b, p in zip(before, (kernel, stacked, transposed), strict=True)]
    assert torch.allclose(moved[0], transfer_by_svd(_gradient(kernel).flatten(1), 1.5, 0.2).reshape(5, 3, 2, 2))
    for i in range(3):
        assert torch.allclose(moved[1][i], transfer_by_svd(_gradient(stacked)[i], 1.5, 0.2))
    view = _gradient(transposed).transpose(0, 1).flatten(1)
    expected = transfer_by_svd(view, 1.5, 0.2).reshape(5, 4, 3).transpose(0, 1)
    assert torch.allclose(moved[2], expected)


def test_stacking_equal_shapes_changes_nothing() -> None:
    shapes = [(6, 4), (4, 6), (6, 4), (6, 2, 2), (5, 5)]
    together, apart = _parameters(*shapes), _parameters(*shapes)
    betas = [2.0, 2.0, 1.3, 0.6, 0.0]
    groups = [{"params": [p], "beta": beta} for p, beta in zip(together, betas, strict=True)]
    SpectralNewton(groups, lr=0.1).step()
    for p, beta in zip(apart, betas, strict=True):
        SpectralNewton([p], lr=0.1, beta=beta).step()
    for p, q in zip(together, apart, strict=True):
        assert torch.allclose(p, q, atol=1e-10)


def test_large_stacks_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = (_parameters(*[(6, 4)] * 7) for _ in range(2))
    SpectralNewton(whole, lr=0.1).step()
    monkeypatch.setattr("spectrascope.optim.spectral_newton._STACK_ELEMENTS", 50)
    SpectralNewton(cut, lr=0.1).step()
    for p, q in zip(whole, cut, strict=True):
        assert torch.allclose(p, q, atol=1e-12)


def test_vectors_go_to_adamw_in_groups_of_their_own() -> None:
    model = _network()
    reference = copy.deepcopy(model)
    options = {"adamw_lr": 1e-3, "adamw_betas": (0.8, 0.9), "adamw_weight_decay": 0.1}
    optimizer = SpectralNewton(model.parameters(), lr=0.1, weight_decay=0.5, **options)
    vectors = [p for p in model.parameters() if p.dim() < 2]
    assert [len(group["params"]) for group in optimizer.param_groups] == [5, len(vectors)]
    assert [group["beta"] for group in optimizer.param_groups] == [2.0, None]
    assert optimizer.param_groups[1]["lr"] == 1e-3
    theirs = [p for p in reference.parameters() if p.dim() < 2]
    adamw = torch.optim.AdamW(theirs, lr=1e-3, betas=(0.8, 0.9), weight_decay=0.1)
    for seed in range(3):
        torch.manual_seed(seed)
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
    for p, q in zip(vectors, theirs, strict=True):
        assert torch.equal(p, q)


def test_a_group_without_beta_is_adamws_whatever_its_shapes() -> None:
    p, q = _parameters((4, 4), (4,))
    optimizer = SpectralNewton([{"params": [p, q], "beta": None, "lr": 0.01}], lr=0.5)
    (group,) = optimizer.param_groups
    assert (group["lr"], len(group["params"])) == (0.01, 2)
    optimizer.step()
    assert "exp_avg" in optimizer.state[p]
    (default,) = SpectralNewton([{"params": [p], "beta": None}], lr=0.5, adamw_lr=2e-4).param_groups
    assert default["lr"] == 2e-4


def test_auto_tells_convolutions_from_matrices() -> None:
    kernel, matrix, experts, bias = _parameters((4, 2, 3, 3), (4, 4), (2, 4, 4), (4,))
    optimizer = SpectralNewton(
        [{"params": [kernel, matrix, bias]}, {"params": [experts], "layout": "stacked"}], beta="auto"
    )
    betas = {id(p): group["beta"] for group in optimizer.param_groups for p in group["params"]}
    assert [betas[id(p)] for p in (kernel, matrix, experts, bias)] == [2.0, 1.0, 1.0, None]


def test_named_parameters() -> None:
    model = _network()
    optimizer = SpectralNewton(model.named_parameters(), lr=0.1)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_a_network_learns(beta: float) -> None:
    model = _network()
    optimizer = SpectralNewton(model.parameters(), 0.02, beta, scale_free=True, adamw_lr=1e-2)
    closure = _closure(model, optimizer)
    first = float(closure().detach())
    for _ in range(40):
        last = optimizer.step(closure)
    assert last is not None
    assert float(last.detach()) < 0.2 * first


def test_a_state_dict_round_trip_continues_exactly(tmp_path) -> None:
    model = _network()
    optimizer = SpectralNewton(model.parameters(), 0.02, scale_free=True)
    closure = _closure(model, optimizer)
    for _ in range(3):
        optimizer.step(closure)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    twin = _network()
    twin.load_state_dict(saved["model"])
    other = SpectralNewton(twin.parameters(), 0.5)
    other.load_state_dict(saved["optimizer"])
    resumed = _closure(twin, other)
    for _ in range(3):
        optimizer.step(closure)
        other.step(resumed)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_schedule_reaches_every_group() -> None:
    optimizer = SpectralNewton(_network().parameters(), 0.1, adamw_lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]


def test_bfloat16_networks() -> None:
    model = _network().bfloat16()
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SpectralNewton(model.parameters(), 0.1)
    optimizer.step()
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.dtype == torch.bfloat16
        assert bool(torch.isfinite(p).all())
        assert not torch.equal(p, old) or p.numel() < 5


def test_gradients_of_another_dtype_than_their_parameters() -> None:
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("Tensor.grad_dtype came with torch 2.10")
    mixed, plain = _network(), _network()
    for p in mixed.parameters():
        p.grad_dtype = torch.bfloat16
    optimizer, reference = SpectralNewton(mixed.parameters(), 0.1), SpectralNewton(plain.parameters(), 0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        for p, q in zip(mixed.parameters(), plain.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator).bfloat16()
            q.grad = _gradient(p).float()
        optimizer.step()
        reference.step()
        if step == 1:  # a loaded state has the parameters' dtype
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(mixed.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    assert {state["momentum_buffer"].dtype for state in optimizer.state.values() if "momentum_buffer" in state} == {
        torch.float32
    }


def test_a_compiled_step_takes_the_same_steps() -> None:
    plain, compiled = _network(), _network()
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    options = {"lr": 0.02, "beta": 2.0, "scale_free": True, "precision": "float32"}
    optimizer = SpectralNewton(compiled.parameters(), **options)
    explanation = torch._dynamo.explain(optimizer.step)()
    step = torch.compile(optimizer.step, backend="eager")
    step()
    twin = SpectralNewton(plain.parameters(), **options)
    twin.step()
    twin.step()
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)
    for p, q in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_parameters_without_gradients_or_entries_are_left_alone() -> None:
    p, q = _parameters((3, 3), (3, 3))
    q.grad = None
    empty = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
    empty.grad = torch.zeros(0, 3, dtype=torch.float64)
    before = q.detach().clone()
    optimizer = SpectralNewton([p, q, empty])
    optimizer.step()
    assert torch.equal(q, before)
    assert q not in optimizer.state


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = SpectralNewton(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr -1.0: expected a number from 0 on"),
        ({"beta": -0.1}, "beta -0.1: expected a number from 0 on, 'auto', or None for AdamW"),
        ({"beta": "newton"}, "beta 'newton': expected a number"),
        ({"damping": math.nan}, "damping nan: expected a number from 0 on"),
        ({"momentum": 1.0}, "momentum 1.0: expected from 0 to below 1"),
        ({"adamw_betas": (0.9, 1.0)}, "adamw_betas .* expected from 0 to below 1"),
        ({"adamw_betas": (0.9,)}, r"adamw_betas \(0.9,\): expected two numbers"),
        ({"adamw_betas": (0.9, 0.95, 0.99)}, "adamw_betas .* expected two numbers"),
        ({"layout": "rows"}, "layout 'rows': expected one of flat, stacked, conv_transpose"),
        ({"layout": "stacked"}, r"layout 'stacked' is for parameters \(e, m, n\), got shape \(3, 3\)"),
        ({"layout": "conv_transpose"}, "layout 'conv_transpose' is for parameters"),
        ({"adjust_lr_fn": "keller"}, "adjust_lr_fn 'keller': expected None, 'original' or 'match_rms_adamw'"),
        ({"precision": "half"}, "'half' is not a valid Precision"),
    ],
)
def test_refusals(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralNewton(_parameters((3, 3)), **options)


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="does not step complex parameters"):
        SpectralNewton([nn.Parameter(torch.eye(2) * 1j)])
