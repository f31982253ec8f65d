"""Kronecker factors and everything made of them, against explicit per-sample sums in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import spectrascope
from spectrascope.curvature.factor_sums import GramSum
from spectrascope.errors import OptionError
from spectrascope.losses import make_loss
from spectrascope.network.layers import WeightLayer, find_layers
from spectrascope.records.decomposition import Decomposition, Determination, Factors
from spectrascope.records.report import LayerReport, Report
from spectrascope.records.values import Missing
from tests.support import oracles

N, K = 7, 4


class Conv1D(nn.Module):
    """Hugging Face's linear layer, which stores (in, out)."""

    def __init__(self, out: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, out) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Tokens(nn.Module):
    def __init__(self, middle: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(4, 6), middle(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(self.middle(F.relu(h)).tanh().mean(1))


class Twice(nn.Module):
    """One weight used twice, at different numbers of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.shared(x))
        return self.head(F.relu(self.shared(h[:, :2])).sum(1) + h.sum(1))


def images(conv: Callable[[], nn.Module], *, dims: int = 2) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "conv": (images(lambda: nn.Conv2d(3, 4, 3, padding=1)), (3, 5, 5), "0.weight"),
    "conv_stride": (images(lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1)), (3, 6, 6), "0.weight"),
    "conv_dilation": (images(lambda: nn.Conv2d(3, 4, (2, 3), dilation=(2, 1), padding=(0, 2))), (3, 6, 5), "0.weight"),
    "conv_groups": (images(lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2)), (4, 7, 7), "0.weight"),
    "conv_depthwise": (images(lambda: nn.Conv2d(5, 5, 3, groups=5)), (5, 4, 4), "0.weight"),
    "conv1d": (images(lambda: nn.Conv1d(3, 4, 3, padding=2, dilation=2)), (3, 6), "0.weight"),
    "conv3d": (images(lambda: nn.Conv3d(2, 3, 2)), (2, 3, 3, 3), "0.weight"),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,), "0.weight"),
    "head": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,), "2.weight"),
    "tokens": (lambda: Tokens(nn.Identity), (4, 4), "first.weight"),
    "conv1d_of_hugging_face": (lambda: Tokens(lambda: Conv1D(6, 6)), (4, 4), "middle.weight"),
    "twice": (Twice, (3, 4), "shared.weight"),
}


def make(name: str) -> tuple[nn.Module, Tensor, Tensor, str]:
    torch.manual_seed(1)
    build, shape, weight = CASES[name]
    model = build()
    x, y = torch.randn(N, *shape, dtype=torch.float64), torch.arange(N) % 3
    model(x.float())
    return model.double(), x, y, weight


def rows_of(module: nn.Module, x: Tensor, delta: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(a, delta) at every position (and group) of one use, for one sample, by loops; delta has all m entries."""
    if not hasattr(module, "kernel_size"):
        return list(zip(x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1]), strict=True))
    padded = F.pad(x, [p for size in reversed(module.padding) for p in (size, size)])
    found = []
    width_in, width_out = x.shape[0] // module.groups, delta.shape[0] // module.groups
    for position in np.ndindex(*delta.shape[1:]):
        for g in range(module.groups):
            corner = [slice(g * width_in, (g + 1) * width_in)]
            for i, stride, size, gap in zip(position, module.stride, module.kernel_size, module.dilation, strict=True):
                corner.append(slice(i * stride, i * stride + (size - 1) * gap + 1, gap))
            own = torch.zeros(delta.shape[0], dtype=delta.dtype)
            own[g * width_out : (g + 1) * width_out] = delta[(slice(g * width_out, (g + 1) * width_out), *position)]
            found.append((padded[tuple(corner)].reshape(-1), own))
    return found


