"""Loading takes the network's memory and no copy of the file's; the file may change or go once that is done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectrascope.errors import LoadError, NonFiniteError
from spectrascope.loading.checkpoints.momentum import read_momentum
from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.models.factories import fill_factory, find_factory
from spectrascope.loading.models.open import load_model
from tests.support.hf_networks import build, save

ROOT = Path(__file__).parents[2]
CASES = (
    "whole.safetensors", "whole.pt", "half.safetensors", "half.pt", "shards", "factory", "random", "llama",
    "llama, bfloat16",
)  # fmt: skip
SPARE = 3 << 20  # bytes of what is no tensor


@pytest.fixture(scope="module")
def peaks(tmp_path_factory):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc/self/status, where Linux tells private pages from those of files")
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.loading_peaks", str(tmp_path_factory.mktemp("peaks"))],
        # a fixed threshold: every tensor's memory goes back to the system when the tensor goes
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_no_more_than_the_network_and_one_tensor_is_private_at_a_time(peaks, case):
    found = peaks[case]
    assert found["network"] > 30 << 20
    assert found["peak"] > 0.8 * found["network"]  # that it was seen at all
    assert found["peak"] <= found["network"] + found["largest"] + SPARE


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))})
    return dict(net.state_dict())


def _file(folder: Path, name: str) -> tuple[Path, str, dict]:
    """A file and the model string that reads it."""
    if name == "llama":
        save(build("llama").bfloat16(), folder)
        return folder / "model.safetensors", str(folder), {"keep_bfloat16": True}
    path, weights = folder / name, _weights()
    (save_file if name.endswith("safetensors") else torch.save)(weights, path)
    return path, str(path), {}


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "llama"])
def test_a_file_that_is_overwritten_or_cut_changes_nothing(tmp_path, name):
    path, spec, how = _file(tmp_path, name)
    network = load_model(spec, **how).model
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\x11" * size)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    os.truncate(path, 0)  # of a mapped file, the next look would end this process
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def test_momentum_is_not_left_in_its_file(tmp_path):
    net = nn.Linear(6, 5)
    optimizer = torch.optim.SGD(net.named_parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 6)).sum().backward()
    optimizer.step()
    path = tmp_path / "c.pt"
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, path)
    momentum = read_momentum(path, net)
    os.truncate(path, 0)
    assert torch.equal(momentum["weight"], optimizer.state[net.weight]["momentum_buffer"])


def test_what_cannot_be_mapped_is_read(tmp_path, monkeypatch):
    path, spec, how = _file(tmp_path, "net.pt")
    load = torch.load

    def unable(*args, **more):
        if more.get("mmap"):
            raise RuntimeError(f"unable to mmap 4096 bytes from file <{path}>: No such device (19)")
        return load(*args, **more)

    monkeypatch.setattr(torch, "load", unable)
    assert all(
        torch.equal(_weights()[key], tensor) for key, tensor in load_model(spec, **how).model.state_dict().items()
    )


@pytest.mark.parametrize("arch", [None, "mlp:6-5-3", "factory"])
@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_the_copy_is_known_to_be_finite(tmp_path, monkeypatch, name, arch):
    path, weights = tmp_path / name, _weights()
    weights["layers.1.weight"][2, 1] = torch.nan
    (save_file if name.endswith("safetensors") else torch.save)(weights, path)
    if arch == "factory":
        (tmp_path / "own.py").write_text(
            "from spectrascope.loading.zoo import find_entry\ndef net(): return find_entry('mlp:6-5-3').build(3)\n"
        )
        arch = f"{tmp_path / 'own.py'}:net"
    with pytest.raises(NonFiniteError, match=r"1 of 15 values of .*layers\.1\.weight.* NaN"):
        load_model(str(path), arch=arch)


def test_a_timm_network_does_not_keep_what_it_was_filled_with(tmp_path):
    timm = pytest.importorskip("timm")
    from spectrascope.loading.models.timm import _create

    name = "resnet10t"
    tensors = timm.create_model(name).state_dict()
    path = tmp_path / "net.safetensors"
    save_file(tensors, path)
    network = _create(f"timm:{name}", name, read_checkpoint(path, mapped=True).state_dict)
    os.truncate(path, 0)
    assert all(torch.equal(tensors[key], tensor) for key, tensor in network.state_dict().items())
    assert "state_dict" not in network.pretrained_cfg


def test_a_factory_makes_one_network_at_a_time(tmp_path):
    (tmp_path / "own.py").write_text(
        "import weakref\nfrom torch import nn\nmade = []\n"
        "def net(num_classes=3):\n"
        "    assert all(made_before() is None for made_before in made)\n"
        "    net = nn.ModuleDict({'layers': nn.Sequential(nn.Linear(6, 5), nn.Linear(5, num_classes, bias=False))})\n"
        "    made.append(weakref.ref(net))\n"
        "    return net\n"
    )
    factory = find_factory(f"{tmp_path / 'own.py'}:net")
    with pytest.raises(LoadError, match="does not fit"):
        fill_factory(tmp_path / "w.pt", factory, factory.make, _weights(), None)
