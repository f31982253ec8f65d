"""Whatever is measured, on whatever network, however it ends: everything is left exactly as found."""

from __future__ import annotations

import collections
import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import spectrascope
from spectrascope.api.inputs import make_run
from spectrascope.api.measuring import list_engines
from spectrascope.errors import SpectrascopeError, UnsupportedModelError
from spectrascope.integrations.monitor import CurvatureMonitor
from spectrascope.measure.inspect import inspect_model
from spectrascope.measure.validate import advise_and_validate
from spectrascope.network import kept
from spectrascope.workload import silent
from tests.support.as_found import differences, left_as_found, take_down
from tests.support.cases import Net

ROWS = 16


# --- networks ---


class Helper:
    """An object of the user's own beside the network."""

    def __init__(self) -> None:
        self.calls, self.seen, self.generator = 0, [], torch.Generator().manual_seed(1)


def _busy(net: Net, x: torch.Tensor) -> torch.Tensor:
    """Writes all that a forward pass may write."""
    net.calls = getattr(net, "calls", 0) + 1
    net.helper.calls += 1
    net.helper.seen.append(x.shape)
    net.cache["last"] = x.detach().clone()
    net.history.append(float(x.sum()))
    net.plain += 1.0
    net.apart[0].bias.data.add_(0.1)
    torch.rand(2, generator=net.helper.generator)
    net.numbers.normal()
    random.random()
    np.random.rand()
    torch.rand(1)
    net.bn.train()
    for p in net.parameters():
        if p.grad is not None:
            p.grad.zero_()
    return net.out(net.bn(net.apart[0](x)))


def busy() -> nn.Module:
    net = Net(_busy, bn=nn.BatchNorm1d(6), out=nn.Linear(6, 4))
    net.helper, net.cache, net.history, net.plain = Helper(), {}, collections.deque(maxlen=3), torch.zeros(3)
    net.apart = [nn.Linear(6, 6)]  # not registered
    net.numbers = np.random.default_rng(0)
    return net.train()


def _iterates(net: Net, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(2):
            net.v.copy_(F.normalize(net.a.weight.T @ net.u, dim=0))
            net.u.copy_(F.normalize(net.a.weight @ net.v, dim=0))
    return F.linear(x, net.a.weight / (net.u @ net.a.weight @ net.v), net.a.bias)


def iterates() -> nn.Module:
    net = Net(_iterates, a=nn.Linear(6, 4))
    net.register_buffer("u", F.normalize(torch.randn(4), dim=0))
    net.register_buffer("v", F.normalize(torch.randn(6), dim=0), persistent=False)
    return net


def _replaces(net: Net, x: torch.Tensor) -> torch.Tensor:
    net.scale = nn.Parameter(net.scale.detach() + 1)
    net.register_buffer("new", x.mean(0).detach())
    net.b = nn.Linear(4, 4)
    return net.a(x)


def replaces() -> nn.Module:
    net = Net(_replaces, a=nn.Linear(6, 4))
    net.scale = nn.Parameter(torch.ones(1))
    return net


def _forgets(p: nn.Parameter) -> None:
    p.grad = None


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 4)).train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    F.cross_entropy(net(torch.randn(8, 6)), torch.randint(0, 4, (8,))).backward()
    net[4].bias.grad = None
    net.register_forward_hook(lambda module, given, output: None)
    net[0].register_forward_pre_hook(lambda module, given: None)
    net[0].register_full_backward_hook(lambda module, inner, outer: None)
    net[4].register_full_backward_pre_hook(lambda module, outer: None)
    net[4].weight.register_hook(lambda gradient: gradient * 0)
    net[4].weight.register_post_accumulate_grad_hook(_forgets)
    net.register_state_dict_post_hook(lambda *_: None)
    return net


def recurrent() -> nn.Module:
    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        return net.out(net.rnn(x.unflatten(1, (2, 3)))[0][:, -1])

    return Net(forward, rnn=nn.GRU(3, 4, batch_first=True), out=nn.Linear(4, 4)).train()


def merges() -> nn.Module:
    """Adds its update to its weight when it is put into evaluation mode, as loralib does."""

    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            if mode is not self.training:
                self.weight.data += 0.1 if not mode else -0.1
            return super().train(mode)

    return nn.Sequential(Merging(6, 6), nn.ReLU(), nn.Linear(6, 4)).train()


def odd_buffers() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 4))
    net.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    net.register_buffer("negative_zero", torch.tensor([-0.0]))
    net.register_buffer("sparse", torch.eye(3).to_sparse())
    net.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
    net.register_buffer("nothing", None)
    return net


def tokens(bag: bool = False) -> Callable[[], nn.Module]:
    if bag:
        return lambda: nn.Sequential(nn.EmbeddingBag(9, 6, max_norm=0.5), nn.Tanh(), nn.Linear(6, 4))
    return lambda: nn.Sequential(nn.Embedding(9, 6, max_norm=0.5, padding_idx=0), nn.Flatten(), nn.Linear(36, 4))


