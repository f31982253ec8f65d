"""ViT-Tiny for 32×32 images: patches of 4×4, twelve pre-norm blocks of width 192 with three heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spectrascope.loading.zoo.feed_forward import FeedForward

__all__ = ["VitTiny"]

_WIDTH, _HEADS, _BLOCKS = 192, 3, 12
_IMAGE, _PATCH = 32, 4


class _EncoderBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.attn = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.mlp = FeedForward(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, t, width) to the same."""
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VitTiny(nn.Module):
    """Patches and a class token with learned positions, blocks, and a linear head on the class token's state."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, _PATCH, _PATCH)
        self.class_token = nn.Parameter(torch.empty(1, 1, _WIDTH))
        self.position_embedding = nn.Parameter(torch.empty(1, (_IMAGE // _PATCH) ** 2 + 1, _WIDTH))
        self.blocks = nn.ModuleList(_EncoderBlock() for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, num_classes)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 3, 32, 32) to logits (b, num_classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position_embedding
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits
