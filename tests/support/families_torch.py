"""Plain PyTorch networks, one per operation or habit that an engine can get wrong, and timm where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectrascope.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from spectrascope.workload import LossFunction
from tests.support.case_networks import Net, let
from tests.support.family import CAUSAL, CLASSES, LENGTH, VOCABULARY, Family, N, causal, images, sequences, vectors


def _net(forward: Callable[[Any, Tensor], Any], **parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(forward, **{name: build() for name, build in parts.items()})


def linear(n: int, m: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(n, m)


def _vectors(forward: Callable[[Any, Tensor], Any], **parts: Any) -> Family:
    """Vectors of 6 through ``forward``."""
    rest = {name: parts.pop(name) for name in ("loss", "fallback", "kinks", "batch", "surrogate") if name in parts}
    return Family("torch", _net(forward, **parts), rest.pop("batch", vectors()), **rest)


def _images(forward: Callable[[Any, Tensor], Any], size: int = 8, **parts: Any) -> Family:
    return _vectors(forward, batch=images(size), **parts)


def _sequences(forward: Callable[[Any, Tensor], Any], **parts: Any) -> Family:
    return _vectors(forward, batch=sequences(), **parts)


def _through(act: Callable[[Tensor], Tensor], **rest: Any) -> Family:
    """Three linear layers with an activation between them."""
    return _vectors(
        lambda s, x: s.c(act(s.b(act(s.a(x))))), a=linear(6, 6), b=linear(6, 6), c=linear(6, CLASSES), **rest
    )


def _with_loss(loss: LossFunction, targets: Callable[[], Tensor], out: int = CLASSES, **rest: Any) -> Family:
    model = _net(lambda s, x: s.b(torch.tanh(s.a(x))), a=linear(6, 5), b=linear(5, out))
    return Family("torch", model, lambda: (torch.randn(N, 6, dtype=torch.float64), targets()), loss, **rest)


class _Cube(torch.autograd.Function):
    """A twice differentiable function that only autograd sees through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.pow(3) / 3 + x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x * x + 1)