def two_kinds() -> nn.Module:
    layer = parametrizations.weight_norm(parametrizations.orthogonal(nn.Linear(6, 6), "weight"), "bias")
    return nn.Sequential(layer, nn.ReLU(), parametrizations.spectral_norm(nn.Linear(6, 4))).train()


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 4))
    net[2].weight = net[0].weight
    return net


def bare() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "hooks, grads and modes": hooked,
    "busy": busy,
    "power iteration": iterates,
    "replaces parameters": replaces,
    "recurrent": recurrent,
    "merges": merges,
    "odd buffers": odd_buffers,
    "max_norm": tokens(),
    "bag": tokens(bag=True),
    "tied": tied,
    "spectral norm by hook": lambda: nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 4)).train(),
    "weight norm by hook": lambda: nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 4)).train(),
    "parametrizations": two_kinds,
    "bfloat16": lambda: bare().bfloat16(),
    "float64": lambda: bare().double(),
}


# --- measurements ---


def _run(net: nn.Module, samples: tuple[torch.Tensor, torch.Tensor], loss: object) -> object:
    given = {"top_k": 2, "num_samples": ROWS, "groups": 2, "folds": 2, "null_draws": 1, "layers": _table(net)}
    return make_run("probe", net, samples, loss, silent, given)


def _table(net: nn.Module) -> tuple[str, ...]:
    """An embedding table is measured too, as it is what its forward pass writes."""
    return ("0.weight", "2.weight") if any(hasattr(m, "max_norm") for m in net.modules()) else ()


def _probe(net, samples, loss):
    spectrascope.probe(net, samples, loss, top_k=1, groups=2, folds=2, layers=_table(net))


def _monitor(net, samples, loss):
    monitor = CurvatureMonitor(net, samples, loss, every=1, budget=1e9, top_k=2, layers=_table(net))
    monitor.budget.start()
    monitor.step(1)


MEASUREMENTS: dict[str, Callable] = {
    "probe": _probe,
    "double-backprop": lambda net, samples, loss: spectrascope.probe(
        net, samples, loss, top_k=1, engine="double-backprop", estimate="published"
    ),
    "decompose": lambda net, samples, loss: spectrascope.decompose(net, samples, loss, top_k=2, layers=_table(net)),
    "weights": lambda net, samples, loss: spectrascope.weights(net),
    "monitor": _monitor,
    "validate": lambda net, samples, loss: advise_and_validate(_run(net, samples, loss)),
    "list_engines": lambda net, samples, loss: list_engines(net, kept.fixed_source(samples), loss, top_k=2),
    "inspect": lambda net, samples, loss: inspect_model(
        net, kept.fixed_source(samples), loss, options=_run(net, samples, loss).options,
        model_info=_run(net, samples, loss).model_info,
    ),
}  # fmt: skip


