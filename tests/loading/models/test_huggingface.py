"""Hugging Face folders and Hub repositories: what is loaded equals what was saved, and every refusal is one line."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.utils as hub_utils
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import ViTConfig

from spectrascope.errors import DataError, LoadError, NonFiniteError, SpectrascopeError
from spectrascope.loading.models.huggingface.hub import HubSpec, _wanted, parse_hub_spec
from spectrascope.loading.models.huggingface.images import image_preprocessing
from spectrascope.loading.models.huggingface.open import is_huggingface_directory, load_huggingface
from spectrascope.records.values import Missing, Task
from tests.support import hf_networks as networks
from tests.support.counting import connections, elements_made

LAYOUTS = ("safetensors", "shards", "bin", "bf16")
TASKS = {
    "gpt2": Task.CAUSAL_LM,
    "llama": Task.CAUSAL_LM,
    "mixtral": Task.CAUSAL_LM,
    "bert-masked": Task.MASKED_LM,
    "bert-classifier": Task.SEQUENCE_CLASSIFICATION,
    "vit": Task.IMAGE_CLASSIFICATION,
    "convnext": Task.IMAGE_CLASSIFICATION,
}


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    return networks.save(networks.build("llama"), tmp_path / "llama")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return networks.save(networks.build("llama"), tmp_path / "shards", "shards")


def refusal(spec: object, match: str, kind: type[SpectrascopeError] = LoadError, **options: Any) -> str:
    with pytest.raises(kind, match=match) as error:
        load_huggingface(str(spec), **options)
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) < 500
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return text


def change_index(folder: Path, **changes: Any) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- round trips ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", list(networks.FAMILIES))
def test_round_trip(tmp_path: Path, family: str, layout: str) -> None:
    network = networks.build(family)
    folder = networks.save(network, tmp_path / "net", layout)
    if layout == "shards":
        assert len(list(folder.glob("*.safetensors"))) > 2
    loaded = load_huggingface(str(folder))
    saved = dict(network.named_parameters())
    read = dict(loaded.model.named_parameters())
    assert list(read) == list(saved)  # a tied head has one name, as in the original
    for name, parameter in read.items():
        expected = saved[name].to(torch.bfloat16).float() if layout == "bf16" else saved[name]
        assert torch.equal(parameter, expected), name
        assert parameter.dtype is torch.float32
        assert parameter.requires_grad
    assert type(loaded.model) is type(network)
    assert not any(module.training for module in loaded.model.modules())
    assert (loaded.info.task, loaded.info.source) == (TASKS[family], "huggingface")
    assert loaded.info.architecture == type(network).__name__
    assert loaded.info.weights == ("checkpoint (bfloat16, converted to float32)" if layout == "bf16" else "checkpoint")
    assert loaded.info.n_parameters == sum(p.numel() for p in network.parameters())
    headers = load_huggingface(str(folder), headers_only=True)
    assert {n: p.shape for n, p in headers.model.named_parameters()} == {n: p.shape for n, p in saved.items()}
    assert all(p.is_meta for p in headers.model.parameters())
    assert type(headers.model) is type(network)
    assert headers.info.n_parameters == loaded.info.n_parameters
    assert isinstance(headers.info.sha256, Missing)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "bert-classifier", "convnext"])
def test_same_outputs(tmp_path: Path, family: str) -> None:
    """Buffers that no file holds (positions, rotary frequencies) are right too."""
    network = networks.build(family)
    loaded = load_huggingface(str(networks.save(network, tmp_path / "net")))
    x = torch.randn(2, 3, 32, 32) if family == "convnext" else torch.arange(14).view(2, 7)
    with torch.no_grad():
        assert torch.equal(loaded.model(x).logits, network(x).logits)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize("headers_only", [False, True])
def test_tied_head_stays_tied(tmp_path: Path, layout: str, headers_only: bool) -> None:
    folder = networks.save(networks.build("gpt2"), tmp_path / "net", layout)
    model: Any = load_huggingface(str(folder), headers_only=headers_only).model
    assert model.lm_head.weight is model.transformer.wte.weight


def test_tied_by_the_config_but_not_by_the_file(tmp_path: Path) -> None:
    network = networks.build("gpt2")
    network.lm_head.weight = torch.nn.Parameter(network.lm_head.weight.detach() + 1)
    model: Any = load_huggingface(str(networks.save(network, tmp_path / "net", "bin"))).model
    assert torch.equal(model.lm_head.weight, network.lm_head.weight)
    assert torch.equal(model.transformer.wte.weight, network.transformer.wte.weight)


def test_a_class_that_initialises_what_was_read(tmp_path: Path) -> None:
    """Funnel zeroes the row of the padding token after loading."""
    shape: dict[str, Any] = {"d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 8, "block_sizes": [1, 1, 1]}
    network = transformers.FunnelForMaskedLM(transformers.FunnelConfig(vocab_size=40, pad_token_id=0, **shape)).eval()
    with torch.no_grad():
        network.get_input_embeddings().weight.fill_(0.5)
    for layout in ("safetensors", "bin"):
        model: Any = load_huggingface(str(networks.save(network, tmp_path / layout, layout))).model
        assert torch.equal(model.get_input_embeddings().weight, torch.full((40, 8), 0.5))
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert type(model) is transformers.FunnelForMaskedLM


def test_a_file_or_an_index_in_the_folder(shards: Path, llama_folder: Path) -> None:
    index = shards / "model.safetensors.index.json"
    from_shards, from_file = load_huggingface(str(index)), load_huggingface(str(llama_folder / "model.safetensors"))
    assert from_shards.info.path == str(index)
    assert from_file.info.path == str(llama_folder / "model.safetensors")
    for (name, a), (other, b) in zip(
        from_shards.model.named_parameters(), from_file.model.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)


def test_sha256(shards: Path, llama_folder: Path) -> None:
    def sha(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert load_huggingface(str(llama_folder)).info.sha256 == sha(llama_folder / "model.safetensors")
    lines = sorted(f"{file.name}:{sha(file)}" for file in shards.glob("*.safetensors"))
    assert load_huggingface(str(shards)).info.sha256 == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_the_file_can_change_after_loading(llama_folder: Path) -> None:
    loaded = load_huggingface(str(llama_folder))
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    file = llama_folder / "model.safetensors"
    with file.open("r+b") as opened:
        opened.seek(-200, 2)
        opened.write(bytes(200))
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


def test_keys_of_older_files(tmp_path: Path) -> None:
    """Causal masks of old GPT-2 files, and the pooler and next-sentence head of BERT's."""
    folder = networks.save(networks.build("gpt2"), tmp_path / "gpt2")
    state_dict = load_file(folder / "model.safetensors")
    state_dict["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
    state_dict["transformer.h.0.attn.masked_bias"] = torch.tensor(-float("inf"))
    save_file(state_dict, folder / "model.safetensors")
    assert load_huggingface(str(folder)).info.weights == "checkpoint"
    folder = networks.save(networks.build("bert-masked"), tmp_path / "bert")
    state_dict = load_file(folder / "model.safetensors")
    state_dict["cls.seq_relationship.weight"] = torch.ones(2, 8)
    state_dict["bert.pooler.dense.weight"] = torch.ones(8, 8)
    save_file(state_dict, folder / "model.safetensors")
    assert "without 2 tensors of other heads: bert.pooler.dense" in load_huggingface(str(folder)).info.weights


def test_is_huggingface_directory(llama_folder: Path, tmp_path: Path) -> None:
    assert is_huggingface_directory(llama_folder)
    assert not is_huggingface_directory(tmp_path)
    (tmp_path / "config.json").write_text('{"learning_rate": 0.1}')
    assert not is_huggingface_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not is_huggingface_directory(tmp_path)


def test_nothing_is_printed_and_nothing_stays_changed(
    llama_folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = logging.root.manager.disable, transformers.logging.get_verbosity()
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled(), hub_utils.are_progress_bars_disabled()
    state = torch.get_rng_state()
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        load_huggingface(str(llama_folder))
        state_dict = load_file(llama_folder / "model.safetensors")
        state_dict.pop("lm_head.weight")
        save_file(state_dict, llama_folder / "model.safetensors")
        refusal(llama_folder, "missing")
        assert warnings.filters == filters
    assert not caught
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert (logging.root.manager.disable, transformers.logging.get_verbosity()) == before
    assert (bars.is_progress_bar_enabled(), hub_utils.are_progress_bars_disabled()) == shown
    assert torch.equal(torch.get_rng_state(), state)


def test_hidden_progress_bars_stay_hidden(llama_folder: Path) -> None:
    hub_utils.disable_progress_bars()
    try:
        load_huggingface(str(llama_folder))
        assert hub_utils.are_progress_bars_disabled()
    finally:
        hub_utils.enable_progress_bars()


def test_a_users_progress_bars_stay(llama_folder: Path) -> None:
    bars = transformers.utils.logging
    if not hasattr(bars, "set_tqdm_hook"):
        pytest.skip("this transformers has no such hook")
    seen = []

    def hook(factory: Any, args: Any, kwargs: Any) -> Any:
        seen.append(args)
        return factory(*args, **kwargs)

    before = bars.set_tqdm_hook(hook)
    load_huggingface(str(llama_folder))
    assert bars.set_tqdm_hook(before) is hook
    assert not seen


# --- the class ---


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("BertModel", "bert"),
        ("ViTModel", "vit"),
        ("BertForQuestionAnswering", "bert"),
        ("T5ForConditionalGeneration", "t5"),
        ("WhisperForConditionalGeneration", "whisper"),
        ("DetrForObjectDetection", "detr"),
        ("BartForConditionalGeneration", "bart"),
    ],
)
def test_other_tasks_are_refused(tmp_path: Path, architecture: str, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture], "model_type": model_type}))
    text = refusal(tmp_path, f"is for {architecture}, which cannot be measured")
    assert "ForCausalLM" in text
    assert "ForImageClassification" in text


