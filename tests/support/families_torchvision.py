"""Every torchvision classification family at tiny size: same blocks, few channels, one or two blocks a stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from tests.support.family import CLASSES, Family, images


def narrowed(model: nn.Module, divisor: int) -> nn.Module:
    """Divide every channel count but the image's and the classes' by ``divisor``; groups keep their width."""

    def cut(n: int) -> int:
        if n in (3, CLASSES):
            return n
        assert n % divisor == 0, f"{n} channels / {divisor}"
        return n // divisor

    for name, module in list(model.named_modules()):
        new: nn.Module | None = None
        if isinstance(module, nn.Conv2d):
            new = nn.Conv2d(
                cut(module.in_channels), cut(module.out_channels), module.kernel_size, module.stride, module.padding,
                module.dilation, max(1, module.groups // divisor), module.bias is not None,
            )  # fmt: skip
        elif isinstance(module, nn.BatchNorm2d):
            new = nn.BatchNorm2d(cut(module.num_features), module.eps)
        elif isinstance(module, nn.Linear):
            new = nn.Linear(cut(module.in_features), cut(module.out_features), module.bias is not None)
        if new is not None:
            above, _, local = name.rpartition(".")
            setattr(model.get_submodule(above), local, new)
    return model


def narrow(build: Callable[[], nn.Module], divisor: int, *skip: str) -> Callable[[], nn.Module]:
    """Build on the meta device, replace the blocks named in ``skip`` (same shape in and out) and narrow the rest."""

    def run() -> nn.Module:
        with torch.device("meta"):
            model = build()
        for name in skip:
            above, _, local = name.rpartition(".")
            setattr(model.get_submodule(above), local, nn.Identity())
        return narrowed(model, divisor)

    return run


def _alexnet() -> nn.Module:
    from torchvision.models import AlexNet

    net = AlexNet(CLASSES)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier[1] = nn.Linear(256, 4096)
    return net


def _vgg(norm: bool) -> nn.Module:
    from torchvision.models import VGG, vgg

    net = VGG(vgg.make_layers(vgg.cfgs["A"], batch_norm=norm), CLASSES, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier[0] = nn.Linear(512, 4096)
    return net


def _resnet(block: str, **rest: int) -> nn.Module:
    from torchvision.models import resnet

    return resnet.ResNet(getattr(resnet, block), [1, 1, 1, 1], CLASSES, **rest)


def _densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(4, (2, 2, 1, 1), 8, 2, num_classes=CLASSES)


def _googlenet() -> nn.Module:
    from torchvision.models import GoogLeNet

    return GoogLeNet(CLASSES, aux_logits=False, init_weights=False)


def _inception() -> nn.Module:
    from torchvision.models import Inception3

    return Inception3(CLASSES, aux_logits=False, init_weights=False)


def _squeezenet(version: str) -> nn.Module:
    from torchvision.models import SqueezeNet

    return SqueezeNet(version, CLASSES)


def _shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 1, 2], [8, 8, 12, 16, 24], CLASSES)


def _mobilenet_v2() -> nn.Module:
    from torchvision.models import MobileNetV2

    blocks = [[1, 8, 1, 1], [2, 8, 2, 2], [3, 12, 1, 2]]
    net = MobileNetV2(CLASSES, 0.25, blocks)
    net.features[-1] = type(net.features[-1])(8, 24, kernel_size=1, activation_layer=nn.ReLU6)
    net.classifier[-1] = nn.Linear(24, CLASSES)
    return net


def _mobilenet_v3() -> nn.Module:
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    config = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    blocks = [
        config(8, 3, 8, 8, use_se=True, activation="RE", stride=1),
        config(8, 3, 16, 8, use_se=False, activation="RE", stride=2),
        config(8, 5, 16, 8, use_se=True, activation="HS", stride=1),
    ]
    return MobileNetV3(blocks, 16, CLASSES)


def _mnasnet() -> nn.Module:
    from torchvision.models import MNASNet

    return MNASNet(1.0, CLASSES)


def _efficientnet(version: int) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig

    if version == 1:
        blocks = [MBConvConfig(1, 3, 1, 8, 8, 1), MBConvConfig(2, 5, 2, 8, 8, 2)]
    else:
        blocks = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), FusedMBConvConfig(2, 3, 2, 8, 8, 1)]
        blocks.append(MBConvConfig(2, 3, 1, 8, 8, 1))
    return EfficientNet(blocks, 0.2, num_classes=CLASSES, last_channel=16)


def _regnet(se_ratio: float | None) -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    sizes = BlockParams([1, 1, 2, 1], [4, 8, 8, 12], [4, 4, 4, 4], [1.0] * 4, [2, 2, 2, 1], se_ratio)
    return RegNet(sizes, CLASSES, stem_width=4)


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(4, 6, 1), CNBlockConfig(6, 8, 2), CNBlockConfig(8, None, 1)], num_classes=CLASSES)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, 2, 2, 8, 12, num_classes=CLASSES)


def _swin(version: int) -> nn.Module:
    from torchvision.models import swin_transformer as swin

    extra = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if version == 2 else {}
    # 8 × 8 patches in windows of 4: the second block of a stage shifts them, under a mask.
    return swin.SwinTransformer([2, 2], 8, [2, 1], [2, 2], [4, 4], 2.0, num_classes=CLASSES, **extra)


def _maxvit() -> nn.Module:
    from torchvision.models import MaxVit

    return MaxVit((16, 16), 4, 2, [8, 8], [1, 1], 4, 0.0, expansion_ratio=2, mlp_ratio=2, num_classes=CLASSES)


def _family(model: Callable[[], nn.Module], size: int, *names: str, kinks: bool = True, seed: int = 0) -> Family:
    return Family("torchvision", model, images(size), names=names, kinks=kinks, seed=seed)


TORCHVISION: dict[str, Family] = {
    "alexnet": _family(narrow(_alexnet, 32), 64, "alexnet"),
    "convnext": _family(_convnext, 16, "convnext_*", kinks=False),
    "densenet": _family(_densenet, 32, "densenet*"),
    "efficientnet": _family(partial(_efficientnet, 1), 12, "efficientnet_b?", kinks=False),
    "efficientnet-v2": _family(partial(_efficientnet, 2), 12, "efficientnet_v2_?", kinks=False),
    "googlenet": _family(narrow(_googlenet, 8, "inception4b", "inception4c", "inception5a"), 32, "googlenet"),
    "inception": _family(narrow(_inception, 16, "Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e"), 75, "inception_v3"),
    "maxvit": _family(_maxvit, 16, "maxvit_t", kinks=False),
    "mnasnet": _family(
        narrow(_mnasnet, 8, *[f"layers.{i}.{j}" for i in range(8, 13) for j in (1, 2, 3) if (i, j) != (8, 1)]),
        16,
        "mnasnet*",
    ),
    "mobilenet-v2": _family(_mobilenet_v2, 12, "mobilenet_v2"),
    "mobilenet-v3": _family(_mobilenet_v3, 12, "mobilenet_v3_*"),
    "regnet-x": _family(partial(_regnet, None), 32, "regnet_x_*"),
    "regnet-y": _family(partial(_regnet, 0.25), 32, "regnet_y_*", seed=2),
    "resnet-basic": _family(narrow(partial(_resnet, "BasicBlock"), 16), 32, "resnet18", "resnet34"),
    "resnet-bottleneck": _family(narrow(partial(_resnet, "Bottleneck"), 16), 32, "resnet50", "resnet101", "resnet152"),
    "resnext": _family(narrow(partial(_resnet, "Bottleneck", groups=32, width_per_group=4), 16), 32, "resnext*"),
    "wide-resnet": _family(narrow(partial(_resnet, "Bottleneck", width_per_group=128), 16), 32, "wide_resnet*"),
    "shufflenet": _family(_shufflenet, 32, "shufflenet_v2_*"),
    "squeezenet-1.0": _family(narrow(partial(_squeezenet, "1_0"), 4), 32, "squeezenet1_0", seed=1),
    "squeezenet-1.1": _family(narrow(partial(_squeezenet, "1_1"), 4), 32, "squeezenet1_1", seed=1),
    "swin": _family(partial(_swin, 1), 16, "swin_[tsb]", kinks=False),
    "swin-v2": _family(partial(_swin, 2), 16, "swin_v2_?", kinks=True),
    "vgg": _family(narrow(partial(_vgg, False), 32), 32, "vgg??"),
    "vgg-bn": _family(narrow(partial(_vgg, True), 32), 32, "vgg??_bn"),
    "vit": _family(_vit, 16, "vit_*", kinks=False),
}
