"""Tiny Hugging Face networks, built from configs with random weights, and a Hub on this machine to fetch them from."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
BERT: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 16,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 12, "max_position_embeddings": 32, **TOKENS,
}  # fmt: skip


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=8, n_layer=2, n_head=2, **TOKENS))


def llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=3))


def bert_masked() -> nn.Module:
    return BertForMaskedLM(BertConfig(**BERT))


def bert_classifier() -> nn.Module:
    names = {0: "bad", 1: "fair", 2: "good"}
    return BertForSequenceClassification(BertConfig(**BERT, num_labels=3, id2label=names))


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=16,
            patch_size=8, num_labels=5,
        )
    )  # fmt: skip


def convnext() -> nn.Module:
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 1], num_labels=5, image_size=32)
    )


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mixtral": mixtral,
    "bert-masked": bert_masked,
    "bert-classifier": bert_classifier,
    "vit": vit,
    "convnext": convnext,
}


def build(family: str, seed: int = 0) -> Any:
    """A network of a family with every weight random, norms and biases too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FAMILIES[family]().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return network


def save(network: Any, folder: Path, layout: str = "safetensors") -> Path:
    """Save a network as Hugging Face does: one file, shards, the older pickle, or half precision."""
    if layout == "bin":
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
    elif layout == "bf16":
        network.to(torch.bfloat16).save_pretrained(folder)
        network.float()
    else:
        network.save_pretrained(folder, max_shard_size="2KB" if layout == "shards" else "1GB")
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change settings of a saved config.json; ``None`` removes one."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@dataclass
class Hub:
    """A Hub with one repository; ``instead`` (status, headers) is its answer to everything, after ``delay`` seconds.

    ``sent`` counts the bytes of each file that left it.
    """

    folder: Path
    sha: str
    url: str = ""
    instead: tuple[int, dict[str, str]] | None = None
    delay: float = 0.0
    requests: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    closing: threading.Event = field(default_factory=threading.Event)

    def answer(self, path: str, wanted: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path and a range of bytes."""
        self.closing.wait(self.delay)
        if self.instead is not None:
            return *self.instead, b"<html>"
        files = [file for file in sorted(self.folder.iterdir()) if file.is_file()]
        if path.startswith("/api/models/org/name/tree/"):
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": self.sha} for f in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        if path.startswith("/api/models/org/name"):
            siblings = [{"rfilename": file.name} for file in files]
            about = {"id": "org/name", "sha": self.sha, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
        file = self.folder / path.rpartition("/")[2]
        if not path.startswith(f"/org/name/resolve/{self.sha}/") or not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.sha}
        if wanted:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            return 206, headers, content[first : last + 1]
        return 200, headers, content


@contextmanager
def serve(folder: Path, sha: str) -> Iterator[Hub]:
    """Serve a folder as the repository org/name, over HTTP on a free port of this machine."""
    hub = Hub(folder, sha)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append(path)
            status, headers, content = hub.answer(path, self.headers.get("Range", ""))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                hub.sent[path.rpartition("/")[2]] += len(content)
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client that gave up waiting
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.closing.set()
            server.shutdown()
            thread.join()
