"""``--device-map`` on a machine without a GPU: what is refused, and that the numbers do not hang on it."""

import json

import pytest
import torch

from spectrascope.cli import main
from spectrascope.measure import placement

QUICK = (
    "probe",
    "--num-samples",
    "32",
    "--top-k",
    "3",
    "--estimate",
    "published",
    "--micro-batch",
    "16",
    "--json",
    "-q",
)


def probed(capsys, *options):
    code = main([*QUICK, *options])
    said = capsys.readouterr()
    return code, said.out, " ".join(said.err.split())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("everywhere", "expected none, auto, or a JSON file"),
        ('{"": "disk"}', 'is on "disk": expected a GPU\'s number'),
        ("[1]", "expected none, auto, or a JSON file"),
        ("{}", "got {}"),
    ],
)
def test_what_is_no_map_is_refused_before_anything_runs(capsys, given, words):
    code, _, err = probed(capsys, "--device-map", given)
    assert code == 2
    assert words in err


def test_a_gpu_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(placement, "gpus", list)
    code, out, err = probed(capsys, "--device-map", '{"": 0}')
    assert (code, out) == (2, "")
    assert "'' is on GPU 0; this machine has none" in err


def test_auto_without_a_gpu_is_the_cpu(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(placement, "gpus", list)
    file = tmp_path / "map.json"
    file.write_text('{"": "cpu"}')
    plain, *mapped = (json.loads(probed(capsys, "--device-map", given)[1]) for given in ("none", "auto", str(file)))
    for report in mapped:
        assert report["layers"] == plain["layers"]
        assert report["provenance"]["device"] == plain["provenance"]["device"]


def test_a_map_and_a_device_contradict_each_other(capsys):
    code, _, err = probed(capsys, "--device-map", "auto", "--device", "cpu")
    assert code == 2
    assert "drop --device" in err


def test_blocks_are_computed_on_one_device():
    """What a residual block adds up lies on one device: its class is named, those of containers are not."""
    from torchvision.models import resnet18, vit_b_16

    with torch.device("meta"):
        assert placement._blocks(resnet18()) == ["BasicBlock"]
        assert placement._blocks(vit_b_16()) == ["EncoderBlock"]