def uses_of(model: nn.Module, weight: str, x: Tensor, root: Callable[[Tensor], Tensor]):
    """Per column of the root of the loss's curvature: every (a, delta) of one sample."""
    module = model.get_submodule(weight.rpartition(".")[0])
    kept: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, inputs, out: kept.append((inputs[0], out)))
    scores = model(x[None])
    handle.remove()
    for column in root(scores[0].detach()).T:
        deltas = torch.autograd.grad(scores, [out for _, out in kept], column[None], retain_graph=True)
        yield [
            row for (a, _), delta in zip(kept, deltas, strict=True) for row in rows_of(module, a[0].detach(), delta[0])
        ]


def softmax_root(scores: Tensor) -> Tensor:
    p = scores.softmax(0)
    return torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())


def explicit(model: nn.Module, weight: str, x: Tensor, u: Tensor, v: Tensor, reduce: bool = False) -> dict[str, Tensor]:
    m, n, k = u.shape[0], v.shape[0], u.shape[1]
    c_a, c_delta = torch.zeros(n, n).double(), torch.zeros(m, m).double()
    h, both, left, right = (torch.zeros(k).double() for _ in range(4))
    contributions = torch.zeros(len(x), k).double()
    positions = 0
    for i, sample in enumerate(x):
        energy: dict[int, Tensor] = {}
        for rows in uses_of(model, weight, sample, softmax_root):
            positions = len(rows)
            inputs = [a for a, _ in rows]
            contributions[i] += sum((u.T @ d) * (v.T @ a) for a, d in rows) ** 2
            for t, (_, d) in enumerate(rows):
                energy[t] = energy.get(t, torch.zeros(k).double()) + (u.T @ d) ** 2
            if reduce:
                total = sum(d for _, d in rows)
                c_delta += torch.outer(total, total)
            else:
                for _, d in rows:
                    c_delta += torch.outer(d, d)
        if reduce:
            total = sum(inputs)
            c_a += torch.outer(total, total)
        else:
            for a in inputs:
                c_a += torch.outer(a, a)
        both += sum(energy[t] * (v.T @ inputs[t]) ** 2 for t in energy)
        left += sum(energy.values())
        right += sum((v.T @ a) ** 2 for a in inputs)
    h = contributions.mean(0)
    n_samples = len(x)
    c_a /= n_samples
    c_delta /= n_samples * (positions**2 if reduce else positions)
    return {
        "c_a": c_a,
        "c_delta": c_delta,
        "h_gn": h,
        "positions": torch.tensor(positions),
        "ratio": both * n_samples * positions / (left * right),
        "contributions": contributions,
    }


def decomposed(model: nn.Module, x, y, loss: str = "cross-entropy", **options) -> Report:
    options = {"top_k": K, "groups": 3, "micro_batch": 3, "self_check": False, **options}
    return spectrascope.decompose(model, (x, y), loss, **options)


def only(report: Report) -> tuple[LayerReport, Decomposition]:
    (row,) = [row for row in report.layers if isinstance(row, LayerReport)]
    assert isinstance(row.decomposition, Decomposition), row.decomposition
    return row, row.decomposition