def _samples(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    reads_tokens = any(hasattr(m, "max_norm") for m in net.modules())
    x = torch.randint(0, 9, (ROWS, 6)) if reads_tokens else torch.randn(ROWS, 6)
    return x.double() if next(net.parameters()).dtype == torch.float64 else x, torch.randint(0, 4, (ROWS,))


@pytest.fixture(autouse=True)
def warm() -> None:
    """What torch sets up once for a process is no trace of a measurement."""
    if not _WARM:
        net = bare()
        for measurement in MEASUREMENTS.values():
            measurement(net, _samples(net), F.cross_entropy)
        _WARM.append(True)


_WARM: list[bool] = []


ENDS = (SpectrascopeError, ValueError)  # batch normalisation in training refuses a batch of one sample


@pytest.mark.parametrize("measurement", MEASUREMENTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_write_in_forward(name: str, measurement: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]()
    samples = _samples(net)
    optimizer = torch.optim.AdamW(net.parameters())
    with left_as_found(net, samples, optimizer, F.cross_entropy), contextlib.suppress(*ENDS):
        MEASUREMENTS[measurement](net, samples, F.cross_entropy)


def test_the_comparison_sees_what_is_changed() -> None:
    """Guards the tests above: each of these is noticed."""
    net = busy()
    x, _ = _samples(net)
    before = take_down(net)
    net(x)
    net.out.weight.register_hook(lambda gradient: gradient)
    torch.set_num_threads(torch.get_num_threads() + 1)
    try:
        found = "\n".join(differences(before, take_down(net)))
    finally:
        torch.set_num_threads(torch.get_num_threads() - 1)
    wanted = (
        "random of torch", "random of numpy", "random of python", "'running_mean'] bits", "version", "helper.calls",
        "helper.seen[0]", "cache['last']", "history[0]", "plain bits", "apart[0]", "generator state", "numbers state",
        "hooks", "threads",
    )  # fmt: skip
    assert not [line for line in wanted if line not in found]


# --- other ends ---


class Boom(Exception):
    """Of the user's own code."""


class LossThatKeeps(nn.Module):
    """A loss with a weight, statistics and a count of its own, that ends the measurement at one of its calls."""

    def __init__(self, error: type[BaseException] | None = None, at: int = 0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.register_buffer("mean", torch.zeros(4))
        self.count, self.error, self.at = 0, error, at

    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        CALLS.append(1)
        self.count += 1
        self.mean += scores.detach().mean(0)
        if self.error is not None and len(CALLS) == self.at:
            raise self.error("now")
        return F.cross_entropy(scores * self.scale, labels)


CALLS: list[int] = []


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("measurement", ["probe", "decompose", "validate", "monitor"])
def test_measurements_that_break_off(measurement: str, error: type[BaseException]) -> None:
    torch.manual_seed(0)
    net = hooked()
    samples = _samples(net)
    CALLS.clear()
    MEASUREMENTS[measurement](net, samples, LossThatKeeps())
    last = len(CALLS)
    assert last > 8
    for at in (1, last // 2, last - 4):
        loss = LossThatKeeps(error, at)
        CALLS.clear()
        ends = (Boom, KeyboardInterrupt, torch.OutOfMemoryError, SpectrascopeError)
        with left_as_found(net, samples, loss), contextlib.suppress(*ends):
            MEASUREMENTS[measurement](net, samples, loss)
        assert len(CALLS) >= at


@pytest.mark.parametrize("stage", ["check", "gradient", "curvature", "self-check"])
def test_an_interrupt_while_progress_is_shown(stage: str) -> None:
    def interrupt(name: str, done: float, total: int) -> None:
        if name == stage:
            raise KeyboardInterrupt

    net = hooked()
    samples = _samples(net)
    with left_as_found(net, samples), pytest.raises(KeyboardInterrupt):
        spectrascope.probe(net, samples, top_k=2, on_progress=interrupt)


def test_ctrl_c_while_things_are_put_back_waits() -> None:
    """The signal arrives between one tensor and the next."""
    net = bare()
    x, y = _samples(net)
    plain, count = kept._same_bits, []

    def interrupted(a: torch.Tensor, b: torch.Tensor) -> bool:
        count.append(1)
        if len(count) == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(a, b)

    net[0].weight.grad = torch.ones_like(net[0].weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "_same_bits", interrupted)
        with left_as_found(net.train()), pytest.raises(KeyboardInterrupt):
            spectrascope.probe(net, (x, y), top_k=1)
    assert len(count) >= 4


# --- the training around it ---


def test_a_backward_pass_that_waits_is_not_disturbed() -> None:
    """The network writes its table in each forward pass; autograd's version counters must not show it."""
    for name in ("max_norm", "power iteration", "hooks, grads and modes"):
        gradients = []
        for measured in (False, True):
            torch.manual_seed(0)
            net = NETWORKS[name]()
            samples = _samples(net)
            if name == "max_norm":
                net(samples[0])  # brings the table's rows to their norm once
            loss = F.cross_entropy(net(samples[0]), samples[1])
            if measured:
                with contextlib.suppress(SpectrascopeError):
                    _probe(net, samples, F.cross_entropy)
            loss.backward()
            gradients.append([None if p.grad is None else p.grad.clone() for p in net.parameters()])
        assert all(a is b or torch.equal(a, b) for a, b in zip(*gradients, strict=True)), name


def test_gradient_hooks_do_not_change_what_is_measured() -> None:
    """A mask on a weight's gradient is of the training, not of the loss; so is a hook on a module's."""
    torch.manual_seed(0)
    net = bare()
    samples = _samples(net)

    def numbers() -> list[tuple[float, ...]]:
        report = spectrascope.probe(net, samples, top_k=2, groups=2)
        return [row.measurement.sigma + row.measurement.h for row in report.layers]

    plain = numbers()
    fired: list[int] = []
    net[0].weight.register_hook(lambda gradient: gradient * 2)
    net[2].register_full_backward_hook(lambda module, inner, outer: fired.append(1))
    for before, after in zip(plain, numbers(), strict=True):
        assert before == pytest.approx(after, rel=1e-5)
    assert not fired
    net(samples[0].requires_grad_()).sum().backward()
    assert fired
    assert net[0].weight.grad is not None


class Counting(TensorDataset):
    """Counts what is read, and draws noise from a generator of its own."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        super().__init__(*tensors)
        self.reads, self.noise = 0, np.random.default_rng(0)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        self.reads += 1
        self.noise.normal()
        torch.rand(1), np.random.rand(), random.random()
        return super().__getitem__(index)


def _loader(kind: str, data: TensorDataset) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    if kind == "shuffled":
        return DataLoader(data, 4, shuffle=True)
    if kind == "generator":
        return DataLoader(data, 4, shuffle=True, generator=generator)
    if kind == "sampler":
        return DataLoader(data, 4, sampler=RandomSampler(data, replacement=True, generator=generator))
    sampler = torch.utils.data.BatchSampler(RandomSampler(data, generator=generator), 4, drop_last=True)
    return DataLoader(data, batch_sampler=sampler)


@pytest.mark.parametrize("kind", ["shuffled", "generator", "sampler", "batch sampler"])
@pytest.mark.parametrize("measurement", ["probe", "monitor", "decompose"])
def test_loaders_samplers_and_generators(kind: str, measurement: str) -> None:
    net = hooked()
    loader = _loader(kind, Counting(*_samples(net)))
    with left_as_found(net, loader):
        MEASUREMENTS[measurement](net, loader, F.cross_entropy)


def test_a_loader_whose_workers_persist_goes_on_where_the_training_is() -> None:
    net = bare()
    x, y = _samples(net)
    loader = DataLoader(TensorDataset(x, y), 4, num_workers=1, persistent_workers=True)
    running = iter(loader)
    first = next(running)
    CurvatureMonitor(net, loader, "cross-entropy", num_samples=8)
    assert loader._iterator is running
    rows = torch.cat([first[0], *(batch[0] for batch in running)])
    assert torch.equal(rows, x)


def test_no_more_is_taken_from_an_iterator_than_is_measured() -> None:
    net = bare()
    x, y = _samples(net)
    batches = iter([(x[i : i + 4], y[i : i + 4]) for i in range(0, ROWS, 4)])
    spectrascope.probe(net, batches, num_samples=8, top_k=1, groups=2)
    assert torch.equal(next(batches)[0], x[8:12])


def test_cuda_random_states_are_kept(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    net = hooked().cuda()
    samples = _samples(net)
    torch.rand(1, device="cuda")
    with left_as_found(net, samples):
        run = _run(net, samples, lambda scores, labels: F.cross_entropy(scores + 0 * torch.rand_like(scores), labels))
        advise_and_validate(replace(run, options=replace(run.options, device="cuda")))


# --- settings of torch that a forward pass changes ---


def _lowers(name: str) -> Callable[[], None]:
    backends = torch.backends
    return {
        "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
        "tf32": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
        "cudnn tf32": lambda: setattr(backends.cudnn, "allow_tf32", False),
        "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        "default dtype": lambda: torch.set_default_dtype(torch.float64),
        "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
        "grad mode": lambda: torch.set_grad_enabled(False),
        "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
        "cudnn": lambda: setattr(backends.cudnn, "benchmark", not backends.cudnn.benchmark),
        "attention": lambda: backends.cuda.enable_mem_efficient_sdp(False),
        "fill": lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
        "autocast": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    }[name]  # type: ignore[return-value]


SETTINGS = (
    "matmul precision", "tf32", "cudnn tf32", "deterministic", "default dtype", "threads", "grad mode", "anomaly",
    "cudnn", "attention", "fill", "autocast",
)  # fmt: skip


@contextlib.contextmanager
def _settings_put_back() -> Iterator[None]:
    """Guards the tests after this one, should it fail."""
    with torch.random.fork_rng(devices=[]), kept.settings_kept():
        yield


@pytest.mark.parametrize("where", ["forward", "loss", "forward, then an error"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_a_network_or_its_loss_changes(name: str, where: str) -> None:
    lower, calls = _lowers(name), []

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        scores = net.b(torch.tanh(net.a(x)))
        calls.append(1)
        if where != "loss":
            lower()
        if "error" in where and len(calls) > 6:
            raise Boom
        return scores

    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        found = F.cross_entropy(scores, labels)
        if where == "loss":
            lower()
        return found

    torch.manual_seed(0)
    net = Net(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 4))
    plain = Net(lambda s, x: s.b(torch.tanh(s.a(x))), a=net.a, b=net.b)
    samples = _samples(net)
    right = spectrascope.probe(plain, samples, F.cross_entropy, top_k=2, groups=2)
    with _settings_put_back(), left_as_found(net, samples):
        ends: Any = contextlib.nullcontext()
        if "error" in where or (name, where) == ("grad mode", "loss"):
            ends = pytest.raises((Boom, SpectrascopeError, RuntimeError))
        elif name in ("matmul precision", "tf32"):
            ends = pytest.raises(UnsupportedModelError, match="float32 products to lower precision")
        with ends as refused:
            report = spectrascope.probe(net, samples, loss, top_k=2, groups=2)
        if refused is not None:
            return
    for one, other in zip(report.layers, right.layers, strict=True):
        assert one.measurement.h == pytest.approx(other.measurement.h, rel=1e-3, abs=1e-6)
        assert one.measurement.exact
