"""Small networks of the kinds the paper measures, trained here in minutes: every seed, size and step is in this file.

Without ``--shared`` all data are what spectrascope ships: the 1 797 digits, and the text of its own pages. With it,
CIFAR-10 images and trained ResNets, Tiny-ImageNet's validation images, and tinyshakespeare.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model

BLOCK = 32
"""Characters of a sample of text."""


@dataclass(frozen=True)
class Data:
    """Samples, and which loss they are for."""

    inputs: Tensor
    targets: Tensor
    classes: int

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Recipe:
    """How a network is made: built, and trained for so many steps of AdamW with a seed.

    ``measured`` are other samples than the trained ones, where it is measured on such; ``at_most`` so many of them, and
    ``layers`` the weights alone that are looked at, of networks that are large for a CPU. Kronecker ``factors`` are
    left out where nothing is asked of them.
    """

    name: str
    build: Callable[[Data], nn.Module]
    data: Callable[[Path | None], Data]
    steps: int
    batch: int = 64
    rate: float = 3e-3
    seed: int = 0
    flip: bool = False
    measured: Callable[[Path | None], Data] | None = None
    at_most: int | None = None
    layers: tuple[str, ...] = ()
    factors: bool = True

    def train(self, shared: Path | None, device: str = "cpu") -> nn.Module:
        """Build and train; the same on every run."""
        data = self.data(shared)
        torch.manual_seed(self.seed)
        model = self.build(data).to(device)
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(self.steps, 1))
        model.train()
        for _ in range(self.steps):
            chosen = torch.randint(len(data), (self.batch,), generator=generator)
            inputs = data.inputs[chosen]
            if self.flip:
                mirrored = torch.rand(self.batch, generator=generator) < 0.5
                inputs = torch.where(mirrored[:, None, None, None], inputs.flip(-1), inputs)
            optimizer.zero_grad()
            loss_of(model(inputs.to(device)), data.targets[chosen].to(device)).backward()
            optimizer.step()
            schedule.step()
        return model.eval().cpu()


loss_of = nn.CrossEntropyLoss()
"""Of classes, (N, C), or of the next character, (N, C, T)."""


# -- data ---------------------------------------------------------------------------------------------------------


def digits(_: Path | None = None) -> Data:
    """The embedded 8 × 8 digits, in their own order."""
    with resources.files("spectrascope.data").joinpath("digits.npz").open("rb") as file, np.load(file) as packed:
        images = torch.from_numpy(packed["images"].astype(np.float32) / 16)
        return Data((images.unsqueeze(1) - 0.305) / 0.376, torch.from_numpy(packed["targets"].astype(np.int64)), 10)


def pairs(classes: int) -> Callable[[Path | None], Data]:
    """Two digits side by side, 8 × 16: 100 classes of both, or 10 of the left one alone."""

    def make(_: Path | None = None) -> Data:
        one = digits()
        order = torch.randperm(len(one), generator=torch.Generator().manual_seed(1))
        left, right = one.targets, one.targets[order]
        images = torch.cat([one.inputs, one.inputs[order]], dim=3)
        return Data(images, left * 10 + right if classes == 100 else left, classes)

    return make


def characters(shared: Path | None) -> tuple[Tensor, int]:
    """A text as numbers of characters, and how many there are."""
    if shared is not None:
        text = (shared / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:400_000]
    else:
        pages = resources.files("spectrascope.data").joinpath("explain")
        files = [file for folder in ("guides", "terms") for file in pages.joinpath(folder).iterdir()]
        text = "".join(file.read_text(encoding="utf-8") for file in sorted(files, key=lambda file: file.name))
    known = {char: number for number, char in enumerate(sorted(set(text)))}
    return torch.tensor([known[char] for char in text]), len(known)


def text(shared: Path | None) -> Data:
    """Blocks of text, each to be continued by one character."""
    ids, n = characters(shared)
    blocks = ids[: (len(ids) - 1) // BLOCK * BLOCK].view(-1, BLOCK)
    following = ids[1 : blocks.numel() + 1].view(-1, BLOCK)
    return Data(blocks, following, n)


def scrambled(shared: Path | None) -> Data:
    """Blocks of text as they are, or with their characters in another order: two classes."""
    data = text(shared)
    generator = torch.Generator().manual_seed(2)
    blocks, labels = data.inputs.clone(), torch.arange(len(data)) % 2
    for i in labels.nonzero().flatten().tolist():
        blocks[i] = blocks[i][torch.randperm(BLOCK, generator=generator)]
    return Data(blocks, labels, 2)


@cache
def images(shared: Path | None) -> Data:
    """CIFAR-10 test images as the shared ResNets read them; the digits where they are not here."""
    if shared is None:
        return digits()
    from PIL import Image

    folder = shared / "data" / "cifar10-test"
    names = sorted(path.name for path in folder.iterdir())
    found = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    pixels = torch.stack([_pixels(Image.open(found[i][0]).convert("RGB")) for i in order])
    return Data(pixels, torch.tensor([found[i][1] for i in order]), 10)


@cache
def tiny_images(shared: Path | None) -> Data:
    """Tiny-ImageNet's validation images at 32 × 32 pixels, 200 classes."""
    if shared is None:
        raise LookupError("images of 200 classes are not embedded: --shared or --full")
    loaded = load_model("vgg11-cifar@none", num_classes=200)
    source = load_dataset(f"tiny-imagenet:{shared / 'data'}", loaded, num_samples=10_000, seed=0).source
    inputs, targets = source.fetch(0, source.n)
    return Data(inputs, targets, 200)


def _pixels(image: object) -> Tensor:
    table = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (table - mean[:, None, None]) / std[:, None, None]


# -- networks -----------------------------------------------------------------------------------------------------


