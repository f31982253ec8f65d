"""Every built-in and torchvision architecture is told from its keys and shapes; strangers are refused."""

from __future__ import annotations

import re

import pytest
import torch

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.skeleton import build_skeleton
from spectrascope.loading.data.labels import CIFAR10, CIFAR100, imagenet_wnids, match_labels
from spectrascope.loading.models import torchvision as torchvision_models
from spectrascope.loading.models.recognise import recognise
from spectrascope.loading.models.torchvision import Variant
from spectrascope.loading.zoo import ZOO, find_entry
from spectrascope.loading.zoo.resnet_cifar import cifar_resnet
from tests.support.counting import parameters_made

BUILT_IN = [*ZOO, "mlp:784-256-128-10", "mlp:64-10"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_architectures(name: str) -> None:
    entry = find_entry(name)
    assert entry is not None
    num_classes = entry.num_classes if name.startswith("mlp:") else 37
    recognised = recognise(build_skeleton(lambda: entry.build(num_classes)).state_dict())
    assert (recognised.architecture, recognised.num_classes) == (name, num_classes)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_files_without_the_training_heads(name: str) -> None:
    network = build_skeleton(lambda: torchvision_models.build_model(name, 5, Variant(auxiliary=False)))
    recognised = recognise(network.state_dict())
    assert (recognised.architecture, recognised.num_classes) == (name, 5)


@pytest.mark.parametrize("side", [384, 96])
def test_vision_transformers_for_other_image_sizes(side: int) -> None:
    network = build_skeleton(lambda: torchvision_models.build_model("vit_b_16", 9, Variant(image_size=side)))
    recognised = recognise(network.state_dict())
    assert (recognised.architecture, recognised.num_classes, recognised.image_size) == ("vit_b_16", 9, side)
    assert recognised.build().image_size == side


def test_every_torchvision_model_has_one_family() -> None:
    """A release that adds a family shows here; until it is listed, its files take longer to recognise."""
    for name in torchvision_models.list_names():
        assert sum(bool(re.fullmatch(p, name)) for p in torchvision_models.FAMILIES) == 1, name


def test_a_model_of_no_known_family_is_recognised_too(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {p: keys for p, keys in torchvision_models.FAMILIES.items() if not p.startswith("shufflenet")}
    monkeypatch.setattr(torchvision_models, "FAMILIES", without)
    network = build_skeleton(lambda: torchvision_models.build_model("shufflenet_v2_x0_5", 7))
    assert recognise(network.state_dict(), timm=False).architecture == "shufflenet_v2_x0_5"


# --- what training programs put beside and before the keys ---


def resnet(width: int = 10) -> dict[str, torch.Tensor]:
    return dict(cifar_resnet(20, num_classes=width).state_dict())


def prefixed(prefix: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state_dict.items()}


@pytest.mark.parametrize(
    ("prefix", "extras"),
    [
        ("model.", {"criterion.weight": torch.ones(10)}),
        ("net.", {"loss_fn.weight": torch.ones(10, 10), "train_acc.correct": torch.tensor(3)}),
        ("model.", {"val_confusion.confmat": torch.ones(10, 10)}),
        ("model.net.module.", {"model.metric.total": torch.ones(2, 2), "step": torch.tensor(7)}),
        ("ema_model.module.", {"initted": torch.tensor(True), "step": torch.tensor(7)}),
        ("model._orig_mod.", {}),
    ],
)
def test_extras_of_training_programs(prefix: str, extras: dict[str, torch.Tensor]) -> None:
    recognised = recognise({**prefixed(prefix, resnet()), **extras}, timm=False)
    assert recognised.architecture == "cifar-resnet20"
    assert list(recognised.state_dict) == list(resnet())


@pytest.mark.parametrize(("raw", "averaged"), [("model", "ema_model"), ("online_model", "ema_model"), ("net", "ema")])
def test_of_raw_and_averaged_weights_the_raw_ones_are_taken_and_said(raw: str, averaged: str) -> None:
    a, b = resnet(), resnet()
    recognised = recognise({**prefixed(f"{averaged}.", b), **prefixed(f"{raw}.", a)}, timm=False)
    assert recognised.state_dict["conv1.weight"] is a["conv1.weight"]
    assert recognised.reading.note == f"those under {raw!r}, not {averaged!r}"


def test_a_network_that_is_part_of_another_is_not_taken_for_the_whole() -> None:
    both = {**prefixed("encoder.", resnet()), **prefixed("projector.", {"0.weight": torch.ones(10, 10)})}
    with pytest.raises(LoadError, match="fit no known network"):
        recognise(both, timm=False)


def test_batch_counters_may_be_absent_or_extra() -> None:
    state_dict = cifar_resnet(20).state_dict()
    bare = {key: value for key, value in state_dict.items() if "num_batches" not in key}
    assert len(bare) < len(state_dict)
    assert recognise(bare).architecture == recognise(state_dict).architecture == "cifar-resnet20"


def test_other_spellings() -> None:
    state_dict = build_skeleton(lambda: ZOO["resnet18-cifar"].build(10)).state_dict()
    respelt = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): value for key, value in state_dict.items()
    }
    recognised = recognise(respelt)
    assert recognised.architecture == "resnet18-cifar"
    assert list(recognised.state_dict) == list(state_dict)
    dense = build_skeleton(lambda: torchvision_models.build_model("densenet121", 9)).state_dict()
    dotted = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): v for key, v in dense.items()}
    assert list(dotted) != list(dense)
    assert recognise(dotted).architecture == "densenet121"


