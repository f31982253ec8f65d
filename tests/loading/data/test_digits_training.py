"""The script that trained the embedded network still does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from spectrascope.loading.checkpoints.read import read_checkpoint
from spectrascope.loading.models.open import load_model


def test_training_script(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    script = root / "examples" / "train_digits_cnn.py"
    output = tmp_path / "digits_cnn.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True, env=environment)
    metadata = read_checkpoint(output).metadata
    assert 0.97 < float(metadata["test_accuracy"]) < 1.0
    assert 0.02 < float(metadata["train_loss"]) < 0.1
    early = read_checkpoint(tmp_path / "digits_cnn_early.safetensors").metadata
    assert (early["step"], metadata["step"]) == ("210", "420")
    assert 0.08 < float(early["train_loss"]) < 0.2
    loaded = load_model(str(output))
    assert (loaded.info.architecture, loaded.default_dataset) == ("digits-cnn", "digits")
