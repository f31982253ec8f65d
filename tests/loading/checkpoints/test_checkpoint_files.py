"""Reading checkpoint files: formats, nesting, prefixes, and every refusal as one line."""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectrascope.errors import LoadError, NonFiniteError, SpectrascopeError
from spectrascope.loading.checkpoints.read import read_checkpoint, strip_wrappers
from spectrascope.loading.models.open import load_model


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "layers.0.weight": torch.randn(5, 9, generator=generator),
        "layers.0.bias": torch.randn(5, generator=generator),
        "layers.1.weight": torch.randn(3, 5, generator=generator),
        "layers.1.bias": torch.randn(3, generator=generator),
    }


def assert_same(read, expected) -> None:
    assert list(read) == list(expected)
    for key, value in expected.items():
        assert torch.equal(read[key], value), key


def assert_one_line(error: pytest.ExceptionInfo[SpectrascopeError]) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) < 400
    assert error.value.__suppress_context__ or error.value.__context__ is None


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt", ".odd"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_formats(tmp_path: Path, weights, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"net{suffix}"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.state_dict, weights)
    assert checkpoint.format == "pytorch"
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_safetensors_is_told_from_the_bytes(tmp_path: Path, weights, name: str) -> None:
    save_file(weights, tmp_path / name, metadata={"epoch": "7"})
    checkpoint = read_checkpoint(tmp_path / name)
    assert_same(dict(sorted(checkpoint.state_dict.items())), dict(sorted(weights.items())))
    assert checkpoint.format == "safetensors"
    assert checkpoint.metadata == {"epoch": "7"}


def test_pytorch_file_named_safetensors(tmp_path: Path, weights) -> None:
    torch.save(weights, tmp_path / "net.safetensors")
    assert_same(read_checkpoint(tmp_path / "net.safetensors").state_dict, weights)


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda w: {"state_dict": w, "best_prec1": 91.0}, "state_dict"),
        (
            lambda w: {"epoch": 3, "model": w, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
            "model",
        ),
        (
            lambda w: {"optimizer_state_dict": {"a.b": torch.ones(1)}, "model_state_dict": w},
            "model_state_dict",
        ),
        (lambda w: {"best_acc": torch.tensor(3.0), "net": w}, "net"),
        (lambda w: {"weights": w}, "weights"),
        (lambda w: {"ema": {"state_dict": w}, "step": 1}, "ema.state_dict"),
        (lambda w: {"my_network": w, "epoch": 1}, "my_network"),
    ],
)
def test_nested_weights(tmp_path: Path, weights, wrap, place: str) -> None:
    torch.save(wrap(weights), tmp_path / "net.pt")
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    assert_same(checkpoint.state_dict, weights)
    assert checkpoint.format == f"pytorch, under '{place}'"


def test_numbers_beside_the_tensors(tmp_path: Path, weights) -> None:
    torch.save({**weights, "epoch": 4}, tmp_path / "net.pt")
    assert_same(read_checkpoint(tmp_path / "net.pt").state_dict, weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module._orig_mod."])
def test_wrapper_prefixes_are_stripped_in_a_loop(tmp_path: Path, weights, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in weights.items()}, tmp_path / "net.pt")
    assert_same(read_checkpoint(tmp_path / "net.pt").state_dict, weights)


def test_strip_wrappers_inside_names_and_averaged_models() -> None:
    one = torch.ones(1)
    assert list(strip_wrappers({"layer1._orig_mod.conv.weight": one})) == ["layer1.conv.weight"]
    assert list(strip_wrappers({"n_averaged": one, "module.fc.weight": one})) == ["fc.weight"]
    # A submodule that really is called "module" stays where not every key has it.
    assert list(strip_wrappers({"module.a": one, "head.b": one})) == ["module.a", "head.b"]