def directions(model: nn.Module, weight: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    (layer,) = [la for la in find_layers(model) if isinstance(la, WeightLayer) and la.name == weight]
    gradient = layer.matrix(oracles.gradient_of(model, weight, x, y, F.cross_entropy))
    _, left, right, _ = oracles.svd_directions(gradient, K, 2.3e-16)
    return torch.tensor(left), torch.tensor(right)


def assert_factors(factors: Factors, truth: dict[str, Tensor], u: Tensor, v: Tensor) -> None:
    k = u.shape[1]
    for factor, matrix in ((factors.delta, truth["c_delta"]), (factors.a, truth["c_a"])):
        values = torch.linalg.eigvalsh(matrix).flip(0)
        assert factor.eigenvalues == pytest.approx(values[:k].clamp_min(0).tolist(), rel=1e-9, abs=1e-12)
        assert factor.trace == pytest.approx(float(matrix.trace()), rel=1e-9)
    assert factors.rayleigh_delta == pytest.approx([float(c @ truth["c_delta"] @ c) for c in u.T], rel=1e-7, abs=1e-14)
    assert factors.rayleigh_a == pytest.approx([float(c @ truth["c_a"] @ c) for c in v.T], rel=1e-7)
    assert factors.h_gn == pytest.approx(truth["h_gn"].tolist(), rel=1e-7, abs=1e-14)
    assert factors.positions == int(truth["positions"])
    assert factors.concentration.ratio == pytest.approx(truth["ratio"].tolist(), rel=1e-7)


@pytest.mark.parametrize("engine", ["auto", "double-backprop"])
@pytest.mark.parametrize("name", CASES)
def test_factors_are_explicit_sums(name: str, engine: str) -> None:
    model, x, y, weight = make(name)
    row, found = only(decomposed(model, x, y, engine=engine, layers=[weight]))
    u, v = directions(model, weight, x, y)
    assert_factors(found.factors, explicit(model, weight, x, u, v), u, v)
    assert found.factors.exact
    # Groups average to the whole, as h does.
    sizes = np.array(row.measurement.group_sizes) / N
    assert sizes @ np.array(found.factors.group_rayleigh_a) == pytest.approx(found.factors.rayleigh_a, rel=1e-9)
    assert sizes @ np.array(found.factors.group_rayleigh_delta) == pytest.approx(found.factors.rayleigh_delta, rel=1e-9)


@pytest.mark.parametrize("engine", ["auto", "double-backprop"])
@pytest.mark.parametrize("name", ["conv", "tokens", "linear"])
def test_reduce_sums_over_positions_first(name: str, engine: str) -> None:
    model, x, y, weight = make(name)
    _, found = only(decomposed(model, x, y, engine=engine, layers=[weight], sharing="reduce"))
    u, v = directions(model, weight, x, y)
    assert_factors(found.factors, explicit(model, weight, x, u, v, reduce=True), u, v)


def test_sample_shares_are_those_of_the_contributions() -> None:
    model, x, y, weight = make("conv")
    _, found = only(decomposed(model, x, y, layers=[weight]))
    u, v = directions(model, weight, x, y)
    table = explicit(model, weight, x, u, v)["contributions"].numpy()
    shares = [column.max() / column.sum() for column in table.T]
    assert found.factors.concentration.top_1_percent == pytest.approx(np.median(shares))
    gini = [np.abs(c[:, None] - c[None]).mean() / (2 * c.mean()) for c in table.T]
    assert found.factors.concentration.gini_samples == pytest.approx(np.median(gini))


@pytest.mark.parametrize("name", ["conv", "linear", "conv_groups"])
def test_in_a_piecewise_linear_network_the_gauss_newton_curvature_is_h(name: str) -> None:
    model, x, y, weight = make(name)
    row, found = only(decomposed(model, x, y, layers=[weight]))
    assert found.factors.h_gn == pytest.approx(row.measurement.h, rel=1e-9)
    assert found.alignment.chi == pytest.approx(
        np.array(row.measurement.h) / (np.array(found.factors.rayleigh_delta) * found.factors.rayleigh_a)
    )


def test_curvature_that_is_a_kronecker_product_gives_one() -> None:
    """y = W x with squared loss: H = C_A ⊗ (2/C) I, and inputs along axes make the bases agree."""
    torch.manual_seed(0)
    scales = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    x = torch.diag(scales)
    model = nn.Linear(5, 5, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([1.0, 1.1, 1.3, 1.7, 2.0], dtype=torch.float64)))
    report = decomposed(model, x, torch.zeros(5, 5).double(), "mse", top_k=5, groups=1)
    _, found = only(report)
    assert found.alignment.rho_a == pytest.approx([1] * 5, abs=1e-12)
    assert found.alignment.rho_delta == pytest.approx([1] * 5, abs=1e-12)
    assert found.alignment.chi == pytest.approx([1] * 5, abs=1e-12)
    assert found.alignment.concentration_ratio == pytest.approx(1)
    assert found.alignment.kronecker.verdict is Determination.YES
    assert {m.name for m in found.alignment.mechanisms if m.verdict is Determination.YES} == {"none"}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.att(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("weight", ["att.in_proj_weight[q]", "att.in_proj_weight[v]", "att.out_proj.weight"])
def test_attention_whose_rows_put_positions_first(weight: str) -> None:
    """Keyed on parameters, out_proj is seen; the Gauss–Newton form needs to know which row is whose."""
    torch.manual_seed(0)
    model = Attention().double()
    x, y = torch.randn(N, 3, 4).double(), torch.arange(N) % 3
    row, found = only(decomposed(model, x, y, layers=[weight]))
    assert found.factors.positions == 3
    block = oracles.gauss_newton_block(model, weight.partition("[")[0], x, y, F.cross_entropy)
    (layer,) = [la for la in find_layers(model) if isinstance(la, WeightLayer) and la.name == weight]
    gradient = layer.matrix(oracles.gradient_of(model, weight.partition("[")[0], x, y, F.cross_entropy))
    _, left, right, _ = oracles.svd_directions(gradient, K, 2.3e-16)
    forms = []
    for k in range(left.shape[1]):
        direction = layer.tensor(torch.tensor(np.outer(left[:, k], right[:, k]))).reshape(-1).double()
        forms.append(float(direction @ block @ direction))
    assert found.factors.h_gn == pytest.approx(forms, rel=1e-6, abs=1e-12)
    assert len(row.measurement.h) == len(forms)


def test_empirical_is_the_true_labels_and_mc_the_models() -> None:
    model, x, y, weight = make("linear")
    u, _v = directions(model, weight, x, y)
    _, found = only(decomposed(model, x, y, layers=[weight], fisher="empirical"))
    truth = torch.zeros(5, 5).double()
    for i in range(N):
        gradient = oracles.gradient_of(model, "0.bias", x[i : i + 1], y[i : i + 1], F.cross_entropy)  # delta itself
        truth += torch.outer(gradient, gradient) / N
    assert found.factors.delta.trace == pytest.approx(float(truth.trace()))
    assert found.factors.rayleigh_delta == pytest.approx([float(c @ truth @ c) for c in u.T])
    assert found.factors.exact
    exact = only(decomposed(model, x, y, layers=[weight]))[1].factors
    drawn = only(decomposed(model, x, y, layers=[weight], fisher="mc", draws=3000))[1].factors
    assert not drawn.exact
    assert drawn.columns == 3000
    assert drawn.rayleigh_delta == pytest.approx(exact.rayleigh_delta, rel=0.1)
    assert drawn.rayleigh_a == pytest.approx(exact.rayleigh_a)
    assert drawn.h_gn == pytest.approx(exact.h_gn, rel=0.1)


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        return self.head(torch.tanh(self.mix(h.cumsum(1))))


def test_several_loss_terms_are_an_unbiased_estimate() -> None:
    torch.manual_seed(0)
    model = Language().double()
    tokens = torch.randint(0, 6, (N, 4))
    _, found = only(decomposed(model, tokens, tokens, "causal-lm", layers=["mix.weight"], draws=1500))
    factors = found.factors
    assert not factors.exact
    assert factors.positions == 4
    loss = make_loss("causal-lm")
    weight = model.mix.weight.detach()
    total = torch.zeros(16, 16).double()
    for i in range(N):
        for t in range(3):  # one term: the prediction after token t

            def term(leaf: Tensor, i: int = i, t: int = t) -> Tensor:
                h = torch.tanh(F.linear(model.table(tokens[i]).cumsum(0), leaf, model.mix.bias))
                return model.head(h)[t]

            jacobian = torch.autograd.functional.jacobian(term, weight).reshape(6, 16)
            p = term(weight).detach().softmax(0)
            total += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / (N * 3)
    gradient = oracles.gradient_of(model, "mix.weight", tokens, tokens, loss)
    _, left, right, _ = oracles.svd_directions(gradient, K, 2.3e-16)
    forms = []
    for k in range(left.shape[1]):
        direction = torch.tensor(np.outer(left[:, k], right[:, k])).reshape(-1)
        forms.append(float(direction @ total @ direction))
    assert factors.h_gn == pytest.approx(forms, rel=0.15)


def test_a_transposed_convolution_says_why() -> None:
    torch.manual_seed(0)
    model = images(lambda: nn.ConvTranspose2d(3, 4, 2))()
    x, y = torch.randn(N, 3, 4, 4), torch.arange(N) % 3
    model(x)
    (row,) = [row for row in decomposed(model, x, y, layers=["0.weight"]).layers if isinstance(row, LayerReport)]
    assert isinstance(row.decomposition, Missing)
    assert "convolution" in row.decomposition.reason


def test_a_tied_table_says_why() -> None:
    torch.manual_seed(0)
    model = Language()
    model.head.weight = nn.Parameter(torch.randn(6, 4))
    model.table.weight = model.head.weight
    tokens = torch.randint(0, 6, (N, 4))
    report = decomposed(model, tokens, tokens, "causal-lm")
    tied = next(row for row in report.layers if row.info.tied_names)
    assert isinstance(tied, LayerReport)
    assert tied.decomposition == Missing("the weight is also a look-up table")


def test_large_factors_are_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrascope.curvature import factor_sums

    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 60, generator=generator).double() * 0.75 ** torch.arange(60)
    basis = torch.linalg.qr(torch.randn(60, 5, generator=generator).double()).Q
    whole = GramSum(1, 60, basis, torch.device("cpu"), torch.float64)
    monkeypatch.setattr(factor_sums, "HELD_UP_TO", 50)
    sketch = GramSum(1, 60, basis, torch.device("cpu"), torch.float64)
    assert not sketch.whole
    for part in rows.split(100):
        whole.add(part[:, None])
        sketch.add(part[:, None])
    truth, trace, exact = whole.finish(500)
    found, sketched_trace, sketched_exact = sketch.finish(500)
    assert (exact, sketched_exact) == (True, False)
    assert sketched_trace == pytest.approx(trace)
    assert found[:10].tolist() == pytest.approx(truth[:10].tolist(), rel=1e-3)
    assert bool((found <= truth[: len(found)] * (1 + 1e-9)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"draws": 0}, "draws 0"), ({"fisher": "true"}, "expected fisher"), ({"sharing": "none"}, "expected fisher")],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    model, x, y, _ = make("linear")
    with pytest.raises(OptionError, match=message):
        decomposed(model, x, y, **options)


