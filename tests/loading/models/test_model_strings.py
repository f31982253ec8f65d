"""What a model string loads, and what it refuses to."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spectrascope.errors import LoadError
from spectrascope.loading.data.labels import CIFAR10, CIFAR100, DIGITS
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model
from spectrascope.loading.zoo import ZOO
from spectrascope.loading.zoo.resnet_cifar import cifar_resnet
from spectrascope.records.values import Missing, Task
from spectrascope.workload import SampleSource


def accuracy(model: torch.nn.Module, source: SampleSource) -> float:
    correct = 0
    with torch.no_grad():
        for start in range(0, source.n, 128):
            inputs, targets = source.fetch(start, start + 128)
            correct += int((model(inputs).argmax(1) == targets).sum())
    return correct / source.n


@pytest.mark.parametrize("spec", [None, "digits-cnn"])
def test_embedded_default(spec: str | None) -> None:
    loaded = load_model(spec)
    assert loaded.info.weights == "embedded"
    assert (loaded.info.id, loaded.info.architecture) == ("digits-cnn@early", "digits-cnn")
    assert (loaded.class_names, loaded.num_classes, loaded.default_dataset) == (DIGITS, 10, "digits")
    assert not loaded.model.training
    data = load_dataset(None, loaded, num_samples=2048, seed=0)
    assert data.source.n == 1797
    assert 0.965 < accuracy(loaded.model, data.source) < 0.98
    inputs, targets = data.source.fetch(0, 1797)
    loss = torch.nn.functional.cross_entropy(loaded.model(inputs), targets).item()
    assert 0.02 < loss < 0.2  # far enough from zero to have curvature


def test_embedded_files_are_small() -> None:
    folder = Path(sys.modules["spectrascope"].__file__ or "").parent / "data"
    assert sum(file.stat().st_size for file in folder.glob("digits_cnn*.safetensors")) <= 300_000
    assert "10.24432/C50P49" in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("file", "architecture"),
    [
        ("resnet20-12fca82f.th", "cifar-resnet20"),
        ("resnet32-d509ac18.th", "cifar-resnet32"),
        ("resnet44-014dd654.th", "cifar-resnet44"),
    ],
)
def test_trained_checkpoints(shared: Path, file: str, architecture: str) -> None:
    path = shared / "checkpoints" / file
    loaded = load_model(str(path))
    assert loaded.info.architecture == architecture
    assert (loaded.info.id, loaded.info.path, loaded.info.source) == (file, str(path), "checkpoint")
    assert loaded.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(loaded.info.sha256).startswith(file.split("-")[1].split(".", maxsplit=1)[0])
    assert loaded.info.n_parameters == sum(p.numel() for p in cifar_resnet(int(file[6:8])).parameters())
    assert loaded.class_names == CIFAR10
    assert loaded.default_dataset is None
    data = load_dataset(f"folder:{shared}/data/cifar10-test", loaded, num_samples=256, seed=0)
    assert 0.70 < accuracy(loaded.model, data.source) < 0.95


def test_explicit_architecture(shared: Path) -> None:
    path = str(shared / "checkpoints" / "resnet20-12fca82f.th")
    named, recognised = load_model(path, arch="cifar-resnet20"), load_model(path)
    for a, b in zip(named.model.parameters(), recognised.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(LoadError, match=r"does not fit cifar-resnet32: \d+ missing .*have it recognised"):
        load_model(path, arch="cifar-resnet32")
    with pytest.raises(LoadError, match="has 10 outputs, but 100 classes were asked for"):
        load_model(path, num_classes=100)


def test_head_size_is_read_from_the_file(tmp_path: Path) -> None:
    save_file(cifar_resnet(20, num_classes=100).state_dict(), tmp_path / "net.safetensors")
    loaded = load_model(str(tmp_path / "net.safetensors"))
    assert (loaded.num_classes, loaded.class_names) == (100, CIFAR100)
    save_file(cifar_resnet(20, num_classes=7).state_dict(), tmp_path / "net.safetensors")
    loaded = load_model(str(tmp_path / "net.safetensors"), num_classes=7)
    assert (loaded.num_classes, loaded.class_names) == (7, None)


LARGE = ("resnet34-cifar", "resnet50-cifar", "vgg16-cifar", "vgg16-bn-cifar", "cifar-resnet110")


@pytest.mark.parametrize("name", [*(name for name in ZOO if name not in LARGE), "mlp:3072-64-10"])
def test_a_file_gives_back_the_network_that_wrote_it(tmp_path: Path, name: str) -> None:
    first = load_model(f"{name}@none")
    torch.save({"state_dict": first.model.state_dict()}, tmp_path / "net.pt")
    second = load_model(str(tmp_path / "net.pt"))
    assert second.info.architecture == name
    assert second.info.task is first.info.task
    shape = second.preprocessing.input_shape
    assert (shape is None) == (second.text is not None)
    seeded = torch.Generator().manual_seed(0)
    x = torch.randint(256, (2, 9), generator=seeded) if shape is None else torch.randn(2, *shape, generator=seeded)
    assert torch.equal(first.model(x), second.model(x))


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v3_small", "swin_t"])
def test_a_torchvision_file_gives_back_the_network_that_wrote_it(tmp_path: Path, name: str) -> None:
    first = load_model(f"{name}@none", num_classes=6)
    torch.save({"model": first.model.state_dict()}, tmp_path / "net.pth")
    second = load_model(str(tmp_path / "net.pth"))
    assert (second.info.architecture, second.num_classes, second.class_names) == (name, 6, None)
    assert second.preprocessing == first.preprocessing
    assert second.preprocessing.crop is not None
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.model(x), second.model(x))


def test_a_named_mlp_may_call_its_layers_anything(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(9, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    torch.save(network.state_dict(), tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"), arch="mlp:9-5-3")
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.model(x), network(x))
    assert loaded.num_classes == 3
    with pytest.raises(LoadError, match="--arch"):  # its activation is anyone's guess
        load_model(str(tmp_path / "net.pt"))
    with pytest.raises(LoadError, match="does not fit mlp:9-6-3"):
        load_model(str(tmp_path / "net.pt"), arch="mlp:9-6-3")


def test_the_default_needs_no_torchvision() -> None:
    """Importing torchvision takes seconds, which the default should not pay."""
    code = (
        "import sys; from spectrascope.loading.models.open import load_model;"
        "from spectrascope.loading.data.open import load_dataset;"
        "loaded = load_model(None); load_dataset(None, loaded, num_samples=9, seed=0);"
        "sys.exit('torchvision' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_random_weights_only_when_asked_for() -> None:
    with pytest.raises(LoadError, match=r"have no weights.*--arch cifar-resnet20, or cifar-resnet20@none"):
        load_model("cifar-resnet20")
    with pytest.raises(LoadError, match="have no weights"):
        load_model("cifar-resnet20@IMAGENET1K_V1")


def test_random_weights_are_seeded_and_leave_the_caller_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    a, b, c = (load_model("cifar-resnet20@none", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a.model.linear.weight, b.model.linear.weight)
    assert not torch.equal(a.model.linear.weight, c.model.linear.weight)
    assert a.info.weights == "random (seed 3)"
    assert a.info.sha256 == Missing("no weights file")
    assert a.info.source == "built-in"


def test_number_of_classes_of_random_networks() -> None:
    assert load_model("vgg11-cifar@none", num_classes=100).class_names == CIFAR100
    with pytest.raises(LoadError, match="has 10 outputs, not 7; change the last width"):
        load_model("mlp:64-10@none", num_classes=7)
    with pytest.raises(LoadError, match="digits-cnn has 10 outputs, not 3"):
        load_model(None, num_classes=3)


@pytest.mark.parametrize("name", ["mlp:", "mlp:10", "mlp:64-x-10@none", "mlp:64--10@none", "mlp:0-10@none"])
def test_malformed_widths(name: str) -> None:
    with pytest.raises(LoadError, match=r"expected mlp: and at least two widths"):
        load_model(name)


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(LoadError, match=r"no network named 'cifar-resnet21'; nearest: .*cifar-resnet20"):
        load_model("cifar-resnet21")
    with pytest.raises(LoadError, match=r"nearest: cifar-resnet20, "):
        load_model("resnet20")
    with pytest.raises(LoadError, match=r"nearest: resnet50"):
        load_model("resnet_50")
    with pytest.raises(LoadError, match=r"no network named 'zzzz'; expected a checkpoint file"):
        load_model("zzzz@none")


def test_strings_that_are_paths(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no/such/net: no such file"):
        load_model("no/such/net")
    with pytest.raises(LoadError, match=r"--arch goes with a checkpoint file, but 'resnet18' is a name"):
        load_model("resnet18", arch="resnet18")
    (tmp_path / "net.py").write_text("")
    with pytest.raises(LoadError, match=r"is Python source; expected .*net\.py:factory"):
        load_model(str(tmp_path / "net.py"))


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    torch.save(cifar_resnet(20).state_dict(), tmp_path / "net.pt")
    file = str(tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"--base goes with a PEFT adapter, but 'resnet18' is none"):
        load_model("resnet18", base="hf:org/base")
    with pytest.raises(LoadError, match=r"--trust-remote-code goes with a Hugging Face model, but .*net\.pt' is none"):
        load_model(file, trust_remote_code=True)
    with pytest.raises(LoadError, match=r"--arch goes with a checkpoint file, but 'hf:org/name' says itself"):
        load_model("hf:org/name", arch="resnet18")
    with pytest.raises(LoadError, match=r"--arch goes with a checkpoint file, but 'timm:resnet50' is a name"):
        load_model("timm:resnet50", arch="resnet18")


def test_a_hugging_face_folder_and_the_files_in_it(tmp_path: Path) -> None:
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(loaded.model(x).logits, network(x).logits)
    assert (loaded.info.source, loaded.num_classes) == ("huggingface", 3)


def test_only_names_and_shapes_of_random_networks() -> None:
    loaded = load_model("vit_h_14@none", headers_only=True)
    assert all(p.is_meta for p in loaded.model.parameters())
    assert loaded.info.n_parameters == 632_045_800
    assert loaded.info.sha256 == Missing("only headers were read")
    assert loaded.info.task is Task.IMAGE_CLASSIFICATION


# --- torchvision ---


def test_torchvision_random_weights() -> None:
    loaded = load_model("resnet18@none", num_classes=12)
    assert (loaded.info.source, loaded.info.weights, loaded.num_classes) == (
        "torchvision",
        "random (seed 0)",
        12,
    )
    assert loaded.class_names is None
    assert loaded.preprocessing.input_shape == (3, 224, 224)
    assert (loaded.preprocessing.resize, loaded.preprocessing.crop) == (256, 224)
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_offline(hub: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    wanted = r"put squeezenet1_1-b8a52dc0\.pth from https://download\.pytorch\.org/\S+ into .*checkpoints"
    with pytest.raises(LoadError, match=f"are not on this machine and downloads are off; {wanted}"):
        load_model("squeezenet1_1", allow_download=False)

    def refuse(*_, **__):
        print("Downloading")
        raise OSError("<urlopen error [Errno -3] Temporary failure\nin name resolution>")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(LoadError, match=f"could not be downloaded .*{wanted}") as error:
        load_model("squeezenet1_1@IMAGENET1K_V1")
    assert "\n" not in str(error.value)
    assert "Downloading" not in capsys.readouterr().out


def test_torchvision_cached_weights(hub: Path) -> None:
    random = load_model("squeezenet1_1@none", seed=5)
    file = hub / "squeezenet1_1-b8a52dc0.pth"
    torch.save(random.model.state_dict(), file)
    loaded = load_model("squeezenet1_1", allow_download=False)
    assert (loaded.info.weights, loaded.info.path) == ("IMAGENET1K_V1", str(file))
    assert loaded.info.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.class_names is not None
    assert loaded.class_names[:2] == ("tench", "goldfish")
    for a, b in zip(random.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(
        LoadError, match=r"cached weights cannot be read .*delete .*squeezenet1_1-b8a52dc0.pth and run again"
    ):
        load_model("squeezenet1_1")


def test_torchvision_weights_names() -> None:
    with pytest.raises(LoadError, match=r"no such weights; expected resnet50@ one of IMAGENET1K_V1, .*none"):
        load_model("resnet50@V3")
    with pytest.raises(LoadError, match="have 1000 outputs, not 10; use resnet50@none"):
        load_model("resnet50@IMAGENET1K_V1", num_classes=10)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_training_heads_are_dropped(tmp_path: Path, name: str) -> None:
    loaded = load_model(f"{name}@none", num_classes=4)
    assert not [n for n, _ in loaded.model.named_parameters() if "aux" in n.lower()]


# --- factories ---

FACTORIES = """
import torch
from torch import nn
from sibling import WIDTH

