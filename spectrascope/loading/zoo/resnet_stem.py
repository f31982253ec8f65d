"""ResNet-18/34/50 with the CIFAR stem: a 3×3 stride-1 convolution and no max-pool.

Parameter names are torchvision's (``layer1.0.downsample.0.weight``, ``fc.weight``), so the two families
differ in the shape of ``conv1.weight`` alone. Written here rather than derived from torchvision because
importing torchvision costs seconds that a checkpoint of this kind does not need.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["StemResNet", "resnet_stem"]

_STAGES: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
}


class _Residual(nn.Module):
    """A residual block; ``bottleneck`` is 1×1, 3×3, 1×1 with four times the channels out."""

    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out_channels)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
        self.bottleneck = bottleneck
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to the shortcut and rectify."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.bottleneck:
            out = self.bn3(self.conv3(F.relu(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class StemResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels on a stem that keeps the resolution."""

    def __init__(self, blocks: tuple[int, int, int, int], bottleneck: bool, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        expansion = 4 if bottleneck else 1
        channels = 64
        stages = []
        for stage, depth in enumerate(blocks):
            width = 64 << stage
            layers = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                layers.append(_Residual(channels, width, stride, bottleneck))
                channels = width * expansion
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 3, h, w) to logits (b, num_classes)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.fc(out.mean(dim=(2, 3)))
        return logits


def resnet_stem(layers: int, num_classes: int = 10) -> StemResNet:
    """Build ResNet-18, 34 or 50 with the CIFAR stem.

    Raises:
        ValueError: another depth was asked for.
    """
    if layers not in _STAGES:
        raise ValueError(f"expected 18, 34 or 50 layers, not {layers}")
    blocks, bottleneck = _STAGES[layers]
    return StemResNet(blocks, bottleneck, num_classes)
