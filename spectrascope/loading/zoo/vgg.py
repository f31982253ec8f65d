"""VGG-11 and VGG-16 for 32×32 images, with and without BatchNorm, with one linear head 512 → classes."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["CifarVgg", "cifar_vgg"]

# Channels of the 3×3 convolutions, stage by stage; a 2×2 max-pool ends each stage.
_STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


class CifarVgg(nn.Module):
    """Convolutions in ``features``, the mean over what is left of the image, and ``classifier``."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], batch_norm: bool, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in stages:
            for width in stage:
                layers.append(nn.Conv2d(channels, width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU())
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (b, 3, h, w), h and w at least 32, to logits (b, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return logits


def cifar_vgg(layers: int, batch_norm: bool, num_classes: int = 10) -> CifarVgg:
    """Build VGG-11 or VGG-16.

    Raises:
        ValueError: another depth was asked for.
    """
    if layers not in _STAGES:
        raise ValueError(f"expected 11 or 16 layers, not {layers}")
    return CifarVgg(_STAGES[layers], batch_norm, num_classes)