class _StraightThrough(torch.autograd.Function):
    """Its backward is not the derivative of its forward, so only autograd's word counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * torch.tanh(x)


def _slice_assigned(s: nn.Module, x: Tensor) -> Tensor:
    h = s.a(x)
    h[:, :2] *= 2 * torch.sigmoid(h[:, 2:4])
    return s.b(h)


def _preallocated(s: nn.Module, x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 6)
    for i in range(2):
        out[:, 3 * i : 3 * i + 3] = torch.tanh(s.a(x[:, i : i + 5]))
    return s.b(out)


def _in_place(s: nn.Module, x: Tensor) -> Tensor:
    h = F.silu(s.a(x), inplace=True)
    h = h + s.b(h).tanh_()
    h.mul_(torch.sigmoid(s.c(x))).add_(x, alpha=0.5)
    h = F.elu_(s.b(h).sub_(0.3))
    return s.d((h + x).exp_())


def _at_three_depths(s: nn.Module, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + torch.tanh(s.norm(s.a(x)))
    return s.b(x)


def _checkpointed(s: nn.Module, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    h = checkpoint(lambda y: F.gelu(s.a(y)) * torch.sigmoid(s.b(y)), x, use_reentrant=False)
    return s.c(h)


def _attention_by_einsum(s: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (part(x).unflatten(-1, (2, 3)) for part in (s.q, s.k, s.v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / 3**0.5
    future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return s.head(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2).mean(1))


def _fused_attention(**kinds: Any) -> Callable[[Any, Tensor], Tensor]:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        q, k, v = s.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        mask = kinds.get("mask")
        if mask == "learned":
            mask = s.bias.weight.unflatten(0, (1, 1, LENGTH))
        elif mask is not None:
            mask = torch.arange(LENGTH)[:, None] >= torch.arange(LENGTH)[None] - 1
        y = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=kinds.get("causal", False), scale=kinds.get("scale")
        )
        return s.head(torch.tanh(s.out(y.transpose(1, 2).flatten(2)) + x).mean(1))

    return run


_FUSED: dict[str, Any] = {"qkv": linear(6, 18), "out": linear(6, 6), "head": linear(6, CLASSES)}


def _grouped_queries(s: nn.Module, x: Tensor) -> Tensor:
    q = s.q(x).unflatten(-1, (4, 3)).transpose(1, 2)
    k, v = (part(x).unflatten(-1, (2, 3)).transpose(1, 2) for part in (s.k, s.v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return s.head(y.transpose(1, 2).flatten(2).mean(1))


def _cross_attention(s: nn.Module, x: Tensor) -> Tensor:
    y, _ = s.att(x[:, :2], x, x, need_weights=False)
    return s.head(torch.tanh(y + s.mid(x[:, :2])).flatten(1))


def _rotary_complex(s: nn.Module, x: Tensor) -> Tensor:
    angles = torch.arange(LENGTH, dtype=x.dtype)[:, None] * torch.tensor([1.0, 0.3, 0.1], dtype=x.dtype)
    turns = torch.polar(torch.ones_like(angles), angles)
    q, k = (
        torch.view_as_real(torch.view_as_complex(p(x).unflatten(-1, (3, 2))) * turns).flatten(2) for p in (s.q, s.k)
    )
    return s.head(F.scaled_dot_product_attention(q[:, None], k[:, None], x[:, None])[:, 0].mean(1))


def _experts(s: nn.Module, x: Tensor) -> Tensor:
    shares, chosen = s.gate(x).softmax(-1).topk(2, -1)
    out = torch.zeros_like(x)
    for number, expert in enumerate((s.one, s.two, s.three)):
        row, place = torch.where(chosen == number)
        if len(row):
            out.index_add_(0, row, F.gelu(expert(x[row])) * shares[row, place, None])
    return s.head(out + x)


def _tied() -> nn.Module:
    net = Net(
        lambda s, x: s.head(s.norm(let(s.table(x), lambda e: e + F.gelu(s.mid(e.cumsum(1) / LENGTH))))),
        table=nn.Embedding(VOCABULARY, 6),
        mid=nn.Linear(6, 6),
        norm=nn.LayerNorm(6),
        head=nn.Linear(6, VOCABULARY, bias=False),
    )
    net.head.weight = net.table.weight
    return net


def _transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 10, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(6), enable_nested_tensor=False)
    return Net(lambda s, x: s.head(s.encoder(x).mean(1)), encoder=encoder, head=nn.Linear(6, CLASSES))


def _transformer_post_norm() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 10, activation="gelu", batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2)
    return Net(
        lambda s, x: s.head(s.encoder(x, mask=mask, is_causal=True)[:, -1]), encoder=encoder, head=nn.Linear(6, CLASSES)
    )


def _recurrent(kind: Callable[..., nn.Module], **rest: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = kind(6, 5, batch_first=True, **rest)
        width = 10 if rest.get("bidirectional") else 5
        return Net(lambda s, x: s.head(s.rnn(x)[0].mean(1)), rnn=net, head=nn.Linear(width, CLASSES))

    return build


def _weighted(output: Tensor, targets: Tensor) -> Tensor:
    """A loss of the user's own, with curvature of its own."""
    likely = output.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return (likely.exp() - likely).square().mean() + 0.01 * output.square().mean()


def _pixels() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 3, 6, 6, dtype=torch.float64), torch.randint(0, CLASSES, (N, 6, 6))


def _segmenter() -> nn.Module:
    return Net(
        lambda s, x: s.head(F.interpolate(F.silu(s.up(F.gelu(s.a(x)))), (6, 6), mode="bilinear")),
        a=nn.Conv2d(3, 4, 3, 2, 1),
        up=nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
        head=nn.Conv2d(6, CLASSES, 1),
    )