def make():
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3), nn.Flatten(), nn.Linear(WIDTH * 36, 10))

def headed(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def sized(num_classes=5):
    return headed(num_classes)

def broken():
    raise RuntimeError("no\\nluck")

def poisoned():
    net = headed(2)
    net[1].weight.data[0, 0] = float("nan")
    return net

def quits():
    raise SystemExit(3)

def number():
    return 3

constant = 4
"""


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    (tmp_path / "sibling.py").write_text("WIDTH = 4\n")
    (tmp_path / "nets.py").write_text(FACTORIES)
    return tmp_path / "nets.py"


@pytest.mark.parametrize(("inputs", "channels"), [(64, 1), (784, 1), (3072, 3), (100, 1), (20, 3)])
def test_a_linear_layer_says_how_many_channels_images_have(tmp_path: Path, inputs: int, channels: int) -> None:
    (tmp_path / "flat.py").write_text(
        f"from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear({inputs}, 10))\n"
    )
    assert load_model(f"{tmp_path}/flat.py:make").preprocessing.channels == channels


def test_factory_in_a_file(source_file: Path) -> None:
    path, state = list(sys.path), torch.get_rng_state()
    a, b = load_model(f"{source_file}:make", seed=1), load_model(f"{source_file}:make", seed=1)
    assert sys.path == path
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.model[2].weight, b.model[2].weight)
    assert (a.info.source, a.info.weights, a.num_classes) == ("factory", "from the factory", None)
    assert (a.preprocessing.channels, a.preprocessing.size) == (1, None)
    digits = load_dataset("digits", a, num_samples=8, seed=0)
    assert a.model(digits.source.fetch(0, 8)[0]).shape == (8, 10)


def test_factory_in_a_module(source_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source_file.parent)
    assert load_model("nets:sized", num_classes=3).model[1].out_features == 3
    assert load_model("nets:sized").model[1].out_features == 5


def test_checkpoint_with_a_factory(source_file: Path, tmp_path: Path) -> None:
    weights = {"module.net.1.weight": torch.randn(9, 64), "module.net.1.bias": torch.randn(9)}
    torch.save(weights, tmp_path / "net.pt")
    for factory in ("headed", "sized"):
        loaded = load_model(str(tmp_path / "net.pt"), arch=f"{source_file}:{factory}")
        assert torch.equal(loaded.model[1].weight, weights["module.net.1.weight"])
        assert loaded.info.architecture == f"{source_file}:{factory}"
        assert loaded.info.source == "checkpoint"
    with pytest.raises(LoadError, match=r"does not fit .*:make: 4 missing .*2 unexpected"):
        load_model(str(tmp_path / "net.pt"), arch=f"{source_file}:make")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("broken", r"raised RuntimeError: no luck$"),
        ("quits", r"raised SystemExit: 3$"),
        ("headed", r"raised TypeError: .*num_classes"),
        ("number", r"returned int; expected a torch\.nn\.Module"),
        ("constant", r"constant is a int; expected a function"),
        ("mak", r"has no 'mak'; nearest: make"),
        ("poisoned", r"NaN or infinite"),
    ],
)
def test_factories_that_fail(source_file: Path, factory: str, message: str) -> None:
    from spectrascope.errors import SpectrascopeError

    with pytest.raises(SpectrascopeError, match=message) as error:
        load_model(f"{source_file}:{factory}")
    assert "\n" not in str(error.value)


def test_factories_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no such file .*gone\.py"):
        load_model(f"{tmp_path}/gone.py:make")
    with pytest.raises(LoadError, match="raised ModuleNotFoundError: No module named 'nowhere_at_all'"):
        load_model("nowhere_at_all:make")
    (tmp_path / "bad.py").write_text("def make(:\n")
    with pytest.raises(LoadError, match="raised SyntaxError"):
        load_model(f"{tmp_path}/bad.py:make")


@pytest.mark.parametrize("name", ["resnet-20", "ResNet_20"])
def test_a_name_written_with_other_hyphens_is_near(name: str) -> None:
    with pytest.raises(LoadError, match=r"nearest: cifar-resnet20\b"):
        load_model(name)
