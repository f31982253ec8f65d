"""Adding a source of models or data: one file and one registry line, or an installed distribution's entry point."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from spectrascope.errors import DataError, LoadError
from spectrascope.loading import installed
from spectrascope.loading.data import open as data_room
from spectrascope.loading.data.source import LoadedData
from spectrascope.loading.loaded import LoadedModel
from spectrascope.loading.models import open as model_room

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
MODEL = (EXAMPLE / "spectrascope_lines" / "models.py").read_text(encoding="utf-8")
DATA = (EXAMPLE / "spectrascope_lines" / "datasets.py").read_text(encoding="utf-8")
"""What a new source takes, whole: the example distribution's text."""


def defined(text: str, name: str) -> object:
    """What a plug-in's module defines."""
    space: dict[str, object] = {"__name__": "plug_in"}
    exec(text, space)
    return space[name]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with entry points, installed where nothing else is."""
    site = tmp_path / "site"
    info = site / "spectrascope_lines-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spectrascope-lines\nVersion: 1.0\n")
    points = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    (info / "entry_points.txt").write_text(
        "\n".join(
            f"[{group}]\n"
            + "\n".join(f"{name} = {place}" for name, place in own.items())
            + "\nbroken = plug_in_broken:SOURCE\nwrong = json:dumps"
            for group, own in points.items()
        )
    )
    shutil.copytree(EXAMPLE / "spectrascope_lines", site / "spectrascope_lines")
    (site / "plug_in_broken.py").write_text("raise RuntimeError('half installed')\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    yield site
    for name in [name for name in sys.modules if name.startswith("spectrascope_lines")]:
        del sys.modules[name]


@pytest.fixture
def never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry point may be read."""

    def refuse(**_: object) -> None:
        raise AssertionError("entry points were read")

    monkeypatch.setattr(installed, "entry_points", refuse)


def check(loaded: LoadedModel, data: LoadedData) -> None:
    assert (loaded.info.source, loaded.info.id, loaded.num_classes) == ("lines", "lines:12", 3)
    assert loaded.preprocessing.input_shape == (1, 1, 12)
    assert (data.info.id, data.info.n, data.info.n_classes) == ("ramp", 7, 3)
    inputs, _ = data.source.fetch(0, 2)
    assert loaded.model(inputs).shape == (2, 3)


def test_a_registry_line_adds_a_source(monkeypatch: pytest.MonkeyPatch, never_asked: None) -> None:
    models, data = defined(MODEL, "SOURCE"), defined(DATA, "RAMP")
    monkeypatch.setattr(model_room, "SOURCES", (*model_room.SOURCES[:-1], models, model_room.SOURCES[-1]))
    monkeypatch.setattr(data_room, "SOURCES", (*data_room.SOURCES, data))
    loaded = model_room.load_model("lines:12", num_classes=3)
    check(loaded, data_room.load_dataset("ramp", loaded, num_samples=7, seed=0))


def test_a_registry_line_is_in_the_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_room, "SOURCES", (defined(MODEL, "SOURCE"), *model_room.SOURCES))
    monkeypatch.setattr(data_room, "SOURCES", (*data_room.SOURCES, defined(DATA, "RAMP")))
    with pytest.raises(LoadError, match="expected lines:WIDTH, a checkpoint file, a built-in name"):
        model_room.load_model("no-such-network")
    loaded = model_room.load_model(None)
    with pytest.raises(DataError, match=r"hf:NAME, synthetic or ramp\[:SLOPE\]$"):
        data_room.load_dataset("no-such-data", loaded, num_samples=7, seed=0)


def test_a_registry_line_adds_an_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        model_room, "SOURCES", (*model_room.SOURCES[:-1], defined(MODEL, "SOURCE"), model_room.FACTORIES)
    )
    torch.save({"1.weight": torch.ones(4, 12), "1.bias": torch.zeros(4)}, tmp_path / "w.pt")
    loaded = model_room.load_model(str(tmp_path / "w.pt"), arch="lines:12")
    assert (loaded.info.architecture, loaded.num_classes) == ("lines:12", 4)


def test_an_installed_distribution_adds_sources(distribution: Path, tmp_path: Path) -> None:
    loaded = model_room.load_model("lines:12", num_classes=3)
    check(loaded, data_room.load_dataset("ramp", loaded, num_samples=7, seed=0))
    assert data_room.load_dataset("ramp:2/3", loaded, num_samples=7, seed=0).info.id == "ramp:2/3"
    torch.save({"1.weight": torch.ones(4, 12), "1.bias": torch.zeros(4)}, tmp_path / "w.pt")
    assert model_room.load_model(str(tmp_path / "w.pt"), arch="lines:12").num_classes == 4
    with pytest.raises(LoadError, match="--arch goes with a checkpoint file"):
        model_room.load_model("lines:12", arch="digits-cnn")


def test_a_broken_installed_source_is_one_line(distribution: Path) -> None:
    loaded = model_room.load_model(None)
    with pytest.raises(
        LoadError, match=r"^broken: the installed spectrascope-lines offers plug_in_broken:SOURCE, which cannot be"
    ):
        model_room.load_model("broken:x/y")
    with pytest.raises(DataError, match=r"cannot be imported \(RuntimeError: half installed\); reinstall it"):
        data_room.load_dataset("broken:x", loaded, num_samples=7, seed=0)
    with pytest.raises(LoadError, match="which is a function; expected a ModelSource"):
        model_room.load_model("wrong:x")
    with pytest.raises(DataError, match="which is a function; expected a DataSource"):
        data_room.load_dataset("wrong", loaded, num_samples=7, seed=0)
    with pytest.raises(LoadError, match=r"file\.py:factory \(installed besides: broken, lines, wrong\)$"):
        model_room.load_model("no-such-network")


def test_a_users_own_module_wins_over_an_installed_name(distribution: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(5, 2)\n")
    assert model_room.load_model("lines:make").info.source == "factory"


def test_known_strings_never_read_entry_points(never_asked: None, tmp_path: Path) -> None:
    loaded = model_room.load_model(None)
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef make():\n    return nn.Linear(5, 2)\n")
    torch.save(loaded.model.state_dict(), tmp_path / "w.pt")
    for spec in (
        "digits-cnn",
        "mlp:4-3-2@none",
        "resnet18@none",
        str(tmp_path / "w.pt"),
        f"{tmp_path / 'net.py'}:make",
    ):
        model_room.load_model(spec)
    model_room.load_model(str(tmp_path / "w.pt"), arch="digits-cnn")
    for dataset in ("digits", "synthetic", None):
        data_room.load_dataset(dataset, loaded, num_samples=2, seed=0)
    for dataset in (
        "folder:/none",
        "imagenet",
        "tiny-imagenet-train",
        "digits:3",
        "npz:/none",
        "text:/none",
        "hf:./none",
    ):
        with pytest.raises(DataError):
            data_room.load_dataset(dataset, loaded, num_samples=2, seed=0)


def test_help_never_reads_entry_points(distribution: Path) -> None:
    (distribution / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\nmetadata.entry_points = lambda **_: exit('entry points were read')\n"
    )
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import sitecustomize; sys.argv[1:] = ['probe', '--help'];"
        "from spectrascope.cli import main; main()"
    )
    root = Path(model_room.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, str(distribution)], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