def _real(width: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, width, dtype=torch.float64) * 2


def _bits() -> Tensor:
    return (torch.rand(N, 3) > 0.5).double()


TORCH: dict[str, Family] = {
    # recurrent and attention modules
    "lstm": Family("torch", _recurrent(nn.LSTM, num_layers=2), sequences()),
    "lstm-bidirectional": Family("torch", _recurrent(nn.LSTM, bidirectional=True), sequences()),
    "gru": Family("torch", _recurrent(nn.GRU), sequences()),
    "transformer-encoder": Family("torch", _transformer, sequences()),
    "transformer-encoder-post-norm": Family("torch", _transformer_post_norm, sequences()),
    "multihead-attention": _sequences(
        lambda s, x: s.head(torch.tanh(s.att(x, x, x)[0]).mean(1)),  # with weights: no fused kernel
        att=lambda: nn.MultiheadAttention(6, 2, batch_first=True), head=linear(6, CLASSES),
    ),
    "cross-attention": _sequences(
        _cross_attention, att=lambda: nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True),
        mid=linear(6, 6), head=linear(12, CLASSES),
    ),
    "sdpa": _sequences(_fused_attention(), **_FUSED),
    "sdpa-causal": _sequences(_fused_attention(causal=True), **_FUSED),
    "sdpa-masked": _sequences(_fused_attention(mask="fixed", scale=0.9), **_FUSED),
    "sdpa-learned-bias": _sequences(
        _fused_attention(mask="learned"), **_FUSED, bias=lambda: nn.Embedding(LENGTH, LENGTH)
    ),
    "sdpa-grouped": _sequences(
        _grouped_queries, q=linear(6, 12), k=linear(6, 6), v=linear(6, 6), head=linear(12, CLASSES)
    ),
    "einsum-attention": _sequences(
        _attention_by_einsum, q=linear(6, 6), k=linear(6, 6), v=linear(6, 6), head=linear(6, CLASSES)
    ),
    "rotary-complex": replace(
        _sequences(_rotary_complex, q=linear(6, 6), k=linear(6, 6), head=linear(6, CLASSES)),
        fallback="complex numbers",
    ),
    # one weight in several places
    "three-depths": _vectors(_at_three_depths, a=linear(6, 6), norm=lambda: nn.LayerNorm(6), b=linear(6, CLASSES)),
    "tied-head": Family("torch", _tied, causal, CAUSAL),
    # losses
    "huber": _with_loss(nn.HuberLoss(delta=0.7), _real(3), 3, kinks=True),
    "smooth-l1": _with_loss(nn.SmoothL1Loss(beta=0.5), _real(3), 3, kinks=True),
    "bce": _with_loss(BinaryCrossEntropy(), _bits, 3),
    "mse": _with_loss(MeanSquaredError(), _real(3), 3),
    "label-smoothing": _with_loss(CrossEntropy(0.2), lambda: torch.arange(N) % CLASSES),
    "soft-labels": _with_loss(CrossEntropy(), lambda: torch.rand(N, CLASSES, dtype=torch.float64).softmax(-1)),
    "own-loss": _with_loss(_weighted, lambda: torch.arange(N) % CLASSES),
    "segmentation": Family("torch", _segmenter, _pixels),
    # activations, gates and products
    "glu": _vectors(lambda s, x: s.b(F.glu(s.a(x))), a=linear(6, 10), b=linear(5, CLASSES)),
    "swiglu": _vectors(
        lambda s, x: s.c(F.silu(s.a(x)) * s.b(x)), a=linear(6, 5), b=linear(6, 5), c=linear(5, CLASSES)
    ),
    "in-place": _vectors(
        _in_place, a=linear(6, 6), b=linear(6, 6), c=linear(6, 6), d=linear(6, CLASSES), kinks=True
    ),
    "gelu-tanh": _through(lambda x: F.gelu(x, approximate="tanh")),
    "hardswish": _through(F.hardswish, kinks=True),
    "hardsigmoid": _through(lambda x: x * F.hardsigmoid(x), kinks=True),
    "mish": _through(F.mish),
    "softplus": _through(lambda x: F.softplus(x, beta=2)),
    "elu-selu-celu": _through(lambda x: F.elu(x) + F.selu(x - 0.5) - F.celu(x, 0.7), kinks=True),
    "logsigmoid": _through(F.logsigmoid),
    "powers": _through(lambda x: (x.square() + 0.5).sqrt() / (2 + x * x).log() - x.pow(3) * (x * x + 1).pow(-1.5)),
    "sines": _through(lambda x: x.sin() * (2 * x).cos() + x.atan() + torch.erf(x)),
    "prelu": _vectors(
        lambda s, x: s.b(s.act(s.a(x)).square()), a=linear(6, 5), act=lambda: nn.PReLU(5), b=linear(5, CLASSES),
        kinks=True,
    ),
    "norms-of-vectors": _through(lambda x: F.normalize(x, dim=-1) + x / x.norm(dim=-1, keepdim=True).add(1)),
    "logsumexp-and-variance": _through(lambda x: x * x.logsumexp(-1, keepdim=True) / x.var(-1, keepdim=True).add(1)),
    "cosine": _vectors(
        lambda s, x: 5 * F.normalize(s.a(x), dim=-1) @ F.normalize(s.b.weight, dim=-1).T, a=linear(6, 5),
        b=linear(5, CLASSES),
    ),
    "bilinear": _vectors(
        lambda s, x: s.c(s.bilinear(s.a(x), s.b(x))), a=linear(6, 3), b=linear(6, 4),
        bilinear=lambda: nn.Bilinear(3, 4, 5), c=linear(5, CLASSES),
    ),
    "gather-and-scatter": _vectors(
        lambda s, x: let(
            torch.tanh(s.a(x)),
            lambda h: s.b(h.index_select(1, torch.tensor([3, 1, 1, 0])) * h.roll(2, 1)[:, :4].flip(1)),
        ),
        a=linear(6, 6), b=linear(4, CLASSES),
    ),
    "cumulative": _vectors(
        lambda s, x: s.b(torch.tanh(s.a(x)).cumsum(1) * torch.sigmoid(s.a(x)).cumprod(1)), a=linear(6, 6),
        b=linear(6, CLASSES),
    ),
    "routed-experts": _vectors(
        _experts, gate=linear(6, 3), one=linear(6, 6), two=linear(6, 6), three=linear(6, 6), head=linear(6, CLASSES)
    ),
    "constant-branch": _vectors(
        lambda s, x: s.b(torch.tanh(s.a(x)) * torch.sigmoid(s.a(x)).detach()), a=linear(6, 5), b=linear(5, CLASSES),
        surrogate=True,
    ),
    "checkpointed": _vectors(_checkpointed, a=linear(6, 5), b=linear(6, 5), c=linear(5, CLASSES)),
    # convolutions and normalisations
    "grouped-convolutions": _images(
        lambda s, x: s.fc(F.gelu(s.c(F.silu(s.b(torch.tanh(s.a(x)))))).mean((2, 3))), kinks=False,
        a=lambda: nn.Conv2d(3, 6, 3, 2, 1), b=lambda: nn.Conv2d(6, 6, 3, 1, 2, 2, groups=6),
        c=lambda: nn.Conv2d(6, 8, (1, 3), groups=2, bias=False), fc=linear(8, CLASSES),
    ),
    "transposed-convolutions": _images(
        lambda s, x: s.fc(F.gelu(s.b(F.silu(s.a(x)))).mean((2, 3))), size=4,
        a=lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, 1), b=lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        fc=linear(6, CLASSES),
    ),
    "convolutions-1d-3d": _images(
        lambda s, x: s.fc(F.silu(s.c(F.gelu(s.b(x[:, :, None])).mean(3).flatten(2))).mean(2)), size=6,
        b=lambda: nn.Conv3d(3, 4, (1, 3, 3)), c=lambda: nn.Conv1d(4, 5, 3, padding="same"), fc=linear(5, CLASSES),
    ),
    "group-norm": _images(
        lambda s, x: s.fc(F.silu(s.norm(s.b(F.gelu(s.a(x))))).mean((2, 3))), a=lambda: nn.Conv2d(3, 4, 3),
        b=lambda: nn.Conv2d(4, 6, 3), norm=lambda: nn.GroupNorm(2, 6), fc=linear(6, CLASSES),
    ),
    "instance-norm": _images(
        lambda s, x: s.fc(F.softplus(s.norm(s.b(F.gelu(s.a(x))))).mean((2, 3))), a=lambda: nn.Conv2d(3, 4, 3),
        b=lambda: nn.Conv2d(4, 6, 3), norm=lambda: nn.InstanceNorm2d(6, affine=True), fc=linear(6, CLASSES),
    ),
    "rms-norm": _vectors(
        lambda s, x: s.b(s.norm(F.silu(s.a(x)))), a=linear(6, 5), norm=lambda: nn.RMSNorm(5), b=linear(5, CLASSES)
    ),
    "local-response-norm": _images(
        lambda s, x: s.fc(F.local_response_norm(F.gelu(s.a(x)), 3, 0.5).mean((2, 3))), size=5,
        a=lambda: nn.Conv2d(3, 6, 3), fc=linear(6, CLASSES),
    ),
    "pools": _images(
        lambda s, x: s.fc(
            (F.max_pool2d(F.silu(s.a(x)), 2) * F.avg_pool2d(s.a(x), 2) + F.adaptive_avg_pool2d(x[:, :1], 4)).flatten(1)
        ),
        a=lambda: nn.Conv2d(3, 4, 3, padding=1), fc=linear(64, CLASSES), kinks=True,
    ),
    "squeeze-excite": _images(
        lambda s, x: let(
            F.silu(s.a(x)), lambda h: s.fc((h * torch.sigmoid(s.up(F.silu(s.down(h.mean((2, 3), True)))))).mean((2, 3)))
        ),
        a=lambda: nn.Conv2d(3, 6, 3), down=lambda: nn.Conv2d(6, 3, 1), up=lambda: nn.Conv2d(3, 6, 1),
        fc=linear(6, CLASSES),
    ),
    # beyond a recording of tensor operations
    "python-function": _vectors(
        lambda s, x: s.c(_Cube.apply(s.b(torch.tanh(s.a(x))))), a=linear(6, 5), b=linear(5, 5), c=linear(5, CLASSES),
        fallback="python autograd.Function",
    ),
    "straight-through": _vectors(
        lambda s, x: s.c(_StraightThrough.apply(s.b(torch.tanh(s.a(x))))), a=linear(6, 5), b=linear(5, 5),
        c=linear(5, CLASSES), fallback="python autograd.Function", surrogate=True,
    ),
    "slice-assigned": _vectors(_slice_assigned, a=linear(6, 5), b=linear(5, CLASSES), fallback="in-place write"),
    "preallocated": _vectors(_preallocated, a=linear(5, 3), b=linear(6, CLASSES), fallback="in-place write"),
}  # fmt: skip


def _timm(name: str, **rest: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=CLASSES, **rest)

    return build


_VIT: dict[str, Any] = {
    "img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5,
}  # fmt: skip

TIMM: dict[str, Family] = {
    "timm-vit": Family("timm", _timm("vit_tiny_patch16_224", **_VIT), images(16)),
    "timm-vit-layer-scale": Family(
        "timm", _timm("vit_tiny_patch16_224", **_VIT, init_values=0.1, qk_norm=True, global_pool="avg"), images(16)
    ),
} if find_spec("timm") else {}  # fmt: skip