def test_the_state_dict_of_another_variant_comes_back_renamed() -> None:
    state_dict = cifar_resnet(20).state_dict()
    recognised = recognise({f"model.{key}": value for key, value in state_dict.items()})
    assert list(recognised.state_dict) == list(state_dict)


def test_nearest_is_named_with_the_difference() -> None:
    state_dict = dict(cifar_resnet(32).state_dict())
    del state_dict["layer3.4.conv2.weight"]
    state_dict["extra.weight"] = torch.ones(1)
    state_dict["conv1.weight"] = torch.ones(16, 1, 3, 3)
    with pytest.raises(
        LoadError,
        match=r"nearest is cifar-resnet32, which differs by 1 missing \(layer3\.4\.conv2\.weight\), "
        r"1 unexpected \(extra\.weight\), "
        r"1 of another shape \(conv1\.weight: expected \(16, 3, 3, 3\), got \(16, 1, 3, 3\)\)",
    ):
        recognise(state_dict, timm=False)


def test_strangers_are_refused_in_one_line() -> None:
    with parameters_made() as made, pytest.raises(LoadError, match=r"fit no known .*--arch") as error:
        recognise({f"encoder.{i}.attention.weight": torch.ones(2, 3) for i in range(50)}, timm=False)
    assert len(made) < 3000  # of the built-in networks; torchvision's 20 000 are not built
    assert "\n" not in str(error.value)


def test_layers_of_no_width_are_refused_in_one_line() -> None:
    with pytest.raises(LoadError, match="fit no known network"):
        recognise({"layers.0.weight": torch.ones(10, 0), "layers.0.bias": torch.ones(10)}, timm=False)


def test_missing_running_statistics_are_not_optional() -> None:
    state_dict = {key: value for key, value in cifar_resnet(20).state_dict().items() if "running_mean" not in key}
    with pytest.raises(LoadError, match=r"differs by 19 missing \(bn1\.running_mean"):
        recognise(state_dict, timm=False)


def test_class_lists() -> None:
    assert len(CIFAR10) == 10
    assert len(set(CIFAR100)) == 100
    assert list(CIFAR100) == sorted(CIFAR100)
    assert len(set(imagenet_wnids())) == 1000
    assert list(imagenet_wnids()) == sorted(imagenet_wnids())


def test_matching_labels() -> None:
    assert match_labels(["Car", "PLANE", "truck", "house"], CIFAR10) == {
        "Car": 1, "PLANE": 0, "truck": 9, "house": None,
    }  # fmt: skip
    assert match_labels(["Maple-Tree", "aquarium fish"], CIFAR100) == {"Maple-Tree": 47, "aquarium fish": 1}
    categories = torchvision_models.find_weights("resnet18", None).meta["categories"]
    # n01440764 is the tench, class 0.
    assert match_labels(["n01440764", "goldfish", "tree"], tuple(categories)) == {
        "n01440764": 0, "goldfish": 1, "tree": None,
    }  # fmt: skip
    # A name that two classes share says nothing.
    assert match_labels(["crane", "dog"], ("crane", "dog", "Crane")) == {"crane": None, "dog": 1}


def test_what_differs_in_most_tensors_is_not_near() -> None:
    strange = {f"block{i}.mixer.weight": torch.ones(3, 3) for i in range(6)}
    with pytest.raises(LoadError, match="fit no known network; name the architecture"):
        recognise(strange, timm=False)
