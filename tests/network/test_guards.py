"""The user's model, and torch itself, are left exactly as found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spectrascope
from spectrascope.api.inputs import make_run
from spectrascope.errors import NondeterministicError, NonFiniteError, UnsupportedModelError
from spectrascope.measure.workloads import prepare_workload
from spectrascope.network.guards import (
    held_still,
    require_deterministic,
    require_finite_weights,
)
from spectrascope.network.mean_loss import require_mean_loss
from spectrascope.workload import TensorSource, Workload, silent
from tests.support.cases import Net, batch_norm, labels, make_workload, vec
from tests.support.counting import elements_made


def _odd_model() -> nn.Module:
    """Mixed modes, a frozen weight, gradients, a hook, and buffers that change when run."""
    torch.manual_seed(0)

    def run(s, x):
        s.count += 1
        s.fresh = s.fresh + 1
        return s.c(F.relu(s.bn(s.b(F.relu(s.a(x))))).mean((2, 3)))

    net = Net(
        run,
        a=nn.Conv2d(3, 4, 3, padding=1),
        b=nn.Conv2d(4, 4, 3),
        bn=batch_norm(nn.BatchNorm2d, 4),
        c=nn.Linear(4, 3),
        drop=nn.Dropout(0.5),
    )
    net.register_buffer("count", torch.zeros(()))
    net.register_buffer("fresh", torch.tensor([1.0, -float("inf")]), persistent=False)
    net.to(memory_format=torch.channels_last)
    net.train()
    net.bn.eval()
    net.a.weight.requires_grad_(False)
    net.b.weight.grad = torch.full_like(net.b.weight, 0.5)
    net.b.register_forward_hook(lambda m, i, o: None)
    return net


def _workload(net: nn.Module, owned: bool = False) -> Workload:
    source = TensorSource(torch.randn(2, 3, 5, 5), torch.zeros(2, dtype=torch.long))
    return Workload(net, source, F.cross_entropy, torch.device("cpu"), torch.float32, owned=owned)


def _state(net: nn.Module) -> dict[str, object]:
    return {
        "training": {n: m.training for n, m in net.named_modules()},
        "requires_grad": {n: p.requires_grad for n, p in net.named_parameters()},
        "parameters": {n: (id(p), p.data_ptr(), p.stride(), p._version) for n, p in net.named_parameters()},
        "values": {n: p.detach().numpy().tobytes() for n, p in net.named_parameters()},
        "grads": {n: (id(p.grad), None if p.grad is None else p.grad.sum().item()) for n, p in net.named_parameters()},
        "buffers": {n: (id(b), b.data_ptr(), b.numpy().tobytes()) for n, b in net.named_buffers()},
        "hooks": [
            {k: len(v) for k, v in vars(m).items() if "hooks" in k and hasattr(v, "__len__")} for m in net.modules()
        ],
        "attributes": {n: sorted(vars(m)) for n, m in net.named_modules()},
        "tensor_hooks": [p._backward_hooks for p in net.parameters()],
    }


def _switches() -> dict[str, object]:
    return {
        "rng": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "fp32": [
            getattr(place, "fp32_precision", None)
            for place in (
                torch.backends,
                torch.backends.cuda.matmul,
                torch.backends.cudnn,
                torch.backends.cudnn.conv,
                torch.backends.cudnn.rnn,
                torch.backends.mkldnn,
                torch.backends.mkldnn.matmul,
                torch.backends.mkldnn.conv,
            )
        ],
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
    }


STAGES = ["check", "gradient", "directions", "curvature", "self-check"]


def _probe(net, **rest):
    torch.manual_seed(1)
    return spectrascope.probe(net, (torch.randn(9, 3, 5, 5), labels(9, 3)), top_k=2, micro_batch=4, **rest)


@pytest.mark.parametrize("engine", ["gauss-newton", "double-backprop"])
def test_success_leaves_everything_as_found(engine):
    net = _odd_model()
    torch.manual_seed(1)
    torch.randn(9, 3, 5, 5)
    state, switches = _state(net), _switches()
    report = _probe(net, engine=engine)
    assert report.summary.n_ok == 3
    assert _state(net) == state
    assert _switches() == switches


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("stage", STAGES)
def test_an_exception_leaves_everything_as_found(stage, error):
    net = _odd_model()
    torch.manual_seed(1)
    torch.randn(9, 3, 5, 5)
    state, switches = _state(net), _switches()

    def stop(name: str, done: int, total: int) -> None:
        assert not net.bn.training
        if name == stage and done:
            raise error("stop here")

    with pytest.raises(error, match="stop here"):
        _probe(net, on_progress=stop)
    assert _state(net) == state
    assert _switches() == switches


def test_settings_of_the_process_are_restored_and_do_not_matter():
    net = _odd_model()
    plain = _probe(net)
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            switches = _switches()
            cast = _probe(net)
            switches["rng"] = _switches()["rng"]
            assert _switches() == switches
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
        torch.backends.mha.set_fastpath_enabled(True)
    for a, b in zip(plain.layers, cast.layers, strict=True):
        assert a.measurement.h == pytest.approx(b.measurement.h, rel=1e-4, abs=1e-7)


def test_inside_only_the_wanted_weights_require_gradients():
    net = _odd_model()
    with held_still(_workload(net), [net.a.weight]):
        assert [n for n, p in net.named_parameters() if p.requires_grad] == ["a.weight"]
        assert not any(m.training for m in net.modules())


def test_a_network_that_nobody_else_holds_is_not_copied_and_all_but_its_values_is_put_back():
    net = _odd_model()
    before = _state(net)
    with elements_made() as kept, held_still(_workload(net), [net.a.weight]):
        pass
    assert sum(kept) >= sum(t.numel() for t in (*net.parameters(), *net.buffers()))
    assert _state(net) == before
    with elements_made() as made, held_still(_workload(net, owned=True), [net.a.weight]):
        net(torch.randn(2, 3, 5, 5))
    assert sum(made) < sum(kept) - sum(t.numel() for t in net.parameters())
    after = _state(net)
    assert [name for name in before if before[name] != after[name]] == ["buffers"]
    assert net.count == 1  # what the network does to its own values is its own business


@pytest.mark.parametrize(
    ("model", "dtype", "owned"),
    [
        ("digits-cnn@early", "float32", True),
        ("digits-cnn@early", "float64", True),
        ("memory", "float32", False),
        ("memory", "float64", True),  # a copy
        ("factory", "float32", False),  # which may keep what it returns
        ("factory", "float64", True),
        ("compiled inside", "float32", False),  # modules are copied, parameters are not
    ],
)
def test_who_else_holds_a_network(tmp_path, model, dtype, owned):
    net, batch = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (torch.rand(20, 1, 8, 8), torch.arange(20) % 10)
    (tmp_path / "own.py").write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Linear(64, 10))\n")
    if model == "compiled inside":
        net[1].compile()
    named = {"memory": net, "compiled inside": net, "factory": f"{tmp_path / 'own.py'}:net"}
    x = batch[0].flatten(1) if model == "factory" else batch[0]
    run = make_run("probe", named.get(model, model), (x, batch[1]), None, silent, {"dtype": dtype})
    assert prepare_workload(run).owned is owned


def test_a_moved_model_is_a_copy():
    net = _odd_model()
    state = _state(net)
    report = _probe(net, dtype="float64")
    assert report.provenance.dtype == "float64"
    assert _state(net) == state


def _net(run):
    return vec(lambda: Net(run, a=nn.Linear(6, 4)))


@pytest.mark.parametrize(
    "run",
    [lambda s, x: F.dropout(s.a(x), 0.5, training=True), lambda s, x: s.a(x) + torch.randn(4)],
    ids=["dropout", "noise"],
)
def test_randomness_is_refused(run):
    with pytest.raises(NondeterministicError, match="two identical passes gave losses"):
        require_deterministic(make_workload(_net(run)))


@pytest.mark.parametrize(
    ("run", "loss"),
    [
        (lambda s, x: s.a(x) - s.a(x).mean(0), F.cross_entropy),
        (lambda s, x: s.a(x).roll(1, 0), F.cross_entropy),
        (lambda s, x: s.a(x), lambda o, t: F.cross_entropy(o, t, reduction="sum")),
        (lambda s, x: s.a(x), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2, 3.0], dtype=torch.float64))),
        (lambda s, x: F.batch_norm(s.a(x), None, None, training=True), F.cross_entropy),
    ],
    ids=["batch mean", "roll", "sum", "class weights", "batch statistics"],
)
def test_a_loss_that_is_not_a_mean_over_samples_is_refused(run, loss):
    case = vec(lambda: Net(run, a=nn.Linear(6, 4)), loss=loss)
    with pytest.raises(UnsupportedModelError, match="mean over independent samples"):
        require_mean_loss(make_workload(case, 8))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_mean_loss_is_accepted(n):
    require_mean_loss(make_workload(_net(lambda s, x: s.a(x)), n, torch.float32))


@pytest.mark.parametrize(("kind", "name"), [("parameter", "c.bias"), ("buffer", "bn.running_var")])
def test_non_finite_weights_are_named(kind, name):
    net = _odd_model()
    require_finite_weights(net)
    dict(net.state_dict(keep_vars=True))[name].data[0] = float("inf")
    with pytest.raises(NonFiniteError, match=f"{kind} '{name}' holds NaN or infinity in 1 of"):
        require_finite_weights(net)