@pytest.mark.parametrize("prefix", ["model.", "net.", "model.net.", "model._orig_mod.", "backbone."])
def test_other_prefixes_are_stripped_where_that_fits(tmp_path: Path, weights, prefix: str) -> None:
    torch.save({"state_dict": {prefix + key: value for key, value in weights.items()}}, tmp_path / "net.ckpt")
    loaded = load_model(str(tmp_path / "net.ckpt"))
    assert loaded.info.architecture == "mlp:9-5-3"
    assert_same(loaded.model.state_dict(), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_are_noted(tmp_path: Path, weights, dtype: torch.dtype) -> None:
    torch.save({key: value.to(dtype) for key, value in weights.items()}, tmp_path / "net.pt")
    loaded = load_model(str(tmp_path / "net.pt"))
    name = str(dtype).removeprefix("torch.")
    assert loaded.info.weights == f"checkpoint ({name}, converted to float32)"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model.state_dict()["layers.0.weight"], weights["layers.0.weight"].to(dtype).float())


# --- refusals ---


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"gone\.pt: no such file; expected a checkpoint") as error:
        read_checkpoint(tmp_path / "gone.pt")
    assert_one_line(error)


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"holds no checkpoint; expected a \.index\.json file or one of") as error:
        load_model(f"{tmp_path}{os.sep}")
    assert_one_line(error)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    with pytest.raises(LoadError, match=r"is empty \(0 bytes\)") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)


@pytest.mark.parametrize("written", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, weights, written: str, kept: float) -> None:
    path = tmp_path / ("net.safetensors" if written == "safetensors" else "net.pt")
    if written == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=written == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: max(1, int(kept * len(content)))])
    with pytest.raises(LoadError, match="truncated") as error:
        read_checkpoint(path)
    assert_one_line(error)


@pytest.mark.parametrize("content", [b"<html>404</html>" * 9, b"\x89PNG\r\n\x1a\n" + bytes(99), bytes(999)])
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=r"not a (checkpoint|readable safetensors file)|is a web page") as error:
        read_checkpoint(tmp_path / name)
    assert_one_line(error)


@pytest.mark.parametrize("seed", range(60))
def test_corrupt_files_never_raise_anything_else(tmp_path: Path, weights, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "net.pt"
    if seed % 3 == 0:
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=seed % 3 == 1)
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 4, 40])):
        content[rng.randrange(min(len(content), 600))] = rng.randrange(256)
    path.write_bytes(bytes(content))
    try:
        load_model(str(path))
    except SpectrascopeError as error:
        assert "\n" not in str(error)  # noqa: PT017 - many of these files are still readable


class _Touch:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("written", ["zip", "legacy", "bare pickle"])
def test_a_pickle_that_runs_code_does_not(tmp_path: Path, weights, written: str) -> None:
    path, trace = tmp_path / "net.pt", tmp_path / "executed"
    content = {**weights, "extra": _Touch(trace)}
    if written == "bare pickle":
        path.write_bytes(pickle.dumps({"state_dict": 1, "extra": _Touch(trace)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=written == "zip")
    with pytest.raises(LoadError, match=r"asks to run '(posix|nt)\.system'; nothing was run.*safetensors") as error:
        read_checkpoint(path)
    assert_one_line(error)
    assert not trace.exists()


def test_the_malicious_file_is_really_malicious(tmp_path: Path) -> None:
    """Guards the test above: an ordinary unpickler does run it."""
    pickle.loads(pickle.dumps(_Touch(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_plain_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(pickle.dumps(_Touch(tmp_path / "executed"), protocol=4))
    with pytest.raises(LoadError, match="plain pickle, which may run code and was not run") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)
    assert not (tmp_path / "executed").exists()


def test_whole_pickled_network(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"whole pickled network \(torch\.nn\.modules\..*state_dict\(\)") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)


def test_unknown_class_in_a_pickle_is_named(tmp_path: Path, weights) -> None:
    torch.save({"state_dict": {**weights, "a.weight": argparse.Namespace(path=1)}}, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"asks to run 'argparse.Namespace'") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)


@pytest.mark.filterwarnings("ignore")
def test_torchscript(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "net.pt"))
    with pytest.raises(LoadError, match="is a TorchScript program") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({"epoch": 3, "args": {"lr": 0.1}}, "got a dict with keys 'epoch', 'args'"),
        ({}, "keys none"),
        ([1, 2], "holds a list"),
        (torch.ones(3), "holds a single tensor"),
    ],
)
def test_file_without_weights(tmp_path: Path, content, got: str) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=got) as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, weights, value: float) -> None:
    weights = copy.deepcopy(weights)
    weights["layers.1.weight"][0, 2] = value
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(NonFiniteError, match=r"1 of 15 values of 'layers\.1\.weight' are NaN or infinite") as error:
        load_model(str(tmp_path / "net.pt"))
    assert_one_line(error)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_quantised_weights(tmp_path: Path, weights, dtype: torch.dtype) -> None:
    weights = {**weights, "layers.0.weight": weights["layers.0.weight"].to(dtype)}
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"'layers\.0\.weight' is stored as .*quantised weights") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)


