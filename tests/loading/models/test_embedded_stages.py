"""The embedded network early and late in its training: which name means which, and the step each says it is from."""

from pathlib import Path

import pytest
import torch

from spectrascope.errors import LoadError
from spectrascope.loading.checkpoints.read import read_step
from spectrascope.loading.models.open import find_step, load_model


def test_the_plain_name_means_the_early_one() -> None:
    early = load_model("digits-cnn@early")
    for spec in (None, "digits-cnn"):
        plain = load_model(spec)
        assert plain.info == early.info
        assert plain.info.id == "digits-cnn@early"
    final = load_model("digits-cnn@final")
    assert (final.info.id, final.info.weights) == ("digits-cnn@final", "embedded")
    assert not torch.equal(final.model.fc1.weight, early.model.fc1.weight)


def test_each_says_its_step() -> None:
    steps = [find_step(spec) for spec in ("digits-cnn", "digits-cnn@early", "digits-cnn@final", "digits-cnn@none")]
    assert steps == [210, 210, 420, None]
    assert find_step("cifar-resnet20@none") is None


def test_only_names_there_are() -> None:
    for ask in (load_model, find_step):
        with pytest.raises(LoadError, match=r"digits-cnn@other: no such weights.*@early, digits-cnn@final.*@none"):
            ask("digits-cnn@other")
    with pytest.raises(LoadError, match="have no weights of their own"):
        load_model("cifar-resnet20@early")


@pytest.mark.parametrize("step", ["12", "", "-3", "twelve"])
def test_a_file_says_its_step(tmp_path: Path, step: str) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2, 2)}, tmp_path / "w.safetensors", metadata={"step": step})
    assert read_step(tmp_path / "w.safetensors") == (12 if step == "12" else None)
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    assert read_step(tmp_path / "bad.safetensors") is None
    assert read_step(tmp_path / "w.pt") is None
