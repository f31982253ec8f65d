"""A dry run of a checkpoint of seven billion parameters, on a machine that could never hold it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS, WIDTH, INNER, VOCABULARY, SHARDS = 32, 4096, 11008, 32000, 8
MATRICES = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float16", "rope_theta": 10000.0,
}  # fmt: skip

# The command in a process of its own, and a last line on what that process took.
MEASURE = """
import json, resource, sys
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
from tests.support.counting import bytes_read, elements_made
from spectrascope.cli import main
import torch, transformers  # what their import reads and makes is not the command's
before = bytes_read()
with elements_made() as made:
    code = main()
try:  # getrusage would report the peak of the process that started this one, where that is larger
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) * 1024
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "code": code, "read": bytes_read() - before, "rss": peak, "made": sum(made),
    "opened": [name for name in opened if ".safetensors" in name],
}))
"""


def tensors() -> dict[str, tuple[int, ...]]:
    """Names and shapes of LLaMA-2 7B."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in MATRICES.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{norm}.weight"] = (WIDTH,)
    return {**shapes, "model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def n_values(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A valid float16 safetensors file whose data are a hole that takes no room on the disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * n_values(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def write_checkpoint(folder: Path, *, config: bool) -> Path:
    """The index; its shards, and config.json if asked for, are beside it."""
    folder.mkdir()
    shapes = tensors()
    names = list(shapes)
    files = {
        name: f"model-{i * SHARDS // len(names) + 1:05}-of-{SHARDS:05}.safetensors" for i, name in enumerate(names)
    }
    for file in sorted(set(files.values())):
        write_shard(folder / file, {name: shapes[name] for name in names if files[name] == file})
    if config:
        (folder / "config.json").write_text(json.dumps(CONFIG))
    index = folder / "model.safetensors.index.json"
    total = sum(2 * n_values(shape) for shape in shapes.values())
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": files}))
    return index


@pytest.fixture(scope="module")
def with_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("seven") / "llama", config=True)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("seven") / "unknown", config=False)


@pytest.fixture(scope="module")
def inspect() -> Callable[..., dict[str, Any]]:
    """Run ``inspect`` and return its JSON; what the process took is checked for every call."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def measured(*arguments: object) -> dict[str, Any]:
        command = [sys.executable, "-c", MEASURE, "inspect", *map(str, arguments), "--json", "-q"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        text, _, last = done.stdout.rstrip().rpartition("\n")
        took = json.loads(last)
        assert took["code"] == 0
        assert took["rss"] < 1e9
        assert took["read"] < 3e8  # of 13e9: headers, and code that is imported as it is asked for
        assert took["made"] < 2e8  # values of tensors, of 6.7e9
        assert len(took["opened"]) <= 5 * (SHARDS + 1)
        document: dict[str, Any] = json.loads(text)
        return document

    return measured


@pytest.fixture(scope="module")
def known(with_config: Path, inspect: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return inspect(with_config.parent)


@pytest.fixture(scope="module")
def unknown(bare: Path, inspect: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return inspect(bare)


def require_rows(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What holds with and without config.json; returns rows by name."""
    rows = {row["info"]["name"]: row for row in document["weights"]}
    shapes = tensors()
    assert set(rows) == set(shapes)
    assert (document["loaded"], document["n_measured"], document["n_skipped"]) == ("headers", 225, 66)
    for name, shape in shapes.items():
        assert tuple(rows[name]["info"]["stored_shape"]) == shape
        measured = len(shape) == 2 and "embed" not in name
        assert rows[name]["measured"] is measured
        assert rows[name]["directions"] == (20 if measured else 0)
        assert bool(rows[name]["reason"]) is not measured
    roles = Counter(row["info"]["role"] for name, row in rows.items() if name != "lm_head.weight")
    assert roles == {"matrix": 32 * 7, "norm": 65, "embedding": 1}
    parameters = sum(n_values(shape) for shape in shapes.values())
    assert parameters == 6_738_415_616
    assert document["model"]["n_parameters"] == parameters
    # Values and gradients of everything, two sums of every measured gradient: far beyond what this process took.
    assert document["cost"]["fixed_bytes"] > 4 * parameters
    return rows


def test_the_files_are_sparse(with_config: Path) -> None:
    shards = sorted(with_config.parent.glob("*.safetensors"))
    assert len(shards) == SHARDS
    assert sum(shard.stat().st_size for shard in shards) > 13e9
    assert sum(shard.stat().st_blocks * 512 for shard in shards) < 10e6


def test_a_folder_with_its_config(known: dict[str, Any]) -> None:
    rows = require_rows(known)
    assert known["model"]["architecture"] == "LlamaForCausalLM"
    assert known["model"]["task"] == "causal-lm"
    engines = Counter(row["engine"] for row in rows.values() if row["measured"])
    assert set(engines) <= {"gauss-newton", "tangent"}
    assert all(row["engine_reason"] for row in rows.values() if row["measured"])
    flops = known["cost"]["flops_per_sample"]
    weights = sum(n_values(shape) for name, shape in tensors().items() if len(shape) == 2 and "embed" not in name)
    tokens = int(known["inputs"])
    assert flops >= 2 * tokens * weights  # a multiplication and an addition per weight and token
    assert flops < 2.1 * tokens * weights  # attention adds little at this length
    assert known["cost"]["total_passes"] > 0
    time, memory = known["cost"]["time"], known["cost"]["memory"]
    assert "products of the network's own shapes" in time["basis"]
    passes = 2048 * flops / time["flops_per_second"]
    assert time["pass_seconds"] == pytest.approx(passes)
    assert time["total_seconds"] == pytest.approx(passes * known["cost"]["total_passes"])
    assert memory["weight_bytes"] >= 4 * known["model"]["n_parameters"]
    assert 1e8 < memory["process_bytes"] < 1e9
    work = memory["weight_bytes"] + memory["direction_bytes"] + max(memory["gradient_bytes"], memory["tangent_bytes"])
    assert memory["total_bytes"] == memory["process_bytes"] + work
    assert memory["copy_bytes"] == memory["check_bytes"] == 0
    assert memory["fits"] is (memory["total_bytes"] <= memory["available_bytes"])


def test_a_folder_without_its_shards(
    tmp_path: Path, known: dict[str, Any], inspect: Callable[..., dict[str, Any]]
) -> None:
    index = write_checkpoint(tmp_path / "index-alone", config=True)
    for shard in index.parent.glob("*.safetensors"):
        shard.unlink()
    document = inspect(index)
    require_rows(document)
    assert document["weights"] == known["weights"]
    told = ("tangent_passes", "flops_per_sample", "bytes_per_sample")  # other numbers depend on what memory is free
    assert [document["cost"][name] for name in told] == [known["cost"][name] for name in told]


def test_an_index_without_a_config(unknown: dict[str, Any]) -> None:
    rows = require_rows(unknown)
    assert unknown["model"]["architecture"] == "unknown"
    for name, row in rows.items():
        assert set(row["engine"]) == {"missing"}, name  # without the network nobody knows
    assert "fit no known network" in rows["lm_head.weight"]["engine"]["missing"]
    assert any("read off names" in note for note in unknown["notes"])


def test_names_alone_tell_the_same_rows_as_the_network(known: dict[str, Any], unknown: dict[str, Any]) -> None:
    guessed = {row["info"]["name"]: row["info"] for row in unknown["weights"]}
    assert {row["info"]["name"]: row["info"] for row in known["weights"]} == guessed
