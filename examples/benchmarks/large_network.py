"""Measure two blocks of a LLaMA-shaped network of 1.1 billion parameters in bfloat16, and its memory beside a dry run.

    python examples/benchmarks/large_network.py --folder FOLDER [--blocks 0,21] [--samples 2] [--tokens 32]

The network has TinyLlama's shape and random weights, made on the spot and kept in FOLDER (2.2 GB); its text is this
file's. ``spectrascope inspect`` foretells memory from names and shapes; ``spectrascope probe`` then runs in a process
of its own, whose largest resident set is compared with it. Printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip


def main() -> None:
    options = parse()
    if not (options.folder / "config.json").exists():
        make_network(options.folder)
    blocks = [flag for block in options.blocks.split(",") for flag in ("--layers", f"model.layers.{block}.*")]
    asked = [
        str(options.folder), "--dataset", f"text:{__file__}", "--block-size", str(options.tokens),
        "--num-samples", str(options.samples), "--dtype", "bfloat16", "--device", options.device, *blocks,
    ]  # fmt: skip
    foretold = json.loads(run(["inspect", *asked, "--json"]))
    began = time.perf_counter()
    report = json.loads(run(["probe", *asked, "--json", *options.more]))
    wall = time.perf_counter() - began
    # The largest of all children so far: the measurement, as the dry run holds no weights.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    provenance = report["provenance"]
    print(
        json.dumps(
            {
                "parameters": provenance["model"]["n_parameters"],
                "samples": options.samples,
                "tokens": options.tokens,
                "weights_measured": sum(layer["status"] == "ok" for layer in report["layers"]),
                "peak_bytes": peak,
                "foretold_bytes": foretold["cost"]["memory"]["total_bytes"],
                "foretold": foretold["cost"]["memory"],
                "foretold_time": foretold["cost"].get("time"),
                "seconds": provenance["seconds"],
                "wall_seconds": wall,
                "precision": provenance["precision"],
                "self_check": provenance["self_check"],
                "device": provenance["device"],
                "dtype": provenance["dtype"],
                "threads": provenance["threads"],
                "versions": provenance["versions"],
            },
            indent=1,
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--folder", type=Path, required=True, help="where the network is, or will be, kept")
    parser.add_argument("--blocks", default="0,21", help="numbers of the blocks whose weights are measured")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32, help="per sample")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("more", nargs="*", help="further options of probe, after --")
    return parser.parse_args()


def make_network(folder: Path) -> None:
    """Save a network of TinyLlama's shape with random weights in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)


def run(arguments: list[str]) -> str:
    """Standard output of a spectrascope command; its progress and errors are shown as they come."""
    return subprocess.run(
        [sys.executable, "-m", "spectrascope", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


if __name__ == "__main__":
    main()