def test_sparse_weights(tmp_path: Path, weights) -> None:
    weights = {**weights, "layers.0.weight": weights["layers.0.weight"].to_sparse()}
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(LoadError, match="sparse or complex") as error:
        read_checkpoint(tmp_path / "net.pt")
    assert_one_line(error)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("place", [(), ("model",), ("ema", "state_dict")])
def test_torchs_own_quantised_layers_are_refused(place: tuple[str, ...], tmp_path: Path) -> None:
    """Their weights are packed with the bias into one object, beside which only scales are plain tensors."""
    packed = (torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8), torch.ones(2))
    content: dict[str, object] = {
        "fc.scale": torch.tensor(0.1),
        "fc._packed_params.dtype": torch.qint8,
        "fc._packed_params._packed_params": packed,
    }
    for name in reversed(place):
        content = {name: content, "epoch": 3}
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(LoadError, match="packed weights of torch's quantised layers"):
        read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("name", "says"), [("__0_0.distcp", "dcp_to_torch FOLDER OUTPUT"), ("net.pt2", r"torch\.export\.load\(FILE\)")]
)
def test_formats_of_other_parts_of_torch_are_named(name: str, says: str, tmp_path: Path, weights) -> None:
    torch.save(weights, tmp_path / name)
    with pytest.raises(LoadError, match=says) as error:
        read_checkpoint(tmp_path / name)
    assert "damaged" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_fsdp(tmp_path: Path, weights) -> None:
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    torch.save(weights, tmp_path / "pytorch_model_fsdp_0" / "__0_0.distcp")
    with pytest.raises(LoadError, match=r"accelerate merge-weights .*pytorch_model_fsdp_0 OUTPUT"):
        read_checkpoint(tmp_path)


_KINDS = {
    "arrays": (lambda w: {name: t.numpy() for name, t in w.items()}, "holds NumPy arrays, not tensors"),
    "arrays below": (lambda w: {"net": {n: t.numpy() for n, t in w.items()}, "epoch": 3}, "holds NumPy arrays"),
    "deep": (lambda w: {"a": {"b": {"c": {"d": w}}}}, r"deeper than is looked, .* as \S+net\.pt::a\.b\.c\.d$"),
    "list": (lambda w: {"models": [w, w]}, "holds weights in a list, at models; save the state dict you mean"),
    "meta": (lambda w: {name: t.to("meta") for name, t in w.items()}, "was saved from the meta device"),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", _KINDS)
def test_what_holds_weights_is_not_said_to_hold_none(kind: str, mapped: bool, tmp_path: Path, weights) -> None:
    make, says = _KINDS[kind]
    torch.save(make(weights), tmp_path / "net.pt")
    with pytest.raises(LoadError, match=says):
        read_checkpoint(tmp_path / "net.pt", mapped=mapped)
    if kind == "deep":
        assert_same(read_checkpoint(Path(f"{tmp_path}/net.pt::a.b.c.d")).state_dict, weights)


def test_an_exported_program_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),))
    torch.export.save(program, tmp_path / "net.pt2")
    (tmp_path / "net.pt2").rename(tmp_path / "net.pt")
    with pytest.raises(LoadError, match=r"net\.pt is a program written by torch\.export\.save"):
        read_checkpoint(tmp_path / "net.pt")
