"""Small training runs, with and without a monitor: a CNN with dropout and batch statistics, a mini GPT-2."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Hook = Callable[[int], None]


def small_cnn() -> nn.Module:
    """Dropout draws from the random state and batch norm keeps statistics: both would show a disturbance."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
    )


def image_task(n: int = 192) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of five classes, told apart by a fixed projection."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(n, 1, 8, 8, generator=generator)
    return images, (images.flatten(1) @ torch.randn(64, 5, generator=generator)).argmax(1)


def train_cnn(n_steps: int, make_hook: Callable[[nn.Module], Hook] | None = None) -> nn.Module:
    """Train from a fixed seed, calling the hook after every step."""
    torch.manual_seed(0)
    model = small_cnn()
    hook = make_hook(model) if make_hook else None
    images, labels = image_task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    model.train()
    for step in range(1, n_steps + 1):
        index = torch.randint(0, len(images), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[index]), labels[index]).backward()
        optimizer.step()
        if hook:
            hook(step)
    return model


def mini_gpt2() -> nn.Module:
    """Two layers of GPT-2 with its usual dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    torch.manual_seed(1)
    return GPT2LMHeadModel(config)


def token_blocks(n: int = 64, length: int = 12) -> torch.Tensor:
    """Sequences that count upwards from a random token."""
    start = torch.randint(0, 32, (n, 1), generator=torch.Generator().manual_seed(3))
    return (start + torch.arange(length)) % 32


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Every parameter and buffer equal bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
