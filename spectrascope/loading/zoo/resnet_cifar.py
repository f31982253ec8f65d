"""CIFAR ResNets with parameter-free shortcuts: depth 6n+2, three stages of 16, 32 and 64 channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CifarResNet", "cifar_resnet"]


class _ResidualBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters (option A of He et al. 2016).

    Where the stage changes, the shortcut keeps every second pixel and pads the new channels with zeros, half
    of them before and half after the old ones, which is the layout the published checkpoints were trained
    with.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, in_channels, h, w) to (b, channels, ⌈h/stride⌉, ⌈w/stride⌉)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """Stem, three stages of ``depth`` blocks, global average, one linear head named ``linear``."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, depth, stride=1)
        self.layer2 = self._stage(16, 32, depth, stride=2)
        self.layer3 = self._stage(32, 64, depth, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, depth: int, stride: int) -> nn.Sequential:
        first = _ResidualBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(_ResidualBlock(channels, channels, 1) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to logits (b, num_classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def cifar_resnet(layers: int, num_classes: int = 10) -> CifarResNet:
    """Build CIFAR ResNet-``layers``; ``layers`` is 20, 32, 44, 56, 110 or any other 6n + 2.

    Raises:
        ValueError: ``layers`` is not 6n + 2.
    """
    if layers < 8 or (layers - 2) % 6:
        raise ValueError(f"a CIFAR ResNet has 6n + 2 layers, not {layers}")
    return CifarResNet((layers - 2) // 6, num_classes)
