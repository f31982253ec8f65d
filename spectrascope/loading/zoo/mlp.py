"""Multilayer perceptrons of chosen widths, named ``mlp:784-256-128-10``."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Mlp", "image_shape", "parse_widths"]


class Mlp(nn.Module):
    """Linear maps ``layers.0``, ``layers.1``, … with ReLU between them; images are flattened."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, …) with widths[0] values per sample to (b, widths[-1])."""
        x = x.flatten(1)
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x


def parse_widths(name: str) -> tuple[int, ...] | None:
    """Read the widths out of ``mlp:WIDTHS``; ``None`` where the name is not of that form.

    >>> parse_widths("mlp:784-256-10")
    (784, 256, 10)
    """
    kind, _, widths = name.partition(":")
    parts = widths.split("-")
    if kind != "mlp" or len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        return None
    return tuple(int(part) for part in parts)


def image_shape(n_inputs: int) -> tuple[int, int, int]:
    """Guess (channels, height, width) of the flattened image: square, colour before grey, else one row.

    >>> image_shape(3072), image_shape(784), image_shape(20)
    ((3, 32, 32), (1, 28, 28), (1, 1, 20))
    """
    for channels in (3, 1):
        side = math.isqrt(n_inputs // channels)
        if channels * side * side == n_inputs:
            return channels, side, side
    return 1, 1, n_inputs