def test_architecture_from_the_model_type(tmp_path: Path) -> None:
    folder = networks.save(networks.build("vit"), tmp_path / "vit")
    networks.edit_config(folder, architectures=None)
    assert load_huggingface(str(folder)).info.architecture == "ViTForImageClassification"
    folder = networks.save(networks.build("bert-masked"), tmp_path / "bert")
    networks.edit_config(folder, architectures=None)
    refusal(folder, "names no 'architectures', and 'bert' could be .*BertForMaskedLM")


def test_config_of_timm(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    refusal(tmp_path, "is timm's, for its network 'resnet18', not transformers'; pass timm:resnet18")


def test_unknown_model_type(llama_folder: Path) -> None:
    networks.edit_config(llama_folder, model_type="llama99")
    refusal(llama_folder, "knows no model type 'llama99'; .*update transformers or pass a Python factory")


CODE = """
from pathlib import Path
Path(__file__).with_name("executed").touch()
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
class MyConfig(PretrainedConfig):
    model_type = "my-net"
class MyNet(PreTrainedModel):
    config_class = MyConfig
    def __init__(self, config):
        super().__init__(config)
        self.fc = nn.Linear(3, 2)
        torch.rand(1, device="cpu")
        self.post_init()
    def forward(self, input_ids):
        return self.fc(input_ids.float())
"""


def test_code_in_a_checkpoint_runs_only_with_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import dynamic_module_utils

    # Transformers copies the code it runs into its cache; the test's goes elsewhere.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "net"
    folder.mkdir()
    auto_map = {"AutoConfig": "code.MyConfig", "AutoModelForCausalLM": "code.MyNet"}
    config = {"model_type": "my-net", "architectures": ["MyNet"], "auto_map": auto_map, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(CODE)
    save_file({"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}, folder / "model.safetensors")
    refusal(
        folder, r"needs Python code from the checkpoint \(code\.MyNet\), which is not run; pass --trust-remote-code"
    )
    assert not list(tmp_path.rglob("executed"))
    state = torch.get_rng_state()
    loaded = load_huggingface(str(folder), trust_remote_code=True, allow_download=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.rglob("executed"))
    assert torch.equal(loaded.model.get_parameter("fc.weight"), torch.ones(2, 3))
    assert loaded.info.task is Task.CAUSAL_LM
    assert capfd.readouterr() == ("", "")


def test_a_native_class_never_needs_the_checkpoints_code(llama_folder: Path) -> None:
    networks.edit_config(llama_folder, auto_map={"AutoModelForCausalLM": "code.Evil", "AutoConfig": "code.Evil"})
    (llama_folder / "code.py").write_text("raise SystemExit('executed')")
    for flag in (False, True):
        assert load_huggingface(str(llama_folder), trust_remote_code=flag).info.architecture == "LlamaForCausalLM"


def test_a_config_cannot_choose_kernels(llama_folder: Path) -> None:
    networks.edit_config(llama_folder, attn_implementation="org/evil-kernel", _attn_implementation="org/evil-kernel")
    loaded: Any = load_huggingface(str(llama_folder), allow_download=False)
    assert loaded.model.config._attn_implementation in ("sdpa", "eager")


def test_number_of_classes(tmp_path: Path, llama_folder: Path) -> None:
    folder = networks.save(networks.build("bert-classifier"), tmp_path / "net")
    loaded = load_huggingface(str(folder), num_classes=3)
    assert (loaded.num_classes, loaded.class_names) == (3, ("bad", "fair", "good"))
    refusal(folder, "has 3 outputs, but 4 classes were asked for", num_classes=4)
    refusal(llama_folder, "language model and has no classes; drop --num-classes", num_classes=4)
    vit = load_huggingface(str(networks.save(networks.build("vit"), tmp_path / "vit")))
    assert (vit.num_classes, vit.class_names) == (5, None)  # LABEL_0 … are no names


# --- weights that do not fit or cannot be read ---


@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop("lm_head.weight"), r"1 missing \(lm_head\.weight\)"),
        (lambda w: w.update({"extra.weight": torch.ones(2)}), r"1 unexpected \(extra\.weight\)"),
        (
            lambda w: w.update({"lm_head.weight": torch.ones(39, 8)}),
            r"1 of another shape \(lm_head\.weight: expected \(40, 8\), got \(39, 8\)\)",
        ),
        (lambda w: w.clear(), "holds no weights: its header lists no tensor"),
        (lambda w: w.update({"model.norm.weight": torch.ones(8, dtype=torch.int8)}), "stored as int8; quantised"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(8).to(torch.float8_e4m3fn)}),
            "as float8_e4m3fn without its scale; quantised",
        ),
        (lambda w: w.update({"model.a.qweight": torch.ones(8, dtype=torch.int32)}), "as int32; quantised"),
    ],
)
def test_weights_that_do_not_fit(llama_folder: Path, change: Any, match: str, headers_only: bool) -> None:
    state_dict = load_file(llama_folder / "model.safetensors")
    change(state_dict)
    save_file(state_dict, llama_folder / "model.safetensors")
    refusal(llama_folder, match, headers_only=headers_only)


