"""What is trained: a network, its training and test samples, and how well it does. Three tasks, two sizes each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model


@dataclass(frozen=True)
class Task:
    """Samples on the CPU; ``score`` is what is reported, ``higher_is_better`` which way."""

    name: str
    make_model: Callable[[], nn.Module]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    epochs: float
    batch: int
    score_name: str
    higher_is_better: bool
    flip: bool = False
    top_k: int = 20
    probe_samples: int = 512
    curvature_samples: int = 512
    adaptive: tuple[int, int, int, int] = (192, 64, 20, 2)
    """Samples, samples for curvature, directions, and into how many parts measurements divide the training."""

    def steps(self) -> int:
        """The budget of one training run."""
        return max(2, round(self.epochs * len(self.train[1]) / self.batch))

    def score(self, model: nn.Module, device: str) -> float:
        """Accuracy in percent of a classifier; loss per character of a language model."""
        model.eval()
        total, n = 0.0, 0
        with torch.no_grad():
            for x, y in zip(self.test[0].split(256), self.test[1].split(256), strict=True):
                output, targets = model(x.to(device)), y.to(device)
                if self.higher_is_better:
                    total += 100.0 * float((output.argmax(-1) == targets).sum())
                else:
                    total += float(loss_of(output, targets)) * len(y)
                n += len(y)
        model.train()
        return total / n


def loss_of(output: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over samples, and over positions where there are any."""
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def ask(about: str | None, seeds: int, more: Callable[[argparse.ArgumentParser], object]) -> argparse.Namespace:
    """The options of a script on one of the tasks, ``more`` of its own among them; ``seeds`` is how many by default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["digits", "cifar", "text", "cifar10", "cifar100"])
    parser.add_argument("--data", type=Path, help="folder of images (cifar), text file (text), folder of CIFAR's files")
    parser.add_argument("--full", action="store_true", help="the size for a GPU")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--epochs", type=float, help="instead of the size's own number")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    more(parser)
    parser.add_argument("--summary", type=Path, help="also write what came out here, as JSON")
    options = parser.parse_args()
    if options.task != "digits" and options.data is None:
        parser.error(f"{options.task} needs --data")
    torch.set_num_threads(options.threads)
    return options


def make_task(name: str, data: Path | None, full: bool, epochs: float | None) -> Task:
    """The task of that name, with another budget where one is given."""
    from_files = {"cifar": cifar, "text": text, "cifar10": partial(official_cifar, 10)}
    from_files["cifar100"] = partial(official_cifar, 100)
    task = from_files[name](data, full) if name in from_files and data is not None else digits(full)
    return task if epochs is None else replace(task, epochs=epochs)


def digits(full: bool) -> Task:
    """The built-in digits and their small CNN."""
    loaded = load_model("digits-cnn@none", seed=0)
    x, y = load_dataset("digits", loaded, num_samples=1797, seed=0).source.fetch(0, 1797)
    return Task(
        "digits", lambda: load_model("digits-cnn@none", seed=torch.initial_seed()).model,
        (x[:1297], y[:1297]), (x[1297:], y[1297:]), epochs=30 if full else 6, batch=64,
        score_name="test accuracy, %", higher_is_better=True,
    )  # fmt: skip


def cifar(folder: Path, full: bool) -> Task:
    """ResNet-20 on the images of a folder, one sub-folder per class."""
    loaded = load_model("cifar-resnet20@none", seed=0)
    source = load_dataset(f"folder:{folder}", loaded, num_samples=10**9, seed=0).source
    x, y = source.fetch(0, source.n)
    x = x.contiguous(memory_format=torch.channels_last)  # a quarter faster on a CPU
    held_out = min(10_000, source.n // 6)
    return Task(
        "cifar", lambda: load_model("cifar-resnet20@none", seed=torch.initial_seed()).model,
        (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out]),
        epochs=30 if full else 1.5, batch=128 if full else 32, score_name="test accuracy, %",
        higher_is_better=True, flip=True, adaptive=(128, 64, 20, 2),
    )  # fmt: skip


def official_cifar(classes: int, root: Path, full: bool) -> Task:
    """ResNet-18 on the whole of CIFAR-10 or CIFAR-100, its official files unpacked in ``root``: for a GPU."""
    from torchvision.datasets import CIFAR10, CIFAR100

    def part(train: bool) -> tuple[Tensor, Tensor]:
        found = (CIFAR10 if classes == 10 else CIFAR100)(str(root), train=train)
        pixels = (torch.from_numpy(found.data).permute(0, 3, 1, 2).float() / 255 - 0.47) / 0.25
        return pixels.contiguous(memory_format=torch.channels_last), torch.tensor(found.targets)

    return Task(
        f"cifar{classes}",
        lambda: load_model("resnet18-cifar@none", num_classes=classes, seed=torch.initial_seed()).model,
        part(True), part(False), epochs=30 if full else 1.5, batch=128, score_name="test accuracy, %",
        higher_is_better=True, flip=True, probe_samples=2048 if full else 512,
    )  # fmt: skip


def text(file: Path, full: bool) -> Task:
    """A small GPT-2 on the characters of a text file; the last tenth is the test."""
    content = file.read_text(encoding="utf-8")
    places = {char: i for i, char in enumerate(sorted(set(content)))}
    ids = torch.tensor([places[char] for char in content])
    block, width, depth = (256, 384, 6) if full else (64, 64, 2)
    n = (len(ids) - 1) // block
    x, y = (ids[shift : shift + n * block].view(n, block) for shift in (0, 1))
    cut = n * 9 // 10
    size = (x[cut:], y[cut:]) if full else (x[cut : cut + 512], y[cut : cut + 512])
    return Task(
        "text", lambda: MiniGPT(len(places), block, width, depth), (x[:cut], y[:cut]), size,
        epochs=10 if full else 0.34, batch=32 if full else 16,
        score_name="test loss, nats per character", higher_is_better=False,
        top_k=12, probe_samples=512 if full else 256, curvature_samples=512 if full else 64,
        adaptive=(128, 16, 8, 2),
    )  # fmt: skip


class CausalSelfAttention(nn.Module):
    """Fused q, k, v by ``c_attn``, as in GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Forward pass."""
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(d, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """Forward pass."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class MiniGPT(nn.Module):
    """A small GPT-2 with an untied head."""

    def __init__(self, vocabulary: int, block: int, width: int, depth: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(block, width)
        self.h = nn.ModuleList(Block(width, max(2, width // 64)) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                nn.init.normal_(p, std=0.02 / (2 * depth) ** 0.5 if name.endswith("c_proj.weight") else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Forward pass."""
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))
