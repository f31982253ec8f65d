"""Named tiny workloads, and for each weight whether Gauss–Newton is exact there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectrascope.workload import TensorSource, Workload
from tests.support.case_networks import (
    Conv1D,
    Experts,
    Net,
    attention_net,
    batch_norm,
    classes,
    conv,
    conv_net,
    fan_out,
    fc,
    frozen,
    fused_conv1d,
    fused_qkv,
    huber_margin,
    images,
    labels,
    let,
    mask_then_overwritten,
    mlp,
    residual_in_place,
    se_block,
    shared_parallel,
    shared_sequence,
    shuffle,
    tied_tokens,
    two_convs,
    vectors,
)

__all__ = ["CASES", "Case", "Net", "batch_norm", "img", "labels", "let", "make_workload", "two_convs", "vec"]


@dataclass(frozen=True)
class Case:
    """One workload. ``smooth`` maps a weight to what the reason for double backprop must mention."""

    model: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    targets: Callable[[int], Tensor]
    loss: Callable = F.cross_entropy
    smooth: dict[str, str] | None = None


def make_workload(
    case: Case, n: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0, train: bool = False
) -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = case.model().to(dtype)
        inputs = case.inputs(n)
        targets = case.targets(n)
    if inputs.is_floating_point():
        inputs = inputs.double()
    return Workload(model.train(train), TensorSource(inputs, targets), case.loss, torch.device("cpu"), dtype)


def vec(model: Callable[[], nn.Module], out: int = 4, **rest) -> Case:
    return Case(model, vectors(6), rest.pop("targets", classes(out)), **rest)


def img(model: Callable[[], nn.Module], size: int = 6, channels: int = 3, out: int = 4, **rest) -> Case:
    return Case(model, images(channels, size), classes(out), **rest)


_norm2, _norm1 = nn.BatchNorm2d, nn.BatchNorm1d

CASES: dict[str, Case] = {
    "linear_only": vec(lambda: nn.Linear(6, 4)),
    "mlp_relu": vec(lambda: mlp(nn.ReLU())),
    "mlp_relu_in_place": vec(lambda: mlp(nn.ReLU(inplace=True))),
    "mlp_leaky": vec(lambda: mlp(nn.LeakyReLU(0.2))),
    "mlp_leaky_in_place": vec(lambda: mlp(nn.LeakyReLU(0.2, inplace=True))),
    "mlp_hardtanh": vec(lambda: mlp(nn.Hardtanh(-0.5, 0.4))),
    "mlp_relu6_in_place": vec(lambda: mlp(nn.Hardtanh(0.0, 0.5, inplace=True))),
    "mlp_no_bias": vec(lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False))),
    "mlp_batch_norm": vec(lambda: nn.Sequential(nn.Linear(6, 5), batch_norm(_norm1, 5), nn.ReLU(), nn.Linear(5, 4))),
    "batch_norm_last": vec(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), batch_norm(_norm1, 4))),
    "two_classes": vec(lambda: mlp(nn.ReLU(), 2), 2),
    "mse": vec(lambda: mlp(nn.ReLU(), 3), targets=lambda n: torch.randn(n, 3).double(), loss=F.mse_loss),
    "bce_1": vec(
        lambda: mlp(nn.ReLU(), 1),
        targets=lambda n: (torch.arange(n) % 2)[:, None].double(),
        loss=F.binary_cross_entropy_with_logits,
    ),
    "bce_3": vec(
        lambda: mlp(nn.ReLU(), 3),
        targets=lambda n: (torch.rand(n, 3) > 0.5).double(),
        loss=F.binary_cross_entropy_with_logits,
    ),
    "label_smoothing": vec(lambda: mlp(nn.ReLU()), loss=nn.CrossEntropyLoss(label_smoothing=0.2)),
    "soft_labels": vec(lambda: mlp(nn.ReLU()), targets=lambda n: torch.rand(n, 4).double()),
    "custom_loss": vec(lambda: mlp(nn.ReLU(), 3), targets=lambda n: torch.randn(n).double(), loss=huber_margin),
    "conv_stride": img(lambda: conv_net(conv(4, 6, stride=2), 6)),
    "conv_no_padding": img(lambda: conv_net(conv(4, 6, padding=0), 6)),
    "conv_dilation": img(lambda: conv_net(conv(4, 6, dilation=2, padding=2), 6)),
    "conv_groups": img(lambda: conv_net(conv(4, 6, groups=2, bias=False), 6)),
    "conv_depthwise": img(lambda: conv_net(conv(4, 4, groups=4), 4)),
    "conv_depth_multiplier": img(lambda: conv_net(conv(4, 8, groups=4, stride=2), 8)),
    "conv_uneven": img(lambda: conv_net(lambda: nn.Conv2d(4, 5, (1, 3), stride=(2, 1), padding=(0, 2)), 5)),
    "conv_same_even_kernel": img(lambda: conv_net(lambda: nn.Conv2d(4, 5, (2, 4), padding="same"), 5)),
    "conv_reflect": img(lambda: conv_net(conv(4, 5, padding_mode="reflect"), 5)),
    "conv_1x1_map": img(lambda: conv_net(lambda: nn.Conv2d(4, 5, 6), 5)),
    "conv_batch_norm": img(lambda: conv_net(lambda: nn.Sequential(conv(4, 6, bias=False)(), batch_norm(_norm2, 6)), 6)),
    "conv_groups_batch_norm": img(
        lambda: conv_net(lambda: nn.Sequential(conv(4, 6, groups=2)(), batch_norm(_norm2, 6, affine=False)), 6)
    ),
    "conv_batch_norm_twice": img(
        lambda: conv_net(
            lambda: nn.Sequential(
                batch_norm(_norm2, 4), nn.ReLU(), conv(4, 6)(), batch_norm(_norm2, 6), batch_norm(_norm2, 6)
            ),
            6,
            nn.LeakyReLU(0.1),
        )
    ),
    "conv_batch_norm_pools": img(
        lambda: conv_net(
            lambda: nn.Sequential(conv(4, 6)(), batch_norm(_norm2, 6), nn.MaxPool2d(3, 2, 1), nn.Hardtanh()), 6
        )
    ),
    "conv1d": Case(
        lambda: Net(
            lambda s, x: s.fc(F.relu(s.bn(s.b(F.relu(s.a(x))))).flatten(1)),
            a=nn.Conv1d(3, 4, 3, padding=1),
            b=nn.Conv1d(4, 4, 3, stride=2, groups=2),
            bn=batch_norm(_norm1, 4),
            fc=nn.Linear(8, 3),
        ),
        lambda n: torch.randn(n, 3, 6),
        classes(3),
    ),
    "conv1d_max_pool_branch": Case(
        lambda: Net(
            lambda s, x: s.fc((F.max_pool1d(F.relu(s.a(x)), 2) + F.relu(s.b(x))).flatten(1)),
            a=nn.Conv1d(3, 4, 3, padding=1),
            b=nn.Conv1d(3, 4, 3, stride=2, padding=1),
            fc=nn.Linear(12, 3),
        ),
        lambda n: torch.randn(n, 3, 6),
        classes(3),
    ),
    "conv3d": Case(
        lambda: Net(
            lambda s, x: s.fc(F.max_pool3d(F.relu(s.a(x)), 2).flatten(1)), a=nn.Conv3d(2, 3, 2), fc=nn.Linear(3, 3)
        ),
        lambda n: torch.randn(n, 2, 3, 3, 3),
        classes(3),
    ),
    "residual": img(
        two_convs(
            lambda s, x: let(F.relu(s.a(x)), lambda h: s.fc(F.relu(s.bn(s.b(h)) + h).mean((2, 3)))),
            b=conv(bias=False),
            bn=lambda: batch_norm(_norm2, 4),
            fc=fc(),
        )
    ),
    "residual_in_place": img(
        two_convs(residual_in_place, b=conv(), bn=lambda: batch_norm(_norm2, 4), c=conv(), fc=fc())
    ),
    "mask_then_overwritten": img(two_convs(mask_then_overwritten, b=conv(3, 4), fc=fc())),
    "shuffle_split_pad_slice": img(two_convs(shuffle, b=conv(2, 2), fc=fc(112, 4))),
    "avg_pool": img(
        two_convs(lambda s, x: s.fc(F.avg_pool2d(F.relu(s.a(x)), 3, 2, 1, True, False).flatten(1)), fc=fc(64, 4)),
        size=7,
    ),
    "max_pool_ceil": img(
        two_convs(lambda s, x: s.fc(F.max_pool2d(s.a(x), 3, 2, ceil_mode=True).flatten(1)), fc=fc(36, 4))
    ),
    "adaptive_pools": img(
        two_convs(
            lambda s, x: s.fc((F.adaptive_max_pool2d(F.relu(s.a(x)), 2) + F.adaptive_avg_pool2d(s.b(x), 2)).flatten(1)),
            b=conv(3, 4),
            fc=fc(16, 4),
        )
    ),
    "upsample": img(
        two_convs(
            lambda s, x: s.fc(s.b(F.interpolate(F.relu(s.a(x)), scale_factor=2, mode="bilinear")).mean((2, 3))),
            b=conv(),
            fc=fc(),
        )
    ),
    "transposed_conv_below": img(
        two_convs(
            lambda s, x: s.fc(F.relu(s.bn(s.t(F.relu(s.a(x))))).mean((2, 3))),
            t=lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
            bn=lambda: batch_norm(_norm2, 6),
            fc=fc(6),
        ),
        smooth={"t.weight": "transformed by convolution"},
    ),
    "scale_and_shift": vec(
        lambda: Net(
            lambda s, x: s.b((F.relu(s.a(x)) * s.gain - 0.3) * 2 / s.gain.abs().sum() + s.gain),
            a=nn.Linear(6, 5),
            gain=nn.Parameter(torch.randn(5)),
            b=nn.Linear(5, 4),
        )
    ),
    "maximum_abs_clamp": vec(
        lambda: Net(
            lambda s, x: s.c(torch.maximum(s.a(x), -s.b(x)).abs().clamp(0.2, 0.9) - s.b(x).clamp_min(0.1)),
            a=nn.Linear(6, 5),
            b=nn.Linear(6, 5),
            c=nn.Linear(5, 4),
        )
    ),
    "product_of_branches": vec(
        lambda: Net(
            lambda s, x: s.c(F.relu(s.a(x)) * s.b(x) + x[:, :5]),
            a=nn.Linear(6, 5),
            b=nn.Linear(6, 5),
            c=nn.Linear(5, 4),
        )
    ),
    "product_in_place": vec(
        lambda: Net(
            lambda s, x: s.c(s.a(x).mul_(F.relu(s.b(x)))), a=nn.Linear(6, 5), b=nn.Linear(6, 5), c=nn.Linear(5, 4)
        )
    ),
    "bilinear_pooling": img(
        two_convs(
            lambda s, x: s.fc(torch.bmm(F.relu(s.a(x)).flatten(2), s.b(x).flatten(2).transpose(1, 2)).flatten(1) / 36),
            b=conv(3, 3),
            fc=fc(12, 4),
        )
    ),
    "mask_by_comparison": vec(
        lambda: Net(
            lambda s, x: let(s.a(x), lambda h: s.b(h * (h > 0) + h.masked_fill(h > 0.3, 0.1))),
            a=nn.Linear(6, 5),
            b=nn.Linear(5, 4),
        )
    ),
    "relu_then_batch_norm_then_add": vec(
        lambda: Net(
            lambda s, x: s.b(s.bn(F.relu(s.a(x))) + F.hardtanh(s.a(x)) + s.bn(F.leaky_relu(s.a(x), 0.3))),
            a=nn.Linear(6, 5),
            bn=batch_norm(_norm1, 5),
            b=nn.Linear(5, 4),
        )
    ),
    "fan_out": vec(fan_out),
    "fused_qkv_on_single_rows": vec(fused_qkv),
    "fused_conv1d_on_single_rows": vec(fused_conv1d),
    "stacked_experts": vec(
        Experts,
        smooth={
            "gate.weight": "softmax",
            **{f"{part}_proj[{i}]": "before it is used" for part in ("up", "down") for i in range(2)},
        },
    ),
    "self_sum": vec(
        lambda: Net(lambda s, x: let(F.relu(s.a(x)), lambda h: s.b(h + h)), a=nn.Linear(6, 5), b=nn.Linear(5, 4))
    ),
    "shared_parallel": vec(shared_parallel),
    "shared_sequence": vec(shared_sequence, smooth={"a.weight": "multiplies two activations"}),
    "hf_conv1d": vec(lambda: nn.Sequential(Conv1D(5, 6), nn.ReLU(), Conv1D(4, 5))),
    "frozen_weight": vec(frozen),
    "gelu": vec(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)),
        smooth={"0.weight": "gelu"},
    ),
    "silu_tanh": vec(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4)),
        smooth={"0.weight": "silu", "2.weight": "tanh"},
    ),
    "layer_norm": vec(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4)), smooth={"0.weight": "layer_norm"}
    ),
    "squeeze_excite": img(
        se_block(torch.sigmoid), smooth={"a.weight": "", "down.weight": "sigmoid", "up.weight": "sigmoid"}
    ),
    "attention": Case(
        attention_net,
        lambda n: torch.randn(n, 3, 4),
        classes(3),
        smooth={
            "att.in_proj_weight[q]": "scaled_dot_product|softmax|one row",
            "att.in_proj_weight[k]": "scaled_dot_product|softmax|one row",
            "att.in_proj_weight[v]": "scaled_dot_product|softmax|one row|transformed",
            "att.out_proj.weight": "more than one row per sample",
        },
    ),
    "conv_transpose": img(
        lambda: Net(
            lambda s, x: s.fc(F.relu(s.t(x)).mean((2, 3))), t=nn.ConvTranspose2d(3, 4, 3, stride=2), fc=nn.Linear(4, 4)
        ),
        smooth={"t.weight": "convolution"},
    ),
    "tied_tokens": Case(
        tied_tokens,
        lambda n: torch.arange(n * 3).reshape(n, 3) * 5 % 7,
        classes(7),
        smooth={"table.weight": "embedding"},
    ),
    "linear_on_tokens": Case(
        lambda: Net(lambda s, x: s.b(F.relu(s.a(x)).mean(1)), a=nn.Linear(4, 5), b=nn.Linear(5, 3)),
        lambda n: torch.randn(n, 3, 4),
        classes(3),
        smooth={"a.weight": "more than one row per sample"},
    ),
}
