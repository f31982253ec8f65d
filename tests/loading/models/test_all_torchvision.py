"""Every torchvision classification model, from its state dict alone and with each of its published weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.skeleton import build_skeleton, skeleton_of
from spectrascope.loading.models import torchvision as torchvision_models
from spectrascope.loading.models.open import load_model
from spectrascope.loading.models.recognise import recognise
from spectrascope.loading.models.torchvision import PLAIN, Variant
from spectrascope.loading.zoo import ZOO
from tests.support.counting import parameters_made

NAMES = torchvision_models.list_names()
HEADS = (7, 200, 1000, 21841)


@pytest.mark.parametrize("name", NAMES)
def test_recognised_by_keys_and_shapes_with_any_head(name: str) -> None:
    at = NAMES.index(name)
    for num_classes in (HEADS[at % 4], HEADS[(at + 1) % 4]):
        state_dict = build_skeleton(lambda n=num_classes: torchvision_models.build_model(name, n)).state_dict()
        with parameters_made() as made:
            recognised = recognise(state_dict)
        assert len(made) < len(state_dict) + 1000  # its own, and the first layers of those that resemble it
        assert (recognised.architecture, recognised.num_classes) == (name, num_classes)
        built = recognised.build().state_dict() if num_classes == HEADS[0] and at % 8 == 0 else state_dict
        assert {key: value.shape for key, value in built.items()} == {k: v.shape for k, v in state_dict.items()}


@lru_cache(maxsize=1)
def shapes_by_name() -> dict[str, dict[str, tuple[int, ...]]]:
    builds = {name: entry.build for name, entry in ZOO.items()}
    builds |= {name: lambda n, name=name: torchvision_models.build_model(name, n) for name in NAMES}
    return {name: skeleton_of(build).shapes for name, build in builds.items()}


def test_no_two_networks_share_keys_and_shapes() -> None:
    """The reason that none of them needs a tie-break: were there two, the user would be asked."""
    groups: dict[frozenset[tuple[str, tuple[int, ...]]], list[str]] = {}
    for name, shapes in shapes_by_name().items():
        groups.setdefault(frozenset(shapes.items()), []).append(name)
    assert len(groups) == len(NAMES) + len(ZOO)


@pytest.mark.parametrize("pattern", torchvision_models.FAMILIES)
def test_family_keys_are_in_each_of_its_models(pattern: str) -> None:
    for name in torchvision_models.names_in([pattern]):
        assert pattern in torchvision_models.families_of(shapes_by_name()[name]), name


def weights_of(name: str) -> list[str]:
    import torchvision

    return [entry.name for entry in torchvision.models.get_model_weights(name)]


@pytest.mark.parametrize("name", NAMES)
def test_every_published_weight_states_its_preprocessing(name: str) -> None:
    for which in weights_of(name):
        if which == "IMAGENET1K_FEATURES":
            with pytest.raises(LoadError, match="have no classifier; use vgg16@IMAGENET1K_V1"):
                load_model(f"{name}@{which}", headers_only=True)
            continue
        entry = torchvision_models.find_weights(name, which)
        loaded = load_model(f"{name}@{which}", headers_only=True)
        steps = entry.transforms()
        assert loaded.info.weights == which
        assert loaded.preprocessing.input_shape == (3, steps.crop_size[0], steps.crop_size[0])
        assert loaded.preprocessing.resize == steps.resize_size[0]
        assert (loaded.preprocessing.mean, loaded.preprocessing.std) == (tuple(steps.mean), tuple(steps.std))
        assert loaded.preprocessing.interpolation == steps.interpolation.value
        assert (loaded.num_classes, len(loaded.class_names or ())) == (1000, 1000)
        assert all(p.is_meta for p in loaded.model.parameters())
        # GoogLeNet's and Inception's numbers count the training heads, which are dropped.
        if name not in ("googlenet", "inception_v3"):
            assert loaded.info.n_parameters == entry.meta["num_params"]


@pytest.mark.parametrize("name", ["mnasnet0_5", "googlenet", "densenet121", "shufflenet_v2_x0_5"])
def test_a_cached_file_gives_torchvisions_own_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    entry = torchvision_models.find_weights(name, None)
    file = tmp_path / "checkpoints" / entry.url.rpartition("/")[2]
    file.parent.mkdir()
    options = {"init_weights": False} if name == "googlenet" else {}
    torch.save(torchvision.models.get_model(name, **options).state_dict(), file)
    loaded = load_model(name, allow_download=False)
    theirs = torchvision.models.get_model(name, weights=entry).eval()
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), theirs(x))


def test_a_file_that_would_run_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's own loader would unpickle whatever lies in the cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    file = tmp_path / "checkpoints" / torchvision_models.find_weights("alexnet", None).url.rpartition("/")[2]
    file.parent.mkdir()
    torch.save({"weights": torch.nn.Linear(2, 2)}, file)
    with pytest.raises(LoadError, match="cached weights cannot be read"):
        load_model("alexnet", allow_download=False)


def test_image_sizes_of_published_vision_transformers() -> None:
    variants = {
        which: torchvision_models.variant_of("vit_l_16", torchvision_models.find_weights("vit_l_16", which))
        for which in weights_of("vit_l_16")
    }
    assert variants["IMAGENET1K_V1"] == PLAIN
    assert variants["IMAGENET1K_SWAG_E2E_V1"] == Variant(image_size=512)