def test_curvature_is_that_of_a_probe() -> None:
    model, x, y, _ = make("conv_stride")
    options = {"top_k": K, "groups": 3, "micro_batch": 3, "self_check": False}
    probed = spectrascope.probe(model, (x, y), F.cross_entropy, **options)
    report = spectrascope.decompose(model, (x, y), F.cross_entropy, **options)
    for one, other in zip(probed.layers, report.layers, strict=True):
        assert isinstance(one, LayerReport)
        assert isinstance(other, LayerReport)
        assert other.measurement.engine is one.measurement.engine
        for name in ("h", "curvature_matrix", "group_h", "group_sigma", "sigma"):
            found, truth = (np.array(getattr(row.measurement, name)) for row in (other, one))
            assert np.abs(found - truth).max() <= 1e-12 * np.abs(truth).max(), name


def test_running_out_of_memory_starts_again_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    from spectrascope.curvature import kronecker

    model, x, y, weight = make("conv")
    options = {"layers": [weight], "micro_batch": 4}
    truth = only(decomposed(model, x, y, **options))[1].factors
    original, seen = kronecker.FactorSweep.run, []

    def run(self, start: int, stop: int):
        seen.append(stop - start)
        found = original(self, start, stop)
        if stop - start > 2 and start > 0:
            raise torch.OutOfMemoryError("out of memory")
        return found

    monkeypatch.setattr(kronecker.FactorSweep, "run", run)
    found = only(decomposed(model, x, y, **options))[1].factors
    assert max(seen) > 2
    assert seen[-1] <= 2
    assert found.rayleigh_a == pytest.approx(truth.rayleigh_a, rel=1e-12)
    assert found.rayleigh_delta == pytest.approx(truth.rayleigh_delta, rel=1e-12)
