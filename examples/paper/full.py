"""Networks of the paper's size, for a GPU, and the whole CIFAR-10, CIFAR-100 and Tiny-ImageNet in their layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from examples.paper.networks import SEEDS, WIDTHS, Data, Recipe, mlp, scrambled, text, transformer
from spectrascope.loading.data.open import load_dataset
from spectrascope.loading.models.open import load_model

LAYOUT = {
    "cifar-10-batches-py": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar-100-python": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "tiny-imagenet-200": "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
}
"""Folders under ``--data``, and the archives that unpack to them."""

GPT = {"width": 384, "depth": 6, "heads": 6}


def require_data(root: Path) -> None:
    """Say in one line what is not there, and where it comes from.

    Raises:
        SystemExit: a folder is missing.
    """
    absent = [name for name in LAYOUT if not (root / name).is_dir()]
    if absent:
        wanted = "; ".join(f"{name} from {LAYOUT[name]}" for name in absent)
        raise SystemExit(
            f"--full reads whole datasets: unpack into {root}, or name another folder with --data: {wanted}"
        )


@cache
def cifar(root: Path, classes: int, train: bool) -> Data:
    """CIFAR-10 or CIFAR-100 from the official files, with the mean and deviation the shared ResNets read."""
    from torchvision.datasets import CIFAR10, CIFAR100

    found = (CIFAR10 if classes == 10 else CIFAR100)(str(root), train=train)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (torch.from_numpy(found.data).float() / 255 - mean) / std
    return Data(pixels.permute(0, 3, 1, 2).contiguous(), torch.tensor(found.targets), classes)


@cache
def tiny_imagenet(root: Path, train: bool) -> Data:
    """Tiny-ImageNet's training or validation images, 64 × 64."""
    loaded = load_model("resnet50-cifar@none", num_classes=200)
    name = f"tiny-imagenet:{root}:{'train' if train else 'val'}"
    source = load_dataset(name, loaded, num_samples=10**6, seed=0).source
    return Data(*source.fetch(0, source.n), 200)


def built_in(name: str) -> Callable[[Data], nn.Module]:
    """A network of the package by its name, with random weights of torch's seed."""
    return lambda data: load_model(f"{name}@none", num_classes=data.classes, seed=torch.initial_seed()).model


def full_recipes(scale: float, root: Path) -> dict[str, Recipe]:
    """The paper's networks: trained on training images, measured on test images. ``scale`` multiplies the steps."""

    def steps(n: int) -> int:
        return max(1, round(n * scale))

    def of(name: str, build: Callable[[Data], nn.Module], data: Callable[..., Data], n: int, seed: int = 0) -> Recipe:
        train, test = (partial(_ignoring_shared, data, root, part) for part in (True, False))
        return Recipe(name, build, train, n, batch=128, rate=1e-3, seed=seed, flip=True, measured=test)

    ten, hundred = (partial(_cifar_of, classes) for classes in (10, 100))
    found = [
        of("resnet18", built_in("resnet18-cifar"), ten, steps(11_700)),  # 30 epochs
        of("vgg", built_in("vgg11-bn-cifar"), ten, steps(11_700)),
        of("vgg-untrained", built_in("vgg11-bn-cifar"), ten, 0),
        of("conv-200", built_in("resnet50-cifar"), tiny_imagenet, steps(19_500)),  # 25 epochs
        of("vit-10", built_in("vit-tiny"), ten, steps(11_700)),
        of("vit-100", built_in("vit-tiny"), hundred, steps(11_700)),
        of("mlp", mlp(512, 512, 512), ten, steps(3_900)),
        *(of(f"mlp-{w}-seed-{seed}", mlp(w), ten, steps(1_950), seed) for w in WIDTHS for seed in SEEDS),
        Recipe("gpt", transformer(**GPT), text, steps(8_000), rate=1e-3),
        Recipe("gpt-untrained", transformer(**GPT), text, 0),
        Recipe("gpt-no-norm", transformer(norm=False, **GPT), text, steps(8_000), rate=3e-4),
        Recipe("gpt-no-residual", transformer(residual=False, **GPT), text, steps(8_000), rate=3e-4),
        Recipe("gpt-classes", transformer(**GPT), scrambled, steps(8_000), rate=1e-3),
    ]
    return {recipe.name: recipe for recipe in found}


def _cifar_of(classes: int, root: Path, train: bool) -> Data:
    return cifar(root, classes, train)


def _ignoring_shared(data: Callable[..., Data], root: Path, train: bool, shared: Path | None) -> Data:
    return data(root, train)
