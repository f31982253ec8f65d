"""PEFT adapters: merged onto their base they compute what the adapted network computes."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectrascope.errors import LoadError, NonFiniteError, SpectrascopeError
from spectrascope.loading.models.huggingface.adapters import is_adapter_directory, load_adapter
from spectrascope.loading.models.open import load_model
from spectrascope.records.values import Missing, Task
from tests.support import hf_networks as networks

peft = pytest.importorskip("peft")

TOKENS = torch.arange(14).view(2, 7)


def refusal(spec: object, match: str, kind: type[SpectrascopeError] = LoadError, **options: Any) -> str:
    with pytest.raises(kind, match=match) as error:
        load_adapter(str(spec), **options)
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) < 600
    return text


def adapt(base: Path, folder: Path, config: Any, seed: int = 1) -> Any:
    """Adapt a saved base, save the adapter alone, return the adapted network."""
    import transformers
    from transformers import AutoConfig

    architecture = AutoConfig.from_pretrained(base).architectures[0]
    network = getattr(transformers, architecture).from_pretrained(base)
    adapted = peft.get_peft_model(network, config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return networks.save(networks.build("llama"), tmp_path / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    adapt(base, tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    return tmp_path / "adapter"


CONFIGS: dict[str, Any] = {
    "lora": ("llama", lambda: peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"])),
    "dora": ("llama", lambda: peft.LoraConfig(r=2, use_dora=True, target_modules=["v_proj"])),
    "ia3": ("llama", lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, target_modules=["up_proj", "lm_head"])),
    "conv1d": ("gpt2", lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)),
    "head": ("bert-classifier", lambda: peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")),
}


@pytest.mark.parametrize("method", list(CONFIGS))
def test_merged_equals_adapted(tmp_path: Path, method: str) -> None:
    family, config = CONFIGS[method]
    network = networks.build(family)
    base = networks.save(network, tmp_path / "base")
    adapted = adapt(base, tmp_path / "adapter", config())
    loaded = load_adapter(str(tmp_path / "adapter"))
    with torch.no_grad():
        expected, plain, merged = (m(TOKENS).logits for m in (adapted, network, loaded.model))
    assert (merged - expected).abs().max() < 1e-6 * max(1.0, float(expected.abs().max()))
    assert (merged - plain).abs().max() > 1e-3  # the adapter does something
    assert [n for n, _ in loaded.model.named_parameters()] == [n for n, _ in network.named_parameters()]
    assert all(p.requires_grad for p in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    assert type(loaded.model) is type(network)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["c_attn", "lm_head"]},
        {"target_modules": ["wte"]},
        {"target_modules": ["wte", "lm_head"]},
        {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_on_one_use_of_a_tied_weight_leaves_the_other(tmp_path: Path, config: dict[str, Any]) -> None:
    base = networks.save(networks.build("gpt2"), tmp_path / "base")
    adapted = adapt(base, tmp_path / "adapter", peft.LoraConfig(r=2, **config))
    loaded = load_adapter(str(tmp_path / "adapter"))
    model: Any = loaded.model
    with torch.no_grad():
        assert (model(TOKENS).logits - adapted(TOKENS).logits).abs().max() < 1e-5
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert "merged; no longer tied: lm_head.weight" in loaded.info.weights
    assert loaded.info.n_parameters == sum(p.numel() for p in model.parameters())


def test_an_adapter_on_tokens_of_a_tied_weight_keeps_it_tied(tmp_path: Path) -> None:
    base = networks.save(networks.build("gpt2"), tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], trainable_token_indices={"wte": [1, 2]})
    adapted = adapt(base, tmp_path / "adapter", config)
    model: Any = load_adapter(str(tmp_path / "adapter")).model
    with torch.no_grad():
        assert (model(TOKENS).logits - adapted(TOKENS).logits).abs().max() < 1e-5
    assert model.lm_head.weight is model.transformer.wte.weight


def test_random_state_is_left_as_found(adapter: Path) -> None:
    state = torch.get_rng_state()
    load_adapter(str(adapter))
    assert torch.equal(torch.get_rng_state(), state)


def test_provenance(adapter: Path, base: Path) -> None:
    loaded = load_adapter(str(adapter))
    info = loaded.info
    assert (info.id, info.path, info.source, info.task) == (str(adapter), str(adapter), "huggingface", Task.CAUSAL_LM)
    assert info.weights == f"adapter LORA on {base}, merged; base: checkpoint"
    other = load_adapter(str(adapter / "adapter_model.safetensors"), base=str(base))
    assert other.info.sha256 == info.sha256
    assert not isinstance(info.sha256, Missing)
    assert len(info.sha256) == 64
    assert loaded.text is not None


def test_headers_only(adapter: Path) -> None:
    loaded = load_adapter(str(adapter), headers_only=True)
    assert all(p.is_meta for p in loaded.model.parameters())
    assert "(headers only, not merged)" in loaded.info.weights
    assert isinstance(loaded.info.sha256, Missing)


def test_pickled_adapter(adapter: Path) -> None:
    expected = load_adapter(str(adapter)).model(TOKENS).logits
    state_dict = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(state_dict, adapter / "adapter_model.bin")
    assert torch.equal(load_adapter(str(adapter)).model(TOKENS).logits, expected)


def test_is_adapter_directory(adapter: Path, base: Path) -> None:
    assert is_adapter_directory(adapter)
    assert not is_adapter_directory(base)


def test_silent(adapter: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    capfd.readouterr()
    recwarn.clear()
    load_adapter(str(adapter))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert logging.root.manager.disable == 0


def test_base_that_moved(adapter: Path, base: Path, tmp_path: Path) -> None:
    expected = load_adapter(str(adapter)).model(TOKENS).logits
    base.rename(tmp_path / "elsewhere")
    refusal(adapter, "which adapter_config.json names, is not here; pass its folder or hf:org/name with --base")
    moved = load_adapter(str(adapter), base=str(tmp_path / "elsewhere"))
    assert torch.equal(moved.model(TOKENS).logits, expected)


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_base_on_the_hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    edit(adapter, base_model_name_or_path="org/name")
    refusal(adapter, "hf:org/name is not in the cache and downloads are off.*--base", allow_download=False)
    repository, sha = tmp_path / "hub" / "models--org--name", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(sha)
    shutil.copytree(tmp_path / "base", repository / "snapshots" / sha)
    assert "on hf:org/name, merged" in load_adapter(str(adapter), allow_download=False).info.weights
    edit(adapter, base_model_name_or_path=None)
    refusal(adapter, "names no base network; pass it with --base")


def test_base_that_is_an_adapter(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    refusal(adapter, "is itself an adapter; expected a whole network", base=str(adapter))
    edit(adapter, base_model_name_or_path="org/name")
    repository, sha = tmp_path / "hub" / "models--org--name", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(sha)
    shutil.copytree(adapter, repository / "snapshots" / sha)
    # On the Hub such a repository would name itself, and itself again.
    refusal("hf:org/name", "hf:org/name is itself an adapter", allow_download=False)
    with pytest.raises(LoadError, match="hf:org/name is itself an adapter"):
        load_model("hf:org/name", allow_download=False)


@pytest.mark.parametrize("headers_only", [False, True])
def test_adapter_of_another_base(adapter: Path, tmp_path: Path, headers_only: bool) -> None:
    other = networks.save(networks.build("gpt2"), tmp_path / "gpt2")
    refusal(adapter, "--base", base=str(other), headers_only=headers_only)


@pytest.mark.parametrize("headers_only", [False, True])
@pytest.mark.parametrize("tensor", ["model.embed_tokens", "lm_head"])
def test_a_vocabulary_that_was_resized(base: Path, tmp_path: Path, tensor: str, headers_only: bool) -> None:
    """The base was right: what is missing is the resizing before training."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base)
    rows = network.config.vocab_size
    network.resize_token_embeddings(rows + 3)
    last = tensor.rpartition(".")[2]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[last], task_type="CAUSAL_LM")
    peft.get_peft_model(network, config).save_pretrained(tmp_path / "larger", save_embedding_layers=False)
    text = refusal(tmp_path / "larger", "the vocabulary was resized", base=str(base), headers_only=headers_only)
    assert f"{tensor}.weight' is ({rows + 3}, " in text
    assert f"resize_token_embeddings({rows + 3})" in text
    network = AutoModelForCausalLM.from_pretrained(base)
    network.resize_token_embeddings(rows + 3)
    network.save_pretrained(tmp_path / "resized")
    assert load_adapter(str(tmp_path / "larger"), base=str(tmp_path / "resized"), headers_only=headers_only).model