def test_a_base_network_without_a_head_is_not_given_a_random_one(tmp_path: Path) -> None:
    network = networks.build("bert-classifier")
    folder = networks.save(network, tmp_path / "net")
    network.bert.save_pretrained(tmp_path / "base")
    shutil.copy(tmp_path / "base" / "model.safetensors", folder / "model.safetensors")
    refusal(folder, r"2 missing \(classifier\.bias, classifier\.weight\)")


def test_mixtral_without_one_expert(tmp_path: Path) -> None:
    folder = networks.save(networks.build("mixtral"), tmp_path / "net")
    state_dict = load_file(folder / "model.safetensors")
    assert state_dict.pop(next(key for key in state_dict if "experts.1" in key)) is not None
    save_file(state_dict, folder / "model.safetensors")
    for headers_only in (False, True):
        refusal(folder, "model.safetensors", headers_only=headers_only)


def test_not_finite(llama_folder: Path) -> None:
    state_dict = load_file(llama_folder / "model.safetensors")
    state_dict["model.norm.weight"][3] = float("nan")
    save_file(state_dict, llama_folder / "model.safetensors")
    refusal(llama_folder, r"1 of 8 values of 'model\.norm\.weight' are NaN", NonFiniteError)


def test_quantised_config(llama_folder: Path) -> None:
    networks.edit_config(llama_folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refusal(llama_folder, r"weights are quantised \(gptq\), and quantised weights have no second derivatives")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("config.json", "{", "is not JSON"),
        ("config.json", "[1]", "holds a JSON list; expected an object"),
        (
            "config.json",
            '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": "x"}',
            "cannot use",
        ),
        ("config.json", "[" * 100_000, "is not JSON"),
        ("model.safetensors", "", "is empty"),
        ("model.safetensors", "<html>404</html>", "is a web page"),
    ],
)
def test_damaged_files(llama_folder: Path, name: str, content: str, match: str) -> None:
    (llama_folder / name).write_text(content)
    refusal(llama_folder, match)


