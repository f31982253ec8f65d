"""The network of the embedded default: a small CNN for 8×8 grey digits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DigitsCnn"]


class DigitsCnn(nn.Module):
    """Three 3×3 convolutions (16, 32, 64 channels), the mean over the image, two linear maps.

    ReLU throughout and no BatchNorm, so that every weight can be read without folding in running statistics.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64, 48)
        self.fc2 = nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 1, h, w), h and w at least 4, to logits (b, num_classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x)).mean(dim=(2, 3))
        logits: Tensor = self.fc2(F.relu(self.fc1(x)))
        return logits
