"""Load checkpoints one after the other and print, for each, how much private memory that took at its peak.

Run in a process of its own (``tests/loading/test_memory_of_loading.py``): what pytest holds and gives back is not
counted. Private are pages that belong to no file; those of a mapped file are shared by all processes that read it.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

WIDTH = 1448  # 8 MiB each
MLP = "mlp:" + "-".join([str(WIDTH)] * 5)
OWN = "from spectrascope.loading.zoo import find_entry\ndef net(): return find_entry({!r}).build({})\n"


def private_bytes() -> int:
    return int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


@contextmanager
def peak_of() -> Iterator[list[int]]:
    """Give the most private memory that was taken inside, beside what there was before."""
    gc.collect()
    before, seen, ended = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen[0] = max(seen[0], private_bytes() - before)
            time.sleep(5e-4)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def write_files(folder: Path) -> dict[str, str]:
    """Write one network in every way; name -> model string."""
    torch.manual_seed(0)
    weights = {f"layers.{i}.weight": torch.randn(WIDTH, WIDTH) for i in range(4)}
    weights |= {f"layers.{i}.bias": torch.randn(WIDTH) for i in range(4)}
    half = {name: tensor.half() for name, tensor in weights.items()}
    save_file(weights, folder / "whole.safetensors")
    torch.save({"state_dict": weights, "epoch": 3}, folder / "whole.pt")
    save_file(half, folder / "half.safetensors")
    torch.save(half, folder / "half.pt")
    shards = folder / "shards"
    shards.mkdir()
    places = {name: f"part-{name.split('.')[1]}.safetensors" for name in weights}
    for file in set(places.values()):
        save_file({name: half[name] for name in half if places[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return {
        name: str(folder / name) for name in ("whole.safetensors", "whole.pt", "half.safetensors", "half.pt", "shards")
    }


def write_llama(folder: Path) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2048, num_hidden_layers=1, num_attention_heads=8, vocab_size=4096,
        max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder / "llama", max_shard_size="12MB")
    return str(folder / "llama")


def main(folder: Path) -> None:
    from spectrascope.loading.models.open import load_model

    specs = {name: (spec, {}) for name, spec in write_files(folder).items()}
    (folder / "own.py").write_text(OWN.format(MLP, WIDTH))
    specs["factory"] = specs["whole.pt"][0], {"arch": f"{folder / 'own.py'}:net"}
    specs["random"] = f"{MLP}@none", {}
    llama = write_llama(folder)
    specs |= {"llama": (llama, {}), "llama, bfloat16": (llama, {"keep_bfloat16": True})}
    for spec, how in specs.values():
        load_model(spec, headers_only=True, **how)  # imports what it needs
    gc.collect()
    gc.freeze()  # to look through all modules before each measurement takes seconds
    found = {}
    for name, (spec, how) in specs.items():
        with peak_of() as peak:
            network = load_model(spec, **how).model
        sizes = [t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers())]
        found[name] = {"peak": peak[0], "network": sum(sizes), "largest": max(sizes)}
        del network
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