def mlp(*widths: int) -> Callable[[Data], nn.Module]:
    """Linear layers with ReLU between them."""

    def build(data: Data) -> nn.Module:
        sizes = [data.inputs[0].numel(), *widths, data.classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for n, m in pairwise(sizes):
            layers += [nn.Linear(n, m), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return build


def vgg(*widths: int) -> Callable[[Data], nn.Module]:
    """Two 3 × 3 convolutions of each width with ReLU, then a 2 × 2 max-pool; one linear head on the mean of pixels."""

    def build(data: Data) -> nn.Module:
        layers: list[nn.Module] = []
        channels = data.inputs.shape[1]
        for width in widths:
            for n in (channels, width):
                layers += [nn.Conv2d(n, width, 3, padding=1), nn.ReLU()]
                nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            layers.append(nn.MaxPool2d(2))
            channels = width
        parts = {"features": nn.Sequential(*layers), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
        return nn.Sequential(OrderedDict(parts | {"classifier": nn.Linear(channels, data.classes)}))

    return build


class Layer(nn.Module):
    """One transformer block, with or without LayerNorm and residual connections.

    ``gated`` is LLaMA's: RMSNorm, and an MLP with a SiLU gate of 2.7 times the width.
    """

    def __init__(
        self, width: int, *, norm: bool, residual: bool, causal: bool, heads: int = 4, gated: bool = False
    ) -> None:
        super().__init__()
        kind = nn.RMSNorm if gated else nn.LayerNorm
        self.norm_1, self.norm_2 = (kind(width) if norm else nn.Identity() for _ in range(2))
        hidden = round(2.6875 * width) if gated else 4 * width
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gate = nn.Linear(width, hidden) if gated else None
        self.residual, self.causal, self.heads = float(residual), causal, heads

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same."""
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).reshape(n, t, width)
        x = self.residual * x + self.proj(mixed)
        y = self.norm_2(x)
        hidden = F.gelu(self.up(y)) if self.gate is None else F.silu(self.gate(y)) * self.up(y)
        return self.residual * x + self.down(hidden)


class Transformer(nn.Module):
    """A small GPT over characters, or a small ViT over 4 × 4 patches."""

    def __init__(
        self,
        data: Data,
        *,
        norm: bool = True,
        residual: bool = True,
        width: int = 48,
        depth: int = 2,
        heads: int = 4,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.of_text = not data.inputs.is_floating_point()
        length = data.inputs.shape[1] if self.of_text else data.inputs[0].numel() // 16
        self.one_label = data.targets.dim() == 1
        vocabulary = int(data.inputs.max()) + 1 if self.of_text else 0
        self.read: nn.Module = nn.Embedding(vocabulary, width) if self.of_text else nn.Linear(16, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        causal = self.of_text and not self.one_label
        kind = {"norm": norm, "residual": residual, "causal": causal, "gated": gated}
        self.blocks = nn.ModuleList(Layer(width, heads=heads, **kind) for _ in range(depth))
        self.norm: nn.Module = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, data.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, C) of the one label of a sample, or (N, C, T) of the next character at every place."""
        if not self.of_text:
            x = x.squeeze(1).unfold(1, 4, 4).unfold(2, 4, 4).flatten(1, 2).flatten(2)
        x = self.read(x) + self.places
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1)) if self.one_label else self.head(x).movedim(2, 1)


def transformer(**options: Any) -> Callable[[Data], nn.Module]:
    """A transformer of these :class:`Transformer` options."""
    return lambda data: Transformer(data, **options)


WIDTHS, SEEDS = (64, 128, 256, 512), range(5)
"""Of the networks of one hidden layer."""


def recipes(scale: float) -> dict[str, Recipe]:
    """Every network that is trained here; ``scale`` multiplies the steps."""
    n = max(1, round(400 * scale))
    conv = vgg(16, 32, 64)
    found = [
        Recipe("vgg", conv, images, n, rate=2e-3, flip=True),
        Recipe("vgg-untrained", conv, images, 0),
        Recipe("conv-200", conv, tiny_images, n, rate=2e-3, flip=True),
        Recipe("mlp", mlp(64, 64, 64), images, n),
        *(
            Recipe(f"mlp-{width}-seed-{seed}", mlp(width), images, n, seed=seed, factors=False)
            for width in WIDTHS
            for seed in SEEDS
        ),
        *(replace(recipe, at_most=512) for recipe in transformers(n)),
        *blocks(),
    ]
    return {recipe.name: recipe for recipe in found}


def transformers(n: int) -> list[Recipe]:
    """Small ones of text and of pairs of digits; curvature of smooth networks takes longer than of others."""
    return [
        Recipe("gpt", transformer(), text, n),
        Recipe("gpt-untrained", transformer(), text, 0),
        Recipe("gpt-no-norm", transformer(norm=False), text, n, rate=1e-3),
        Recipe("gpt-no-residual", transformer(residual=False), text, n, rate=1e-3),
        Recipe("gpt-classes", transformer(), scrambled, n),
        Recipe("vit-10", transformer(), pairs(10), n),
        Recipe("vit-100", transformer(), pairs(100), n),
    ]


def blocks() -> tuple[Recipe, Recipe]:
    """One block of ViT-Large at its width, and one of LLaMA-7B at an eighth of its width, with random weights."""
    large, llama = transformer(width=1024, depth=1, heads=16), transformer(width=512, depth=1, heads=4, gated=True)
    attention, feed_forward = ("*qkv*", "*proj*"), ("*gate*", "*up*", "*down*")
    return (
        Recipe("vit-large-block", large, pairs(10), 0, at_most=64, layers=attention, factors=False),
        Recipe("llama-block", llama, text, 0, at_most=64, layers=feed_forward, factors=False),
    )
