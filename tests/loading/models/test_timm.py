"""timm's models by name, and their files recognised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.skeleton import build_skeleton
from spectrascope.loading.models import timm as timm_models
from spectrascope.loading.models.open import load_model
from spectrascope.loading.models.recognise import recognise
from spectrascope.records.values import Missing, Task
from tests.support.counting import parameters_made

timm = pytest.importorskip("timm")


def test_random_weights_only_when_asked_for() -> None:
    loaded = load_model("timm:resnet10t@none", num_classes=7, seed=3)
    assert (loaded.info.source, loaded.info.weights, loaded.num_classes) == ("timm", "random (seed 3)", 7)
    assert (loaded.info.architecture, loaded.info.task) == ("timm:resnet10t", Task.IMAGE_CLASSIFICATION)
    assert loaded.info.sha256 == Missing("no weights file")
    with pytest.raises(LoadError, match=r"timm:test_byobnet@zzz: no such weights; expected .*r160_in1k, none"):
        load_model("timm:test_byobnet@zzz")


def test_unknown_names() -> None:
    with pytest.raises(LoadError, match=r"no model named 'resnet_50'; nearest: resnet50, .*timm:NAME@none"):
        load_model("timm:resnet_50")
    with pytest.raises(LoadError, match=r"timm:resnet19q: no weights are published|no model named 'resnet19q'"):
        load_model("timm:resnet19q")


def test_preprocessing_and_classes_are_timms_own() -> None:
    loaded = load_model("timm:resnet50@a2_in1k", headers_only=True)
    config = timm.get_pretrained_cfg("resnet50.a2_in1k")
    assert loaded.preprocessing.crop == config.input_size[1] == 224
    assert loaded.preprocessing.resize == int(224 / config.crop_pct)
    assert (loaded.preprocessing.mean, loaded.preprocessing.interpolation) == (config.mean, config.interpolation)
    assert loaded.class_names is not None
    assert loaded.class_names[:2] == ("tench", "goldfish")
    assert loaded.info.weights == "a2_in1k"
    assert all(p.is_meta for p in loaded.model.parameters())
    squashed = load_model("timm:vit_base_patch16_siglip_gap_224@none", headers_only=True).preprocessing
    assert squashed.size == (224, 224) or squashed.crop == 224
    other_tag = load_model("timm:resnet50.tv_in1k", headers_only=True)  # timm's own spelling
    assert (other_tag.info.weights, other_tag.preprocessing.interpolation) == ("tv_in1k", "bilinear")


def test_offline_in_one_line_and_at_once(tmp_path: Path) -> None:
    code = (
        "from spectrascope.errors import LoadError; from spectrascope.loading.models.open import load_model\n"
        "for allow in (False, True):\n"
        "    try: load_model('timm:resnet10t', allow_download=allow)\n"
        "    except LoadError as error: print(error)"
    )
    environment = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    first, second = done.stdout.splitlines()
    assert "are not on this machine and downloads are off; pass model.safetensors from https://huggingface" in first
    assert "could not be downloaded" in second
    for line in (first, second):
        assert str(tmp_path / "hub" / "models--timm--resnet10t.c3_in1k") in line
    assert done.stderr == ""


def test_published_weights_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    network = timm.create_model("test_vit", pretrained=False)
    folder = tmp_path / "models--timm--test_vit.r160_in1k"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    loaded = load_model("timm:test_vit", allow_download=False)
    x = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.model(x), network.eval()(x))
    assert (loaded.info.weights, loaded.num_classes) == ("r160_in1k", 1000)
    assert loaded.info.path == str(snapshot / "model.safetensors")
    assert len(str(loaded.info.sha256)) == 64
    with pytest.raises(LoadError, match=r"have 1000 outputs, not 7; use timm:test_vit@none"):
        load_model("timm:test_vit", num_classes=7, allow_download=False)


@pytest.mark.parametrize("name", ["convnextv2_atto", "vit_tiny_r_s16_p8_224"])
def test_a_file_with_the_architecture_named(tmp_path: Path, name: str) -> None:
    """Of the second, the constructor runs the network, so that it cannot be built without storage."""
    network = timm.create_model(name, pretrained=False, num_classes=5).eval()
    torch.save(network.half().state_dict(), tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"), arch=f"timm:{name}")
    assert (loaded.num_classes, loaded.info.architecture, loaded.info.source) == (5, f"timm:{name}", "checkpoint")
    assert loaded.info.weights == "checkpoint (float16, converted to float32)"
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), network.float()(x))


@pytest.mark.parametrize("name", ["convnextv2_atto", "levit_128s", "coatnet_nano_rw_224"])
def test_recognised_from_the_keys(tmp_path: Path, name: str) -> None:
    network = timm.create_model(name, pretrained=False, num_classes=9).eval()
    save_file({f"model.{key}": value for key, value in network.state_dict().items()}, tmp_path / "net.safetensors")
    with parameters_made() as made:
        loaded = load_model(str(tmp_path / "net.safetensors"))
    assert len(made) < 30 * len(timm.list_models())  # most of a thousand constructors are left after a layer or two
    assert (loaded.info.architecture, loaded.num_classes) == (f"timm:{name}", 9)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), network(x))  # also where constructors compute tables that no file holds


def skeleton(name: str) -> dict[str, torch.Tensor]:
    return build_skeleton(lambda: timm_models.build_model(name, 9)).state_dict()


def test_networks_that_differ_in_what_no_tensor_shows_are_listed() -> None:
    with pytest.raises(
        LoadError, match=r"several networks that differ .* \(timm:resnet50d, timm:resnetaa50d, timm:resnetblur50d\)"
    ):
        recognise(skeleton("resnet50d"))


def test_two_names_of_one_network_are_both_said() -> None:
    recognised = recognise(skeleton("deit_tiny_patch16_224"))
    assert {recognised.architecture, *recognised.same} == {"timm:deit_tiny_patch16_224", "timm:vit_tiny_patch16_224"}


@pytest.mark.parametrize("where", ["metadata", "config.json"])
def test_the_files_own_word_decides_between_equals(tmp_path: Path, where: str) -> None:
    state_dict = timm.create_model("resnetblur18", pretrained=False, num_classes=4).state_dict()
    if where == "metadata":
        save_file(state_dict, tmp_path / "model.safetensors", metadata={"architecture": "resnetblur18"})
    else:
        save_file(state_dict, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnetblur18", "num_classes": 4}))
    loaded = load_model(str(tmp_path / "model.safetensors"))
    assert (loaded.info.architecture, loaded.num_classes) == ("timm:resnetblur18", 4)


def test_a_wrong_word_is_not_believed(tmp_path: Path) -> None:
    state_dict = timm.create_model("resnet18", pretrained=False, num_classes=4).state_dict()
    save_file(state_dict, tmp_path / "model.safetensors", metadata={"architecture": "resnet50"})
    assert load_model(str(tmp_path / "model.safetensors")).info.architecture == "resnet18"


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "is_installed", lambda: False)
    timm_models._timm.cache_clear()
    timm_models.list_names.cache_clear()
    with pytest.raises(LoadError, match=r"pip install 'spectrascope\[timm\]'"):
        load_model("timm:resnet50")
    with pytest.raises(LoadError, match=r"fit no known network"):
        recognise({"stem.weight": torch.ones(2, 2)})
