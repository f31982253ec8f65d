"""Networks whose weights are spread over processes are refused before anything of them is touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import UnsupportedModelError
from spectrascope.network.effective import copy_of

dist = pytest.importorskip("torch.distributed")
HOW = r"get_model_state_dict\(model, options=StateDictOptions\(full_state_dict=True\)\)"


@pytest.fixture
def one_process(tmp_path):
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("no gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def _fsdp2(mesh):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("no fully_shard")
    return fsdp.fully_shard(_net(), mesh=mesh)


def _dtensor(mesh):
    tensor = pytest.importorskip("torch.distributed.tensor")
    return tensor.distribute_module(_net(), mesh)


@pytest.mark.parametrize("wrap", [_fsdp2, _dtensor])
def test_refused_with_the_way_to_gather(one_process, wrap):
    net = wrap(one_process)
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    for measure in (
        lambda: spectrascope.probe(net, (x, y)),
        lambda: spectrascope.probe(net, (x, y), engine="double-backprop"),
        lambda: spectrascope.inspect(net, (x, y)),
        lambda: spectrascope.weights(net),
        lambda: spectrascope.weights(dict(net.state_dict())),
    ):
        with pytest.raises(UnsupportedModelError, match=HOW) as caught:
            measure()
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 3
    if wrap is _fsdp2:  # the next training step has all its gradients
        nn.functional.cross_entropy(net(x), y).backward()
        assert all(p.grad is not None for p in net.parameters())


def test_a_copy_of_a_hooked_network_moves_alone(tmp_path):
    """accelerate puts a ``to`` of its own on the network, which a copy takes along and which moves the original."""
    hooked = _placed("whole", tmp_path)
    copied = copy_of(hooked)
    assert copied.to(torch.float64) is copied
    assert {p.dtype for p in copied.parameters()} == {torch.float64}
    assert {p.dtype for p in hooked.parameters()} == {torch.float32}
    assert "to" in vars(hooked)


def test_fsdp1_is_told_by_its_class():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = _net()

    with pytest.raises(UnsupportedModelError, match=f"sharded by FSDP: .*{HOW}"):
        spectrascope.weights(FullyShardedDataParallel())


def _placed(where, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    if where == "cpu":
        return accelerate.cpu_offload(_net(), execution_device=torch.device("cpu"))
    if where == "disk":
        return accelerate.disk_offload(_net(), str(tmp_path), execution_device=torch.device("cpu"))
    places = {"0": "cpu", "1": "cpu", "2": "disk" if where == "mixed" else "cpu"}
    return accelerate.dispatch_model(
        _net(), places, main_device="cpu", offload_dir=str(tmp_path / "mixed"), force_hooks=True
    )


@pytest.mark.parametrize("where", ["cpu", "disk", "mixed"])
def test_weights_that_accelerate_has_put_away(where, tmp_path):
    net = _placed(where, tmp_path)
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    before, places = net(x).detach(), [p.device for p in net.parameters()]
    for measure in (spectrascope.probe, spectrascope.inspect):
        with pytest.raises(UnsupportedModelError, match=r"is offloaded by accelerate .*with device_map") as caught:
            measure(net, (x, y))
        assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedModelError, match="is offloaded by accelerate"):
        spectrascope.weights(net)
    assert [p.device for p in net.parameters()] == places
    assert torch.equal(net(x), before)


def test_hooks_that_put_nothing_away_change_nothing(tmp_path):
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    hooked, plain = _placed("whole", tmp_path), _net()
    assert hasattr(hooked, "_hf_hook")
    for of in (lambda net: spectrascope.inspect(net, (x, y)).cost.flops_per_sample, lambda net: [
        row.measurement.h for row in spectrascope.probe(net, (x, y), top_k=2, dtype="float64", micro_batch=4).layers
    ]):  # fmt: skip
        assert of(hooked) == of(plain)
    assert hasattr(hooked, "_hf_hook")
