"""--mean, --std, --image-size and --resize: a network of one's own sees images as it was trained on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from spectrascope.cli import main
from spectrascope.errors import OptionError
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model

MEAN, STD = (0.31, 0.62, 0.11), (0.05, 0.9, 0.2)
FACTORY = """
import torch
from torch import nn
import torch.nn.functional as F

def net():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))

def with_data():
    network = net()
    network.load_state_dict(torch.load("FOLDER/net.pt"))
    x, y = torch.load("FOLDER/data.pt")
    return network, (x, y), F.cross_entropy
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained on images normalised by values of its own; the images as files, and as tensors."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(FACTORY.replace("FOLDER", str(folder)))
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    pixels = generator.integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    pixels[np.arange(90), :, :, labels] = np.clip(pixels[np.arange(90), :, :, labels] * 0.8 + 40, 0, 255)
    for i, image in enumerate(pixels):
        (folder / "images" / str(labels[i])).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / str(labels[i]) / f"{i:03}.png")
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    y = torch.from_numpy(labels)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    torch.save(network.state_dict(), folder / "net.pt")
    torch.save((x, y), folder / "data.pt")
    np.savez(folder / "eight_bit.npz", x=pixels, y=labels)
    return folder


def _probe(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict:
    assert main(["probe", *arguments, "--num-samples", "90", "--top-k", "2", "--json", "-q"]) == code
    out, err = capsys.readouterr()
    return {"error": err} if code else json.loads(out)["provenance"]


GIVEN = ("--mean", "0.31,0.62,0.11", "--std", "0.05,0.9,0.2")


def test_a_network_of_ones_own_is_as_good_as_on_its_own_data(own: Path, capsys) -> None:
    factory = f"{own / 'nets.py'}:net"
    best = _probe(capsys, f"{own / 'nets.py'}:with_data")
    for data in (f"folder:{own / 'images'}", f"npz:{own / 'eight_bit.npz'}"):
        mine = _probe(capsys, str(own / "net.pt"), "--arch", factory, "--dataset", data, *GIVEN)
        assert mine["accuracy"] == best["accuracy"] > 0.95
        assert mine["loss"] == pytest.approx(best["loss"], rel=1e-5)
        assert "normalised with mean 0.31 0.62 0.11, std 0.05 0.9 0.2" in mine["data"]["preprocessing"]
    plain = _probe(capsys, str(own / "net.pt"), "--arch", factory, "--dataset", f"folder:{own / 'images'}")
    assert plain["accuracy"] < best["accuracy"] - 0.2
    assert "does not say how its inputs are prepared" in plain["data"]["preprocessing"]


def test_one_value_is_for_all_channels_and_sizes_go_with_it(own: Path) -> None:
    loaded = load_model(str(own / "net.pt"), arch=f"{own / 'nets.py'}:net")
    data = load_dataset(
        f"folder:{own / 'images'}", loaded, num_samples=4, seed=0, image_size=8, resize=12, mean=(0.5,), std=(0.25,)
    )
    x, _ = data.source.fetch(0, 4)
    assert x.shape == (4, 3, 8, 8)
    assert data.info.preprocessing == (
        "shorter side to 12 (bilinear), centre crop 8×8; RGB; scaled to [0, 1], normalised with mean 0.5 0.5 0.5, std "
        "0.25 0.25 0.25"
    )
    plain = load_dataset(f"folder:{own / 'images'}", loaded, num_samples=4, seed=0, image_size=8, resize=12)
    assert torch.allclose(x, (plain.source.fetch(0, 4)[0] - 0.5) / 0.25)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mean": (0.5,)}, "--mean goes with --std"),
        ({"std": (0.5,)}, "--std goes with --mean"),
        ({"mean": (127.5,), "std": (127.5,)}, "divide values of pixels up to 255 by 255"),
        ({"mean": (0.5,), "std": (0.0,)}, "stds above 0"),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "--mean 0.5,0.5: .* takes 3 channels; expected 3 values, or one for all"),
        ({"resize": 12}, "--resize goes with --image-size"),
        ({"resize": 6, "image_size": 8}, "--resize 6: expected at least the image size, 8"),
        ({"image_size": 0}, "--image-size 0: expected at least 1 pixel"),
    ],
)
def test_impossible_values(given: dict, says: str, own: Path) -> None:
    loaded = load_model(str(own / "net.pt"), arch=f"{own / 'nets.py'}:net")
    with pytest.raises(OptionError, match=says) as caught:
        load_dataset(f"folder:{own / 'images'}", loaded, num_samples=4, seed=0, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("option", ["--image-size 8", "--image-size 8 --resize 9", "--mean 0.5 --std 0.5"])
@pytest.mark.parametrize("kind", ["own data", "arrays", "noise", "text network"])
def test_refused_where_it_means_nothing(kind: str, option: str, own: Path, capsys) -> None:
    factory = f"{own / 'nets.py'}:net"
    file = (str(own / "net.pt"), "--arch", factory)
    arguments, says = {
        "own data": ((f"{own / 'nets.py'}:with_data",), "goes with --dataset: the factory brings samples of its own"),
        "arrays": ((*file, "--dataset", f"pt:{own / 'data.pt'}"), "holds inputs that are used as they are; drop it"),
        "noise": (
            (*file, "--dataset", "synthetic", "--num-classes", "3"),
            "is noise of the network's own scale",
        ),
        "text network": (("mini-gpt2@none", "--dataset", f"text:{own / 'nets.py'}"), "reads tokens; drop it"),
    }[kind]
    if (kind, option) == ("noise", "--image-size 8"):  # which is as large as asked for
        _probe(capsys, *arguments, *option.split())
        return
    error = _probe(capsys, *arguments, *option.split(), code=2)["error"]
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("value", ["a", "0.5,,0.5", "nan", "0.5;0.5", ""])
def test_values_that_are_no_numbers(value: str, capsys) -> None:
    error = _probe(capsys, "digits-cnn", "--mean", value, "--std", "0.5", code=2)["error"]
    assert "--mean" in error
    assert error.count("\n") == 1