def test_keys_that_do_not_fit(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    state_dict = load_file(file)
    taken = next(key for key in state_dict if "lora_B" in key)
    save_file({key: value for key, value in state_dict.items() if key != taken}, file)
    refusal(adapter, r"does not fit its base and adapter_config\.json: 1 missing \(.*lora_B")
    save_file({**state_dict, taken.replace("layers.0", "layers.7"): torch.ones(8, 2)}, file)
    refusal(adapter, "1 unexpected")
    save_file({**state_dict, taken: torch.ones(3, 3)}, file)
    refusal(adapter, "size mismatch|peft cannot merge")
    save_file({**state_dict, taken: state_dict[taken] * float("nan")}, file)
    refusal(adapter, "NaN", NonFiniteError)
    file.write_bytes(file.read_bytes()[:100])
    refusal(adapter, "truncated")
    file.unlink()
    refusal(adapter, "no adapter weights; expected adapter_model.safetensors")


def test_configs_that_cannot_be_used(adapter: Path) -> None:
    edit(adapter, megatron_config={"a": 1}, megatron_core="os")
    refusal(adapter, "Megatron layers, whose code it names; they are not run")
    edit(adapter, megatron_config=None, peft_type="NEWEST")
    refusal(adapter, "peft cannot merge this adapter")
    (adapter / "adapter_config.json").write_text("{")
    refusal(adapter, "is not JSON")


def test_prompt_tuning_has_nothing_to_merge(base: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    adapt(base, tmp_path / "prompt", config)
    refusal(tmp_path / "prompt", "adds inputs, not weights, and cannot be merged")


def test_without_peft(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    refusal(adapter, r"pip install 'spectrascope\[peft\]'")
