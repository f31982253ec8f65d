"""Networks whose weights are spread over processes are refused before anything of them is touched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import spectrascope
from spectrascope.errors import UnsupportedModelError

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


def test_fsdp1_is_told_by_its_class():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = _net()

    with pytest.raises(UnsupportedModelError, match=f"sharded by FSDP: .*{HOW}"):
        spectrascope.weights(FullyShardedDataParallel())
