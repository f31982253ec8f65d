"""The two linear layers of a transformer block, shared by the built-in transformers."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """``down(gelu(up(x)))``, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, t, width) to the same."""
        out: Tensor = self.down(F.gelu(self.up(x)))
        return out