def test_a_config_of_absurd_size_costs_nothing(llama_folder: Path) -> None:
    networks.edit_config(llama_folder, num_hidden_layers=10**9)
    refusal(llama_folder, "num_hidden_layers = 1000000000, but the checkpoint holds 21 tensors", headers_only=True)
    networks.edit_config(llama_folder, num_hidden_layers=2, vocab_size=10**12)
    refusal(llama_folder, "of another shape")


def test_missing_files(llama_folder: Path, tmp_path: Path) -> None:
    (llama_folder / "model.safetensors").rename(llama_folder / "tf_model.h5")
    refusal(llama_folder, r"no weights beside config\.json; expected model\.safetensors .* got tf_model\.h5")
    refusal(tmp_path, r"no config\.json in it or beside it; expected a transformers network")
    refusal(tmp_path / "gone", "no such file or folder")


def test_a_pickle_that_runs_code_does_not(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    folder = networks.save(networks.build("llama"), tmp_path / "net", "bin")
    content = torch.load(folder / "pytorch_model.bin")
    torch.save({**content, "extra": Touch()}, folder / "pytorch_model.bin")
    for headers_only in (False, True):  # what stands beside the weights is read as an inert stand-in
        loaded = load_huggingface(str(folder), headers_only=headers_only)
        assert loaded.model.state_dict().keys() >= content.keys()
    assert not (tmp_path / "executed").exists()


# --- shards ---


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a\\x.safetensors", "code.py", "", ".."])
def test_an_index_cannot_point_elsewhere(shards: Path, name: str) -> None:
    change_index(shards, weight_map={"lm_head.weight": name})
    refusal(shards, "expected the name of a file beside the index|none is read from elsewhere", headers_only=True)


@pytest.mark.parametrize("weight_map", [{}, [], None, {"a": 1}])
def test_an_index_without_a_map(shards: Path, weight_map: object) -> None:
    change_index(shards, weight_map=weight_map)
    refusal(shards, "is not an index of shards|expected the name of a file beside the index")


def test_missing_and_damaged_shards(shards: Path) -> None:
    first, second, *_ = sorted(shards.glob("*.safetensors"))
    content = first.read_bytes()
    first.write_bytes(content[:-10])
    refusal(shards, rf"{first.name}: not a readable safetensors file, truncated or damaged")
    first.write_bytes(second.read_bytes())
    refusal(shards, rf"{first.name} lacks \d+ of the \d+ tensors that model.safetensors.index.json says it has")
    first.unlink()
    for headers_only in (False, True):
        refusal(shards, rf"1 of \d+ shards are missing, with \d+ tensors \({first.name}\)", headers_only=headers_only)
    first.write_bytes(content)
    (shards / "model.safetensors.index.json").unlink()
    refusal(shards, "without their index")


def test_an_index_whose_tensors_are_not_in_its_shards(shards: Path) -> None:
    path = shards / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    change_index(shards, weight_map={**weight_map, "model.gone": next(iter(weight_map.values()))})
    refusal(shards, r"lacks 1 of the \d+ tensors that .* says it has, e\.g\. 'model\.gone'")


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_an_index_alone_is_enough_for_headers(tmp_path: Path, family: str) -> None:
    network = networks.build(family)
    folder = networks.save(network, tmp_path / "net", "shards")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    loaded = load_huggingface(str(folder), headers_only=True)
    assert {n: p.shape for n, p in loaded.model.named_parameters()} == {
        n: p.shape for n, p in network.named_parameters()
    }
    assert loaded.info.weights == "checkpoint (index only, its files are not here)"
    refusal(folder, "shards are missing")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    weight_map["stray.weight"] = weight_map.pop("lm_head.weight")
    change_index(folder, weight_map=weight_map)
    refusal(folder, r"1 missing \(lm_head\.weight\), 1 unexpected \(stray\.weight\)", headers_only=True)


def test_seven_billion_weights_are_not_allocated(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(architectures=["LlamaForCausalLM"])  # its defaults are those of the 7B network
    with torch.device("meta"):
        names = list(transformers.LlamaForCausalLM(config).state_dict())
    config.save_pretrained(tmp_path)
    weight_map = {name: f"model-{i % 3:05}-of-00003.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with elements_made() as made:
        loaded = load_huggingface(str(tmp_path), headers_only=True)
    assert max(made, default=0) < 1_000_000
    assert loaded.info.n_parameters == 6_738_415_616
    assert all(p.is_meta for p in loaded.model.parameters())


@pytest.mark.parametrize("seed", range(40))
def test_corrupt_folders_end_in_one_line(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = networks.save(networks.build("llama"), tmp_path / "net", rng.choice(LAYOUTS))
    path = rng.choice([p for p in sorted(folder.iterdir()) if p.name != "generation_config.json"])
    content = bytearray(path.read_bytes())
    if seed % 4 == 0:
        content = content[: rng.randrange(len(content))]
    for _ in range(rng.choice([1, 4, 30])):
        if content:
            content[rng.randrange(min(len(content), 3000))] = rng.randrange(256)
    if seed % 10 == 0:
        content[:8] = struct.pack("<Q", 2 ** rng.randrange(20, 63))
    path.write_bytes(bytes(content))
    try:
        load_huggingface(str(folder))
    except SpectrascopeError as error:
        assert "\n" not in str(error)  # noqa: PT017 - many of these folders are still readable
        assert len(str(error)) < 700  # noqa: PT017


# --- text ---


def add_tokenizer(folder: Path, **special: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[MASK]", "[CLS]", "[UNK]", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=4, **special).save_pretrained(folder)


def test_tokenizer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = networks.save(networks.build("bert-masked"), tmp_path / "net")
    assert load_huggingface(str(folder)).text is not None
    without = load_huggingface(str(folder)).text
    assert without is not None
    assert (without.encode, without.tokenizer) == (None, f"none in {folder}")
    add_tokenizer(folder, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")
    capfd.readouterr()
    text = load_huggingface(str(folder)).text
    assert text is not None
    assert text.encode is not None
    assert text.encode("a b zz " * 3) == [4, 5, 3] * 3  # no [CLS], nothing cut at model_max_length
    assert capfd.readouterr() == ("", "")
    assert (text.vocab_size, text.max_length, text.mask_id, text.pad_id) == (40, 16, 1, 0)
    assert str(folder) in text.tokenizer
    headers = load_huggingface(str(folder), headers_only=True).text
    assert headers is not None
    assert (headers.encode, headers.tokenizer) == (None, f"in {folder}, not read")


@pytest.mark.parametrize("road", ["text", "folder", "npz"])
def test_a_tokenizer_that_knows_few_of_the_words_is_refused(tmp_path: Path, road: str) -> None:
    """A vocabulary of 12 beside a network of 40: the words are unknown, the loss would be one of nothing."""
    from spectrascope.loading.data.open import load_dataset

    folder = networks.save(networks.build("bert-classifier" if road == "folder" else "bert-masked"), tmp_path / "net")
    add_tokenizer(folder, pad_token="[PAD]", mask_token="[MASK]", unk_token="[UNK]")
    loaded = load_huggingface(str(folder))

    def dataset(words: str):
        (tmp_path / "t.txt").write_text(words * 60)
        for label in range(loaded.num_classes or 2):
            (tmp_path / "texts" / str(label)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "texts" / str(label) / "a.txt").write_text(words * 4)
        ids = np.array(loaded.text.encode(words * 4), dtype=np.int64).reshape(4, -1)
        np.savez(tmp_path / "t.npz", x=ids, y=ids)
        place = {"text": "text:t.txt", "folder": "folder:texts", "npz": "npz:t.npz"}[road].split(":")
        return load_dataset(f"{place[0]}:{tmp_path / place[1]}", loaded, num_samples=3, seed=0, block_size=8)

    with pytest.raises(DataError, match=r"tokens are unknown to the tokenizer .* vocabulary of 40") as refusal:
        dataset("whatever a person would write ")
    assert "\n" not in str(refusal.value)
    dataset("a b whatever c ")


def test_damaged_tokenizer_is_named(llama_folder: Path) -> None:
    (llama_folder / "tokenizer.json").write_text("{")
    text = load_huggingface(str(llama_folder)).text
    assert text is not None
    assert text.encode is None
    assert text.tokenizer.startswith(f"unreadable in {llama_folder} (")


def test_longest_sequence_of_roberta(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = {**networks.BERT, "max_position_embeddings": 18, "pad_token_id": 1}
    network = RobertaForMaskedLM(RobertaConfig(**config)).eval()
    loaded = load_huggingface(str(networks.save(network, tmp_path / "net")))
    assert loaded.text is not None
    assert loaded.text.max_length == 16
    loaded.model(torch.full((1, 16), 5))
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(torch.full((1, 17), 5))


# --- images ---


def prepared(tmp_path: Path, steps: dict[str, Any], **config: Any) -> Any:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(steps))
    return image_preprocessing(tmp_path, ViTConfig(**config))


NORMALISED = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}


def test_stretched_images(tmp_path: Path) -> None:
    p = prepared(tmp_path, {"size": {"height": 20, "width": 24}, "resample": 3, **NORMALISED})
    assert (p.size, p.crop, p.interpolation, p.mean, p.std) == (
        (20, 24), None, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4),
    )  # fmt: skip
    assert prepared(tmp_path, {"size": 20, **NORMALISED}).size == (20, 20)


def test_cropped_images(tmp_path: Path) -> None:
    steps = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    p = prepared(tmp_path, {**steps, **NORMALISED})
    assert (p.resize, p.crop, p.interpolation) == (256, 224, "bilinear")
    p = prepared(tmp_path, {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3})
    assert (p.resize, p.crop, p.mean) == (256, 224, ())
    assert prepared(tmp_path, {"size": {"shortest_edge": 384}, "crop_pct": 0.875}).size == (384, 384)


def test_pixels_equal_the_processors_own(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image
    from transformers import ConvNextImageProcessor, ViTImageProcessor

    from spectrascope.loading.data.images import StoredImages, to_pixels

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    for processor in (
        ViTImageProcessor(size={"height": 16, "width": 24}, image_mean=[0.4] * 3, image_std=[0.3] * 3),
        ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=0.8, resample=2),
        ViTImageProcessor(size={"height": 16, "width": 16}, rescale_factor=1 / 127.5, do_normalize=False),
    ):
        processor.save_pretrained(tmp_path)
        preprocessing = image_preprocessing(tmp_path, ViTConfig(image_size=16))
        ours = StoredImages(to_pixels(image, preprocessing)[None], torch.zeros(1), preprocessing).fetch(0, 1)[0]
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 0.08  # a few grey levels: two implementations of resizing


def test_no_or_damaged_preprocessor(tmp_path: Path) -> None:
    p = image_preprocessing(tmp_path, ViTConfig(image_size=32))
    assert p.size == (32, 32)
    assert "no preprocessor_config.json" in p.description
    for steps in ({"image_mean": [1, 2]}, {"image_mean": "x", "image_std": "y"}, {"image_mean": [1.0], "size": 3}):
        with pytest.raises(LoadError, match="does not say how images are prepared"):
            prepared(tmp_path, steps)


# --- the Hub ---

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached_repository(cache: Path, family: str = "gpt2") -> Path:
    repository = cache / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(SHA)
    (repository / "refs" / "v1").write_text(SHA)
    return networks.save(networks.build(family), repository / "snapshots" / SHA)


@pytest.mark.parametrize("revision", ["", "@v1", f"@{SHA}"])
def test_cached_repository_needs_no_network(cache: Path, revision: str) -> None:
    folder = cached_repository(cache)
    spec = f"hf:org/name{revision}"
    loaded = load_huggingface(spec, allow_download=False)
    assert (loaded.info.id, loaded.info.path) == (spec, str(folder))
    assert loaded.info.weights == f"hub (revision {SHA[:12]})"
    assert load_huggingface(spec, allow_download=True, headers_only=True).info.path == str(folder)


def test_incomplete_cache_and_downloads_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refusal(
        "hf:org/name", "is not in the cache and downloads are off; pass a local folder", allow_download=False
    )
    assert str(cache / "models--org--name") in text
    folder = cached_repository(cache)
    refusal("hf:org/name@other", "is not in the cache and downloads are off", allow_download=False)
    (folder / "model.safetensors").unlink()
    refusal("hf:org/name", "is not in the cache and downloads are off", allow_download=False)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refusal("hf:org/name", "HF_HUB_OFFLINE is set")


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import constants

    # A port on this machine where nobody listens: the same failure with and without internet.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with connections() as tried:
        refusal("hf:org/name", r"could not be downloaded \(.*\); pass a local folder with its config\.json")
    assert 1 <= len(tried) <= 6  # not again and again
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[networks.Hub]:
    from huggingface_hub import constants

    with networks.serve(networks.save(networks.build("gpt2"), tmp_path / "served", "shards"), SHA) as hub:
        (tmp_path / "served" / "README.md").write_text("not needed")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"  # made from ENDPOINT on import
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def test_download(hub: networks.Hub, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    headers = load_huggingface("hf:org/name", headers_only=True)
    snapshot = cache / "models--org--name" / "snapshots" / SHA
    assert headers.info.path == str(snapshot)
    assert not list(snapshot.glob("*.safetensors"))  # the index was enough
    loaded = load_huggingface("hf:org/name")
    said = capfd.readouterr()
    assert said.out == ""
    assert "%|" in said.err  # a progress bar
    assert loaded.info.weights == f"hub (revision {SHA[:12]})"
    saved = dict(networks.build("gpt2").named_parameters())
    assert all(torch.equal(p, saved[name]) for name, p in loaded.model.named_parameters())
    assert not (snapshot / "README.md").exists()
    hub.requests.clear()
    load_huggingface("hf:org/name")
    assert hub.requests == []
    assert capfd.readouterr() == ("", "")


def test_of_one_file_only_the_header_is_downloaded(hub: networks.Hub, cache: Path, tmp_path: Path) -> None:
    wide = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=500, bos_token_id=0, eos_token_id=0)
    network = transformers.GPT2LMHeadModel(wide)
    hub.folder = networks.save(network, tmp_path / "whole")
    stored = (hub.folder / "model.safetensors").stat().st_size
    found = load_huggingface("hf:org/name", headers_only=True)
    assert not list((cache / "models--org--name").rglob("*.safetensors"))
    assert stored > 100_001 == hub.sent["model.safetensors"]
    names = {name: (p.shape, p.is_meta) for name, p in found.model.named_parameters()}
    assert names == {name: (p.shape, True) for name, p in network.named_parameters()}
    assert found.info.weights == f"hub (revision {SHA[:12]})"
    assert not any(p.is_meta for p in load_huggingface("hf:org/name").model.parameters())  # then all of it
    (hub.folder / "model.safetensors").unlink()
    shutil.rmtree(cache)
    refusal("hf:org/name", "no weights beside config.json", headers_only=True)


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((403, {"X-Error-Code": "GatedRepo"}), "is gated: accept its terms on huggingface.co and set HF_TOKEN; pass a"),
        ((401, {"X-Error-Code": "RepoNotFound"}), r"does not exist on the Hub, or is private \(set HF_TOKEN\); pass a"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "has no such revision; pass a local folder"),
        ((503, {}), r"could not be downloaded \(.*503"),
        ((200, {}), r"could not be downloaded \("),  # a login page instead of the Hub
    ],
)
def test_the_hub_refuses(hub: networks.Hub, cache: Path, answer: tuple[int, dict[str, str]], match: str) -> None:
    hub.instead = answer
    text = refusal("hf:org/name", match)
    assert str(cache / "models--org--name") in text


def test_the_hub_does_not_answer(hub: networks.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectrascope.loading.models.huggingface.hub._TIMEOUT", 0.2)
    hub.delay = 5.0
    refusal("hf:org/name", r"could not be downloaded \(.*[Tt]ime")
    assert len(hub.requests) <= 3  # not again and again


def test_a_repository_without_a_network(hub: networks.Hub) -> None:
    for file in hub.folder.glob("*"):
        file.unlink()
    (hub.folder / "vocab.txt").write_text("a")
    refusal("hf:org/name", r"no config\.json in it or beside it")


@pytest.mark.parametrize("spec", ["hf:", "hf:a/b/c", "hf:../x", "hf:org/na me", "hf:org/name@", "hf:org/name@../x"])
def test_malformed_hub_names(spec: str) -> None:
    refusal(spec, "expected hf:org/name or hf:org/name@revision", allow_download=False)


def test_hub_names() -> None:
    assert parse_hub_spec("hf:gpt2") == HubSpec("gpt2", "main")
    assert parse_hub_spec("hf:org/name@refs/pr/1") == HubSpec("org/name", "refs/pr/1")


def test_what_is_downloaded() -> None:
    others = ["README.md", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "x.py"]
    files = ["config.json", "model.safetensors", *others]
    assert _wanted(files, trust_remote_code=False, headers_only=False) == ["config.json", "model.safetensors"]
    assert "x.py" in _wanted(files, trust_remote_code=True, headers_only=False)
    shards = ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "training_args.bin"]
    assert _wanted(shards, trust_remote_code=False, headers_only=False) == shards[:3]
    assert _wanted(shards, trust_remote_code=False, headers_only=True) == shards[:2]


# --- the installation ---


def test_torchvision_built_for_another_torch(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    refusal(llama_folder, r"torchvision cannot be imported .*nms does not exist.*reinstall both together")
