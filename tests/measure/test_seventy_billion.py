"""A dry run of LLaMA-2 70B from its index and config.json alone: seconds and bytes by arithmetic, no weight made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import spectrascope
from spectrascope.measure import guess
from spectrascope.records.inspection import TimeGuess
from tests.support.counting import elements_made

LAYERS, WIDTH, INNER, VOCABULARY, KEYS = 80, 8192, 28672, 32000, 1024
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16",
}  # fmt: skip
MATRICES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip
PARAMETERS = 68_976_648_192


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index and a config.json; none of the fifteen files that the index names is there."""
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{i}.{name}.weight" for i in range(LAYERS) for name in MATRICES]
    files = {name: f"model-{i % 15 + 1:05}-of-00015.safetensors" for i, name in enumerate(names)}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    where = tmp_path / "model.safetensors.index.json"
    where.write_text(json.dumps({"metadata": {"total_size": 2 * PARAMETERS}, "weight_map": files}))
    return where


def test_seconds_and_what_does_not_fit(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = 1e12
    timed: list[float] = []
    cut_down = guess._cut_down

    def noted(*args: object) -> object:
        work, flops = cut_down(*args)  # type: ignore[arg-type]
        timed.append(flops)
        return work, flops

    def seconds_of(work: object, device: torch.device) -> float:
        work()  # type: ignore[operator]
        return timed[-1] / rate

    monkeypatch.setattr(guess, "_cut_down", noted)
    monkeypatch.setattr(guess, "seconds_of", seconds_of)
    with elements_made() as made:
        found = spectrascope.inspect(str(index), device="cpu")
    assert max(made) <= 1 << 22  # operands of what is timed; the smallest matrix of a weight has twice as many
    assert found.model.n_parameters == PARAMETERS
    assert found.n_measured == 7 * LAYERS + 1
    cost, time = found.cost, found.cost.time
    assert isinstance(time, TimeGuess)
    assert 1 <= len(timed) <= 6
    assert time.basis == f"{len(timed)} products of the network's own shapes"
    assert time.flops_per_second == pytest.approx(rate)
    assert time.total_seconds == pytest.approx(cost.total_flops / rate)
    assert time.helps[0].option == "8 ranks (torchrun)"
    memory = cost.memory
    assert memory.weight_bytes == pytest.approx(4 * PARAMETERS, rel=1e-4)
    assert memory.fits is False
    narrower = next(remedy for remedy in memory.helps if remedy.option == "--dtype bfloat16")
    for part, total in ((1, memory.total_bytes), (2, narrower.left)):
        work = max(memory.gradient_bytes, memory.tangent_bytes / part)
        held = memory.process_bytes + memory.weight_bytes / part + memory.direction_bytes + work
        assert total == pytest.approx(held, rel=1e-6)  # and no second copy, of a file's content
    assert "does not fit: about" in str(found)
