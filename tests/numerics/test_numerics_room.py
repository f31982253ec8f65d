import subprocess
import sys
from pathlib import Path

import pytest

import spectrascope.numerics as room

MODULES = ["analysis", "fits", "participation", "rank_models", "summary", "transfer"]


def test_every_public_name_resolves_once() -> None:
    assert sorted(set(room.__all__)) == sorted(room.__all__)
    assert all(callable(getattr(room, name)) for name in room.__all__)


@pytest.mark.parametrize("module", MODULES)
def test_refitting_does_not_import_torch(module: str) -> None:
    code = f"import sys, spectrascope.numerics.{module}; print('torch' in sys.modules)"
    root = Path(room.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("symbol", ["m", "n", "k", "b", "t", "c", "sigma", "h", "beta", "alpha_g", "alpha_h"])
def test_glossary_explains(symbol: str) -> None:
    assert any(line.startswith(f"{symbol} ") for line in room.__doc__.splitlines())
